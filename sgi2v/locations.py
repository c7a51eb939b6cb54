"""Locations of files: local paths, and URLs of any fsspec store.

The key in a URL is used as it is written. It is not a path: empty parts, `::`, `#` and `?` belong to it. Two forms are
read as their standards say: the scheme may be in capitals, and in a `file://` URL `%20` stands for a space.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote

_LOCAL = ("file", "local")
_WEB = ("http", "https")
_WRAPPERS = r"(?:simplecache|filecache|blockcache|cached|zip|tar|libarchive|dir|reference)"
_CHAINED = re.compile(rf"(?i:{_WRAPPERS}(?:::|://.*::)|.*::[a-z][a-z0-9+.-]*://)")
_CREDENTIALS = {
    "s3": "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (with AWS_SESSION_TOKEN for temporary "
    "keys), and AWS_ENDPOINT_URL for a store that is not Amazon's",
    "gs": "run `gcloud auth application-default login`, or set GOOGLE_APPLICATION_CREDENTIALS to a key file",
    "az": "set AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    "hf": "run `hf auth login` or set HF_TOKEN, and accept the repository's terms on its page",
}
_ADVICE = {
    "RequestTimeTooSkewed": "set the clock of this machine, which differs from the store's",
    "PermanentRedirect": "set AWS_DEFAULT_REGION to the bucket's region",
    "Invalid endpoint": "set AWS_ENDPOINT_URL to a URL, with http:// or https://",
    "ProfileNotFound": "set AWS_PROFILE to a profile in ~/.aws/config",
}
"""What to do about errors of S3 that look like wrong credentials or tell too little, by a text in them."""
_SAME_CREDENTIALS = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az", "adl": "az"}
_ACCESS_ERROR = re.compile(
    r"credential|access.?key|SignatureDoesNotMatch|AuthenticationFailed|ExpiredToken|token (?:has|is) expired"
    r"|forbidden|unauthorized|access denied|account_name|gated repo",
    re.IGNORECASE,
)
"""What the messages of stores say when credentials are missing, wrong or too old."""


def split_protocol(uri: str) -> tuple[str, str]:
    """The protocol in lower case, and the rest. Splits at the first `://`, as fsspec does; a plain path is `file`."""
    if uri[:5].lower() == "data:":
        return "data", uri[5:]
    protocol, is_url, rest = uri.partition("://")
    return (protocol.lower(), rest) if is_url and not uri.startswith("/") else ("file", uri)


def is_web(uri: str) -> bool:
    """Whether the URI is read over HTTP."""
    return split_protocol(uri)[0] in _WEB


def without_query(uri: str) -> str:
    """A web URL without its query and fragment; any other location unchanged, since `?` and `#` belong to its key."""
    return uri.partition("?")[0].partition("#")[0] if is_web(uri) else uri


def is_chained(uri: str) -> bool:
    """Whether this is a chain of file systems (`zip://a.png::https://host/a.zip`), not a key with `::` in it."""
    return _CHAINED.match(uri) is not None


def local_path(uri: str) -> Path | None:
    """The absolute path of a local location; None for a location in a store.

    A `file://` URL is unescaped, unless the disk has a file of the escaped name only.
    """
    protocol, rest = split_protocol(uri)
    if protocol not in _LOCAL or is_chained(uri):
        return None
    if rest.startswith("localhost/") and rest != uri:
        rest = rest.removeprefix("localhost")
    written = Path(os.path.expanduser(rest)).absolute()  # noqa: PTH111 - Path raises where `~x` is no user
    if rest == uri or "%" not in rest:
        return written
    unescaped = Path(unquote(str(written)))
    return written if written.exists() and not unescaped.exists() else unescaped


def open_store(uri: str) -> tuple[Any, str]:
    """The fsspec file system of a location, and the location's name in it.

    Raises ValueError for an unknown protocol, and ImportError if its package is not installed.
    """
    import fsspec.core
    from fsspec.implementations.local import LocalFileSystem

    name: str
    if is_chained(uri):
        file_system, name = fsspec.core.url_to_fs(uri)
        return file_system, name
    path = local_path(uri)
    if path is not None:
        return LocalFileSystem(), str(path)
    protocol, rest = split_protocol(uri)
    if protocol in _WEB:
        # without `encoded`, fsspec's client rewrites escapes, and signatures become invalid
        return fsspec.filesystem(protocol, encoded=True), f"{protocol}://{rest}"
    if protocol == "data":
        return fsspec.filesystem("data"), f"data:{rest}"
    # fsspec would take a key with `::` for a chain
    end = rest.find("/") if "::" in rest else len(rest)
    file_system, name = fsspec.core.url_to_fs(f"{protocol}://{rest[:end]}")
    return file_system, name + rest[end:]


def credentials_advice(error: BaseException | str, location: str) -> str:
    """`; check the credentials: ...` if the store at `location` refused or missed credentials, else an empty text.

    For S3 also what to do about a wrong clock, region, endpoint or profile.
    """
    protocol = split_protocol(location)[0]
    store = _SAME_CREDENTIALS.get(protocol, protocol)
    advice = _CREDENTIALS.get(store)
    described = f"{type(error).__name__}: {error}"
    if "check the credentials" in described:  # another layer has given the advice
        return ""
    if store == "s3" and (known := next((line for text, line in _ADVICE.items() if text in described), None)):
        return "" if known in described else f"; {known}"
    if advice is None or not (isinstance(error, PermissionError) or _ACCESS_ERROR.search(described)):
        return ""
    return f"; check the credentials: {advice}"
