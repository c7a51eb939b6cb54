"""What a file is, by its first bytes: the formats that are decoded, and names for the others."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple

_BRANDS = {
    **dict.fromkeys((b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"), "a HEIC image"),
    **dict.fromkeys((b"avif", b"avis"), "AVIF"),
    **dict.fromkeys((b"j2ki", b"j2is", b"jpeg", b"jpgs", b"vvic", b"evbi", b"unif"), "a HEIF image"),
    **dict.fromkeys((b"isom", b"iso2", b"mp41", b"mp42", b"avc1", b"M4V ", b"3gp4", b"3gp5", b"dash"), "an MP4 video"),
    b"qt  ": "a QuickTime video",
    b"crx ": "a camera's raw file (CR3)",
}
"""What the brands in an ISO file's `ftyp` box say. `mif1` and `msf1` say nothing about the coding."""

_DECODED: tuple[tuple[bytes, str], ...] = (
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"\xff\xd8\xff", "JPEG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
    *((b"P%d" % kind, "PPM") for kind in range(1, 7)),
)
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

_NAMED: tuple[tuple[int, bytes, str], ...] = (
    (0, b"%PDF", "a PDF document"),
    (0, b"%!PS", "a PostScript or EPS drawing"),
    (0, b"\xc5\xd0\xd3\xc6", "an EPS drawing"),
    (0, b"8BPS", "a Photoshop document (PSD)"),
    (0, b"v/1\x01", "an OpenEXR image"),
    (0, b"#?RADIANCE", "a Radiance HDR image"),
    (0, b"#?RGBE", "a Radiance HDR image"),
    (0, b"\xff\x0a", "a JPEG XL image"),
    (0, b"\x00\x00\x00\x0cJXL ", "a JPEG XL image"),
    (0, b"\xff\xd8", "a damaged JPEG"),
    (8, b"CR\x02", "a camera's raw file (CR2)"),
    (0, b"FUJIFILMCCD-RAW", "a camera's raw file (RAF)"),
    (0, b"IIU\0", "a camera's raw file (RW2)"),
    (0, b"IIRO", "a camera's raw file (ORF)"),
    (0, b"IIRS", "a camera's raw file (ORF)"),
    (0, b"FOVb", "a camera's raw file (X3F)"),
    (0, b"II\xbc\x01", "a JPEG XR image"),
    (0, b"\x00\x00\x01\x00", "an icon (ICO)"),
    (0, b"\x00\x00\x02\x00", "a cursor (CUR)"),
    (0, b"icns", "an icon (ICNS)"),
    (0, b"DDS ", "a DDS texture"),
    (0, b"\xabKTX", "a KTX texture"),
    (0, b"qoif", "a QOI image"),
    (0, b"gimp xcf", "a GIMP document (XCF)"),
    (0, b"P7", "a PAM image"),
    (0, b"PF\n", "a floating-point image (PFM)"),
    (0, b"Pf\n", "a floating-point image (PFM)"),
    (0, b"SIMPLE  =", "a FITS image"),
    (128, b"DICM", "a DICOM image"),
    (0, b"\xd7\xcd\xc6\x9a", "a Windows metafile (WMF)"),
    (40, b" EMF", "a Windows metafile (EMF)"),
    (0, b"\x1aE\xdf\xa3", "a Matroska or WebM video"),
    (8, b"AVI ", "an AVI video"),
    (0, b"PK\x03\x04", "a ZIP archive"),
    (0, b"\x1f\x8b", "a gzip archive"),
    (0, b"PAR1", "a Parquet file"),
    (0, b"\x93NUMPY", "a NumPy array"),
    (0, b"version https://git-lfs", "a Git LFS pointer, not the image itself"),
)


class Box(NamedTuple):
    """A box of an ISO file (AVIF, HEIF, JPEG 2000, MP4)."""

    kind: bytes
    content: bytes


def boxes(data: bytes) -> Iterator[Box]:
    """The boxes of a file, or those in a box's content. It ends at the first one that does not fit."""
    at = 0
    while at + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        head = 8
        if size == 1 and at + 16 <= len(data):
            size, head = struct.unpack_from(">Q", data, at + 8)[0], 16
        elif size == 0:
            size = len(data) - at
        if size < head or at + size > len(data):
            return
        yield Box(kind, data[at + head : at + size])
        at += size


def decoded_format(data: bytes) -> str | None:
    """Pillow's name for the format of a file that is decoded; None for every other file."""
    for start, name in _DECODED:
        if data.startswith(start):
            return name
    if data.startswith(_TIFF) and data[8:11] != b"CR\x02":
        return "TIFF"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    return "AVIF" if _iso_name(data) == "AVIF" else None


def other_name(data: bytes) -> str | None:
    """What a file is that is not decoded, with its article; None if that is unknown."""
    for at, start, name in _NAMED:
        if data[at : at + len(start)] == start:
            return name
    text = data[:1024].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith((b"<!doctype html", b"<html")):
        return "a web page, not the image itself"
    if b"<svg" in text and text.startswith(b"<"):
        return "an SVG drawing"
    if text.startswith((b"<?xml", b"{")):
        return "a text (XML or JSON), perhaps an error message of the server that it came from"
    return _iso_name(data)


def _iso_name(data: bytes) -> str | None:
    """What the `ftyp` box of an ISO file says: the main brand, then the compatible ones."""
    if data[4:8] != b"ftyp":
        return None
    brands = data[8 : min(struct.unpack_from(">I", data)[0], 512)]
    named = (_BRANDS[brand] for n in range(0, len(brands), 4) if (brand := brands[n : n + 4]) in _BRANDS)
    return next(named, "a HEIF image" if brands[:4] in {b"mif1", b"msf1"} else "an ISO media file")
