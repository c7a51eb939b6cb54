"""Which layouts of pixels are decoded: those that are known to come out exactly. Each has a test with a known answer.

A layout is read from the file's header, before any pixel is decoded. Pillow opens more of them than it decodes
right, so everything that is not allowed here is refused with words that say what it is.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from manifests.containers import boxes

MAX_PIXELS = 64_000_000
"""Largest image that is decoded, pixels."""

MAX_SCANS = 40
"""Most scans of a JPEG. Encoders write up to about 15; each further one costs time and hardly any bytes."""

MAX_SCANNED_PIXELS = 1_280_000_000
"""Most scans times pixels of a JPEG: 20 scans of the largest image."""

MAX_PIECES = 250_000
"""Most strips or tiles of a TIFF: tiles of 16 x 16 pixels in the largest image."""

MAX_CHUNKS = 10_000
"""Most chunks of a PNG besides its pixels."""

MAX_PLAIN_VALUES = 2_000_000
"""Most values of a PPM in plain text: Pillow reads them one by one."""


class LayoutError(Exception):
    """A layout that is not decoded. The text says what it is, with its article."""

    reason = "which cannot be decoded exactly"


class TooMuchWorkError(LayoutError):
    """A small file that would take long to decode."""

    reason = "which would take too long to decode"


class CodedColour(NamedTuple):
    """Colour by the numbers of ITU-T H.273, as in a PNG's `cICP` chunk and an AVIF's `nclx` box."""

    primaries: int
    transfer: int


@dataclass(frozen=True)
class Layout:
    """What a file's header says and Pillow does not pass on."""

    data: bytes
    """The file, as Pillow is to read it."""
    bits: int = 8
    """Per sample."""
    white_is_zero: bool = False
    """16-bit grey values whose 0 is white. Pillow turns the shallower ones itself."""
    profile: bytes | None = None
    """An ICC profile."""
    coded_colour: CodedColour | None = None


def read_layout(kind: str, data: bytes) -> Layout:
    """The layout of a file of Pillow's format `kind`. Raises LayoutError if it is not allowed.

    Raises struct.error or IndexError for a header that is cut off.
    """
    return _READERS[kind](data)


def _png(data: bytes) -> Layout:
    bits, colour_type = struct.unpack_from(">BB", data, 24)
    coded_colour = None
    at, chunks = 8, 0
    while at + 8 <= len(data):
        length, name = struct.unpack_from(">I4s", data, at)
        chunks += name != b"IDAT"
        if chunks > MAX_CHUNKS:
            raise TooMuchWorkError(f"a PNG of more than {MAX_CHUNKS:,} chunks")
        if name == b"tRNS" and (bits, colour_type) == (16, 2):
            raise LayoutError("a 16-bit RGB PNG with a transparent colour")
        if name == b"cICP":
            coded_colour = _coded_colour("PNG", CodedColour(*struct.unpack_from(">BB", data, at + 8)))
        at += 12 + length
    return Layout(data, bits, coded_colour=coded_colour)


def _coded_colour(kind: str, colour: CodedColour) -> CodedColour:
    if colour.transfer in {16, 18}:
        raise LayoutError(f"a high dynamic range {kind} ({'PQ' if colour.transfer == 16 else 'HLG'})")
    return colour


_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_JPEG_FRAMES = {
    **dict.fromkeys((0xC3, 0xC7, 0xCB, 0xCF), "a lossless JPEG"),
    **dict.fromkeys((0xC5, 0xC6, 0xCD, 0xCE), "a hierarchical JPEG"),
    **dict.fromkeys((0xC9, 0xCA), "a JPEG with arithmetic coding"),
}


def _jpeg(data: bytes) -> Layout:
    components = pixels = scans = 0
    has_adobe_marker = False
    for marker, content in _jpeg_segments(data):
        if marker in _JPEG_FRAMES:
            raise LayoutError(_JPEG_FRAMES[marker])
        if marker in {0xC0, 0xC1, 0xC2}:
            bits, height, width, components = struct.unpack_from(">BHHB", content)
            pixels = height * width
            if bits != 8:
                raise LayoutError(f"{_a(bits)} {bits}-bit JPEG")
            if components not in {1, 3, 4}:
                raise LayoutError(f"a JPEG of {components} colours")
        elif marker == 0xEE and content.startswith(b"Adobe"):
            has_adobe_marker = True
        elif marker == 0xDA:
            scans += 1
            is_too_long = scans > MAX_SCANS or scans * pixels > MAX_SCANNED_PIXELS
            if is_too_long and pixels <= MAX_PIXELS:  # larger ones are refused for their size
                raise TooMuchWorkError(f"a JPEG with {scans} or more scans of its {pixels:,} pixels")
    if components == 4 and not has_adobe_marker:
        raise LayoutError("a CMYK JPEG that does not say whether its inks are inverted (no Adobe marker)")
    return Layout(data)


def _jpeg_segments(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Marker and content of each segment of a JPEG, up to the end of the first image."""
    at = 2
    while found := _JPEG_MARKER.search(data, at):
        marker = data[found.start() + 1]
        if marker == 0xD9 or found.start() + 4 > len(data):
            return
        (length,) = struct.unpack_from(">H", data, found.start() + 2)
        yield marker, data[found.start() + 4 : found.start() + 2 + length]
        at = found.start() + 2 + length


_PHOTOMETRIC = {
    4: "transparency mask",
    8: "CIELAB",
    9: "ICCLAB",
    10: "ITULAB",
    32803: "camera raw (CFA)",
    32844: "LogL",
    32845: "LogLuv",
    34892: "camera raw (linear)",
}
_COMPRESSIONS = {
    2: "CCITT RLE",
    3: "CCITT group 3",
    4: "CCITT group 4",
    6: "old JPEG",
    7: "JPEG",
    34712: "JPEG 2000",
    34887: "LERC",
    50002: "JPEG XL",
}
_SAMPLE_FORMATS = {2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}
_LOSSLESS = {1, 5, 8, 32773, 32946, 34925, 50000}
"""TIFF compressions: none, LZW, deflate (both numbers), PackBits, LZMA, Zstandard."""


class _Tiff(NamedTuple):
    """The tags that decide how a TIFF's samples are read."""

    little_endian: bool
    bits: int
    samples: int
    photometric: int | None
    compression: int
    fill_order: int
    is_planar: bool
    extra: tuple[int, ...]


def _tiff(data: bytes) -> Layout:
    tags = _tiff_tags(data)
    if 50706 in tags or 33422 in tags:
        raise LayoutError("a camera's raw file (DNG or TIFF/EP)")
    if tags.get(254, (0,))[0] & 1:
        raise LayoutError("a TIFF whose first page is a thumbnail, as in a camera's raw file")
    if max(len(tags.get(tag, ())) for tag in (273, 324)) > MAX_PIECES:
        raise TooMuchWorkError(f"a TIFF in more than {MAX_PIECES:,} pieces")
    if data.startswith(b"MM\0+"):
        raise LayoutError("a big-endian BigTIFF")
    depths, formats = set(tags.get(258, (1,))), set(tags.get(339, (1,)))
    samples = tags.get(277, (1,))[0]
    photometric, compression = tags.get(262, (None,))[0], tags.get(259, (1,))[0]
    tiff = _Tiff(
        data.startswith(b"II"),
        max(depths),
        samples,
        photometric,
        compression,
        tags.get(266, (1,))[0],
        samples > 1 and tags.get(284, (1,))[0] == 2,
        tags.get(338, ()),
    )
    if len(depths) > 1:
        raise LayoutError(f"a TIFF of {' and '.join(map(str, sorted(depths)))} bits a channel")
    if odd := formats - {1, 4}:
        raise LayoutError(f"{_a(tiff.bits)} {tiff.bits}-bit {_SAMPLE_FORMATS.get(odd.pop(), 'unknown')} TIFF")
    if photometric is None:
        raise LayoutError("a TIFF that does not say what its samples mean (no PhotometricInterpretation)")
    if photometric == 3 and max(tags.get(320, (0,))) < 256:
        raise LayoutError("a TIFF with an 8-bit colour map")
    if photometric == 5 and tags.get(332, (1,))[0] != 1:
        raise LayoutError("a TIFF of inks other than CMYK")
    if not _is_exact(tiff):
        raise LayoutError(_tiff_name(tiff))
    return Layout(data, tiff.bits, white_is_zero=photometric == 0 and tiff.bits == 16)


def _is_exact(tiff: _Tiff) -> bool:
    """Whether Pillow decodes this TIFF as the specification says, which tests have shown."""
    chunky_depths = {
        (0, 1): {1, 2, 4, 8, 16} if tiff.little_endian else {1, 2, 4, 8},
        (1, 1): {1, 2, 4, 8, 12, 16} if tiff.little_endian else {1, 2, 4, 8, 16},
        (1, 2): {8},
        (2, 3): {8, 16},
        (2, 4): {8, 16},
        (3, 1): {1, 2, 4, 8},
        (5, 4): {8, 16},
        (6, 3): {8},
    }
    colours = {2: 3, 5: 4, 6: 3}.get(tiff.photometric or 0, 1)
    if tiff.bits not in chunky_depths.get((tiff.photometric or 0, tiff.samples), set()):
        return False
    # OpenCV writes an RGBA image without a word on what its fourth channel is
    is_unnamed_alpha = (tiff.photometric, tiff.samples, tiff.extra) == (2, 4, ())
    if not is_unnamed_alpha and len(tiff.extra) != tiff.samples - colours:
        return False
    if not set(tiff.extra) <= {0, 1, 2} or (tiff.is_planar and not _is_exact_planar(tiff)):
        return False
    if tiff.fill_order != 1 and (tiff.bits != 1 or tiff.photometric == 3):
        return False
    if tiff.photometric == 6:
        return tiff.compression == 7 and not tiff.is_planar
    if tiff.compression == 7:
        return tiff.bits == 8 and tiff.photometric in {1, 2} and tiff.samples in {1, 3} and not tiff.is_planar
    if tiff.compression in {2, 3, 4}:
        return tiff.bits == 1 and tiff.samples == 1
    return tiff.compression in _LOSSLESS


def _is_exact_planar(tiff: _Tiff) -> bool:
    return tiff.bits == 8 and tiff.photometric in {2, 5} and tiff.extra in {(), (2,)}


def _tiff_name(tiff: _Tiff) -> str:
    plain = {0: "WhiteIsZero grey", 1: "grey", 2: "RGB", 3: "palette", 5: "CMYK", 6: "YCbCr"}
    number = tiff.photometric or 0
    colour = plain.get(number) or _PHOTOMETRIC.get(number) or f"(PhotometricInterpretation {number})"
    words = [f"{tiff.bits}-bit", *["planar"] * tiff.is_planar, colour]
    order = "" if tiff.little_endian or tiff.bits <= 8 else "big-endian "
    details = [f"{tiff.samples} channels"] if tiff.extra or tiff.samples not in {1, 3, 4} else []
    details += ["reversed bit order"] * (tiff.fill_order != 1)
    if tiff.compression not in {*_LOSSLESS, 1}:
        details.append(f"compression {_COMPRESSIONS.get(tiff.compression, tiff.compression)}")
    name = f"{'a' if order else _a(tiff.bits)} {order}{' '.join(words)} TIFF"
    return name + (f" ({', '.join(details)})" if details else "")


def _a(number: int) -> str:
    """The indefinite article before a number of bits."""
    return "an" if number in {8, 11, 18} else "a"


def _tiff_tags(data: bytes) -> dict[int, tuple[int, ...]]:
    """The whole-number tags of a TIFF's first page."""
    order = "<" if data.startswith(b"II") else ">"
    is_big = data[2:4] in {b"+\0", b"\0+"}
    offset, count, entry, inline = ("Q", "Q", 20, 8) if is_big else ("I", "H", 12, 4)
    (page,) = struct.unpack_from(order + offset, data, 8 if is_big else 4)
    (number,) = struct.unpack_from(order + count, data, page)
    sizes = {1: "B", 3: "H", 4: "I", 16: "Q"}
    tags: dict[int, tuple[int, ...]] = {}
    claimed = 0
    for n in range(min(number, 65535)):
        at = page + struct.calcsize(order + count) + n * entry
        tag, kind, length = struct.unpack_from(f"{order}HH{offset}", data, at)
        claimed += length
        if claimed > 2 * len(data):  # Pillow copies the bytes of every tag, also if all tags name the same ones
            raise TooMuchWorkError("a TIFF whose tags name more bytes than it has")
        if kind not in sizes:
            continue
        at += entry - inline
        layout = f"{order}{min(length, MAX_PIECES + 1)}{sizes[kind]}"
        if struct.calcsize(layout) > inline:
            (at,) = struct.unpack_from(order + offset, data, at)
        tags[tag] = struct.unpack_from(layout, data, at)
    return tags


def _webp(data: bytes) -> Layout:
    # Encoders leave the canvas's alpha flag out when the first frame is opaque. Pillow then takes the canvas that the
    # frame does not cover for black; with the flag, it is transparent, as the specification says.
    if data[12:16] == b"VP8X":
        data = data[:20] + bytes([data[20] | 0x10]) + data[21:]
    return Layout(data)


def _gif(data: bytes) -> Layout:
    flags = data[10]
    at = 13 + (3 << ((flags & 7) + 1) if flags & 0x80 else 0)
    while data[at] == 0x21:  # an extension: pieces, each with its length before it
        at += 2
        while data[at]:
            at += data[at] + 1
        at += 1
    if data[at] == 0x2C and not (flags | data[at + 9]) & 0x80:
        raise LayoutError("a GIF without a colour table")
    return Layout(data)


def _bmp(data: bytes) -> Layout:
    (header,) = struct.unpack_from("<I", data, 14)
    if header == 12:
        return Layout(data)
    bits, compression = struct.unpack_from("<HI", data, 28)
    if compression not in {0, 1, 2, 3} or (header == 64 and compression == 3):
        names = {3: "Huffman", 4: "JPEG or RLE24", 5: "PNG", 11: "CMYK", 12: "CMYK", 13: "CMYK"}
        raise LayoutError(f"a BMP with {names.get(compression, 'unknown')} compression")
    if bits not in {1, 4, 8, 16, 24, 32}:
        raise LayoutError(f"a BMP of {bits} bits a pixel")
    profile = None
    if header == 124 and data[70:74] == b"DEBM":  # the profile is embedded
        start, size = struct.unpack_from("<II", data, 126)
        profile = data[14 + start : 14 + start + size]
    return Layout(data, profile=profile)


def _jpeg2000(data: bytes) -> Layout:
    stream, profile = data, None
    if not data.startswith(b"\xff\x4f"):
        outer = {box.kind: box.content for box in boxes(data)}
        stream = outer.get(b"jp2c", b"")
        for kind, content in boxes(outer.get(b"jp2h", b"")):
            if kind == b"pclr":
                raise LayoutError("a JPEG 2000 image with a palette")
            if kind == b"colr" and content[0] == 1:
                (space,) = struct.unpack_from(">I", content, 3)
                if space not in {16, 17}:
                    raise LayoutError(f"a JPEG 2000 image in {_JP2_SPACES.get(space, f'colour space {space}')}")
            elif kind == b"colr" and content[0] == 2:
                profile = content[3:]
    (components,) = struct.unpack_from(">H", stream, 40)
    if components > 4:
        raise LayoutError(f"a JPEG 2000 image of {components} channels")
    depths = [struct.unpack_from("BBB", stream, 42 + 3 * n) for n in range(components)]
    precision, across, down = depths[0]
    bits = (precision & 0x7F) + 1
    if any(depth != depths[0] for depth in depths) or (across, down) != (1, 1):
        raise LayoutError("a JPEG 2000 image whose channels differ in size or depth")
    if precision & 0x80 or (bits != 8 and (bits, components) != (16, 1)):
        signed = " signed" if precision & 0x80 else ""
        raise LayoutError(
            f"{_a(bits)} {bits}-bit{signed} JPEG 2000 image of {components} channel{'s' * (components > 1)}"
        )
    return Layout(data, bits, profile=profile)


_PPM_GAP = rb"(?:\s|#[^\n]*\n)+"
_PPM_HEADER = re.compile(rb"P([1-6])" + _PPM_GAP + rb"(\d{1,9})" + _PPM_GAP + rb"(\d{1,9})")
_PPM_HIGHEST = re.compile(_PPM_GAP + rb"(\d{1,5})\s")


def _ppm(data: bytes) -> Layout:
    header = _PPM_HEADER.match(data)
    if header is None:
        raise LayoutError("a PPM with a damaged header")
    kind, width, height = map(int, header.groups())
    channels = 3 if kind in {3, 6} else 1
    if width * height > MAX_PIXELS:  # refused for its size
        return Layout(data)
    if kind <= 3 and width * height * channels > MAX_PLAIN_VALUES:
        raise TooMuchWorkError(f"a PPM of more than {MAX_PLAIN_VALUES:,} values in plain text")
    highest_value = _PPM_HIGHEST.match(data, header.end())
    if kind in {5, 6} and highest_value is not None and (highest := int(highest_value[1])) not in {0, 255}:
        # Pillow scales such values one by one, which takes minutes for a large image
        stored = np.frombuffer(data, ">u2" if highest > 255 else "u1", width * height * channels, highest_value.end())
        in_8_bits = ((np.arange(highest + 1) * 255 + highest // 2) // highest).astype(np.uint8)
        data = b"P%d %d %d 255\n" % (kind, width, height) + in_8_bits[np.minimum(stored, highest)].tobytes()
    return Layout(data)


_JP2_SPACES = {12: "CMYK", 14: "CIELAB", 18: "sYCC", 20: "e-sRGB", 24: "e-sYCC"}


def _avif(data: bytes) -> Layout:
    coded_colour = None
    for kind, content in _avif_properties(data):
        if kind == b"clap":
            raise LayoutError("an AVIF with a crop (clean aperture)")
        if kind == b"colr" and content.startswith(b"nclx") and coded_colour is None:
            coded_colour = _coded_colour("AVIF", CodedColour(*struct.unpack_from(">HH", content, 4)))
    return Layout(data, coded_colour=coded_colour)


def _avif_properties(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    for kind, content in boxes(data):
        if kind == b"meta":
            for inner, properties in boxes(content[4:]):
                if inner == b"iprp":
                    for name, container in boxes(properties):
                        if name == b"ipco":
                            yield from boxes(container)


_READERS: dict[str, Callable[[bytes], Layout]] = {
    "PNG": _png,
    "JPEG": _jpeg,
    "TIFF": _tiff,
    "WEBP": _webp,
    "BMP": _bmp,
    "JPEG2000": _jpeg2000,
    "AVIF": _avif,
    "GIF": _gif,
    "PPM": _ppm,
}
