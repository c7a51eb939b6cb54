"""Files on web servers: the URL is sent as it is written, and the answer is bounded in bytes and in time.

Every final answer is a SampleError that says what the server said. What may pass is an OSError, so that the caller can
try again.
"""

from __future__ import annotations

import asyncio
import re
import zlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import parse_qsl, quote, urlsplit

from manifests.access import display_uri
from sgi2v.errors import ErrorCode, SampleError
from sgi2v.locations import split_protocol

if TYPE_CHECKING:
    import aiohttp
    import yarl

READ_S = 300.0
"""Longest time for one file, seconds, from the connection to the last byte, with every wait."""

CONNECT_S = 30.0
"""Longest time for a connection, seconds."""

SILENCE_S = 60.0
"""Longest wait for the next byte, seconds."""

WAITS = 3
"""Times that a `Retry-After` of a busy server is obeyed."""

LONGEST_WAIT_S = 60.0
"""Longest `Retry-After` that is obeyed, seconds; a longer one fails the read."""

MAX_REDIRECTS = 10
"""Redirects that are followed, one after the other."""

_CHUNK_BYTES = 1 << 16
_ERROR_BYTES = 1 << 14
"""Bytes of an error's page that are searched for its reason."""
_URL_CHARS = "".join(map(chr, range(0x21, 0x7F)))
"""Characters that are sent as they are; others cannot stand in a request."""
_BUSY = (429, 503)
_REDIRECTS = (301, 302, 303, 307, 308)
_FINAL_MESSAGES = {
    401: "the server asks for a login (HTTP 401): write https://USER:PASSWORD@host/..., or use a signed URL",
    403: "the server refuses access (HTTP 403): check the permissions of the file, or sign the URL again",
    404: "no such file (HTTP 404): check the URL",
    410: "the file was removed from the server (HTTP 410): use another copy",
}
_EXPIRED = re.compile(
    r"request has expired|expired ?token|token (?:has|is) expired|signature not valid in the specified time frame"
    r"|(?:url|link|signature|policy) (?:has|is) expired|<Code>RequestExpired|url signature expired",
    re.IGNORECASE,
)
"""What Amazon, Google, Azure, CloudFront and others say of a signed URL whose time is over."""


def read_web(
    url: str, max_bytes: int | None = None, follows_redirects: bool = True, seconds: float | None = None
) -> bytes:
    """The file at an HTTP URL.

    max_bytes: counted as they arrive and after decompression, whatever the server's headers say. seconds: for the
    whole file; None is READ_S. Raises SampleError (image_missing, image_too_large, timed_out) and OSError.
    """
    import aiohttp
    from fsspec.asyn import get_loop, sync

    try:
        return bytes(sync(get_loop(), _read_in_time, url, max_bytes, follows_redirects, seconds or READ_S))
    except aiohttp.ClientConnectorError as error:
        raise OSError(f"{display_uri(url)}: the server cannot be reached: {error.os_error}") from error
    except aiohttp.ClientResponseError as error:
        reason = error.message.partition("\n")[0][:200]
        raise OSError(f"{display_uri(url)}: the server does not answer as a web server should: {reason}") from error
    except aiohttp.ClientError as error:
        if isinstance(error, aiohttp.InvalidURL):
            raise _missing(url, f"this is not a valid URL ({error}): check it") from error
        raise OSError(f"{display_uri(url)}: {type(error).__name__}: {error}") from error
    except ValueError as error:
        raise _missing(url, f"this is not a valid URL ({error}): check it") from error


async def _read_in_time(url: str, max_bytes: int | None, follows_redirects: bool, seconds: float) -> bytes:
    import aiohttp

    deadline = asyncio.timeout(seconds)
    try:
        async with deadline:
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_S, sock_read=SILENCE_S)
            async with aiohttp.ClientSession(timeout=timeout, auto_decompress=False) as session:
                return await _read(session, url, max_bytes, follows_redirects)
    except TimeoutError as error:
        if not deadline.expired():
            raise OSError(f"{display_uri(url)}: the server has not answered in time: {error}") from error
        message = f"{display_uri(url)}: it was not read within {seconds:g} s: put the file on a faster server"
        raise SampleError(ErrorCode.TIMED_OUT, message) from error


async def _read(session: aiohttp.ClientSession, url: str, max_bytes: int | None, follows_redirects: bool) -> bytes:
    """The file, behind the redirects, and after the waits that the server asks for."""
    import yarl

    target, redirects, waits = _exact(url), 0, 0
    while True:
        async with session.get(target, headers={"Accept-Encoding": "identity"}, allow_redirects=False) as response:
            wait_s, location = _retry_after_s(response), response.headers.get("Location")
            if response.status in _REDIRECTS and location is not None and follows_redirects:
                # by hand, because aiohttp rewrites the escapes of the new URL or keeps spaces in it
                redirects += 1
                place = quote(location, safe=_URL_CHARS, errors="surrogateescape")
                target = target.join(yarl.URL(place, encoded=True))
                if redirects > MAX_REDIRECTS or target.scheme not in ("http", "https"):
                    raise _missing(url, f"the server redirects it to {display_uri(str(target))}: name the final URL")
                continue
            if wait_s is None or waits == WAITS:
                return await _body(response, url, max_bytes)
        waits += 1
        await asyncio.sleep(wait_s)


def _exact(url: str) -> yarl.URL:
    """The URL as it is written, since a signature covers its escapes.

    Only what cannot stand in a request is changed: a host in other letters than ASCII's, spaces and such characters.
    """
    import yarl

    protocol, rest = split_protocol(url)
    authority = re.split(r"[/?#]", rest, maxsplit=1)[0]
    path = quote(rest[len(authority) :], safe=_URL_CHARS, errors="surrogateescape")
    return yarl.URL(f"{protocol}://{yarl.URL(f'{protocol}://{authority}').raw_authority}{path}", encoded=True)


def _retry_after_s(response: aiohttp.ClientResponse) -> float | None:
    """Seconds that a busy server asks to wait; None if it is not busy, says nothing, or asks for too much."""
    value = response.headers.get("Retry-After", "").strip()
    if response.status not in _BUSY or not value:
        return None
    try:
        seconds = float(value) if value.isdecimal() else _seconds_until(parsedate_to_datetime(value))
    except ValueError:
        return None
    return max(seconds, 0.0) if seconds <= LONGEST_WAIT_S else None


def _seconds_until(moment: datetime) -> float:
    return (moment.replace(tzinfo=moment.tzinfo or UTC) - datetime.now(UTC)).total_seconds()


async def _body(response: aiohttp.ClientResponse, url: str, max_bytes: int | None) -> bytes:
    """The bytes of a good answer. Raises what a bad one means."""
    if response.status in _REDIRECTS:
        raise _missing(url, "the server redirects it, and this manifest may not follow: name the image's final URL")
    if response.status >= 300:
        await _raise_for_status(response, url)
    if max_bytes is not None and (response.content_length or 0) > max_bytes:
        raise too_large(url, max_bytes)
    chunks: list[bytes] = []
    size = 0
    async for chunk in _decoded(response, url):
        size += len(chunk)
        if max_bytes is not None and size > max_bytes:
            raise too_large(url, max_bytes)
        chunks.append(chunk)
    sent = response.headers.get("Content-Range", f"bytes 0-{size - 1}/{size}")
    if response.status == 206 and sent.replace(" ", "") not in {f"bytes0-{size - 1}/{size}", f"bytes0-{size - 1}/*"}:
        raise _missing(url, f"the server sent only a part ({sent[:80]}): its answer is not the whole file")
    return b"".join(chunks)


async def _decoded(response: aiohttp.ClientResponse, url: str) -> AsyncIterator[bytes]:
    """The body in small pieces. Decompressed here, since aiohttp takes a compressed body that ends early for whole."""
    pieces = response.content.iter_chunked(_CHUNK_BYTES)
    encoding = response.headers.get("Content-Encoding", "").strip().lower()
    if encoding in ("br", "zstd", "compress"):
        raise _missing(url, f"the server sends it compressed ({encoding}), and was asked not to: change its settings")
    if encoding not in ("gzip", "x-gzip", "deflate"):
        async for piece in pieces:
            yield piece
        return
    inflater = zlib.decompressobj(zlib.MAX_WBITS | 32)  # 32: gzip or zlib, as the header says
    try:
        async for piece in pieces:
            while piece:
                yield inflater.decompress(piece, _CHUNK_BYTES)
                piece = inflater.unconsumed_tail
                if inflater.eof and inflater.unused_data:  # a gzip file may have several members
                    piece, inflater = inflater.unused_data, zlib.decompressobj(zlib.MAX_WBITS | 32)
        yield inflater.flush(_CHUNK_BYTES)
    except zlib.error as error:
        raise OSError(f"{display_uri(url)}: the {encoding} body is damaged ({error})") from error
    if not inflater.eof:
        raise OSError(f"{display_uri(url)}: the {encoding} body ends early")


async def _raise_for_status(response: aiohttp.ClientResponse, url: str) -> NoReturn:
    status = response.status
    if status in (408, 429) or status >= 500:
        busy = ": the server limits requests" if status == 429 else ""
        raise OSError(f"{display_uri(url)}: HTTP {status} {response.reason}{busy}")
    if status in (400, 401, 403, 410):
        page = (await response.content.read(_ERROR_BYTES)).decode("utf-8", "replace")
        end = expires_at(url)
        if end is not None and end < datetime.now(UTC):
            raise _missing(url, f"the signed URL expired at {end:%Y-%m-%d %H:%M:%S} UTC (HTTP {status}): sign it again")
        if _EXPIRED.search(page):
            raise _missing(url, f"the server says that the signed URL has expired (HTTP {status}): sign it again")
    reason = f" {response.reason}" if response.reason else ""
    raise _missing(
        url, _FINAL_MESSAGES.get(status, f"the server refuses the request (HTTP {status}{reason}): check the URL")
    )


def expires_at(url: str) -> datetime | None:
    """When a signed URL of Amazon, Google, CloudFront or Azure expires; None for another URL."""
    query: dict[str, Any] = {name.lower(): value for name, value in parse_qsl(urlsplit(url).query)}
    try:
        for store in ("amz", "goog"):
            if f"x-{store}-expires" in query:
                start = datetime.strptime(query[f"x-{store}-date"], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
                return start + timedelta(seconds=int(query[f"x-{store}-expires"]))
        if "expires" in query and "signature" in query:
            return datetime.fromtimestamp(int(query["expires"]), UTC)
        if "se" in query and "sig" in query:
            end = datetime.fromisoformat(query["se"])
            return end.replace(tzinfo=end.tzinfo or UTC)
    except (KeyError, ValueError, OverflowError, OSError):
        return None
    return None


def too_large(uri: str, max_bytes: int) -> SampleError:
    """The error of a file with more than `max_bytes`."""
    message = f"the image file is larger than {max_bytes / 2**20:g} MiB: compress the image or make it smaller"
    return SampleError(ErrorCode.IMAGE_TOO_LARGE, f"{display_uri(uri)}: {message}")


def _missing(uri: str, message: str) -> SampleError:
    return SampleError(ErrorCode.IMAGE_MISSING, f"{display_uri(uri)}: {message}")
