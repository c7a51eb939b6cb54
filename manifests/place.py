"""A place of pictures or videos: a folder, a glob or one file, on a disk or in any fsspec store."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from manifests.access import display_uri
from manifests.urls import relative_path
from sgi2v.errors import ConfigError, StorageError
from sgi2v.locations import credentials_advice, is_chained, local_path, open_store, split_protocol
from sgi2v.wording import counted

PICTURES = (
    *(".avif", ".bmp", ".gif", ".j2k", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".pbm", ".pgm", ".png", ".pnm", ".ppm", ".tif", ".tiff", ".webp"),
)
"""Endings of files that are taken for pictures in a folder. A glob may name others too."""

VIDEOS = (".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".mts", ".ts", ".webm", ".wmv")
"""Likewise, of videos."""

_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class Place:
    """The files of a place."""

    keys: tuple[str, ...]
    """Locations relative to the place, sorted; with `/`, and without one in front."""
    uris: tuple[str, ...]
    """Absolute locations, one per key."""


def name_in_manifest(uri: str, folder: str) -> str:
    """How a manifest in this folder names a picture: local ones relative to the folder, where that is possible."""
    path = local_path(uri)
    return uri if path is None else relative_path(path, folder)


def name_fault(key: str) -> str | None:
    """Why no manifest can name a file of this location; None where one can."""
    try:
        key.encode()
    except UnicodeEncodeError:  # Linux takes any bytes for a name
        return "its name is not UTF-8: rename it"
    return None


def find_files(place: str, endings: Sequence[str], kind: str) -> Place:
    """The files with these endings of a folder and the folders in it, those of a glob, or one file by its name.

    Hidden files are left out. kind: what they are, for messages: `picture`. Raises ConfigError where there is no such
    place or no such file in it, and StorageError where it cannot be read.
    """
    if not place.strip() or is_chained(place) or split_protocol(place)[0] == "data":
        raise ConfigError(f"{display_uri(place)!r} is no place of {kind}s: give a folder, a glob or a URL of one")
    try:
        file_system, root = open_store(place)
        root, names, is_glob = _list(file_system, root)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"{display_uri(place)} cannot be opened: {error}") from error
    except (FileNotFoundError, NotADirectoryError) as error:
        raise ConfigError(f"{display_uri(place)}: there is no such folder or file: check the path") from error
    except Exception as error:  # each fsspec file system raises its own library's errors
        advice = credentials_advice(error, place)
        raise StorageError(f"{display_uri(place)} cannot be read: {type(error).__name__}: {error}{advice}") from error
    found = [(name.removeprefix(root).lstrip("/"), name) for name in sorted(names)]
    seen = [(key, name) for key, name in found if not any(part.startswith(".") for part in key.split("/"))]
    files = [(key, name) for key, name in seen if is_glob or PurePosixPath(key).suffix.lower() in endings]
    if not files:
        what = "the glob matches no file" if is_glob else f"no {kind}'s ending among its {counted(len(seen), 'file')}"
        raise ConfigError(f"{display_uri(place)} has no {kind}s: {what if seen or is_glob else 'it is empty'}")
    protocol = split_protocol(place)[0]
    return Place(tuple(key for key, _ in files), tuple(_uri(protocol, name) for _, name in files))


def _list(file_system: Any, root: str) -> tuple[str, list[str], bool]:
    """The folder that keys are relative to, the names of all files, and whether they were named by a glob or as one.

    A name with `*` or `[` that exists is not a glob.
    """
    root = root.rstrip("/") or "/"
    if file_system.isdir(root):
        return root, _walk(root) if isinstance(file_system, LocalFileSystem) else file_system.find(root), False
    if file_system.isfile(root):
        return root.rpartition("/")[0], [root], True
    magic = _MAGIC.search(root)
    if magic is None:
        raise FileNotFoundError(root)
    names = [name for name, info in file_system.glob(root, detail=True).items() if info["type"] == "file"]
    return root[: magic.start()].rpartition("/")[0], names, True


def _walk(root: str) -> list[str]:
    """All files of a folder on a disk, also behind links to folders, which fsspec leaves out; each folder once."""
    names: list[str] = []
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:  # links may go round in circles
            folders.clear()
            continue
        seen.add(real)
        folders.sort()
        names += [f"{folder.rstrip('/')}/{file}" for file in files]
    return names


def _uri(protocol: str, name: str) -> str:
    """The absolute location of a name in a file system."""
    if protocol in ("file", "local"):
        return str(Path(name).absolute())
    return name if "://" in name else f"{protocol}://{name}"
