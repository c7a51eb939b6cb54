"""Bring the files of a checkpoint to this machine: from a folder, an fsspec store, or the Hugging Face Hub.

This file does not interpret what it fetches. Each source gives a local folder and a revision that changes with the
contents.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from sgi2v.config import ModelConfig
from sgi2v.errors import ModelError, StorageError
from sgi2v.locations import credentials_advice, open_store
from sgi2v.retry import with_retries
from sgi2v.wording import did_you_mean

EMBEDDED = "embedded"
"""The source name of the checkpoint inside the package."""
SVD_MODELS = tuple(f"stabilityai/stable-video-diffusion-img2vid{kind}" for kind in ("", "-xt", "-xt-1-1"))
"""Hugging Face ids of Stable Video Diffusion itself, which messages suggest."""
DEFAULTS_FILE = "sgi2v.json"
"""Optional file of a checkpoint: {"sampler": {...}, "guidance": {...}}, its own default settings."""

COMPONENTS: Mapping[str, tuple[str, str, str]] = {
    "unet": ("config.json", "diffusion_pytorch_model", "UNetSpatioTemporalConditionModel"),
    "vae": ("config.json", "diffusion_pytorch_model", "AutoencoderKLTemporalDecoder"),
    "image_encoder": ("config.json", "model", "CLIPVisionModelWithProjection"),
    "scheduler": ("scheduler_config.json", "", "EulerDiscreteScheduler"),
    "feature_extractor": ("preprocessor_config.json", "", ""),
}
"""Folder -> (its config file, the stem of its weight files, its class)."""

DOWNLOAD_ATTEMPTS = 4
"""Attempts at one download. Fewer than for a small object: each may move gigabytes."""
_SMALL_FILE_BYTES = 1 << 20
"""A file up to this size is digested whole, a larger one in pieces."""
_PIECE_BYTES = 1 << 12
_HEADER_LIMIT = 100_000_000
"""Bytes that the header of a safetensors file may have."""
_VERSION_KEYS = (
    *("ETag", "etag", "md5Hash", "content_md5", "Content-MD5"),
    *("mtime", "last_modified", "LastModified", "Last-Modified", "updated", "created"),
)
"""Names that stores give to a value that changes with the file, the most reliable first."""


def prefers_half(config: ModelConfig) -> bool:
    """Whether the fp16 files of a checkpoint are fetched and loaded, where it has some: unless 32 bits are asked for.

    The device has no say. Else a run would go on with other weights once another program has added the other files to
    the local cache.
    """
    return config.dtype != "float32"


def weight_files(path: Path, component: str, half: bool) -> tuple[str | None, list[Path]]:
    """The variant (`fp16` or None) to load and its safetensors files; an empty list if there are none.

    half: as `prefers_half`.
    """
    folder = path / component
    # a link to a file that was not copied along is none
    present = [file.name for file in folder.glob("*.safetensors") if file.is_file()]
    variant, names = _choose_variant(component, present, half)
    return variant, [folder / name for name in names]


def cache_root() -> Path:
    """The folder of downloaded checkpoints: $SGI2V_CACHE, or `sgi2v-batch` in the user's cache folder.

    An empty variable counts as unset. A user without a home folder gets a folder of temporary files.
    """
    if own := os.environ.get("SGI2V_CACHE"):
        return Path(own)
    if caches := os.environ.get("XDG_CACHE_HOME"):
        return Path(caches) / "sgi2v-batch"
    try:
        return Path.home() / ".cache" / "sgi2v-batch"
    except RuntimeError:  # in a container, under a user id that has no entry in the system
        return Path(tempfile.gettempdir()) / f"sgi2v-batch-{os.getuid()}"


def _choose_variant(component: str, names: Collection[str], half: bool) -> tuple[str | None, list[str]]:
    """The variant to use and its safetensors files. names: of the files in the component's folder."""
    stem = COMPONENTS[component][1]
    for variant in ("fp16", None) if half else (None, "fp16"):
        infix = f".{variant}" if variant else ""
        whole = f"{stem}{infix}.safetensors"
        files = [whole] if whole in names else _whole_set(names, f"{stem}{infix}")
        if files:
            return variant, files
    return None, []


def _whole_set(names: Collection[str], stem: str) -> list[str]:
    """The files `<stem>-00001-of-00003.safetensors` to `-00003-of-00003`; none if one of them is not there."""
    shards: dict[str, list[str]] = {}
    for name in sorted(names):
        if match := re.fullmatch(rf"{re.escape(stem)}-\d+-of-(\d+)\.safetensors", name):
            shards.setdefault(match[1], []).append(name)
    return next((files for total, files in shards.items() if len(files) == int(total)), [])


def chosen_weights(names: Collection[str], config: ModelConfig) -> dict[str, tuple[str | None, list[str]]]:
    """Component with weights -> its variant (`fp16` or None) and the weight files of that variant.

    names: of all files in the checkpoint. The files are empty for a component that has none.
    """
    chosen: dict[str, tuple[str | None, list[str]]] = {}
    for component, (_, stem, _) in COMPONENTS.items():
        if stem:
            folder = f"{component}/"
            inside = [name.removeprefix(folder) for name in names if name.startswith(folder)]
            variant, files = _choose_variant(component, inside, prefers_half(config))
            chosen[component] = variant, [folder + name for name in files]
    return chosen


def open_folder(source: str, path: Path) -> tuple[Path, str]:
    """A local checkpoint, used in place, and its revision. Raises ModelError if `path` is not a folder."""
    if not path.exists():
        raise ModelError(f"there is no model folder {source}")
    if not path.is_dir():
        raise ModelError(f"{source} is a file: give the folder that holds unet/, vae/ and image_encoder/")
    try:
        return path, folder_digest(path)
    except OSError as error:
        raise ModelError(f"{source} cannot be read: {error}") from error


def folder_digest(path: Path) -> str:
    """A digest of the names, sizes and contents of a folder's .json and .safetensors files.

    The folder of a component may be a link. Hidden files, such as those that macOS adds, are no part of a checkpoint.
    """
    found = {file for folder in (path, *(path / name for name in COMPONENTS)) for file in folder.rglob("*")}
    kept = [file for file in found if file.suffix in {".json", ".safetensors"} and not file.name.startswith(".")]
    return files_digest(path, [file for file in kept if file.is_file()])


def files_digest(path: Path, files: Collection[Path]) -> str:
    """A digest of the names, sizes and contents of files in the folder `path`."""
    digest = hashlib.sha256()
    for file in sorted(files):
        size = file.stat().st_size
        digest.update(f"{file.relative_to(path).as_posix()}\0{size}\0".encode())
        with file.open("rb") as stream:
            digest.update(_bytes_to_digest(stream, size))
    return digest.hexdigest()[:40]


def _bytes_to_digest(stream: BinaryIO, size: int | None) -> bytes:
    """The whole of a small file; of a large one its start and end, and both ends of every tensor.

    Training or merging changes some tensors and leaves others, but of a tensor that it changes hardly any value stays.
    """
    if size is None or size <= _SMALL_FILE_BYTES:
        return stream.read()
    pieces = [stream.read(_PIECE_BYTES)]
    for border in (*_tensor_borders(pieces[0], stream, size), size):
        stream.seek(max(0, border - _PIECE_BYTES // 2))
        pieces.append(stream.read(_PIECE_BYTES))
    return b"".join(pieces)


def _tensor_borders(start: bytes, stream: BinaryIO, size: int) -> list[int]:
    """Where the tensors of a safetensors file begin; none in a file without a readable header. start: its first bytes.

    The format: eight bytes with the length of the header, the header as JSON, the tensors.
    """
    length = int.from_bytes(start[:8], "little")
    if length > min(size - 8, _HEADER_LIMIT):
        return []
    stream.seek(8)
    try:
        header = json.loads(stream.read(length))
        offsets = {value["data_offsets"][0] for name, value in header.items() if name != "__metadata__"}
        return [8 + length + offset for offset in sorted(offsets)]
    except (ValueError, TypeError, AttributeError, LookupError, RecursionError):
        return []


def fetch_url(config: ModelConfig, weights: bool) -> tuple[Path, str]:
    """Copy a checkpoint from any fsspec store into this machine's cache; a local URL is used in place.

    Returns the folder and the revision. weights: fetch them too. Raises ModelError.
    """
    from fsspec.implementations.local import LocalFileSystem

    url = config.source
    try:
        filesystem, root = open_store(url)
        if isinstance(filesystem, LocalFileSystem):
            return open_folder(url, Path(root))
        return _copy_to_cache(config, filesystem, root, weights)
    except ModelError:
        raise
    except Exception as error:  # a store's client raises what its own library raises
        reason = str(error) if isinstance(error, StorageError) else f"{type(error).__name__}: {error}"
        raise ModelError(
            f"{url} could not be fetched: {reason}{credentials_advice(reason, url)}\n"
            "Check the URL, the credentials and the network; gs:// needs gcsfs and abfs:// needs adlfs."
        ) from error


def _copy_to_cache(config: ModelConfig, filesystem: Any, root: str, weights: bool) -> tuple[Path, str]:
    """Copy the files that are needed into the cache, under a lock; each file appears there only when it is whole."""
    from filelock import FileLock

    filesystem.invalidate_cache()
    listing: dict[str, dict[str, Any]] = {}
    for path, info in filesystem.find(root, detail=True).items():
        name = path[len(root) :].strip("/")
        folder, _, file = name.rpartition("/")
        if name == DEFAULTS_FILE or (folder in COMPONENTS and file.endswith((".json", ".safetensors"))):
            # an HTTP server's listing has names only
            listing[name] = info if _version_tag(info) else filesystem.info(path)
    if not listing:
        filesystem.ls(root)  # raises what `find` ignores: a server that does not answer, a missing folder
        folders = ", ".join(f"{component}/" for component in COMPONENTS)
        raise ModelError(f"{config.source} holds no checkpoint: no .json and no .safetensors file is in {folders}")
    described = sorted(
        (name, info["size"], _version_tag(info) or _digest_in_store(filesystem, info)) for name, info in listing.items()
    )
    revision = hashlib.sha256(json.dumps(described).encode()).hexdigest()[:40]
    needed = [name for name in listing if name.endswith(".json")]
    if weights:
        needed += [name for _, files in chosen_weights(listing, config).values() for name in files]
    target = cache_root() / "models" / revision
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        for name in needed:
            if not (target / name).exists():
                _download(filesystem, listing[name], target / name)
    return target, revision


def _version_tag(info: Mapping[str, Any]) -> str:
    """The store's own mark of this version of a file, such as an ETag; empty if it keeps none."""
    return next((f"{key} {info[key]}" for key in _VERSION_KEYS if info.get(key)), "")


def _digest_in_store(filesystem: Any, info: Mapping[str, Any]) -> str:
    """A digest of a stored file's contents, read without downloading a large file whole."""
    with filesystem.open(info["name"], "rb", cache_type="none") as stream:
        return hashlib.sha256(_bytes_to_digest(stream, info["size"])).hexdigest()


def _download(filesystem: Any, info: Mapping[str, Any], file: Path) -> None:
    """Download one file. A download that fails leaves a `.partial` file at most. Raises as `with_retries`."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(file.name + ".partial")

    def get_whole_file() -> None:
        filesystem.get_file(info["name"], str(partial))
        size = partial.stat().st_size
        if info["size"] not in (None, size):
            raise OSError(f"{info['name']} ended after {size} of {info['size']} bytes")

    with_retries(f"downloading {info['name']}", get_whole_file, DOWNLOAD_ATTEMPTS)
    partial.replace(file)


def model_hint(source: str) -> str:
    """The known model that this name may stand for, as `did_you_mean` gives it."""
    if source in (EMBEDDED, *SVD_MODELS):
        return ""
    return did_you_mean(source, [EMBEDDED]) or did_you_mean(f"stabilityai/{source.rpartition('/')[2]}", SVD_MODELS)
