"""What the rows of a manifest may name: it is data from anywhere, and picks files of the machines that run it."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from sgi2v.errors import ErrorCode, SampleError

PROTOCOLS = frozenset(
    {"file", "local", "s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "http", "https", "hf", "memory", "data"}
)
"""Of fsspec's file systems, those that a row may use: no shells, no archives, no other people's caches."""
_LOCAL = ("file", "local")
_WEB = ("http", "https")
_SHOWN = 300
# to the last @ before a slash, as a password may hold one; without a colon it is a container's name, save on the web
_USER = re.compile(r"(\b(?:(?i:https?)://|[a-zA-Z][a-zA-Z0-9+.-]{0,31}://(?=[^/\s\"@:]*:)))[^/\s\"]+@")
# not past the next URL, or a text of many would be searched to its end from each
_QUERY = re.compile(r"(\b(?i:https?)://(?:(?!https?://)[^\s?\"'])+)\?[^\s\"',;)]+")


@dataclass(frozen=True)
class Access:
    """Where images may lie."""

    roots: tuple[str, ...] | None = None
    """Folders or URL prefixes; None is everywhere that PROTOCOLS reach."""

    @property
    def follows_redirects(self) -> bool:
        """Whether a web server may send a reader elsewhere, which may be anywhere."""
        return self.roots is None

    def check(self, uri: str, manifest_uri: str) -> None:
        """Raise SampleError(image_missing) for a place that is not allowed. uri: absolute.

        Within roots, the manifest's own folder and inline `data:` are always allowed; links and `..` are followed
        before they are judged.
        """
        protocol, _ = split_protocol(uri)
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


def without_secrets_in(value: Any) -> Any:
    """The same for every text in plain values; not for their JSON, whose quotes and escapes are no part of URLs."""
    if isinstance(value, Mapping):
        return {key: without_secrets_in(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_secrets_in(each) for each in value]
    return without_secrets(value) if isinstance(value, str) else value


def shown(uri: str) -> str:
    """A place as messages name it: masked before it is cut, as half a password is one too."""
    return without_secrets(uri)[:_SHOWN]


def split_protocol(uri: str) -> tuple[str, str]:
    """The protocol in lower case, and the rest: at the first `://`, which is where fsspec splits as well."""
    protocol, is_url, rest = uri.partition("://")
    if is_url:
        return protocol.lower(), rest
    return ("data", uri.removeprefix("data:")) if uri.startswith("data:") else ("file", uri)


def is_web(uri: str) -> bool:
    """Whether a web server is asked for it."""
    return split_protocol(uri)[0] in _WEB


def _folder(uri: str) -> str:
    """Where a file is."""
    protocol, rest = split_protocol(uri)
    if protocol in _LOCAL:
        return str(Path(rest).absolute().parent)
    return uri.partition("?")[0].rpartition("/")[0]


def _canonical(uri: str) -> str:
    """The one name of a place: `file:///real/path`, or `s3://bucket/key` with neither `..` nor escapes."""
    protocol, rest = split_protocol(uri)
    if protocol in _LOCAL:
        return f"file://{Path(rest).expanduser().resolve()}"
    path = rest.partition("?")[0].partition("#")[0] if protocol in _WEB else rest
    # an escaped slash does not end the host: `https://host%2Fpictures%2F@evil/` is evil's
    host, _, key = path.partition("/")
    while unquote(key) != key:
        key = unquote(key)
    return f"{protocol}://{host}{posixpath.normpath('/' + key)}"


def _refused(uri: str, message: str) -> SampleError:
    return SampleError(ErrorCode.IMAGE_MISSING, f"{shown(uri)} is refused: {message}")
