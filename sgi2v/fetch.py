"""Bring a checkpoint's files to this machine: from a folder, an fsspec store, or the Hugging Face Hub.

Nothing here knows what is in the files. Every way in gives a folder and a revision that changes with its contents.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Collection, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, BinaryIO

from sgi2v.config import ModelConfig
from sgi2v.errors import ModelError

EMBEDDED = "embedded"
"""The source that is inside the package."""
DEFAULTS_FILE = "sgi2v.json"
"""Optional file of a checkpoint: {"sampler": {...}, "guidance": {...}}, its own default settings."""

COMPONENTS: Mapping[str, tuple[str, str, str]] = {
    "unet": ("config.json", "diffusion_pytorch_model", "UNetSpatioTemporalConditionModel"),
    "vae": ("config.json", "diffusion_pytorch_model", "AutoencoderKLTemporalDecoder"),
    "image_encoder": ("config.json", "model", "CLIPVisionModelWithProjection"),
    "scheduler": ("scheduler_config.json", "", "EulerDiscreteScheduler"),
    "feature_extractor": ("preprocessor_config.json", "", ""),
}
"""Folder -> (its config file, the stem of its weights, its class)."""

_SMALL_FILE = 1 << 20
_EDGE = 1 << 16
_TAGS = (
    *("ETag", "etag", "md5Hash", "content_md5", "Content-MD5"),
    *("mtime", "last_modified", "LastModified", "Last-Modified", "updated", "created"),
)
"""What stores call the value that changes when a file of theirs does, the surest first."""
_ATTEMPTS = 4
"""Tries of one download."""
_FIRST_DELAY_S = 0.5
"""Before the second try; doubled each time."""


def weight_files(path: Path, component: str, half: bool) -> tuple[str | None, list[Path]]:
    """The variant (`fp16` or None) to load and its safetensors files; an empty list where there are none.

    half: the weights will be held in 16 bits, so an fp16 variant is preferred.
    """
    folder = path / component
    variant, names = _one_variant(component, [file.name for file in folder.glob("*.safetensors")], half)
    return variant, [folder / name for name in names]


def cache_root() -> Path:
    """Where downloaded checkpoints are kept: $SGI2V_CACHE, or the user's cache folder."""
    default = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "sgi2v-batch"
    return Path(os.environ.get("SGI2V_CACHE", default))


def _one_variant(component: str, names: Collection[str], half: bool) -> tuple[str | None, list[str]]:
    """Of the names in a component's folder, the variant to take and its safetensors files."""
    stem = COMPONENTS[component][1]
    for variant in ("fp16", None) if half else (None, "fp16"):
        infix = f".{variant}" if variant else ""
        for pattern in (f"{stem}{infix}.safetensors", f"{stem}{infix}-*-of-*.safetensors"):
            files = sorted(name for name in names if fnmatch(name, pattern))
            if files:
                return variant, files
    return None, []


def _wanted_weights(names: Collection[str], full: bool) -> list[str]:
    """Of all names in a checkpoint, the weights to fetch: one variant of each component.

    full: 32 bits were asked for.
    """
    wanted: list[str] = []
    for component in COMPONENTS:
        folder = f"{component}/"
        inside = [name.removeprefix(folder) for name in names if name.startswith(folder)]
        wanted += [folder + name for name in _one_variant(component, inside, half=not full)[1]]
    return wanted


def open_folder(source: str, path: Path) -> tuple[Path, str]:
    """A local checkpoint, used where it lies."""
    if not path.exists():
        raise ModelError(f"there is no model folder {source}")
    if not path.is_dir():
        raise ModelError(f"{source} is a file: give the folder that holds unet/, vae/ and image_encoder/")
    return path, folder_digest(path)


def folder_digest(path: Path) -> str:
    """Digest of a folder's names, sizes and contents."""
    digest = hashlib.sha256()
    for file in sorted(file for file in path.rglob("*") if file.suffix in {".json", ".safetensors"}):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path).as_posix()}\0{size}\0".encode())
        with file.open("rb") as stream:
            digest.update(_sample(stream, size))
    return digest.hexdigest()[:40]


def _sample(stream: BinaryIO, size: int | None) -> bytes:
    """A file's contents; of a large one pieces of the whole length, the header among them."""
    if size is None or size <= _SMALL_FILE:
        return stream.read()
    pieces = [stream.read(_EDGE)]
    for start in (*(size * eighth // 8 for eighth in range(1, 8)), size - _EDGE):
        stream.seek(start)
        pieces.append(stream.read(_EDGE))
    return b"".join(pieces)


def fetch_url(config: ModelConfig, weights: bool) -> tuple[Path, str]:
    """Copy a checkpoint from any fsspec store into the node's cache; a local URL is used in place."""
    import fsspec
    from fsspec.implementations.local import LocalFileSystem

    url = config.source
    try:
        filesystem, root = fsspec.core.url_to_fs(url)
        if isinstance(filesystem, LocalFileSystem):
            return open_folder(url, Path(root))
        return _copy_store(config, filesystem, root, weights)
    except ModelError:
        raise
    except Exception as error:  # a store's client raises what its own library raises
        raise ModelError(
            f"{url} could not be fetched: {type(error).__name__}: {error}\n"
            "Check the URL, the credentials and the network; gs:// needs gcsfs and abfs:// needs adlfs."
        ) from error


def _copy_store(config: ModelConfig, filesystem: Any, root: str, weights: bool) -> tuple[Path, str]:
    """Bring what is wanted of a stored checkpoint into the cache, under a lock, each file whole or not at all."""
    from filelock import FileLock

    filesystem.invalidate_cache()
    listing: dict[str, dict[str, Any]] = {}
    for path, info in filesystem.find(root, detail=True).items():
        name = path[len(root) :].strip("/")
        folder, _, file = name.rpartition("/")
        if name == DEFAULTS_FILE or (folder in COMPONENTS and file.endswith((".json", ".safetensors"))):
            # An HTTP server's listing holds names alone.
            listing[name] = info if _tag(info) else filesystem.info(path)
    if not listing:
        filesystem.ls(root)  # raises what `find` passes over: a server that does not answer, a missing folder
        folders = ", ".join(f"{component}/" for component in COMPONENTS)
        raise ModelError(f"{config.source} holds no checkpoint: no .json and no .safetensors file is in {folders}")
    described = sorted(
        (name, info["size"], _tag(info) or _stored_digest(filesystem, info)) for name, info in listing.items()
    )
    revision = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:40]
    wanted = [name for name in listing if name.endswith(".json")]
    wanted += _wanted_weights(listing, config.dtype == "float32") if weights else []
    target = cache_root() / "models" / revision
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        for name in wanted:
            if not (target / name).exists():
                _download(filesystem, listing[name], target / name)
    return target, revision


def _tag(info: Mapping[str, Any]) -> str:
    """What a store itself tells a file's versions apart by; empty where it keeps nothing."""
    return next((f"{key} {info[key]}" for key in _TAGS if info.get(key)), "")


def _stored_digest(filesystem: Any, info: Mapping[str, Any]) -> str:
    """Digest of a stored file's contents, read in place."""
    with filesystem.open(info["name"], "rb", cache_type="none") as stream:
        return hashlib.sha256(_sample(stream, info["size"])).hexdigest()


def _download(filesystem: Any, info: Mapping[str, Any], file: Path) -> None:
    """Bring one file; a download that breaks is begun again, and leaves no more than a .partial."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")
    for attempt in range(_ATTEMPTS):
        try:
            filesystem.get_file(info["name"], str(partial))
            size = partial.stat().st_size
            if info["size"] not in (None, size):
                raise OSError(f"{info['name']} ended after {size} of {info['size']} bytes")
            break
        except (FileNotFoundError, PermissionError):
            raise
        except Exception:  # a store's client raises what its own library raises
            if attempt + 1 == _ATTEMPTS:
                raise
            time.sleep(_FIRST_DELAY_S * 2**attempt)
    partial.replace(file)


def fetch_hub(config: ModelConfig, weights: bool) -> tuple[Path, str]:
    """Download a Hugging Face snapshot, or find it in the local cache; the fp16 weights alone where they serve."""
    from filelock import FileLock
    from huggingface_hub import snapshot_download

    lock = cache_root() / "models" / (config.source.replace("/", "--") + ".lock")
    lock.parent.mkdir(parents=True, exist_ok=True)
    patterns = [f"{component}/*.json" for component in COMPONENTS] + [DEFAULTS_FILE]
    try:
        with FileLock(lock):
            patterns += _hub_weights(config) if weights else []
            snapshot = snapshot_download(config.source, revision=config.revision, allow_patterns=patterns)
    except Exception as error:  # the hub's own errors, its HTTP library's, the disk's
        raise ModelError(
            f"{config.source} could not be fetched from Hugging Face: {error}\n"
            "Check the name, the revision and the network; a gated model needs its licence accepted and HF_TOKEN set. "
            f"--model also takes a local folder, a URL, or `{EMBEDDED}`, the small model that is inside the package."
        ) from error
    return Path(snapshot), Path(snapshot).name


def _hub_weights(config: ModelConfig) -> list[str]:
    """The weight files to download: one variant of each component; none where there is no network but a cached copy."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        siblings = HfApi().model_info(config.source, revision=config.revision).siblings or []
    except HfHubHTTPError:
        raise
    except Exception:  # the HTTP library's own: no network
        cached = snapshot_download(
            config.source, revision=config.revision, allow_patterns=[DEFAULTS_FILE], local_files_only=True
        )
        weighty = [component for component, (_, stem, _) in COMPONENTS.items() if stem]
        if not all(weight_files(Path(cached), component, half=False)[1] for component in weighty):
            raise
        return []
    return _wanted_weights([each.rfilename for each in siblings], config.dtype == "float32")
