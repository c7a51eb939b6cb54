"""What the rows of a manifest may name: it is data from anywhere, and picks files of the machines that run it."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from sgi2v.errors import ErrorCode, SampleError

PROTOCOLS = frozenset(
    {"file", "local", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "http", "https", "hf", "memory", "data"}
)
"""Of fsspec's file systems, those that a row may use: no shells, no archives, no other people's caches."""
_LOCAL = ("file", "local")
_USER = re.compile(r"(\b[a-zA-Z][a-zA-Z0-9+.-]*://)[^/\s@\"']+@")
_QUERY = re.compile(r"(\bhttps?://[^\s?\"']+)\?[^\s\"',;)]+")


@dataclass(frozen=True)
class Access:
    """Where images may lie."""

    roots: tuple[str, ...] | None = None
    """Folders or URL prefixes; None is everywhere that PROTOCOLS reach."""

    def check(self, uri: str, manifest_uri: str) -> None:
        """Raise SampleError(image_missing) for a place that is not allowed. uri: absolute.

        Within roots, the manifest's own folder and inline `data:` are always allowed; links and `..` are followed
        before they are judged.
        """
        protocol = _protocol(uri)
        if protocol not in PROTOCOLS:
            raise _refused(uri, f"{protocol}:// is not a place for images: copy them to a folder, bucket or web server")
        if self.roots is None or protocol == "data":
            return
        try:
            place = _canonical(uri)
        except (OSError, RuntimeError, ValueError) as error:  # links that go round, a NUL in the name
            raise _refused(uri, f"it leads nowhere ({error}): check the path") from error
        roots = [_canonical(root) for root in (_folder(manifest_uri), *self.roots)]
        if not any(place == root or place.startswith(f"{root.rstrip('/')}/") for root in roots):
            raise _refused(uri, "it is outside the manifest's folder, and under no --root: allow its place, or move it")


def without_secrets(text: str) -> str:
    """The text with `***` for what URLs in it hold of names, passwords, signatures and tokens."""
    return _QUERY.sub(r"\1?***", _USER.sub(r"\1***@", text))


def _protocol(uri: str) -> str:
    protocol, is_url, _ = uri.partition("://")
    return protocol.lower() if is_url else "data" if uri.startswith("data:") else "file"


def _folder(uri: str) -> str:
    """Where a file is."""
    if _protocol(uri) in _LOCAL:
        return str(Path(uri.partition("://")[2] or uri).absolute().parent)
    return uri.partition("?")[0].rpartition("/")[0]


def _canonical(uri: str) -> str:
    """The one name of a place: `file:///real/path`, or `s3://bucket/key` with neither `..` nor escapes."""
    protocol, _, rest = uri.rpartition("://")
    if _protocol(uri) in _LOCAL:
        return f"file://{Path(rest).expanduser().resolve()}"
    path = rest.partition("?")[0].partition("#")[0] if protocol.startswith("http") else rest
    while unquote(path) != path:
        path = unquote(path)
    host, _, key = path.partition("/")
    return f"{protocol.lower()}://{host}{posixpath.normpath('/' + key)}"


def _refused(uri: str, message: str) -> SampleError:
    return SampleError(ErrorCode.IMAGE_MISSING, f"{uri} is refused: {message}")
