"""Bring a checkpoint from the Hugging Face Hub to this machine, or find it in the local cache of the Hub.

Which files a model has is written down when the Hub is asked, so that the cache is used later as the Hub would have it,
whatever files are there: the same revision and dtype always stand for the same weights.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from sgi2v.config import ModelConfig
from sgi2v.errors import ModelError, SGI2VError, StorageError
from sgi2v.fetch import (
    COMPONENTS,
    DEFAULTS_FILE,
    DOWNLOAD_ATTEMPTS,
    EMBEDDED,
    cache_root,
    chosen_weights,
    files_digest,
    model_hint,
    prefers_half,
)
from sgi2v.retry import with_retries

_REASONS = {
    401: "the Hub wants a valid token (401)",
    403: "the Hub refuses access (403)",
    404: "the Hub has no such model or revision, or it is private (404)",
    429: "the Hub has had too many requests from here (429)",
}
_ADVICE = {
    401: "Check the name. Set HF_TOKEN, or run `hf auth login`; a gated model needs its licence accepted too.",
    403: "Accept the model's licence on its page, with the account whose HF_TOKEN is set.",
    404: "Check the name and the revision. A private model needs HF_TOKEN.",
    429: "Run the same command again in some minutes. Requests with HF_TOKEN have a higher limit.",
}
_UNREACHABLE_ADVICE = "Check the network, and run the same command again."
_SHOWN_FILES = 3
"""Missing files that a message names."""


@dataclass(frozen=True)
class Fetched:
    """A checkpoint's files on this machine."""

    path: Path
    """Their folder."""
    revision: str
    """The commit. Where the Hub may have other weight files that would be chosen, a digest of these files follows."""
    note: str | None = None
    """What the user should know: that the Hub was not asked, and why."""


@dataclass(frozen=True)
class _Cached(Fetched):
    missing: tuple[str, ...] = ()
    """Files that are needed, and are not in the cache."""


def is_commit(revision: str | None) -> bool:
    """Whether a revision is a whole commit hash, whose files never change."""
    return re.fullmatch(r"[0-9a-f]{40}", revision or "") is not None


def fetch_hub(config: ModelConfig, weights: bool) -> Fetched:
    """Download a snapshot from the Hub, or find it in the local cache.

    A commit that is in the cache is used without asking the Hub. Where the Hub cannot be reached or answers with an
    error, the cached revision is used, with a note. Of each component one variant of the weights is fetched; fp16 where
    the Hub has it and 32 bits were not asked for. Raises ModelError.
    """
    from filelock import FileLock

    if (pinned := _pinned_in_cache(config, weights)) is not None:
        return pinned  # without the lock: workers that start do not wait for each other, nor for a folder to write to
    lock = _records(config) / ".lock"
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(lock):
            return _pinned_in_cache(config, weights) or _fetch(config, weights)
    except OSError as error:  # of the lock
        cached = _cached(config, weights)
        if cached is not None and not cached.missing:  # a cache that is mounted to be read only
            return Fetched(cached.path, cached.revision, _used_because(config, cached, str(error)))
        raise ModelError(f"{config.source} could not be fetched from Hugging Face: {error}") from error


def _pinned_in_cache(config: ModelConfig, weights: bool) -> Fetched | None:
    """The commit that is asked for, if all its files are in the local cache."""
    cached = _cached(config, weights) if is_commit(config.revision) else None
    return cached if cached is not None and not cached.missing and cached.revision == config.revision else None


def _fetch(config: ModelConfig, weights: bool) -> Fetched:
    """The snapshot that the Hub says; the cached one if it does not answer."""
    cached = _cached(config, weights)
    is_whole = cached is not None and not cached.missing
    try:
        # with a whole snapshot in the cache nobody needs to wait for a Hub that fails
        return _from_hub(config, weights, attempts=1 if is_whole else DOWNLOAD_ATTEMPTS)
    except Exception as error:  # the Hub's own errors, its HTTP library's, the disk's
        cause = error.__cause__ if isinstance(error, (_FinalError, StorageError)) and error.__cause__ else error
        if cached is not None and not cached.missing:
            return Fetched(cached.path, cached.revision, _note(config, cached, cause))
        raise _failure(config, cached, cause) from cause


def _from_hub(config: ModelConfig, weights: bool, attempts: int) -> Fetched:
    """Ask the Hub for the revision and its files, and download those that are not in the cache yet."""
    from huggingface_hub import HfApi, snapshot_download

    def ask() -> tuple[str, list[str]]:
        try:
            info = HfApi().model_info(config.source, revision=config.revision)
        except Exception as error:
            if _is_transient(error):
                raise
            raise _FinalError from error
        assert info.sha is not None
        return info.sha, [sibling.rfilename for sibling in info.siblings or []]

    commit, names = with_retries(f"asking Hugging Face for {config.source}", ask, attempts)
    _write_record(config, commit, names)
    cached = _cached(config, weights)
    if cached is not None and cached.revision == commit and not cached.missing:
        return cached
    needed = _needed(names, config, weights)
    folder = snapshot_download(config.source, revision=commit, allow_patterns=needed)
    if config.revision != commit:
        # now the name of the branch leads to these files, also where the Hub cannot be asked; not before they are whole
        snapshot_download(config.source, revision=config.revision, allow_patterns=needed)
    return Fetched(Path(folder), commit)


def _cached(config: ModelConfig, weights: bool) -> _Cached | None:
    """The revision as it is in the local cache of the Hub; None if nothing of it is."""
    from huggingface_hub import try_to_load_from_cache

    found = (
        try_to_load_from_cache(config.source, f"{component}/{file}", revision=config.revision)
        for component, (file, _, _) in COMPONENTS.items()
    )
    file = next((path for path in found if isinstance(path, str)), None)
    if file is None:
        return None
    folder = Path(file).parents[1]
    commit = folder.name
    # a link to a file that was not copied along is none
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    names = _read_record(config, commit)
    if names is not None:
        missing = set(_needed(names, config, weights)) - present
        return _Cached(folder, commit, missing=tuple(sorted(missing)))
    missing = {f"{component}/{file}" for component, (file, _, _) in COMPONENTS.items()} - present
    chosen = chosen_weights(present, config)
    lacking = [component for component, (_, stem, _) in COMPONENTS.items() if stem and not chosen.get(component)]
    if weights:
        missing |= {f"{component}/{COMPONENTS[component][1]}.safetensors" for component in lacking}
    wanted = "fp16" if prefers_half(config) else None
    revision = commit
    if not lacking and any(variant != wanted for variant, _ in chosen.values()):
        # the Hub may have files that would be chosen in place of these
        files = [folder / name for _, names in chosen.values() for name in names]
        revision = f"{commit}+{files_digest(folder, files)[:12]}"
    return _Cached(folder, revision, missing=tuple(sorted(missing)))


def _needed(names: Collection[str], config: ModelConfig, weights: bool) -> list[str]:
    """The files to fetch. names: of all files of the model."""
    needed = [name for name in names if name == DEFAULTS_FILE]
    needed += [name for name in names if name.endswith(".json") and name.rpartition("/")[0] in COMPONENTS]
    if weights:
        needed += [name for _, files in chosen_weights(names, config).values() for name in files]
    return needed


def _records(config: ModelConfig) -> Path:
    """The folder with what the Hub has said about this model."""
    return cache_root() / "models" / config.source.replace("/", "--")


def _write_record(config: ModelConfig, commit: str, names: list[str]) -> None:
    """Write down the names of all files of a commit."""
    file = _records(config) / f"{commit}.json"
    partial = file.with_suffix(".partial")
    partial.write_text(json.dumps(sorted(names)))
    partial.replace(file)


def _read_record(config: ModelConfig, commit: str) -> list[str] | None:
    """The names of all files of a commit; None if the Hub has not been asked here, or the record is damaged."""
    with suppress(OSError, ValueError):
        names = json.loads((_records(config) / f"{commit}.json").read_text())
        if isinstance(names, list) and all(isinstance(name, str) for name in names):
            return names
    return None


class _FinalError(SGI2VError):
    """An answer that another attempt would only get again; it is the cause."""


def _status(error: BaseException) -> int | None:
    """The status of the Hub's answer; None if there was none."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _is_offline(error: BaseException) -> bool:
    """Whether the user has forbidden to ask the Hub."""
    from huggingface_hub.errors import OfflineModeIsEnabled

    return isinstance(error, OfflineModeIsEnabled)


def _is_transient(error: BaseException) -> bool:
    """Whether another attempt may succeed."""
    from huggingface_hub.errors import HFValidationError

    status = _status(error)
    if status is None:
        return not _is_offline(error) and not isinstance(error, HFValidationError)
    return status == 429 or status >= 500


def _reason(error: BaseException) -> str:
    """Why the Hub gave nothing, in words."""
    if _is_offline(error):
        return "HF_HUB_OFFLINE is set"
    status = _status(error)
    if status is None:
        described = " ".join(str(error).split())
        return f"the Hub did not answer ({type(error).__name__}: {described})"
    return _REASONS.get(status, f"the Hub failed ({status})")


def _note(config: ModelConfig, cached: Fetched, error: BaseException) -> str | None:
    """What to say when the cached revision is used; nothing where the user has asked for that."""
    if _is_offline(error):
        return None
    return _used_because(config, cached, _reason(error))


def _used_because(config: ModelConfig, cached: Fetched, reason: str) -> str:
    return f"{config.source}: {reason}, so the files in the local cache are used, at {cached.revision}"


def _failure(config: ModelConfig, cached: _Cached | None, error: BaseException) -> ModelError:
    """The error for a model that the Hub does not give and the cache does not have."""
    lines = [f"{config.source}{model_hint(config.source)} could not be fetched from Hugging Face: {_reason(error)}."]
    if cached is not None:
        shown = ", ".join(cached.missing[:_SHOWN_FILES]) + (", ..." if len(cached.missing) > _SHOWN_FILES else "")
        lines.append(f"The local cache lacks files that --dtype {config.dtype} needs: {shown}.")
    if _is_offline(error):
        lines.append("Unset HF_HUB_OFFLINE, or copy the model's folder from another machine.")
    else:
        lines.append(_ADVICE.get(_status(error) or 0, _UNREACHABLE_ADVICE))
    lines.append(f"--model also takes a local folder, a URL, or `{EMBEDDED}`, the small model that is in the package.")
    return ModelError("\n".join(lines))
