"""Masks of boxes: what is read, and what is a problem of its row."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image

from manifests.io import read_manifest, write_manifest
from manifests.masks import MASKS_TYPE, masks_of, png_of, read_mask
from manifests.schema import conform, row_digest, row_problems
from manifests.validate import validate
from sgi2v.errors import ManifestError, SampleError
from tests.manifests.rows import row, table

H, W = 20, 30
MASK = np.zeros((H, W), bool)
MASK[3:9, 4:8] = MASK[12, 20:25] = True
RLE = {"size": [H, W], "counts": "c26>00000oc0101010100000"}
"""Written out below by pycocotools."""


def as_png(image: Image.Image) -> bytes:
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def rle_of(mask_HW: NDArray[np.bool_]) -> dict[str, Any]:
    """The code of a mask as COCO's own library writes it."""
    coco = pytest.importorskip("pycocotools.mask")
    encoded = coco.encode(np.asfortranarray(mask_HW.astype(np.uint8)))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


@pytest.mark.parametrize("seed", range(6))
def test_what_cocos_library_writes_is_read(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask_HW = rng.random((rng.integers(1, 300), rng.integers(1, 300))) < rng.random()
    rle = rle_of(mask_HW)
    np.testing.assert_array_equal(read_mask(json.dumps(rle).encode(), *mask_HW.shape), mask_HW)


def test_counts_may_be_numbers() -> None:
    flat = MASK.T.ravel()
    edges = np.flatnonzero(np.diff(flat.astype(int))) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    np.testing.assert_array_equal(read_mask(json.dumps({"size": [H, W], "counts": counts}).encode(), H, W), MASK)


GREY = Image.fromarray(MASK.astype(np.uint8) * 7)
PNGS = {
    "one bit": Image.fromarray(MASK),
    "grey": GREY,
    "16 bits": Image.fromarray(MASK.astype(np.uint16) * 300),
    "palette": GREY.copy(),
    "colour": Image.merge("RGB", [Image.new("L", (W, H)), GREY, Image.new("L", (W, H))]),
    "white with transparency": Image.merge("LA", [Image.new("L", (W, H), 255), GREY]),
    "opaque": Image.merge("RGBA", [GREY, GREY, GREY, Image.new("L", (W, H), 255)]),
}
PNGS["palette"].putpalette([0] * 768)


@pytest.mark.parametrize("kind", PNGS)
def test_every_kind_of_png_is_read(kind: str) -> None:
    np.testing.assert_array_equal(read_mask(as_png(PNGS[kind]), H, W), MASK)


def test_a_written_mask_is_read_again() -> None:
    np.testing.assert_array_equal(read_mask(png_of(MASK), H, W), MASK)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (png_of(MASK[:, :-1]), "is 29 x 20 px, and its picture, as it is displayed, 30 x 20 px: make it from"),
        (json.dumps(RLE | {"size": [W, H]}).encode(), "is 20 x 30 px, and its picture"),
        (png_of(MASK)[:60], "cannot be decoded as PNG"),
        (b"", "is neither a PNG nor an RLE: write"),
        (b"[1, 2]", "is neither a PNG nor an RLE"),
        (json.dumps({"size": [H, W], "counts": "caf\u00e9"}).encode(), "has an RLE whose counts are damaged"),
        (json.dumps({"size": [H, W], "counts": "P" * 99}).encode(), "has an RLE whose counts are damaged"),
        (json.dumps({"size": [H, W], "counts": ""}).encode(), "has an RLE of 0 pixels, expected 600"),
        (json.dumps({"size": [H, W], "counts": [10, 20]}).encode(), "has an RLE of 30 pixels, expected 600"),
        (json.dumps({"size": [H, W], "counts": [601, -1]}).encode(), "has an RLE of 600 pixels, expected 600"),
        (json.dumps({"size": [H, W], "counts": [10.5, 589.5]}).encode(), "has an RLE whose counts are damaged"),
        (json.dumps({"size": [H, W], "counts": [1e999]}).encode(), "has an RLE whose counts are damaged"),
    ],
)
def test_a_damaged_mask_says_what_is_wrong_with_it(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match="^" + message.replace("(", r"\(")):
        read_mask(data, H, W)


BOXES = np.array([[3.0, 2.0, 9.0, 10.0], [18.0, 10.0, 28.0, 15.0], [10.5, 0.0, 12.5, 9.0]])


def test_masks_go_with_their_boxes() -> None:
    first, second, third = masks_of([png_of(MASK), None, json.dumps(rle_of(~MASK)).encode()], BOXES, H, W)
    np.testing.assert_array_equal(first, MASK)
    assert second is None
    np.testing.assert_array_equal(third, ~MASK)


@pytest.mark.parametrize(
    ("mask_HW", "message"),
    [
        (np.zeros((H, W), bool), "mask_invalid: mask 2 is empty: mark the object's pixels, or leave the mask null"),
        (MASK, r"mask_invalid: mask 2 lies outside box 2 \[10.5, 0.0, 12.5, 9.0\]: give the masks in the order"),
        (MASK[1:], "mask_invalid: mask 2 is 30 x 19 px, and its picture, as it is displayed, 30 x 20 px"),
    ],
)
def test_a_mask_that_does_not_fit_its_box_is_an_error_of_the_row(mask_HW: NDArray[np.bool_], message: str) -> None:
    with pytest.raises(SampleError, match=message):
        list(masks_of([None, None, png_of(mask_HW)], BOXES, H, W))


STORED = [png_of(MASK), None]
COLUMNS = {
    "binary": (pa.list_(pa.binary()), STORED),
    "large": (pa.large_list(pa.large_binary()), STORED),
    "text": (pa.list_(pa.string()), [json.dumps(RLE), None]),
    "struct": (pa.list_(pa.struct({"size": pa.list_(pa.int64()), "counts": pa.string()})), [RLE, None]),
    "bytes in a struct": (
        pa.list_(pa.struct({"counts": pa.binary(), "size": pa.list_(pa.int32())})),
        [RLE | {"counts": RLE["counts"].encode()}, None],
    ),
    "numbers in a struct": (
        pa.list_(pa.struct({"counts": pa.list_(pa.int64()), "size": pa.list_(pa.int64())})),
        [{"size": [H, W], "counts": [599, 1]}, None],
    ),
    "null": (pa.list_(pa.null()), [None, None]),
}


@pytest.mark.parametrize("kind", COLUMNS)
def test_masks_come_in_many_types_and_leave_in_one(kind: str) -> None:
    of_type, masks = COLUMNS[kind]
    given = table(row(), row(sample_id="b")).append_column("masks", pa.array([masks, None], of_type))
    conformed = conform(given, "m")["masks"]
    assert conformed.type == MASKS_TYPE
    first, second = conformed.to_pylist()
    assert second is None
    assert first[1] is None
    if masks[0] is not None and masks is not STORED:
        values = json.loads(first[0])
        assert values == (masks[0] if kind == "numbers in a struct" else RLE)
    else:
        assert first == masks


def test_other_types_are_refused() -> None:
    for values in ([[1, 2]], [[{"height": 3}]], ["a.png"]):
        given = table(row()).append_column("masks", pa.array(values))
        with pytest.raises(ManifestError, match="masks: type is"):
            conform(given, "m")


@pytest.mark.parametrize("ending", ["csv", "jsonl"])
def test_text_formats_hold_codes(ending: str, tmp_path: Path) -> None:
    rles = pa.array([[RLE, None]], COLUMNS["struct"][0])
    write_manifest(table(row()).append_column("masks", rles), str(tmp_path / f"m.{ending}"))
    (masks,) = read_manifest(str(tmp_path / f"m.{ending}"))["masks"].to_pylist()
    assert (json.loads(masks[0]), masks[1]) == (RLE, None)


def test_there_is_a_mask_or_null_for_each_box_and_digests_know_them() -> None:
    ((column, error),) = row_problems(row(masks=[None]))
    assert (column, str(error)) == ("masks", "mask_invalid: expected one mask or null per box (2), got 1")
    digests = {row_digest(row(masks=masks)) for masks in ([png_of(MASK), None], [None, png_of(MASK)], [None, None])}
    assert len(digests) == 3


def test_validation_reads_the_masks_of_every_row(tmp_path: Path) -> None:
    Image.new("RGB", (64, 48)).save(tmp_path / "cat.png")
    good, small = png_of(np.ones((48, 64), bool)), png_of(MASK)
    rows = table(row(), row(sample_id="b"), row(sample_id="c"))
    rows = rows.append_column("masks", pa.array([[good, None], [small, None], [None, b"no"]], MASKS_TYPE))
    problems = validate(rows, str(tmp_path / "m.parquet"))
    assert [problem[:4] for problem in problems] == [(n, i, "masks", "mask_invalid") for n, i in ((1, "b"), (2, "c"))]
    assert "mask 0 is 30 x 20 px, and its picture, as it is displayed, 64 x 48 px" in problems[0].message
    assert "mask 1 is neither a PNG nor an RLE" in problems[1].message
