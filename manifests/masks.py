"""Masks of a sample's boxes: which pixels of its picture are the object. Each is a PNG or COCO's run-length code (RLE).

Axes: N boxes, H W pixels of the source image. Boxes are xyxy, pixels, half-open.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from sgi2v.errors import ErrorCode, SampleError

Mask = NDArray[np.bool_]

MASKS_TYPE = pa.list_(pa.binary())
"""Per box the bytes of a PNG, or the JSON text of an RLE object; null where the object's pixels are not known."""

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def as_masks(column: Any) -> Any:
    """A column of masks as MASKS_TYPE: RLE objects become JSON text. Raises an Arrow error for another type."""
    if pa.types.is_list(column.type) and pa.types.is_struct(column.type.value_type):
        names = {field.name for field in column.type.value_type}
        if not {"size", "counts"} <= names:
            raise pa.ArrowTypeError(f"an RLE object has size and counts, not {', '.join(sorted(names)) or 'nothing'}")
        rows = [None if masks is None else [_as_json(rle) for rle in masks] for masks in column.to_pylist()]
        return pa.chunked_array([pa.array(rows, MASKS_TYPE)])
    return column.cast(MASKS_TYPE)


def _as_json(rle: dict[str, Any] | None) -> bytes | None:
    if rle is None:
        return None
    counts = rle["counts"]
    counts = counts.decode("ascii", "replace") if isinstance(counts, bytes) else counts
    return json.dumps({"size": rle["size"], "counts": counts}).encode()


def masks_of(
    masks: Sequence[bytes | None], boxes_N4: NDArray[np.float64], height: int, width: int
) -> Iterator[Mask | None]:
    """The mask of each box, [H, W], one after the other; None where there is none.

    height, width: of the source image. Raises SampleError(mask_invalid) for one that cannot be read, has another size,
    or has no pixel in its box. Pixels outside the box have no effect.
    """
    for n, (data, box) in enumerate(zip(masks, boxes_N4, strict=True)):
        if data is None:
            yield None
            continue
        try:
            mask_HW = read_mask(data, height, width)
        except ValueError as error:
            raise SampleError(ErrorCode.MASK_INVALID, f"mask {n} {error}") from error
        x0, y0 = np.floor(np.clip(box[:2], 0, [width, height])).astype(int)
        x1, y1 = np.ceil(np.clip(box[2:], 0, [width, height])).astype(int)
        if not mask_HW.any():
            message = f"mask {n} is empty: mark the object's pixels, or leave the mask null to take the whole box"
            raise SampleError(ErrorCode.MASK_INVALID, message)
        if not mask_HW[y0:y1, x0:x1].any():
            shown = np.round(box, 2).tolist()
            message = f"mask {n} lies outside box {n} {shown}: give the masks in the order of the boxes"
            raise SampleError(ErrorCode.MASK_INVALID, message)
        yield mask_HW


def read_mask(data: bytes, height: int, width: int) -> Mask:
    """The mask [H, W] in the bytes of a PNG, where every pixel is the object that is neither 0 nor transparent, or in
    the JSON text of an RLE.

    Raises ValueError, whose text is the end of a sentence about the mask, also for one that is not of this size.
    """
    return _read_png(data, height, width) if data.startswith(PNG_SIGNATURE) else _read_rle(data, height, width)


def png_of(mask_HW: NDArray[np.uint8] | Mask) -> bytes:
    """A mask as a PNG: of one bit if it is of bool, else of 8 bits, where 255 is all of a pixel."""
    stream = io.BytesIO()
    Image.fromarray(mask_HW).save(stream, "PNG")
    return stream.getvalue()


def _check_size(size: tuple[int, int], height: int, width: int) -> None:
    """size: height and width."""
    if size != (height, width):
        raise ValueError(
            f"is {size[1]} x {size[0]} px, and its picture, as it is displayed, {width} x {height} px: "
            "make it from that picture"
        )


def _read_png(data: bytes, height: int, width: int) -> Mask:
    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            _check_size((image.height, image.width), height, width)  # before pixels are decoded
            values = np.asarray(image)
            has_alpha = "A" in image.getbands()
    except ValueError:
        raise
    except Exception as error:  # Pillow raises any kind of error on damaged data
        raise ValueError(f"cannot be decoded as PNG ({error}): save it again") from error
    if values.ndim == 2:
        return np.asarray(values != 0)
    if not has_alpha:
        return np.asarray(values.any(axis=-1))
    return np.asarray(values[..., :-1].any(axis=-1) & (values[..., -1] != 0))


def _read_rle(data: bytes, height: int, width: int) -> Mask:
    try:
        rle = json.loads(data)
        size, counts = tuple(map(int, rle["size"])), rle["counts"]
        if len(size) != 2 or not isinstance(counts, str | list):
            raise ValueError(size)
    except (ValueError, TypeError, KeyError, RecursionError, OverflowError) as error:
        message = 'is neither a PNG nor an RLE: write {"size": [height, width], "counts": "..."}'
        raise ValueError(message) from error
    _check_size(size, height, width)
    return decode_rle(counts, height, width)


def decode_rle(counts: str | bytes | Sequence[int], height: int, width: int) -> Mask:
    """The mask [H, W] of COCO's run-length code, compressed or not: runs down the columns, first of pixels outside.

    Raises ValueError, whose text is the end of a sentence about the mask. pycocotools, which does not check lengths,
    fills what a code that is too short leaves open with what was in the memory.
    """
    try:
        text = counts.decode("ascii") if isinstance(counts, bytes) else counts
        runs = _runs(text) if isinstance(text, str) else list(text)
    except (ValueError, TypeError) as error:
        raise ValueError("has an RLE whose counts are damaged") from error
    if not all(isinstance(run, int) for run in runs):
        raise ValueError("has an RLE whose counts are damaged")
    if sum(runs) != height * width or min(runs, default=0) < 0:
        raise ValueError(f"has an RLE of {sum(runs):,} pixels, expected {height * width:,}: its counts are damaged")
    mask_HW: Mask = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(width, height).T
    return mask_HW


def _runs(counts: str) -> list[int]:
    """The lengths of the runs in COCO's text: 5 bits a letter, from the third run on as differences to two before."""
    runs: list[int] = []
    value = shift = 0
    for letter in counts.encode("ascii"):
        bits = letter - 48
        value |= (bits & 31) << shift
        shift += 5
        if not 0 <= bits < 64 or shift > 60:
            raise ValueError(letter)
        if bits & 32:
            continue
        if bits & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    if shift:
        raise ValueError(counts[-1:])
    return runs
