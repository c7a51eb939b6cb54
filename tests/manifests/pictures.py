"""Image files in every layout, written by hand where Pillow does not write them.

Samples are whole numbers [H, W, C] of the stated depth.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Samples = NDArray[Any]

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    """A file as Pillow writes it."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def packed(samples: Samples, bits: int, order: str = ">") -> bytes:
    """Rows of samples of `bits` bits, the first sample in the highest bits, each row padded to a whole byte."""
    rows = samples.reshape(len(samples), -1)
    if bits >= 8 and bits % 8 == 0:
        return rows.astype(f"{order}u{bits // 8}").tobytes()
    places = np.arange(bits)[::-1]
    flags = (rows[..., None].astype(int) >> places & 1).reshape(len(rows), -1)
    return np.packbits(flags.astype(np.uint8), axis=1).tobytes()


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
"""Per pass: first column, first row, and the steps between them."""


def png(
    samples: Samples,
    bits: int,
    colour_type: int,
    chunks: Mapping[bytes, bytes] | None = None,
    interlaced: bool = False,
) -> bytes:
    """chunks: between the header and the pixels."""
    height, width = samples.shape[:2]
    passes = [samples[y::down, x::across] for x, y, across, down in _ADAM7] if interlaced else [samples]
    rows = b"".join(b"\0" + packed(row[None], bits) for part in passes if part.size for row in part)
    header = struct.pack(">IIBBBBB", width, height, bits, colour_type, 0, 0, interlaced)
    before = b"".join(png_chunk(name, data) for name, data in (chunks or {}).items())
    pixels = png_chunk(b"IDAT", zlib.compress(rows))
    return PNG_SIGNATURE + png_chunk(b"IHDR", header) + before + pixels + png_chunk(b"IEND", b"")


def tiff(
    samples: Samples,
    bits: int,
    photometric: int,
    *,
    order: str = "<",
    big: bool = False,
    planar: bool = False,
    tile: int | None = None,
    rows_per_strip: int | None = None,
    extra: Sequence[int] = (),
    fill_order: int = 1,
    compression: int = 1,
    compress: Callable[[bytes], bytes] = bytes,
    tags: Mapping[int, Sequence[int]] | None = None,
    next_page: bytes = b"",
) -> bytes:
    """compress: a strip or tile. tags: further ones, or others than those written; an empty one is left out."""
    height, width, channels = samples.shape
    planes = [samples[..., n : n + 1] for n in range(channels)] if planar else [samples]
    pieces = []
    for plane in planes:
        if tile:
            padded = np.pad(plane, ((0, -height % tile), (0, -width % tile), (0, 0)))
            for y in range(0, height, tile):
                pieces += [padded[y : y + tile, x : x + tile] for x in range(0, width, tile)]
        else:
            step = rows_per_strip or height
            pieces += [plane[y : y + step] for y in range(0, height, step)]
    contents = [packed(piece, bits, order) for piece in pieces]
    contents = [compress(data) for data in contents]
    if fill_order == 2:
        contents = [bits_reversed(data) for data in contents]
    offset, entry, inline = ("Q", 20, 8) if big else ("I", 12, 4)
    values: dict[int, Sequence[int]] = {
        256: [width],
        257: [height],
        258: [bits] * channels,
        259: [compression],
        262: [photometric],
        277: [channels],
        284: [2 if planar else 1],
    }
    if extra:
        values[338] = extra
    if fill_order != 1:
        values[266] = [fill_order]
    where, lengths = (324, 325) if tile else (273, 279)
    values |= {322: [tile], 323: [tile]} if tile else {278: [rows_per_strip or height]}
    values |= {where: [0] * len(contents), lengths: [len(data) for data in contents]} | dict(tags or {})
    values = {tag: numbers for tag, numbers in values.items() if len(numbers)}
    head = 16 if big else 8
    beyond = head + (8 if big else 2) + entry * len(values) + (8 if big else 4)
    kinds = {tag: "I" if tag in {256, 257, where, lengths} else "H" for tag in values}
    sizes = {tag: struct.calcsize(f"<{len(numbers)}{kinds[tag]}") for tag, numbers in values.items()}
    at = beyond + sum(size for size in sizes.values() if size > inline)
    starts = []
    for data in contents:
        starts.append(at)
        at += len(data)
    values[where] = starts
    entries, more = b"", b""
    for tag, numbers in sorted(values.items()):
        data = struct.pack(f"{order}{len(numbers)}{kinds[tag]}", *numbers)
        if len(data) > inline:
            more, data = more + data, struct.pack(order + offset, beyond + len(more))
        kind = 3 if kinds[tag] == "H" else 4
        entries += struct.pack(f"{order}HH{offset}", tag, kind, len(numbers)) + data.ljust(inline, b"\0")
    mark = b"II" if order == "<" else b"MM"
    start = mark + struct.pack(f"{order}HHHQ", 43, 8, 0, 16) if big else mark + struct.pack(f"{order}HI", 42, 8)
    count = struct.pack(order + ("Q" if big else "H"), len(values))
    following = struct.pack(order + offset, at if next_page else 0)
    return start + count + entries + following + more + b"".join(contents) + next_page


def bits_reversed(data: bytes) -> bytes:
    return np.packbits(np.unpackbits(np.frombuffer(data, np.uint8)), bitorder="little").tobytes()


def riff_chunk(name: bytes, data: bytes) -> bytes:
    return name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)


def animated_webp(canvas: tuple[int, int], frame: Image.Image, at: tuple[int, int], alpha_flag: bool) -> bytes:
    """Two equal frames at an even place of the canvas. canvas: width, height."""

    def three_bytes(number: int) -> bytes:
        return struct.pack("<I", number)[:3]

    place = (at[0] // 2, at[1] // 2, frame.width - 1, frame.height - 1, 100)
    content = b"".join(map(three_bytes, place)) + b"\0" + encoded(frame, "WEBP", lossless=True, exact=True)[12:]
    flags = bytes([0x02 | 0x10 * alpha_flag, 0, 0, 0])
    body = b"WEBP" + riff_chunk(b"VP8X", flags + three_bytes(canvas[0] - 1) + three_bytes(canvas[1] - 1))
    body += riff_chunk(b"ANIM", bytes(6)) + riff_chunk(b"ANMF", content) * 2
    return b"RIFF" + struct.pack("<I", len(body)) + body


def bmp(
    rows: bytes,
    width: int,
    height: int,
    bits: int,
    *,
    compression: int = 0,
    header: int = 40,
    masks: Sequence[int] = (),
    palette: Sequence[tuple[int, int, int]] = (),
    more: bytes = b"",
) -> bytes:
    """rows: as stored. height: negative for rows from the top. more: behind the masks, up to the header's size."""
    if header == 12:
        info = struct.pack("<IHHHH", 12, width, height, 1, bits)
        colours = b"".join(bytes((blue, green, red)) for red, green, blue in palette)
    else:
        info = struct.pack(
            "<IiiHHIIiiII", header, width, height, 1, bits, compression, len(rows), 0, 0, len(palette), 0
        )
        colours = b"".join(bytes((blue, green, red, 0)) for red, green, blue in palette)
        info += b"".join(struct.pack("<I", mask) for mask in masks) + more
        info = info.ljust(header, b"\0")
    start = 14 + len(info) + len(colours)
    return b"BM" + struct.pack("<IHHI", start + len(rows), 0, 0, start) + info + colours + rows


def bmp_rows(samples: Samples, bits: int) -> bytes:
    """Rows from the bottom, padded to four bytes. samples: [H, W, C] in the order of the file."""
    rows = [packed(row[None], bits, "<") for row in samples[::-1]]
    return b"".join(row + bytes(-len(row) % 4) for row in rows)


def with_precision(jp2: bytes, bits: int) -> bytes:
    """A 16-bit JPEG 2000 file that says it has another depth."""
    data = bytearray(jp2)
    size = data.index(b"\xff\x4f\xff\x51") + 2
    (components,) = struct.unpack_from(">H", data, size + 38)
    for n in range(components):
        data[size + 40 + 3 * n] = bits - 1
    if b"ihdr" in data:
        data[data.index(b"ihdr") + 14] = bits - 1
    return bytes(data)
