"""First frames: from a manifest's `image` to the bytes of its file, and to pixels.

Every way in which an image can be unusable is a SampleError.
"""

from __future__ import annotations

import errno
import os
import posixpath
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit

import fsspec.core
import numpy as np
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray

from manifests.access import Access, display_uri, is_web
from manifests.decode import decode_image
from sgi2v.errors import ErrorCode, SampleError

MAX_BYTES = 256 * 2**20
"""Largest image file that is read, bytes."""


def resolve_uri(image: str, manifest_uri: str, access: Access | None = None) -> str:
    """The absolute location of a row's image. A relative path starts at the manifest's folder.

    access: None allows every place that manifests may name. Raises SampleError(image_missing) for a place that is not
    allowed, and for a chained URL (`zip::https://...`), because a row must not pick file systems.
    """
    if "::" in image:
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
    if "://" in image or image.startswith(("data:", "/")):
        return image
    protocol, is_url, rest = manifest_uri.partition("://")
    if not is_url:
        return str(Path(manifest_uri).absolute().parent / image)
    if protocol in {"http", "https"}:
        rest = urlsplit(manifest_uri)._replace(scheme="", query="", fragment="").geturl().removeprefix("//")
    root, _, folder = rest.rpartition("/")[0].partition("/")
    path = posixpath.normpath(f"/{folder}/{image}").lstrip("/")
    return f"{protocol}://{root}/{path}"


def read_image_bytes(uri: str, max_bytes: int = MAX_BYTES, access: Access | None = None) -> bytes:
    """The file's bytes, from a local path or any fsspec URL.

    access: None follows HTTP redirects. Raises SampleError: image_missing (no such file, a folder, an unknown
    protocol, a redirect that is not followed), image_too_large, out_of_memory. Raises OSError for what may pass
    (connections, overloaded servers, permissions), so that the caller can retry.
    """
    follows_redirects = access is None or access.follows_redirects
    try:
        options = {} if follows_redirects or not is_web(uri) else {"get_client": _client_without_redirects}
        file_system, path = fsspec.core.url_to_fs(uri, **options)
        if isinstance(file_system, LocalFileSystem) and Path(path).exists() and not Path(path).is_file():
            raise IsADirectoryError(path)  # a folder, or a pipe: reading an open pipe never ends
        with file_system.open(path, "rb") as file:
            data = bytes(file.read(max_bytes + 1))
    except SampleError:
        raise
    except MemoryError as error:
        raise _no_memory("read") from error
    except FileNotFoundError as error:
        if isinstance(error.__cause__, SampleError):
            raise error.__cause__ from None
        if _is_transient(error.__cause__):
            raise OSError(f"{uri}: {error.__cause__}") from error
        raise _missing(uri, "no such file: check the path") from error
    except IsADirectoryError as error:
        raise _missing(uri, "this is a folder, a pipe or a device: name a file") from error
    except (NotADirectoryError, ValueError, ImportError) as error:
        raise _missing(uri, f"it cannot be opened ({error}): check the path") from error
    except OSError as error:
        if error.errno in {errno.ENAMETOOLONG, errno.ELOOP}:
            raise _missing(uri, f"it cannot be opened ({error}): check the path") from error
        raise
    except Exception as error:  # each fsspec file system raises its own library's errors
        raise OSError(f"{uri}: {type(error).__name__}: {error}") from error
    if len(data) > max_bytes:
        message = f"the image file is larger than {max_bytes / 2**20:g} MiB: compress the image or make it smaller"
        raise SampleError(ErrorCode.IMAGE_TOO_LARGE, message)
    return data


async def _client_without_redirects(**options: Any) -> Any:
    """An HTTP client for fsspec that refuses redirects: only the original location was checked."""
    import aiohttp

    async def refuse(session: Any, context: Any, params: Any) -> NoReturn:
        raise _missing(
            str(params.url), "the server redirects it, and this manifest may not follow: name the image's final URL"
        )

    trace = aiohttp.TraceConfig()
    trace.on_request_redirect.append(refuse)
    return aiohttp.ClientSession(trace_configs=[trace], **options)


def _is_transient(cause: BaseException | None) -> bool:
    """Whether a FileNotFoundError hides a failure that may pass: fsspec's HTTP raises it for every failed request."""
    status = getattr(cause, "status", 0)
    return status == 429 or status >= 500 or (isinstance(cause, OSError) and not isinstance(cause, FileNotFoundError))


def load_image(image: str, manifest_uri: str, access: Access | None = None) -> NDArray[np.uint8]:
    """A row's image as uint8 [H, W, 3].

    Raises what `resolve_uri`, `read_image_bytes` and `decode_image` raise.
    """
    return decode_image(read_image_bytes(resolve_uri(image, manifest_uri, access), access=access))


def _missing(uri: str, message: str) -> SampleError:
    return SampleError(ErrorCode.IMAGE_MISSING, f"{display_uri(uri)}: {message}")


def _no_memory(action: str) -> SampleError:
    return SampleError(ErrorCode.OUT_OF_MEMORY, f"not enough memory to {action} the image: make it smaller")
