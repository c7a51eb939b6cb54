"""Where a row's image lies, and its bytes."""

from __future__ import annotations

import base64
import errno
import os
import time
from pathlib import Path
from typing import BinaryIO
from urllib.parse import unquote_to_bytes

from manifests.access import Access, display_uri, without_dot_parts
from manifests.web import READ_S, read_web, too_large
from sgi2v.errors import ErrorCode, SampleError
from sgi2v.locations import credentials_advice, is_chained, is_web, local_path, open_store, split_protocol

MAX_BYTES = 256 * 2**20
"""Largest image file that is read, bytes."""

_CHUNK_BYTES = 1 << 22


def resolve_uri(image: str, manifest_uri: str, access: Access | None = None) -> str:
    """The absolute location of a row's image. A relative name starts at the manifest's folder.

    access: None allows every place that manifests may name. Raises SampleError(image_missing) for a place that is not
    allowed, and for a chained URL (`zip::https://...`), because a row must not pick file systems.
    """
    if is_chained(image):
        raise _missing(image, "chained URLs (`::`) are refused: unpack the images and name their files")
    uri = _absolute(image, manifest_uri)
    (access or Access()).check(uri, manifest_uri)
    return uri


def relative_path(image: Path, relative_to: str) -> str:
    """How a manifest in the folder `relative_to` names a local image: relative to the folder where that is possible."""
    absolute = image.parent.resolve() / image.name
    if "://" in relative_to:
        return str(absolute)
    start = Path(relative_to).resolve()
    shared = os.path.commonpath([absolute, start])
    return str(absolute) if shared == absolute.anchor else os.path.relpath(absolute, start)


def _absolute(image: str, manifest_uri: str) -> str:
    """A relative name joined to the manifest's folder, in which nothing is rewritten: `s3://b//x` is not `s3://b/x`."""
    if "://" in image or image[:5].lower() == "data:" or image.startswith("/"):
        return image
    scheme, is_url, rest = manifest_uri.partition("://")
    if not is_url:
        return str(Path(manifest_uri).absolute().parent / image)
    if is_web(manifest_uri):
        rest = rest.partition("#")[0].partition("?")[0]
        image = image.replace("#", "%23")  # an image has no fragments, but its name may have a `#`
    elif local_path(manifest_uri) is not None:
        image = image.replace("%", "%25")  # a name is no URL
    host, slash, folder = rest.rpartition("/")[0].partition("/")
    return f"{scheme}://{host}/{without_dot_parts(image, folder.split('/') if slash else ())}"


def read_image_bytes(uri: str, max_bytes: int = MAX_BYTES, access: Access | None = None) -> bytes:
    """The file's bytes, from a local path or any fsspec URL, in at most READ_S seconds.

    access: None follows HTTP redirects. Raises SampleError: image_missing (no such file, a folder, an unknown
    protocol, what a web server refuses for good), image_too_large, timed_out, out_of_memory. Raises OSError for what
    may pass (connections, overloaded servers, permissions), so that the caller can retry.
    """
    try:
        if is_web(uri):
            return read_web(uri, max_bytes, access is None or access.follows_redirects)
        if split_protocol(uri)[0] == "data":
            return _read_data_url(uri, max_bytes)
        path = local_path(uri)
        if path is not None and path.exists() and not path.is_file():
            raise IsADirectoryError(str(path))  # a folder, or a pipe: reading an open pipe never ends
        file_system, name = open_store(uri)
        with file_system.open(name, "rb") as file:
            return _read_bounded(file, uri, max_bytes)
    except SampleError:
        raise
    except MemoryError as error:
        message = "not enough memory to read the image: make it smaller"
        raise SampleError(ErrorCode.OUT_OF_MEMORY, message) from error
    except FileNotFoundError as error:
        # a store says "not found" of a bucket too, and the Hub of a repository that this user may not see
        reason = f" ({error})" if "bucket" in str(error).lower() else ""
        is_hub = split_protocol(uri)[0] == "hf"
        hub = credentials_advice(PermissionError(), uri).replace("; ", ", or ") if is_hub else ""
        raise _missing(uri, f"no such file{reason}: check the path{hub}") from error
    except IsADirectoryError as error:
        raise _missing(uri, "this is a folder, a pipe or a device: name a file") from error
    except (NotADirectoryError, ValueError, ImportError) as error:
        raise _missing(uri, f"it cannot be opened ({error}): check the path") from error
    except OSError as error:
        if error.errno in {errno.ENAMETOOLONG, errno.ELOOP}:
            raise _missing(uri, f"it cannot be opened ({error}): check the path") from error
        if advice := credentials_advice(error, uri):
            kind = PermissionError if isinstance(error, PermissionError) else OSError
            raise kind(f"{display_uri(uri)}: {error}{advice}") from error
        raise
    except Exception as error:  # each fsspec file system raises its own library's errors
        raise OSError(f"{display_uri(uri)}: {type(error).__name__}: {error}{credentials_advice(error, uri)}") from error


def _read_data_url(uri: str, max_bytes: int) -> bytes:
    """The bytes that a `data:` URL holds (RFC 2397). Raises SampleError as `read_image_bytes`.

    fsspec drops every character that is no base64, those of the URL-safe alphabet too, and gives damaged bytes.
    """
    head, comma, text = uri.partition(",")
    if not comma:
        raise _missing(uri, "a data: URL needs a comma before its data: write data:image/png;base64,...")
    data = unquote_to_bytes(text)
    if head.lower().endswith(";base64"):
        letters = b"".join(data.split()).rstrip(b"=").translate(bytes.maketrans(b"-_", b"+/"))
        try:
            data = base64.b64decode(letters + b"=" * (-len(letters) % 4), validate=True)
        except ValueError as error:
            raise _missing(uri, f"its data is not base64 ({error}): encode the image again") from error
    if len(data) > max_bytes:
        raise too_large(uri, max_bytes)
    return data


def _read_bounded(file: BinaryIO, uri: str, max_bytes: int) -> bytes:
    chunks: list[bytes] = []
    left, end = max_bytes + 1, time.monotonic() + READ_S
    while left > 0 and (chunk := file.read(min(left, _CHUNK_BYTES))):
        chunks.append(chunk)
        left -= len(chunk)
        if time.monotonic() > end:
            message = f"{display_uri(uri)}: it was not read within {READ_S:g} s: put the file in a faster store"
            raise SampleError(ErrorCode.TIMED_OUT, message)
    if left <= 0:
        raise too_large(uri, max_bytes)
    return b"".join(chunks)


def _missing(uri: str, message: str) -> SampleError:
    return SampleError(ErrorCode.IMAGE_MISSING, f"{display_uri(uri)}: {message}")
