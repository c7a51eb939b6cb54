"""The layouts of image files: each with the pixels that it must decode to, or the words with which it is refused."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
from PIL import Image

from tests.manifests.pictures import (
    Samples,
    animated_webp,
    bmp,
    bmp_rows,
    encoded,
    png,
    png_chunk,
    tiff,
    with_precision,
)

HEIGHT, WIDTH = 20, 37
"""Odd, so that rows end inside a byte."""


@dataclass(frozen=True)
class Case:
    """One layout."""

    name: str
    make: Callable[[], tuple[bytes, Samples | str]]
    """The file, and its pixels or the words of its refusal."""
    tolerance: int = 0
    """Levels of 255: 1 where Pillow keeps the high byte of 16 bits, more for lossy coding."""


CASES: list[Case] = []


def noise(bits: int, channels: int, seed: int = 0) -> Samples:
    return np.random.default_rng(seed).integers(0, 1 << bits, (HEIGHT, WIDTH, channels))


def smooth(channels: int = 3, levels: int = 256) -> Samples:
    """Slow waves, other ones in each channel: lossy coding keeps them. Not the same when turned or mirrored."""
    y, x = np.mgrid[0:32, 0:48]
    waves = [0.5 + 0.4 * np.sin(0.03 * (n + 1) * x + 0.05 * y + n) for n in range(channels)]
    return np.round(np.stack(waves, axis=-1) * (levels - 1)).astype(int)


def in_8_bits(samples: Samples, bits: int) -> Samples:
    return np.round(samples * 255 / ((1 << bits) - 1)).astype(int)


def as_rgb(pixels: Samples) -> Samples:
    return np.repeat(pixels, 3, axis=-1) if pixels.shape[-1] == 1 else pixels


def on_white(pixels: Samples, alpha: Samples) -> Samples:
    return np.round(as_rgb(pixels) * (alpha / 255) + 255 * (1 - alpha / 255)).astype(int)


def from_inks(inks: Samples) -> Samples:
    return np.round((255 - inks[..., :3]) * (255 - inks[..., 3:]) / 255).astype(int)


def case(name: str, tolerance: int = 0) -> Callable[[Callable[[], tuple[bytes, Samples | str]]], None]:
    def add(make: Callable[[], tuple[bytes, Samples | str]]) -> None:
        CASES.append(Case(name, make, tolerance))

    return add


def add(name: str, make: Callable[[], tuple[bytes, Samples | str]], tolerance: int = 0) -> None:
    CASES.append(Case(name, make, tolerance))


# PNG


def _png(bits: int, colour_type: int, interlaced: bool) -> tuple[bytes, Samples]:
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour_type]
    samples = noise(bits, channels)
    chunks, pixels = {}, in_8_bits(samples, bits)
    if colour_type == 3:
        palette = np.random.default_rng(1).integers(0, 256, (1 << bits, 3), np.uint8)
        chunks[b"PLTE"], pixels = palette.tobytes(), palette[samples[..., 0]]
    if colour_type in {4, 6}:
        pixels = on_white(pixels[..., :-1], pixels[..., -1:])
    return png(samples, bits, colour_type, chunks, interlaced), as_rgb(pixels)


for _name, _type, _depths in (
    ("grey", 0, (1, 2, 4, 8, 16)),
    ("RGB", 2, (8, 16)),
    ("palette", 3, (1, 2, 4, 8)),
    ("grey and alpha", 4, (8, 16)),
    ("RGBA", 6, (8, 16)),
):
    for _bits in _depths:
        for _interlaced in (False, True):
            add(
                f"PNG, {_bits}-bit {_name}{', interlaced' * _interlaced}",
                partial(_png, _bits, _type, _interlaced),
                {0: 0, 4: 2, 6: 2}.get(_type, 1 if _bits == 16 else 0),
            )


def _png_transparent_grey(bits: int) -> tuple[bytes, Samples]:
    samples = noise(bits, 1)
    key = samples[3, 4, 0]
    pixels = np.where(samples == key, 255, in_8_bits(samples, bits))
    return png(samples, bits, 0, {b"tRNS": struct.pack(">H", key)}), as_rgb(pixels)


for _bits in (1, 2, 4, 8, 16):
    add(f"PNG, {_bits}-bit grey with a transparent value", partial(_png_transparent_grey, _bits))


def _png_transparent_palette(bits: int) -> tuple[bytes, Samples]:
    samples = noise(bits, 1)
    rng = np.random.default_rng(1)
    palette = rng.integers(0, 256, (1 << bits, 3), np.uint8)
    alpha = np.full(1 << bits, 255)
    alpha[: 1 << (bits - 1)] = rng.integers(0, 256, 1 << (bits - 1))
    chunks = {b"PLTE": palette.tobytes(), b"tRNS": alpha[: 1 << (bits - 1)].astype(np.uint8).tobytes()}
    return png(samples, bits, 3, chunks), on_white(palette[samples[..., 0]], alpha[samples])


for _bits in (1, 2, 4, 8):
    add(f"PNG, {_bits}-bit palette with alpha", partial(_png_transparent_palette, _bits), 1)


@case("PNG, 8-bit RGB with a transparent colour")
def _() -> tuple[bytes, Samples]:
    samples = noise(8, 3)
    samples[5:9] = (1, 2, 3)
    pixels = samples.copy()
    pixels[5:9] = 255
    return png(samples, 8, 2, {b"tRNS": struct.pack(">3H", 1, 2, 3)}), pixels


@case("PNG, 16-bit RGB with a transparent colour")
def _() -> tuple[bytes, str]:
    return png(noise(16, 3), 16, 2, {b"tRNS": struct.pack(">3H", 1, 2, 3)}), "16-bit RGB PNG with a transparent colour"


@case("PNG, animated (APNG), its first frame")
def _() -> tuple[bytes, Samples]:
    first, second = noise(8, 3), noise(8, 3, 1)
    frames = [Image.fromarray(frame.astype(np.uint8)) for frame in (first, second)]
    return encoded(frames[0], "PNG", save_all=True, append_images=frames[1:]), first


@case("PNG, animated with a picture of its own before the frames")
def _() -> tuple[bytes, Samples]:
    first, second = noise(8, 3), noise(8, 3, 1)
    frames = [Image.fromarray(frame.astype(np.uint8)) for frame in (first, second, second[::-1])]
    return encoded(frames[0], "PNG", save_all=True, append_images=frames[1:], default_image=True), first


@case("PNG, high dynamic range (PQ)")
def _() -> tuple[bytes, str]:
    return png(noise(16, 3), 16, 2, {b"cICP": bytes([9, 16, 0, 1])}), "high dynamic range PNG (PQ)"


# TIFF


def _tiff(bits: int, photometric: int, channels: int, options: dict[str, Any]) -> tuple[bytes, Samples]:
    samples = noise(bits, channels)
    pixels = in_8_bits(samples, bits)
    extra = options.get("extra", [])
    if extra == [1]:  # colours are stored times alpha
        samples[..., :-1] = np.minimum(samples[..., :-1], samples[..., -1:])
        pixels = in_8_bits(samples, bits)
        pixels = np.clip(pixels[..., :-1] + 255 - pixels[..., -1:], 0, 255)
    elif extra == [2]:
        pixels = on_white(pixels[..., :-1], pixels[..., -1:])
    elif extra == [0]:
        pixels = pixels[..., :-1]
    if photometric == 0:
        pixels = 255 - pixels
    if photometric == 3:
        palette = np.random.default_rng(1).integers(0, 256, (3, 1 << bits))
        options = options | {"tags": {320: (palette * 257).ravel().tolist()}}
        pixels = np.moveaxis(palette[:, samples[..., 0]], 0, -1)
    if photometric == 5:
        pixels = from_inks(pixels)
    return tiff(samples, bits, photometric, **options), as_rgb(pixels)


_DEFLATE = {"compression": 8, "compress": zlib.compress}
_TIFFS: tuple[tuple[int, int, int, dict[str, Any]], ...] = (
    *((bits, photometric, 1, {}) for photometric in (0, 1) for bits in (1, 2, 4, 8, 16)),
    *((bits, 1, 1, {"order": ">"}) for bits in (1, 8, 16)),
    *((bits, 0, 1, {"order": ">"}) for bits in (1, 8)),
    *((bits, photometric, 1, {"fill_order": 2}) for bits, photometric in ((1, 0), (1, 1))),
    (12, 1, 1, {}),
    (12, 1, 1, _DEFLATE),
    *((8, 1, 2, {"extra": [kind]}) for kind in (1, 2)),
    *((bits, 2, 3, {"order": order}) for bits in (8, 16) for order in "<>"),
    (8, 2, 3, {"planar": True}),
    (8, 2, 3, {"planar": True, "tile": 16}),
    *((bits, 2, 4, {"extra": [kind]}) for bits in (8, 16) for kind in (0, 1, 2)),
    (8, 2, 4, {"extra": [2], "planar": True}),
    *((bits, 3, 1, {}) for bits in (1, 2, 4, 8)),
    *((bits, 5, 4, {}) for bits in (8, 16)),
    (8, 5, 4, {"planar": True}),
    (8, 2, 3, {"tile": 16}),
    (16, 1, 1, {"tile": 16}),
    (16, 0, 1, _DEFLATE),
    (16, 2, 3, _DEFLATE | {"tile": 16}),
    (8, 2, 3, {"big": True}),
    (16, 1, 1, {"big": True, "rows_per_strip": 7}),
    (8, 2, 3, {"rows_per_strip": 7}),
    (8, 1, 1, {"next_page": b"another page"}),
)
_COLOURS = {0: "WhiteIsZero grey", 1: "BlackIsZero grey", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr", 8: "CIELAB"}
_EXTRAS = {0: "and an unused channel", 1: "and premultiplied alpha", 2: "and alpha"}


def _tiff_name(bits: int, photometric: int, options: dict[str, Any]) -> str:
    words = [f"TIFF, {bits}-bit {_COLOURS[photometric]}", *(_EXTRAS[kind] for kind in options.get("extra", []))]
    words += ["big-endian"] * (options.get("order") == ">") + ["planar"] * ("planar" in options)
    words += ["in tiles"] * ("tile" in options) + ["in strips"] * ("rows_per_strip" in options)
    words += ["deflate"] * ("compress" in options) + ["BigTIFF"] * ("big" in options)
    words += ["reversed bit order"] * ("fill_order" in options) + ["with a next page"] * ("next_page" in options)
    return ", ".join(words)


for _bits, _photometric, _channels, _options in _TIFFS:
    add(
        _tiff_name(_bits, _photometric, _options),
        partial(_tiff, _bits, _photometric, _channels, _options),
        (3 if _bits == 16 else 2) if _channels in {2, 4} else 1 if _bits == 16 and _channels == 3 else 0,
    )


def _tiff_by_pillow(mode: str, compression: str) -> tuple[bytes, Samples]:
    bits, channels = {"1": (1, 1), "L": (8, 1), "RGB": (8, 3)}[mode]
    samples = noise(bits, channels)
    stored = (in_8_bits(samples, bits)).astype(np.uint8)
    image = Image.fromarray(stored[..., 0] if channels == 1 else stored).convert(mode)
    return encoded(image, "TIFF", compression=compression), as_rgb(stored.astype(int))


for _mode, _compression in (
    *(("1", name) for name in ("tiff_ccitt", "group3", "group4")),
    *(("RGB", name) for name in ("tiff_lzw", "packbits", "tiff_adobe_deflate", "tiff_deflate", "zstd", "lzma")),
    ("L", "tiff_lzw"),
):
    add(f"TIFF, {_mode}, {_compression}", partial(_tiff_by_pillow, _mode, _compression))


def _opencv_tiff(bits: int) -> tuple[bytes, Samples]:
    samples = noise(bits, 4)
    done, data = cv2.imencode(".tif", samples[..., [2, 1, 0, 3]].astype(f"u{bits // 8}"))
    assert done
    pixels = in_8_bits(samples, bits)
    return data.tobytes(), on_white(pixels[..., :3], pixels[..., 3:])


for _bits in (8, 16):
    add(f"TIFF, {_bits}-bit RGB and an unnamed channel, by OpenCV", partial(_opencv_tiff, _bits), _bits // 8)


@case("TIFF, RGB, LZW with a predictor")
def _() -> tuple[bytes, Samples]:
    samples = noise(8, 3)
    image = Image.fromarray(samples.astype(np.uint8))
    return encoded(image, "TIFF", compression="tiff_lzw", tiffinfo={317: 2}), samples


def _tiff_jpeg(mode: str) -> tuple[bytes, Samples]:
    pixels = smooth(3 if mode != "L" else 1)
    image = Image.fromarray(pixels.astype(np.uint8).squeeze()).convert(mode)
    return encoded(image, "TIFF", compression="jpeg", quality=95), as_rgb(pixels)


for _mode in ("L", "RGB", "YCbCr"):
    add(f"TIFF, {_mode}, JPEG", partial(_tiff_jpeg, _mode), 6)


def _refused_tiff(words: str, bits: int, photometric: int, channels: int, options: dict[str, Any]) -> tuple[bytes, str]:
    return tiff(noise(bits, channels), bits, photometric, **options), words


for _words, _bits, _photometric, _channels, _options in (
    ("16-bit planar RGB TIFF", 16, 2, 3, {"planar": True}),
    ("big-endian 16-bit planar RGB TIFF", 16, 2, 3, {"planar": True, "order": ">"}),
    ("16-bit planar CMYK TIFF", 16, 5, 4, {"planar": True}),
    ("12-bit WhiteIsZero grey TIFF", 12, 0, 1, {}),
    ("big-endian 12-bit grey TIFF", 12, 1, 1, {"order": ">"}),
    ("12-bit RGB TIFF", 12, 2, 3, {}),
    ("big-endian 16-bit WhiteIsZero grey TIFF", 16, 0, 1, {"order": ">"}),
    ("10-bit grey TIFF", 10, 1, 1, {}),
    ("14-bit grey TIFF", 14, 1, 1, {}),
    ("32-bit grey TIFF", 32, 1, 1, {}),
    ("16-bit grey TIFF (2 channels)", 16, 1, 2, {"extra": [2]}),
    ("4-bit RGB TIFF", 4, 2, 3, {}),
    ("8-bit CIELAB TIFF", 8, 8, 3, {}),
    ("16-bit CIELAB TIFF", 16, 8, 3, {}),
    ("8-bit ICCLAB TIFF", 8, 9, 3, {}),
    ("8-bit YCbCr TIFF", 8, 6, 3, {}),
    ("16-bit LogL TIFF", 16, 32844, 1, {}),
    ("1-bit transparency mask TIFF", 1, 4, 1, {}),
    ("16-bit camera raw (CFA) TIFF", 16, 32803, 1, {}),
    ("8-bit RGB TIFF (5 channels)", 8, 2, 5, {"extra": [2, 0]}),
    ("8-bit RGB TIFF (reversed bit order)", 8, 2, 3, {"fill_order": 2}),
    ("32-bit floating-point TIFF", 32, 1, 1, {"tags": {339: [3]}}),
    ("16-bit floating-point TIFF", 16, 2, 3, {"tags": {339: [3, 3, 3]}}),
    ("16-bit signed TIFF", 16, 1, 1, {"tags": {339: [2]}}),
    ("8-bit signed TIFF", 8, 1, 1, {"tags": {339: [2]}}),
    ("8 and 16 bits a channel", 16, 2, 3, {"tags": {258: [8, 16, 16]}}),
    ("no PhotometricInterpretation", 8, 2, 3, {"tags": {262: []}}),
    ("8-bit colour map", 8, 3, 1, {"tags": {320: list(range(256)) * 3}}),
    ("inks other than CMYK", 8, 5, 4, {"tags": {332: [2]}}),
    ("first page is a thumbnail", 8, 2, 3, {"tags": {254: [1]}}),
    ("camera's raw file (DNG", 8, 2, 3, {"tags": {50706: [1, 4, 0, 0]}}),
    ("big-endian BigTIFF", 8, 2, 3, {"big": True, "order": ">"}),
    ("compression old JPEG", 8, 6, 3, {"compression": 6}),
    ("compression JPEG 2000", 8, 2, 3, {"compression": 34712}),
    ("compression LERC", 8, 1, 1, {"compression": 34887}),
    ("compression 50001", 8, 1, 1, {"compression": 50001}),
):
    add(f"TIFF, {_words}", partial(_refused_tiff, _words, _bits, _photometric, _channels, _options))


# JPEG


def _jpeg(mode: str, options: dict[str, Any]) -> tuple[bytes, Samples]:
    pixels = smooth(1 if mode == "L" else 3)
    image = Image.fromarray(pixels.astype(np.uint8).squeeze())
    return encoded(image, "JPEG", quality=95, **options), as_rgb(pixels)


for _name, _mode, _options in (
    ("grey", "L", {}),
    ("YCbCr 4:4:4", "RGB", {"subsampling": 0}),
    ("YCbCr 4:2:2", "RGB", {"subsampling": 1}),
    ("YCbCr 4:2:0", "RGB", {"subsampling": 2}),
    ("YCbCr, progressive", "RGB", {"progressive": True}),
    ("grey, progressive", "L", {"progressive": True}),
    ("RGB (Adobe)", "RGB", {"keep_rgb": True}),
    ("YCbCr, restart intervals", "RGB", {"restart_marker_rows": 1}),
):
    add(f"JPEG, {_name}", partial(_jpeg, _mode, _options), 10)


def cmyk_jpeg(inks: Samples) -> bytes:
    return encoded(Image.fromarray(inks.astype(np.uint8), "CMYK"), "JPEG", quality=97, subsampling=0)


@case("JPEG, CMYK (Adobe)", 6)
def _() -> tuple[bytes, Samples]:
    inks = smooth(4)
    return cmyk_jpeg(inks), from_inks(inks)


@case("JPEG, YCCK (Adobe)", 8)
def _() -> tuple[bytes, Samples]:
    inks = smooth(4)
    # the file holds YCbCr of the inks and an inverted K; Pillow's writer inverts all four channels
    stored = np.asarray(Image.fromarray(inks[..., :3].astype(np.uint8)).convert("YCbCr")).astype(int)
    data = bytearray(cmyk_jpeg(np.concatenate([255 - stored, inks[..., 3:]], axis=-1)))
    data[data.index(b"Adobe") + 11] = 2
    return bytes(data), from_inks(inks)


@case("JPEG, CMYK without an Adobe marker")
def _() -> tuple[bytes, str]:
    return cmyk_jpeg(smooth(4)).replace(b"Adobe", b"Other"), "CMYK JPEG that does not say"


@case("JPEG with a second image behind it (MPO)", 10)
def _() -> tuple[bytes, Samples]:
    pixels = smooth()
    image = Image.fromarray(pixels.astype(np.uint8))
    return encoded(image, "MPO", save_all=True, append_images=[Image.new("RGB", (48, 32))], quality=95), pixels


def _patched_jpeg(words: str, marker: int | None, bits: int) -> tuple[bytes, str]:
    data = bytearray(encoded(Image.fromarray(smooth().astype(np.uint8)), "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 1] = marker or data[at + 1]
    data[at + 4] = bits
    return bytes(data), words


for _words, _marker, _bits in (
    ("12-bit JPEG", 0xC1, 12),
    ("lossless JPEG", 0xC3, 8),
    ("JPEG with arithmetic coding", 0xC9, 8),
    ("hierarchical JPEG", 0xC5, 8),
):
    add(f"JPEG, {_words}", partial(_patched_jpeg, _words, _marker, _bits))


@case("JPEG of 1000 progressive scans")
def _() -> tuple[bytes, str]:
    data = encoded(Image.fromarray(smooth().astype(np.uint8)), "JPEG", progressive=True)
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * 1000 + data[-2:], "JPEG with 41 or more scans"


# WebP, GIF, AVIF


def _webp(mode: str, options: dict[str, Any]) -> tuple[bytes, Samples]:
    pixels = smooth(4)
    image = Image.fromarray(pixels.astype(np.uint8), "RGBA").convert(mode)
    expected = on_white(pixels[..., :3], pixels[..., 3:]) if mode == "RGBA" else pixels[..., :3]
    return encoded(image, "WEBP", **options), expected


for _mode, _lossless in (("RGB", True), ("RGBA", True), ("RGB", False), ("RGBA", False)):
    add(
        f"WebP, {'lossless' if _lossless else 'lossy'} {_mode}",
        partial(_webp, _mode, {"lossless": True, "exact": True} if _lossless else {"quality": 95}),
        1 if _lossless else 10,
    )


def _partial_webp(alpha_flag: bool, alpha: int) -> tuple[bytes, Samples]:
    frame = Image.new("RGBA" if alpha < 255 else "RGB", (16, 8), (220, 40, 30, alpha)[: 4 if alpha < 255 else 3])
    pixels = np.full((32, 48, 3), 255)
    pixels[4:12, 8:24] = on_white(np.array([[[220, 40, 30]]]), np.array([[[alpha]]]))
    return animated_webp((48, 32), frame, (8, 4), alpha_flag), pixels


for _flag in (False, True):
    for _alpha in (255, 128):
        add(
            f"WebP, animated, first frame covers a part, alpha {_alpha}, {'with' if _flag else 'without'} alpha flag",
            partial(_partial_webp, _flag, _alpha),
            1,
        )


@case("WebP, animated, its first frame")
def _() -> tuple[bytes, Samples]:
    first, second = noise(8, 3), noise(8, 3, 1)
    frames = [Image.fromarray(frame.astype(np.uint8)) for frame in (first, second)]
    return encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True), first


def _gif(options: dict[str, Any], interlaced: bool) -> tuple[bytes, Samples]:
    indices = noise(4, 1)[..., 0]
    palette = np.random.default_rng(1).integers(0, 256, (16, 3), np.uint8)
    image = Image.fromarray(indices.astype(np.uint8), "P")
    image.putpalette(palette.tobytes())
    pixels = palette[indices].astype(int)
    if "transparency" in options:
        pixels[indices == options["transparency"]] = 255
    return encoded(image, "GIF", interlace=interlaced, optimize=False, **options), pixels


for _interlaced in (False, True):
    for _options in ({}, {"transparency": 3}):
        add(
            f"GIF{', interlaced' * _interlaced}{', with a transparent colour' * bool(_options)}",
            partial(_gif, _options, _interlaced),
        )


def _partial_gif(transparent: bool) -> tuple[bytes, Samples]:
    data, inner = _gif({"transparency": 3} if transparent else {}, False)
    file = bytearray(data)
    file[6:10] = struct.pack("<HH", WIDTH + 11, HEIGHT + 7)
    at = file.index(b"\x2c" + struct.pack("<HHHH", 0, 0, WIDTH, HEIGHT))
    file[at + 1 : at + 5] = struct.pack("<HH", 6, 5)
    pixels = np.full((HEIGHT + 7, WIDTH + 11, 3), 255)
    pixels[5 : 5 + HEIGHT, 6 : 6 + WIDTH] = inner
    return bytes(file), pixels


add("GIF, first frame covers a part", partial(_partial_gif, False))
add("GIF, first frame covers a part, with a transparent colour", partial(_partial_gif, True))


def _gif_with_tables(is_global: bool, is_local: bool) -> bytes:
    """The picture of `_gif`, its colour table before the frame, in it, or nowhere."""
    data, _ = _gif({}, False)
    table = data[13 : 13 + 3 * 16]
    at = data.index(b"\x2c" + struct.pack("<HHHHB", 0, 0, WIDTH, HEIGHT, 0))
    head = data[:10] + bytes([0xB3 if is_global else 0x33]) + data[11:13] + table * is_global
    frame = data[at : at + 9] + bytes([0x83 if is_local else 0]) + table * is_local
    return head + data[13 + len(table) : at] + frame + data[at + 10 :]


@case("GIF with a colour table in its frame")
def _() -> tuple[bytes, Samples]:
    return _gif_with_tables(False, True), _gif({}, False)[1]


@case("GIF without a colour table")
def _() -> tuple[bytes, str]:
    return _gif_with_tables(False, False), "GIF without a colour table"


@case("GIF, animated, its first frame")
def _() -> tuple[bytes, Samples]:
    first, second = noise(8, 1), noise(8, 1, 1)
    frames = [Image.fromarray(frame[..., 0].astype(np.uint8)) for frame in (first, second)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:]), as_rgb(first)


def _avif(mode: str, subsampling: str) -> tuple[bytes, Samples]:
    pixels = smooth(4)
    image = Image.fromarray(pixels.astype(np.uint8), "RGBA").convert(mode)
    expected = on_white(pixels[..., :3], pixels[..., 3:]) if mode == "RGBA" else pixels[..., :3]
    return encoded(image, "AVIF", quality=95, subsampling=subsampling), expected


for _mode, _subsampling in (("RGB", "4:4:4"), ("RGB", "4:2:0"), ("RGBA", "4:4:4")):
    add(f"AVIF, 8-bit {_mode} {_subsampling}", partial(_avif, _mode, _subsampling), 8)


@case("AVIF, grey", 6)
def _() -> tuple[bytes, Samples]:
    pixels = smooth(1)
    return encoded(Image.fromarray(pixels[..., 0].astype(np.uint8)), "AVIF", quality=95), as_rgb(pixels)


def _deep_avif(bits: int) -> tuple[bytes, Samples]:
    pixels = smooth(3, 1 << bits)
    options = [cv2.IMWRITE_AVIF_DEPTH, bits, cv2.IMWRITE_AVIF_QUALITY, 95]
    done, data = cv2.imencode(".avif", pixels[..., ::-1].astype(np.uint16), options)
    assert done
    return data.tobytes(), in_8_bits(pixels, bits)


for _bits in (10, 12):
    add(f"AVIF, {_bits}-bit RGB", partial(_deep_avif, _bits), 8)


@case("AVIF, animated, its first frame", 10)
def _() -> tuple[bytes, Samples]:
    pixels = smooth()
    frames = [Image.fromarray(frame.astype(np.uint8)) for frame in (pixels, pixels[::-1])]
    return encoded(frames[0], "AVIF", save_all=True, append_images=frames[1:], quality=95), pixels


@case("AVIF under the general brand mif1", 10)
def _() -> tuple[bytes, Samples]:
    data, pixels = _avif("RGB", "4:4:4")
    assert data[4:12] == b"ftypavif"
    return data[:8] + b"mif1" + data[12:], pixels


@case("AVIF with a crop")
def _() -> tuple[bytes, str]:
    return _avif("RGB", "4:4:4")[0].replace(b"pixi", b"clap"), "AVIF with a crop (clean aperture)"


# BMP


def _bmp(
    bits: int, samples: Samples, expected: Samples, options: dict[str, Any], top_down: bool = False
) -> tuple[bytes, Samples]:
    rows = bmp_rows(samples[::-1] if top_down else samples, bits)
    return bmp(rows, WIDTH, -HEIGHT if top_down else HEIGHT, bits, **options), as_rgb(expected)


def _palette_bmp(bits: int, options: dict[str, Any]) -> tuple[bytes, Samples]:
    samples = noise(bits, 1)
    palette = np.random.default_rng(1).integers(0, 256, (1 << bits, 3))
    colours = [tuple(colour) for colour in palette.tolist()]
    return _bmp(bits, samples, palette[samples[..., 0]], options | {"palette": colours})


def _bitfield_bmp(bits: int, masks: tuple[int, ...], options: dict[str, Any]) -> tuple[bytes, Samples]:
    values = noise(bits, 1)
    channels = []
    for mask in masks:
        shift = (mask & -mask).bit_length() - 1
        channels.append(((values & mask) >> shift) * 255 // (mask >> shift))
    pixels = np.concatenate(channels, axis=-1)
    if len(masks) == 4:
        pixels = on_white(pixels[..., :3], pixels[..., 3:])
    masks_there = {} if "compression" not in options else {"masks": masks}
    return _bmp(bits, values, pixels, options | masks_there)


for _bits in (1, 4, 8):
    add(f"BMP, {_bits}-bit palette", partial(_palette_bmp, _bits, {}))
    add(f"BMP, {_bits}-bit palette, OS/2 header", partial(_palette_bmp, _bits, {"header": 12}))


def _bmp24(top_down: bool) -> tuple[bytes, Samples]:
    pixels = noise(8, 3)
    data, _ = _bmp(8, pixels[..., ::-1], pixels, {}, top_down)
    file = bytearray(data)
    file[28] = 24
    return bytes(file), pixels


add("BMP, 24-bit", partial(_bmp24, False))
add("BMP, 24-bit, rows from the top", partial(_bmp24, True))


@case("BMP, 32-bit, the fourth byte unused")
def _() -> tuple[bytes, Samples]:
    pixels = noise(8, 4)
    data, _ = _bmp(8, pixels[..., [2, 1, 0, 3]], pixels, {})
    file = bytearray(data)
    file[28] = 32
    return bytes(file), pixels[..., :3]


_FIELDS = {"compression": 3}
_V5 = _FIELDS | {"header": 124}
for _name, _bits, _masks, _options in (
    ("16-bit 5-5-5", 16, (0x7C00, 0x3E0, 0x1F), {}),
    ("16-bit 5-5-5, bit fields", 16, (0x7C00, 0x3E0, 0x1F), _FIELDS),
    ("16-bit 5-6-5, bit fields", 16, (0xF800, 0x7E0, 0x1F), _FIELDS),
    ("32-bit, bit fields", 32, (0xFF0000, 0xFF00, 0xFF), _FIELDS),
    ("32-bit with alpha, V5 header", 32, (0xFF0000, 0xFF00, 0xFF, 0xFF000000), _V5),
):
    add(f"BMP, {_name}", partial(_bitfield_bmp, _bits, _masks, _options), 1)


@case("BMP, 8-bit run lengths")
def _() -> tuple[bytes, Samples]:
    colours = [(10, 20, 30), (200, 100, 50)]
    rows = b"".join(bytes([WIDTH - 5, 1, 5, 0]) + b"\0\0" for _ in range(HEIGHT)) + b"\0\1"
    pixels = np.full((HEIGHT, WIDTH, 3), colours[1])
    pixels[:, -5:] = colours[0]
    return bmp(rows, WIDTH, HEIGHT, 8, compression=1, palette=colours), pixels


@case("BMP with a PNG inside")
def _() -> tuple[bytes, str]:
    return bmp(png(noise(8, 3), 8, 2), WIDTH, HEIGHT, 24, compression=5), "BMP with PNG compression"


@case("BMP, 64-bit")
def _() -> tuple[bytes, str]:
    return bmp(bytes(8 * WIDTH * HEIGHT), WIDTH, HEIGHT, 64), "BMP of 64 bits a pixel"


@case("BMP, 16-bit bit fields of another split")
def _() -> tuple[bytes, str]:
    return bmp(bytes(38 * 2 * HEIGHT), WIDTH, HEIGHT, 16, compression=3, masks=(0xF000, 0xF00, 0xF0)), "bitfields"


# JPEG 2000, PPM


def _jpeg2000(mode: str, raw: bool) -> tuple[bytes, Samples]:
    channels = len(mode)
    pixels = smooth(channels)
    image = Image.fromarray(pixels.astype(np.uint8).squeeze(), mode)
    expected = on_white(pixels[..., :-1], pixels[..., -1:]) if mode.endswith("A") else as_rgb(pixels)
    return encoded(image, "JPEG2000", no_jp2=raw), expected


for _mode in ("L", "LA", "RGB", "RGBA"):
    add(f"JPEG 2000, 8-bit {_mode}", partial(_jpeg2000, _mode, False), 1)
add("JPEG 2000, 8-bit RGB, bare codestream", partial(_jpeg2000, "RGB", True))


def _deep_jpeg2000(bits: int, channels: int) -> bytes:
    """A file of `bits` bits, made from one of 16 whose samples lie as far from its middle."""
    stored = smooth(channels, 1 << bits) - (1 << (bits - 1)) + 32768
    picture = stored[..., ::-1] if channels == 3 else stored
    done, data = cv2.imencode(".jp2", picture.astype(np.uint16))
    assert done
    return with_precision(data.tobytes(), bits)


@case("JPEG 2000, 16-bit grey")
def _() -> tuple[bytes, Samples]:
    return encoded(Image.fromarray(smooth(1, 65536)[..., 0].astype(np.uint16)), "JPEG2000"), as_rgb(
        in_8_bits(smooth(1, 65536), 16)
    )


for _bits, _channels in ((12, 1), (12, 3), (10, 1), (16, 3)):
    _words = f"{_bits}-bit JPEG 2000 image of {_channels} channel{'s' * (_channels > 1)}"
    add(f"JPEG 2000, {_words}", partial(lambda b, c, w: (_deep_jpeg2000(b, c), w), _bits, _channels, _words))


def _jpeg2000_in(space: int, words: str) -> tuple[bytes, str]:
    colour_box = b"colr\1\0\0" + struct.pack(">I", 16)
    return _jpeg2000("RGB", False)[0].replace(colour_box, colour_box[:-1] + bytes([space])), words


for _space, _words in ((12, "CMYK"), (18, "sYCC"), (14, "CIELAB")):
    add(f"JPEG 2000, {_words}", partial(_jpeg2000_in, _space, f"JPEG 2000 image in {_words}"))


def _ppm(kind: int, highest: int) -> tuple[bytes, Samples]:
    channels = 3 if kind in {3, 6} else 1
    samples = np.random.default_rng(0).integers(0, highest + 1, (HEIGHT, WIDTH, channels))
    head = b"P%d %d %d%s\n" % (kind, WIDTH, HEIGHT, b"" if kind in {1, 4} else b" %d" % highest)
    if kind == 4:
        content = np.packbits(samples[..., 0].astype(np.uint8), axis=1).tobytes()
    elif kind in {5, 6}:
        content = samples.astype(">u2" if highest > 255 else np.uint8).tobytes()
    else:
        content = b" ".join(b"%d" % value for value in samples.ravel())
    pixels = np.round(samples * 255 / highest).astype(int)
    return head + content, as_rgb(255 - pixels if kind in {1, 4} else pixels)


for _kind, _highest in (
    (1, 1),
    (2, 255),
    (3, 255),
    (4, 1),
    (5, 255),
    (5, 65535),
    (5, 1023),
    (6, 255),
    (6, 65535),
    (6, 100),
):
    add(f"PPM, P{_kind}, values up to {_highest}", partial(_ppm, _kind, _highest), 1)


@case("PPM, P2, many values")
def _() -> tuple[bytes, str]:
    return b"P2 # a comment\n2000 2000 255\n" + b"1 " * 100, "2,000,000 values in plain text"


@case("PPM, P6, values up to 1000, with comments", 1)
def _() -> tuple[bytes, Samples]:
    samples = np.random.default_rng(0).integers(0, 1001, (HEIGHT, WIDTH, 3))
    head = b"P6\n# by hand\n%d # across\n%d\n1000\n" % (WIDTH, HEIGHT)
    return head + samples.astype(">u2").tobytes(), np.round(samples * 255 / 1000).astype(int)


@case("PNG of many chunks")
def _() -> tuple[bytes, str]:
    chunk = png_chunk(b"abCd", b"")
    data = png(noise(8, 1), 8, 0)
    return data[:-12] + chunk * 20_000 + data[-12:], "a PNG of more than 10,000 chunks"


@case("TIFF whose tags name the same bytes again and again")
def _() -> tuple[bytes, str]:
    entries = b"".join(struct.pack("<HHII", 1000 + n, 7, 10_000, 20_000) for n in range(1000))
    data = b"II*\0\x08\0\0\0" + struct.pack("<H", 1000) + entries
    return data.ljust(40_000, b"\0"), "tags name more bytes than it has"


@case("TIFF in many tiles")
def _() -> tuple[bytes, str]:
    return tiff(noise(8, 1), 8, 1, tags={324: [0] * 250_001}), "TIFF in more than 250,000 pieces"


# Files of other kinds


def _ftyp(*brands: bytes) -> bytes:
    content = b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])
    return struct.pack(">I", 4 + len(content)) + content + bytes(200)


def _refused(data: bytes, words: str) -> tuple[bytes, str]:
    return data, words


for _data, _words in (
    (_ftyp(b"heic", b"mif1", b"heic"), "a HEIC image"),
    (_ftyp(b"mif1", b"mif1", b"heic"), "a HEIC image"),
    (_ftyp(b"mif1", b"miaf"), "a HEIF image"),
    (_ftyp(b"crx "), "a camera's raw file (CR3)"),
    (_ftyp(b"isom", b"avc1"), "an MP4 video"),
    (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "an SVG drawing"),
    (b"<svg/>", "an SVG drawing"),
    (b"%PDF-1.7\n", "a PDF document"),
    (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "a PostScript or EPS drawing"),
    (b"8BPS\0\1" + bytes(20), "a Photoshop document"),
    (b"v/1\x01" + bytes(20), "an OpenEXR image"),
    (b"#?RADIANCE\n", "a Radiance HDR image"),
    (b"\xff\x0a" + bytes(20), "a JPEG XL image"),
    (b"II*\0\x10\0\0\0CR\x02\0" + bytes(20), "a camera's raw file (CR2)"),
    (b"FUJIFILMCCD-RAW ", "a camera's raw file (RAF)"),
    (bytes(128) + b"DICM", "a DICOM image"),
    (b"\0\0\1\0\1\0", "an icon (ICO)"),
    (b"<!DOCTYPE html><html>", "a web page, not the image itself"),
    (b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "perhaps an error message of the server"),
    (b'{"error": "not found"}', "perhaps an error message of the server"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "a Git LFS pointer"),
    (b"\x93NUMPY\1\0", "a NumPy array"),
    (b"\x1aE\xdf\xa3" + bytes(20), "a Matroska or WebM video"),
    (b"PK\x03\x04" + bytes(20), "a ZIP archive"),
    (b"hello, I am text", "not an image in a known format"),
):
    add(f"other, {_data[:40].rstrip(bytes(1))!r}", partial(_refused, _data, _words))
