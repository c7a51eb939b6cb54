"""First frames: how they are located, decoded, and refused."""

from __future__ import annotations

import http.server
import io
import itertools
import os
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from manifests.access import Access
from manifests.decode import decode_image
from manifests.images import load_image
from manifests.urls import read_image_bytes, resolve_uri
from sgi2v.errors import ErrorCode, SampleError

Pixels = NDArray[np.uint8]
RNG = np.random.default_rng(0)
RGB: Pixels = RNG.integers(0, 256, (30, 40, 3), np.uint8)


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def refused(data: bytes, code: ErrorCode, max_pixels: int = 64_000_000) -> str:
    with pytest.raises(SampleError) as caught:
        decode_image(data, max_pixels)
    assert caught.value.code is code
    return caught.value.message


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "GIF", "WEBP"])
def test_lossless_formats_decode_to_their_pixels(kind: str) -> None:
    grey = Image.fromarray(RGB[..., 0])
    image = grey if kind == "GIF" else Image.fromarray(RGB)
    pixels = decode_image(encoded(image, kind, **({"lossless": True} if kind == "WEBP" else {})))
    assert pixels.dtype == np.uint8
    assert pixels.flags.writeable
    assert np.array_equal(pixels, np.asarray(image.convert("RGB")))


def test_16_bit_values_are_scaled_to_8_bits() -> None:
    deep = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.round(deep / 257).astype(np.uint8)
    for kind in ("PNG", "TIFF", "PPM"):
        pixels = decode_image(encoded(Image.fromarray(deep), kind))
        assert np.array_equal(pixels, np.repeat(expected[..., None], 3, axis=-1)), kind


def test_cmyk_is_converted() -> None:
    inks: Pixels = RNG.integers(0, 256, (20, 24, 4), np.uint8)
    pixels = decode_image(encoded(Image.fromarray(inks, "CMYK"), "TIFF"))
    expected = (255.0 - inks[..., :3]) * (255.0 - inks[..., 3:]) / 255
    assert np.abs(pixels - expected).max() <= 1
    flat = np.tile(np.array([200, 30, 90, 10], np.uint8), (32, 32, 1))
    pixels = decode_image(encoded(Image.fromarray(flat, "CMYK"), "JPEG", quality=100))
    assert np.abs(pixels - (255.0 - flat[..., :3]) * (255 - 10) / 255).max() <= 3


def test_palettes_decode_with_and_without_transparency() -> None:
    indexed = Image.fromarray(RGB).quantize(16)
    assert np.array_equal(decode_image(encoded(indexed)), np.asarray(indexed.convert("RGB")))
    expected = np.asarray(indexed.convert("RGB")).copy()
    expected[np.asarray(indexed) == 3] = 255
    assert np.array_equal(decode_image(encoded(indexed, transparency=3)), expected)


def test_transparent_pixels_become_white() -> None:
    alpha: Pixels = RNG.integers(0, 256, (30, 40, 1), np.uint8)
    for colour, mode in ((RGB, "RGBA"), (RGB[..., :1], "LA")):
        pixels = decode_image(encoded(Image.fromarray(np.concatenate([colour, alpha], axis=-1), mode)))
        expected = colour * (alpha / 255.0) + 255 * (1 - alpha / 255.0)
        assert np.abs(pixels - expected).max() <= 1, mode
    keyed = RGB.copy()
    keyed[:10] = (1, 2, 3)
    pixels = decode_image(encoded(Image.fromarray(keyed), transparency=(1, 2, 3)))
    assert (pixels[:10] == 255).all()
    assert np.array_equal(pixels[10:], keyed[10:])


@pytest.mark.parametrize("mode", ["L", "1"])
def test_grey_and_1_bit_images_decode(mode: str) -> None:
    image = Image.fromarray(RGB).convert(mode)
    pixels = decode_image(encoded(image))
    assert np.array_equal(pixels, np.asarray(image.convert("RGB")))
    assert mode == "L" or set(np.unique(pixels)) == {0, 255}


@pytest.mark.parametrize(
    ("kind", "orientation"), list(itertools.product(["PNG", "TIFF", "WEBP", "JPEG", "AVIF"], range(1, 9)))
)
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    stored: Pixels = np.zeros((32, 48, 3), np.uint8)
    stored[:16, :24] = (250, 10, 10)
    stored[16:, :24] = (10, 250, 10)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {
        "JPEG": {"quality": 100, "subsampling": 0},
        "WEBP": {"lossless": True},
        "AVIF": {"quality": 100, "subsampling": "4:4:4"},  # Pillow writes its `irot` and `imir` boxes
    }.get(kind, {})
    data = encoded(Image.fromarray(stored), kind, exif=exif, **options)
    turns = {2: "h", 3: "hv", 4: "v", 5: "t", 6: "th", 7: "thv", 8: "tv"}.get(orientation, "")
    expected = stored
    for turn in turns:
        expected = {"t": expected.swapaxes(0, 1), "h": expected[:, ::-1], "v": expected[::-1]}[turn]
    pixels = decode_image(data)
    assert pixels.shape == expected.shape
    assert np.abs(pixels.astype(int) - expected).max() <= (4 if kind in {"JPEG", "AVIF"} else 0)


PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def orientation_6() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif.tobytes()


PNG_ORIENTATIONS = {
    "in a text chunk": (chunk(b"tEXt", b"Raw profile type exif\0\nexif\n0\n" + orientation_6().hex().encode()), b""),
    "in XMP": (chunk(b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0<x tiff:Orientation="6"/>'), b""),
    "behind the pixels": (b"", chunk(b"eXIf", orientation_6().removeprefix(b"Exif\0\0"))),
}


@pytest.mark.parametrize("place", PNG_ORIENTATIONS)
def test_a_png_is_turned_wherever_its_orientation_is_stored(place: str) -> None:
    before, behind = PNG_ORIENTATIONS[place]
    plain = encoded(Image.fromarray(RGB))
    pixels_at = plain.index(b"IDAT") - 4
    end = len(chunk(b"IEND", b""))
    data = plain[:pixels_at] + before + plain[pixels_at:-end] + behind + plain[-end:]
    assert np.array_equal(decode_image(data), np.rot90(RGB, -1))


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_is_ignored() -> None:
    data = encoded(Image.fromarray(RGB), exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x05garbage")
    assert np.array_equal(decode_image(data), RGB)


@pytest.mark.parametrize("kind", ["GIF", "PNG", "WEBP", "TIFF"])
def test_the_first_frame_of_an_animation_is_used(kind: str) -> None:
    first, second = Image.new("RGB", (8, 8), "white"), Image.new("RGB", (8, 8), "black")
    pixels = decode_image(encoded(first, kind, save_all=True, append_images=[second]))
    assert (pixels == 255).all()


NOISE = Image.fromarray(RNG.integers(0, 256, (64, 64, 3), np.uint8))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.6, 0.9])
def test_truncated_images_are_refused(kind: str, share: float) -> None:
    data = encoded(NOISE, kind)
    refused(data[: int(len(data) * share)], ErrorCode.IMAGE_UNDECODABLE)


def test_data_that_is_no_usable_image_is_refused() -> None:
    assert "empty" in refused(b"", ErrorCode.IMAGE_UNDECODABLE)
    for data in (b"hello, I am text", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"):
        assert "use PNG, JPEG" in refused(data, ErrorCode.IMAGE_UNDECODABLE)
    flipped = bytearray(encoded(NOISE))
    flipped[len(flipped) // 2] ^= 0xFF
    assert "decoded" in refused(bytes(flipped), ErrorCode.IMAGE_UNDECODABLE)
    floats = encoded(Image.fromarray(np.full((4, 4), 0.5, np.float32)), "TIFF")
    assert "floating-point" in refused(floats, ErrorCode.IMAGE_UNDECODABLE)
    wide = encoded(Image.fromarray(np.full((4, 4), 70_000, np.int32)), "TIFF")
    assert "32-bit signed" in refused(wide, ErrorCode.IMAGE_UNDECODABLE)


def bomb(width: int, height: int) -> bytes:
    """A PNG whose header claims a large size, without any pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return PNG_SIGNATURE + header + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [8_001, 10_000, 60_000])
def test_decompression_bombs_are_refused_from_their_header(side: int) -> None:
    assert "64,000,000 pixels" in refused(bomb(side, side), ErrorCode.IMAGE_TOO_LARGE)


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_decompression_bombs_are_refused_when_warnings_are_errors() -> None:
    refused(bomb(10_000, 10_000), ErrorCode.IMAGE_TOO_LARGE)


def test_the_pixel_limit_is_inclusive() -> None:
    assert decode_image(encoded(NOISE), 64 * 64).shape == (64, 64, 3)
    assert "64 x 64 px" in refused(encoded(NOISE), ErrorCode.IMAGE_TOO_LARGE, 64 * 64 - 1)


def test_bytes_are_read_from_paths_and_urls(tmp_path: Path) -> None:
    (tmp_path / "a b#c?.png").write_bytes(b"12345")
    fsspec.filesystem("memory").pipe_file("/images/read/a.png", b"12345")
    for uri in (str(tmp_path / "a b#c?.png"), f"file://{tmp_path}/a b#c?.png", "memory://images/read/a.png"):
        assert read_image_bytes(uri, 5) == b"12345"
    assert read_image_bytes("data:image/png;base64,aGVsbG8=") == b"hello"


def test_unreadable_files_are_refused_with_their_codes(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"12345")
    os.mkfifo(tmp_path / "pipe.png")
    missing = [
        *(str(tmp_path / "pipe.png"), "/dev/zero"),
        *(str(tmp_path / "none.png"), str(tmp_path), str(tmp_path / "a.png" / "b.png"), str(tmp_path / ("x" * 300))),
        *("memory://images/none.png", "nope://a.png", str(tmp_path / "a\0b")),
    ]
    for uri in missing:
        with pytest.raises(SampleError) as caught:
            read_image_bytes(uri)
        assert caught.value.code is ErrorCode.IMAGE_MISSING, uri
    with pytest.raises(SampleError) as caught:
        read_image_bytes(str(tmp_path / "a.png"), 4)
    assert caught.value.code is ErrorCode.IMAGE_TOO_LARGE


class StatusHandler(http.server.BaseHTTPRequestHandler):
    """A web server that answers with the status code in the path."""

    def do_GET(self) -> None:
        body = b"hello"
        status = int(self.path.split("/")[1])
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "/200/elsewhere.png")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the test output quiet."""


@pytest.fixture
def server() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), StatusHandler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_permanent_and_transient_http_errors_are_distinguished(server: str) -> None:
    assert read_image_bytes(f"{server}/200/a.png") == b"hello"
    for status in (404, 410, 403):
        with pytest.raises(SampleError) as caught:
            read_image_bytes(f"{server}/{status}/a.png")
        assert caught.value.code is ErrorCode.IMAGE_MISSING
    for status in (429, 500, 503):
        with pytest.raises(OSError, match=str(status)):
            read_image_bytes(f"{server}/{status}/a.png")
    # nothing listens on the discard port
    with pytest.raises(OSError, match="cannot be reached"):
        read_image_bytes("http://127.0.0.1:9/a.png")


def test_redirects_are_followed_only_without_roots(server: str) -> None:
    uri, manifest = f"{server}/302/a.png", "/set/m.parquet"
    assert read_image_bytes(uri) == b"hello"
    assert read_image_bytes(uri, access=Access()) == b"hello"
    access = Access((f"{server}/302", f"{server}/200"))
    with pytest.raises(SampleError, match="the server redirects it") as caught:
        load_image(uri, manifest, access)
    assert caught.value.code is ErrorCode.IMAGE_MISSING
    assert read_image_bytes(f"{server}/200/a.png", access=access) == b"hello"


@pytest.mark.parametrize(
    ("image", "manifest", "expected"),
    [
        ("a.png", "s3://b/d/m.parquet", "s3://b/d/a.png"),
        ("x/a.png", "s3://b/m.parquet", "s3://b/x/a.png"),
        ("../a.png", "s3://b/d/e/m.parquet", "s3://b/d/a.png"),
        ("../../../a.png", "s3://b/d/m.parquet", "s3://b/a.png"),
        ("a.png", "https://h/d/m.parquet?download=true#x", "https://h/d/a.png"),
        ("a.png", "memory://m.csv", "memory:///a.png"),
        ("a.png", "memory://d/m.csv", "memory://d/a.png"),
        ("a.png", "file:///d/m.csv", "file:///d/a.png"),
        ("a.png", "/d/m.csv", "/d/a.png"),
        ("x/a b.png", "/d/e/m.csv", "/d/e/x/a b.png"),
    ],
)
def test_relative_images_start_at_the_manifests_folder(image: str, manifest: str, expected: str) -> None:
    assert resolve_uri(image, manifest) == expected


def test_relative_images_of_a_relative_manifest_become_absolute(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_uri("a.png", "m.csv") == str(tmp_path / "a.png")
    assert resolve_uri("../a.png", "x/m.csv") == str(tmp_path / "x" / ".." / "a.png")


MANIFESTS = ["m.csv", "/d/m.csv", "s3://b/d/m.parquet", "https://h/m.jsonl", "memory://m.csv", "file:///m.csv"]


@pytest.mark.parametrize("manifest", MANIFESTS)
def test_resolving_is_idempotent_and_keeps_absolute_locations(manifest: str) -> None:
    for image in ("/x/a.png", "s3://c/a.png", "https://h/a.png?x=1", "data:image/png;base64,aGk=", "file:///a.png"):
        assert resolve_uri(image, manifest) == image
    for image in ("a.png", "x/a.png", "./a.png", "../a.png", "x/../a b.png"):
        resolved = resolve_uri(image, manifest)
        assert resolved.endswith("/a b.png" if " " in image else "/a.png")
        assert all(resolve_uri(resolved, other) == resolved for other in MANIFESTS)


@pytest.mark.parametrize("image", ["zip://a.png::https://h/a.zip", "simplecache::s3://b/a.png", "a::S3://b/a.png"])
def test_chained_urls_are_refused(image: str) -> None:
    with pytest.raises(SampleError, match="chained") as caught:
        resolve_uri(image, "/d/m.csv")
    assert caught.value.code is ErrorCode.IMAGE_MISSING
