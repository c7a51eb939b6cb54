"""Files on web servers: the URL as written, bounded answers, and what refusals say."""

from __future__ import annotations

import gzip
import time
import tracemalloc
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

import manifests.web
from manifests.access import Access
from manifests.io import read_manifest
from manifests.urls import read_image_bytes
from manifests.web import expires_at, read_web
from sgi2v.errors import ErrorCode, ManifestError, SampleError
from tests.manifests.web_server import Request, web_server

MIB = 1 << 20
SIGNATURE = "X-Amz-Credential=AKIA%2F20261127%2Fus-east-1%2Fs3%2Faws4_request&X-Amz-Signature=ab%2Bc%3D"
TARGETS = [
    *("/b/plain.png", "/b/a%20b.png", "/b/a+b.png", "/b/a%2Bb.png", "/b/a%2Fb.png", "/b/%C3%A9.png", "/b/%c3%a9.png"),
    *("/b/a%25b.png", "/b/a%2520b.png", "/b/a%23b.png", "/b/a%3Fb.png", "/b/a%3Db%26c.png", "/b/a=b&c;d,e.png"),
    *("/b/(a)'b'!*.png", "/b/%28a%29%27b%27%21%2A.png", "/b/a~b%7Ec.png", "/b/a:b@c$d.png", "/b/a%3Ab%40c%24d.png"),
    *("/b//a.png", "/b/x//a.png", "/b/./a.png", "/b/x/../a.png", "/b/%2e%2e/a.png", "/b/a::b.png", "/b/[a]{b}|c^`.png"),
    *("/b/a.png?x", "/b/a.png?a+b=c%20d", "/b/a.png?a=%2f&b=%2F", "/b/a.png?q=a/b?c", "/b/100%.png"),
    *("/b/a%zz.png", '/b/a"b<c>.png', "/b/a\\b.png", "/"),
]


def ok(request: Request) -> tuple[int, dict[str, str], bytes]:
    return 200, {}, b"hello"


@pytest.mark.parametrize("query", ["", SIGNATURE])
def test_the_url_that_the_manifest_holds_is_the_url_that_is_asked_for(query: str) -> None:
    sent = [f"{target}{'&' if '?' in target else '?'}{query}" if query else target for target in TARGETS]
    with web_server(ok) as server:
        for target in sent:
            assert read_image_bytes(server.url + target) == b"hello"
        assert server.targets == sent
        for request in server.requests:
            assert request.headers["accept-encoding"] == "identity"


def test_only_what_cannot_stand_in_a_request_is_escaped() -> None:
    with web_server(ok) as server:
        read_web(f"{server.url}/a b/é.png?x=ü%20#part")
        read_web(server.url.replace("http", "HTTP") + "/A.png")
        assert server.targets == ["/a%20b/%C3%A9.png?x=%C3%BC%20", "/A.png"]


def test_a_name_and_a_password_are_sent_as_basic_authentication() -> None:
    with web_server(ok) as server:
        read_web(server.url.replace("//", "//user:p%40ss@") + "/a.png")
        assert server.requests[0].headers["authorization"] == "Basic dXNlcjpwQHNz"


def test_the_url_of_a_redirect_is_not_rewritten_either() -> None:
    target = f"/b/a%20b+c%2B.png?{SIGNATURE}"

    def answer(request: Request) -> tuple[int, dict[str, str], bytes]:
        if request.target == "/go":
            return 302, {"Location": target}, b""
        return (302, {"Location": "/go"}, b"") if request.target == "/start" else (200, {}, b"hello")

    with web_server(answer) as server:
        assert read_image_bytes(f"{server.url}/start") == b"hello"
        assert server.targets == ["/start", "/go", target]
        with pytest.raises(SampleError, match="the server redirects it, and this manifest may not follow"):
            read_image_bytes(f"{server.url}/start", access=Access((server.url,)))


@pytest.mark.parametrize("location", ["/again", "file:///etc/passwd", "ftp://host/a"])
def test_redirects_without_end_or_to_other_protocols_are_refused(location: str) -> None:
    with (
        web_server(lambda request: (302, {"Location": location}, b"")) as server,
        pytest.raises(SampleError, match="the server redirects it to") as caught,
    ):
        read_web(f"{server.url}/a.png")
    assert caught.value.code is ErrorCode.IMAGE_MISSING
    assert len(server.targets) <= 11


def zeros(total: int) -> Iterator[bytes]:
    for _ in range(total // MIB):
        yield bytes(MIB)


ENDLESS = {
    "no length": (200, {}, lambda: zeros(64 * MIB)),
    "a length that lies": (200, {"Content-Length": str(64 * MIB)}, lambda: zeros(64 * MIB)),
    "a part": (206, {"Content-Range": "bytes 0-9/10"}, lambda: zeros(64 * MIB)),
    "a compressed body": (200, {"Content-Encoding": "gzip"}, lambda: iter([gzip.compress(bytes(64 * MIB))])),
    "compressed in part": (206, {"Content-Encoding": "deflate"}, lambda: iter([zlib.compress(bytes(64 * MIB))])),
}


@pytest.mark.parametrize("kind", ENDLESS)
def test_bytes_are_bounded_while_they_are_read_whatever_the_headers_say(kind: str) -> None:
    status, headers, body = ENDLESS[kind]
    pieces = list(body())
    with web_server(lambda request: (status, headers, iter(pieces))) as server:
        tracemalloc.start()
        with pytest.raises(SampleError, match="larger than 2 MiB") as caught:
            read_image_bytes(f"{server.url}/a.png", 2 * MIB)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert caught.value.code is ErrorCode.IMAGE_TOO_LARGE
    assert peak < 24 * MIB


def test_an_answer_that_is_encoded_all_the_same_is_decoded() -> None:
    text = bytes(range(256)) * 999
    bodies = {
        "/gzip": ("gzip", gzip.compress(text)),
        "/members": ("GZIP", gzip.compress(text[:300]) + gzip.compress(text[300:])),
        "/zlib": ("deflate", zlib.compress(text)),
        "/unknown": ("aws-chunked", text),
        "/cut": ("gzip", gzip.compress(text)[:-12]),
        "/junk": ("gzip", text),
        "/none": ("gzip", b""),
        "/br": ("br", text),
    }

    def answer(request: Request) -> tuple[int, dict[str, str], bytes]:
        encoding, body = bodies[request.target]
        return 200, {"Content-Encoding": encoding}, body

    with web_server(answer) as server:
        for target in ("/gzip", "/members", "/zlib", "/unknown"):
            assert read_web(server.url + target, len(text)) == text, target
        for target, message in (("/cut", "ends early"), ("/none", "ends early"), ("/junk", "damaged")):
            with pytest.raises(OSError, match=message):
                read_web(server.url + target)
        with pytest.raises(SampleError, match="compressed \\(br\\), and was asked not to"):
            read_web(f"{server.url}/br")


@pytest.mark.parametrize("headers", [{"Transfer-Encoding": "chunked"}, {"X": "a" * 100_000}, {"Two words": "1"}])
def test_an_answer_that_is_no_http_is_a_failure_that_may_pass(headers: dict[str, str]) -> None:
    with (
        web_server(lambda request: (200, headers, b"zz")) as server,
        pytest.raises(OSError, match="does not answer as a web server should"),
    ):
        read_web(f"{server.url}/a.png")


def test_a_part_of_a_file_is_not_taken_for_the_file() -> None:
    ranges = {"/whole": "bytes 0-4/5", "/part": "bytes 0-4/9", "/end": "bytes 4-8/9", "/silent": ""}

    def answer(request: Request) -> tuple[int, dict[str, str], bytes]:
        sent = ranges[request.target]
        return 206, {"Content-Range": sent} if sent else {}, b"hello"

    with web_server(answer) as server:
        assert read_web(f"{server.url}/whole") == read_web(f"{server.url}/silent") == b"hello"
        for target in ("/part", "/end"):
            with pytest.raises(SampleError, match="sent only a part"):
                read_web(server.url + target)
    with (
        web_server(lambda request: (200, {"Content-Length": "9"}, b"hello")) as server,
        pytest.raises(OSError, match="ClientPayloadError"),
    ):
        read_web(f"{server.url}/a.png")


def test_the_time_for_one_file_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    def drip() -> Iterator[bytes]:
        for _ in range(100):
            yield b"x"
            time.sleep(0.05)

    monkeypatch.setattr(manifests.web, "READ_S", 0.3)
    with web_server(lambda request: (200, {}, drip())) as server:
        start = time.monotonic()
        with pytest.raises(SampleError, match=r"not read within 0.3 s") as caught:
            read_image_bytes(f"{server.url}/a.png")
        assert time.monotonic() - start < 2
    assert caught.value.code is ErrorCode.TIMED_OUT


def test_silence_is_a_failure_that_may_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent() -> Iterator[bytes]:
        yield b"x"
        time.sleep(1)

    monkeypatch.setattr(manifests.web, "SILENCE_S", 0.1)
    with (
        web_server(lambda request: (200, {}, silent())) as server,
        pytest.raises(OSError, match="has not answered in time"),
    ):
        read_image_bytes(f"{server.url}/a.png")


def test_a_server_that_cannot_be_reached_is_a_failure_that_may_pass() -> None:
    with pytest.raises(OSError, match="the server cannot be reached"):  # nothing listens on the discard port
        read_image_bytes("http://127.0.0.1:9/a.png")


MESSAGES = {
    300: "the server refuses the request",
    400: "the server refuses the request",
    401: "the server asks for a login",
    403: "the server refuses access",
    404: "no such file",
    410: "the file was removed from the server",
    451: "the server refuses the request",
}


@pytest.mark.parametrize("status", MESSAGES)
def test_refusals_say_what_they_are(status: int) -> None:
    with web_server(lambda request: (status, {}, b"no")) as server:
        with pytest.raises(SampleError, match=rf"{MESSAGES[status]} \(HTTP {status}") as caught:
            read_image_bytes(f"{server.url}/a.png")
        with pytest.raises(ManifestError, match=rf"{MESSAGES[status]} \(HTTP {status}"):
            read_manifest(f"{server.url}/m.parquet")
    assert caught.value.code is ErrorCode.IMAGE_MISSING


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 504])
def test_failures_that_may_pass_are_os_errors(status: int) -> None:
    with (
        web_server(lambda request: (status, {}, b"later")) as server,
        pytest.raises(OSError, match=rf"HTTP {status} Reason"),
    ):
        read_image_bytes(f"{server.url}/a.png")


@pytest.mark.parametrize(
    "page",
    [
        "<Error><Code>AccessDenied</Code><Message>Request has expired</Message><Expires>2020</Expires></Error>",
        "<Error><Code>ExpiredToken</Code><Message>The provided token has expired.</Message></Error>",
        "<Error><Code>AuthenticationFailed</Code><AuthenticationErrorDetail>Signature not valid in the specified time "
        "frame: Start [..] - Expiry [..] - Current [..]</AuthenticationErrorDetail></Error>",
        "URL signature expired",
    ],
)
def test_a_server_that_calls_a_signed_url_expired_is_believed(page: str) -> None:
    with (
        web_server(lambda request: (403, {}, page.encode())) as server,
        pytest.raises(SampleError, match="signed URL has expired"),
    ):
        read_image_bytes(f"{server.url}/a.png")


OVER = {
    "Amazon": "X-Amz-Date=20200102T030405Z&X-Amz-Expires=60&X-Amz-Signature=1",
    "Google": "X-Goog-Date=20200102T030405Z&X-Goog-Expires=60&X-Goog-Signature=1",
    "Amazon before": "AWSAccessKeyId=A&Signature=s%3D&Expires=1577934305",
    "Google before": "GoogleAccessId=a&Expires=1577934305&Signature=s",
    "Azure": "sv=2021&se=2020-01-02T03%3A05%3A05Z&sig=s%3D",
}


@pytest.mark.parametrize("store", OVER)
def test_a_refused_url_whose_time_is_over_is_called_expired(store: str) -> None:
    with (
        web_server(lambda request: (400 if store == "Amazon" else 403, {}, b"no")) as server,
        pytest.raises(SampleError, match="expired at 2020-01-02 03:05:05 UTC") as caught,
    ):
        read_image_bytes(f"{server.url}/a.png?{OVER[store]}")
    assert "s%3D" not in caught.value.message


def test_a_url_that_does_not_expire_is_not_called_expired() -> None:
    later = datetime.now(UTC) + timedelta(hours=1)
    for query in ("", "Expires=x&Signature=y", "X-Amz-Expires=60", "se=soon&sig=1", "Expires=1577934305"):
        assert expires_at(f"https://h/a.png?{query}") is None
    fresh = f"X-Amz-Date={later:%Y%m%dT%H%M%SZ}&X-Amz-Expires=60"
    with (
        web_server(lambda request: (403, {}, b"no")) as server,
        pytest.raises(SampleError, match="the server refuses access"),
    ):
        read_image_bytes(f"{server.url}/a.png?{fresh}")


@pytest.mark.parametrize("status", [429, 503])
def test_a_wait_that_the_server_asks_for_is_kept(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    past = format_datetime(datetime.now(UTC) - timedelta(minutes=1))
    values = iter(["0", past])

    def answer(request: Request) -> tuple[int, dict[str, str], bytes]:
        asked.append(time.monotonic())
        value = next(values, None)
        return (200, {}, b"hello") if value is None else (status, {"Retry-After": value}, b"")

    with web_server(answer) as server:
        assert read_image_bytes(f"{server.url}/a.png") == b"hello"
    assert len(asked) == 3


def test_waits_are_bounded_in_number_and_length() -> None:
    with web_server(lambda request: (429, {"Retry-After": "0"}, b"")) as server:
        with pytest.raises(OSError, match="HTTP 429"):
            read_image_bytes(f"{server.url}/a.png")
        assert len(server.targets) == manifests.web.WAITS + 1
    for value in ("3600", "soon", "Fri, 27 Nov 2099 12:00:00 GMT"):
        with web_server(lambda request, value=value: (429, {"Retry-After": value}, b"")) as server:  # type: ignore[misc]
            with pytest.raises(OSError, match="HTTP 429"):
                read_image_bytes(f"{server.url}/a.png")
            assert len(server.targets) == 1


@pytest.mark.parametrize("url", ["http://", "http://[::1", "http://host:port/a.png", "http://h\udc80/a.png"])
def test_what_is_no_url_is_refused_in_words(url: str) -> None:
    with pytest.raises(SampleError, match="not a valid URL"):
        read_image_bytes(url)
