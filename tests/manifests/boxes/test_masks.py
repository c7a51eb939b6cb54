"""Boxes around masks: PNGs of ids, COCO JSON, and RLE in Parquet, good and bad."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from manifests.boxes.masks import Masks, decode_mask
from manifests.boxes.proposer import PictureError, Proposed
from sgi2v.errors import ConfigError, ManifestError
from tests.manifests.pictures import png

H, W = 40, 60
IMAGE = np.zeros((H, W, 3), np.uint8)
BIG, SMALL = (10, 5, 40, 30), (45, 32, 55, 38)


def ids_of(*numbers: int, dtype: type = np.uint16) -> NDArray[Any]:
    """A map of ids with one box for each number, on 0."""
    ids_HW = np.zeros((H, W), dtype)
    for number, (x0, y0, x1, y1) in zip(numbers, (BIG, SMALL), strict=False):
        ids_HW[y0:y1, x0:x1] = number
    return ids_HW


def mask_of(box: tuple[int, int, int, int]) -> NDArray[np.bool_]:
    x0, y0, x1, y1 = box
    mask_HW = np.zeros((H, W), np.bool_)
    mask_HW[y0:y1, x0:x1] = True
    return mask_HW


def rle(mask_HW: NDArray[np.bool_]) -> dict[str, Any]:
    """RLE that is not compressed: lengths of runs down the columns, first of zeros."""
    flat = mask_HW.T.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges.tolist(), flat.size]).tolist()
    return {"size": list(mask_HW.shape), "counts": [0, *counts] if flat[0] else counts}


def compressed(mask_HW: NDArray[np.bool_]) -> dict[str, Any]:
    from pycocotools import mask as coco

    encoded = coco.encode(np.asfortranarray(mask_HW.astype(np.uint8)))
    return {"size": encoded["size"], "counts": encoded["counts"].decode()}


TRUNCATED = compressed(mask_of(BIG))["counts"][:-2]


def boxes_of(proposed: Proposed) -> list[tuple[float, ...]]:
    return [each.box_xyxy for each in proposed.boxes]


def codes_of(proposed: Proposed) -> list[str]:
    return [note.code for note in proposed.notes]


def coco(tmp_path: Path, annotations: list[dict[str, Any]], name: str = "a.jpg", **more: Any) -> str:
    content = {
        "images": [{"id": 1, "file_name": name, "height": H, "width": W}],
        "annotations": [{"id": n, "image_id": 1, "category_id": 3, **each} for n, each in enumerate(annotations)],
        "categories": [{"id": 3, "name": "cat"}, {"id": 4, "name": "dog"}],
        **more,
    }
    path = tmp_path / "masks.json"
    path.write_text(json.dumps(content))
    return str(path)


@pytest.mark.parametrize("kind", ["8 bits", "16 bits", "palette", "rgb", "grey with alpha"])
def test_every_id_of_a_png_is_a_box(kind: str, tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    path = tmp_path / "deep/a.png"
    if kind == "16 bits":
        Image.fromarray(ids_of(300, 556)).save(path)  # the same low byte
    elif kind == "palette":
        image = Image.fromarray(ids_of(1, 2, dtype=np.uint8), "P")
        image.putpalette([0, 0, 0, 200, 200, 200, 200, 200, 200])  # two ids of one colour
        image.save(path)
    elif kind == "rgb":
        ids = ids_of(256 * 7, 256 * 9)
        Image.fromarray(np.dstack([ids % 256, ids // 256, ids * 0]).astype(np.uint8)).save(path)  # only green differs
    elif kind == "grey with alpha":
        ids8 = ids_of(1, 2, dtype=np.uint8)
        Image.fromarray(np.dstack([ids8, np.full_like(ids8, 255)]), "LA").save(path)
    else:
        Image.fromarray(ids_of(1, 2, dtype=np.uint8)).save(path)
    masks = Masks(place=str(tmp_path))
    assert masks.check(["deep/a.jpg"]) == []
    proposed = masks.propose(IMAGE, "deep/a.jpg")
    assert boxes_of(proposed) == [BIG, SMALL]
    assert np.array_equal(proposed.boxes[0].mask_HW, mask_of(BIG))


def test_pieces_of_one_id_have_one_box_and_background_ids_have_none(tmp_path: Path) -> None:
    Image.fromarray(ids_of(5, 5, dtype=np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(ids_of(5, 255, dtype=np.uint8)).save(tmp_path / "b_ids.png")
    assert boxes_of(Masks(place=str(tmp_path)).propose(IMAGE, "a.jpg")) == [(10, 5, 55, 38)]
    masks = Masks(place=str(tmp_path), suffix="_ids.png", background=[0, 255])
    assert boxes_of(masks.propose(IMAGE, "b.jpg")) == [BIG]


def test_a_mask_of_far_parts_is_noted(tmp_path: Path) -> None:
    Image.fromarray(ids_of(1, 2, dtype=np.uint8)).save(tmp_path / "b.png")
    assert codes_of(Masks(place=str(tmp_path)).propose(IMAGE, "b.jpg")) == []
    two_halves = np.zeros((H, W), np.uint8)
    two_halves[5:30, 5:20] = two_halves[5:30, 30:45] = 255
    Image.fromarray(two_halves).save(tmp_path / "a.png")
    proposed = Masks(place=str(tmp_path)).propose(IMAGE, "a.jpg")
    assert (boxes_of(proposed), codes_of(proposed)) == ([(5, 5, 45, 30)], ["mask_parts"])
    assert "of id 255 is 50% of it" in proposed.notes[0].message


@pytest.mark.parametrize("encode", [rle, compressed])
def test_coco_masks_as_rle(encode: Any, tmp_path: Path) -> None:
    masks = Masks(place=coco(tmp_path, [{"segmentation": encode(mask_of(box))} for box in (SMALL, BIG)]))
    proposed = masks.propose(IMAGE, "val/a.jpg")  # the file says a.jpg
    assert boxes_of(proposed) == [BIG, SMALL]
    assert proposed.boxes[0].label == "cat"
    assert np.array_equal(proposed.boxes[1].mask_HW, mask_of(SMALL))


def test_coco_polygons_are_cut_at_the_picture(tmp_path: Path) -> None:
    x0, y0, x1, y1 = BIG
    square = [x0, y0, x1, y0, x1, y1, x0, y1]
    outside = [50, 30, 90, 30, 90, 60, 50, 60]
    masks = Masks(place=coco(tmp_path, [{"segmentation": [square]}, {"segmentation": [square, outside]}]))
    assert boxes_of(masks.propose(IMAGE, "a.jpg")) == [(10, 5, 60, 40), BIG]


def test_coco_panoptic(tmp_path: Path) -> None:
    ids = ids_of(256 * 7, 256 * 9)
    (tmp_path / "masks").mkdir()
    Image.fromarray(np.dstack([ids % 256, ids // 256, ids * 0]).astype(np.uint8)).save(tmp_path / "masks/a.png")
    segments = [
        {"id": 256 * 7, "category_id": 4, "iscrowd": 0},
        {"id": 256 * 9, "category_id": 3, "iscrowd": 0},
        {"id": 12, "category_id": 3, "iscrowd": 0},
    ]
    place = coco(tmp_path, [{"file_name": "a.png", "segments_info": segments}])
    proposed = Masks(place=place).propose(IMAGE, "a.jpg")
    assert [(each.box_xyxy, each.label) for each in proposed.boxes] == [(BIG, "dog"), (SMALL, "cat")]
    assert [str(note) for note in proposed.notes] == ["the mask of segment 12 has no pixels"]
    assert boxes_of(Masks(place=place, labels=["cat"]).propose(IMAGE, "a.jpg")) == [SMALL]


@pytest.mark.parametrize("encode", [rle, compressed])
@pytest.mark.parametrize("a_row", ["one mask", "all masks"])
def test_rle_in_a_parquet_column(encode: Any, a_row: str, tmp_path: Path) -> None:
    encoded = [encode(mask_of(box)) for box in (BIG, SMALL)]
    path = tmp_path / "masks.parquet"
    if a_row == "one mask":
        table = pa.table({"image": ["a.jpg", "a.jpg"], "rle": encoded, "label": ["cat", "dog"], "score": [0.5, 0.9]})
    else:
        table = pa.table({"image": ["a.jpg"], "masks": [encoded], "labels": [["cat", "dog"]], "scores": [[0.5, 0.9]]})
    pq.write_table(table, path)
    proposed = Masks(place=str(path)).propose(IMAGE, "a.jpg")
    assert [(each.box_xyxy, each.label, each.score) for each in proposed.boxes] == [
        (SMALL, "dog", 0.9),
        (BIG, "cat", 0.5),
    ]


@pytest.mark.parametrize(
    ("segmentation", "more", "code", "message"),
    [
        (
            rle(mask_of(BIG)),
            {"iscrowd": 1},
            "crowd",
            "annotation 0 is a crowd, several objects in one mask: boxes.crowd",
        ),
        (rle(mask_of(BIG) & False), {}, "mask_empty", "the mask of annotation 0 has no pixels"),
        (
            {"size": [W, H], "counts": [0, W * H]},
            {},
            "mask_size",
            "has 40 x 60 pixels, the picture has 60 x 40 (is the",
        ),
        ({"size": [H, W], "counts": [10, 10]}, {}, "annotation_invalid", "expected 2,400: its counts are damaged"),
        ({"size": [H, W], "counts": [-5, 2405]}, {}, "annotation_invalid", "expected 2,400: its counts are damaged"),
        ({"size": [H, W], "counts": TRUNCATED}, {}, "annotation_invalid", "counts are damaged"),
        ({"size": [H, W], "counts": "zzzz~~"}, {}, "annotation_invalid", "counts are damaged"),
        ([[1, 2, 3, 4]], {}, "annotation_invalid", "it is neither RLE (`size` and `counts`) nor polygons of three"),
        ([[1, 2, 1e9, 4, 5, 6]], {}, "annotation_invalid", "near the picture"),
        ("a.png", {}, "annotation_invalid", "it is neither RLE"),
        (None, {}, "annotation_invalid", "it is neither RLE"),
        (rle(mask_of(BIG)), {"score": "high"}, "annotation_invalid", "the score of annotation 0 is nan, not a number"),
    ],
)
def test_a_mask_that_cannot_be_used_is_noted_and_the_others_are_kept(
    segmentation: Any, more: dict[str, Any], code: str, message: str, tmp_path: Path
) -> None:
    place = coco(tmp_path, [{"segmentation": segmentation, **more}, {"segmentation": rle(mask_of(SMALL))}])
    proposed = Masks(place=place).propose(IMAGE, "a.jpg")
    assert boxes_of(proposed) == [SMALL]
    assert codes_of(proposed) == [code]
    assert message in str(proposed.notes[0])


def test_crowds_are_used_where_they_are_asked_for(tmp_path: Path) -> None:
    place = coco(tmp_path, [{"segmentation": rle(mask_of(BIG)), "iscrowd": 1}])
    assert boxes_of(Masks(place=place, crowd=True).propose(IMAGE, "a.jpg")) == [BIG]


@pytest.mark.parametrize(
    ("data", "code", "message"),
    [
        (b"not a picture", "mask_unreadable", "cannot be decoded"),
        (png(np.zeros((H, W, 3), int), 16, 2), "mask_unreadable", "has colours of 16 bits: write ids as 16-bit grey"),
        (
            png(np.zeros((W, H, 1), int), 8, 0),
            "mask_size",
            "has 40 x 60 pixels, the picture has 60 x 40 (is the picture",
        ),
        (png(np.zeros((H, W, 1), int), 8, 0)[:60], "mask_unreadable", "cannot be decoded"),
        ("JPEG", "mask_unreadable", "is a JPEG file: give PNGs, because other formats may change ids"),
        (None, "mask_missing", "the mask cannot be read"),
    ],
)
def test_a_picture_whose_png_cannot_be_used_is_told(data: Any, code: str, message: str, tmp_path: Path) -> None:
    if data == "JPEG":
        Image.fromarray(ids_of(1, dtype=np.uint8)).save(tmp_path / "a.png", "JPEG")
    elif data is not None:
        (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(PictureError) as error:
        Masks(place=str(tmp_path)).propose(IMAGE, "a.jpg")
    assert error.value.code == code
    assert message in str(error.value)


def test_a_png_of_background_alone_has_no_boxes(tmp_path: Path) -> None:
    Image.fromarray(ids_of(dtype=np.uint8)).save(tmp_path / "a.png")
    assert Masks(place=str(tmp_path)).propose(IMAGE, "a.jpg") == ([], [])


def test_what_no_picture_uses_is_listed(tmp_path: Path) -> None:
    for name in ("a.png", "b.png"):
        Image.fromarray(ids_of(1, dtype=np.uint8)).save(tmp_path / name)
    notes = Masks(place=str(tmp_path)).check(["a.jpg", "c.jpg"])
    assert [str(note) for note in notes] == ["the mask b.png belongs to no picture"]
    images = [{"id": n, "file_name": name, "height": H, "width": W} for n, name in enumerate(["a.jpg", "b.jpg"], 1)]
    lost = {"segmentation": rle(mask_of(BIG)), "image_id": 99}
    place = coco(tmp_path, [{"segmentation": rle(mask_of(BIG))}, lost, lost], images=images)
    notes = Masks(place=place).check(["a.jpg"])
    assert [str(note) for note in notes] == [
        f"2 annotations of {place} with image_id 99: `images` has no such id",
        f"b.jpg of {place} is not among the pictures",
    ]
    with pytest.raises(PictureError, match=r"says nothing about c\.jpg"):
        Masks(place=place).propose(IMAGE, "c.jpg")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("none.json", None, "it cannot be opened"),
        ("bad.json", "{", "it is no JSON"),
        ("list.json", "[]", "set boxes.images to the COCO JSON that has `images`"),
        ("other.json", '{"shapes": []}', "it has no lists of objects `images` and `annotations`"),
        ("noname.json", '{"images": [{"id": 1}], "annotations": []}', "images[0] has no `id` or no `file_name`"),
        (
            "twice.json",
            '{"images": [{"id": 1, "file_name": "a"}, {"id": 1, "file_name": "b"}], "annotations": []}',
            "1",
        ),
        (
            "same.json",
            '{"images": [{"id": 1, "file_name": "a"}, {"id": 2, "file_name": "a"}], "annotations": []}',
            "same",
        ),
        (
            "gone.json",
            '{"images": [{"id": 1, "file_name": "x.jpg"}], "annotations": []}',
            "the file has x.jpg, the folder",
        ),
        ("bad.parquet", "PAR1", "it is no readable Parquet file"),
        ("", None, "a.png is not there, and no other mask either (it has no file that ends in .png)"),
    ],
)
def test_a_place_that_cannot_be_used_is_told_before_the_work(
    name: str, content: str | None, message: str, tmp_path: Path
) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ManifestError) as error:
        Masks(place=str(tmp_path / name)).check(["a.jpg"])
    assert message in str(error.value)


def test_columns_that_are_missing_are_told(tmp_path: Path) -> None:
    pq.write_table(pa.table({"image": ["a.jpg"], "area": [3]}), tmp_path / "a.parquet")
    with pytest.raises(
        ManifestError, match="it needs a column `image` and one of `boxes` or `masks` \\(found: image, area"
    ):
        Masks(place=str(tmp_path / "a.parquet")).check(["a.jpg"])
    table = pa.table({"image": ["a.jpg"], "masks": [[rle(mask_of(BIG))]], "labels": [["a", "b"]]})
    pq.write_table(table, tmp_path / "b.parquet")
    with pytest.raises(ManifestError, match="the lists of row 0 have different lengths"):
        Masks(place=str(tmp_path / "b.parquet")).check(["a.jpg"])


def test_a_folder_has_no_categories(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"boxes\.labels needs a COCO JSON or Parquet file"):
        Masks(place=str(tmp_path), labels=["cat"]).check(["a.jpg"])


def test_names_that_could_mean_several_pictures_are_told(tmp_path: Path) -> None:
    images = [{"id": n, "file_name": name} for n, name in enumerate(["x/a.jpg", "y/a.jpg"], 1)]
    masks = Masks(place=coco(tmp_path, [{"segmentation": rle(mask_of(BIG))}], images=images))
    with pytest.raises(PictureError, match=r"several pictures that may be this one \(x/a.jpg, y/a.jpg\)"):
        masks.propose(IMAGE, "a.jpg")
    assert boxes_of(masks.propose(IMAGE, "x/a.jpg")) == [BIG]


def test_masks_lie_in_any_store() -> None:
    store = fsspec.filesystem("memory")
    data = io.BytesIO()
    Image.fromarray(ids_of(1, 2, dtype=np.uint8)).save(data, "PNG")
    store.pipe_file("/bucket/masks/deep/a.png", data.getvalue())
    masks = Masks(place="memory://bucket/masks/")
    assert masks.check(["deep/a.jpg"]) == []
    assert boxes_of(masks.propose(IMAGE, "deep/a.jpg")) == [BIG, SMALL]
    content = {"images": [{"id": 1, "file_name": "a.jpg"}], "annotations": []}
    store.pipe_file("/bucket/masks.json", json.dumps(content).encode())
    assert Masks(place="memory://bucket/masks.json").propose(IMAGE, "a.jpg") == ([], [])


def test_two_pictures_do_not_share_an_annotation(tmp_path: Path) -> None:
    masks = Masks(place=coco(tmp_path, [{"segmentation": rle(mask_of(BIG))}]))
    with pytest.raises(ManifestError, match=r"x/a\.jpg and y/a\.jpg could both be its a\.jpg: give its pictures names"):
        masks.check(["x/a.jpg", "y/a.jpg"])
    assert masks.check(["x/a.jpg", "y/b.jpg"]) == []


def test_a_polygon_without_pycocotools_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(ConfigError, match=r"sgi2v-batch\[masks\]"):
        decode_mask([[1.0, 1.0, 5.0, 1.0, 5.0, 5.0]], (8, 8), "a.png")
