"""Boxes of detections: COCO JSON, Parquet and a model of transformers, and coordinates of every system."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from manifests.boxes.detections import Detections
from manifests.boxes.proposer import PictureError, Proposed
from sgi2v.errors import ConfigError, ManifestError

H, W = 400, 600
IMAGE = np.zeros((H, W, 3), np.uint8)
FIRST, SECOND = (100.0, 50.0, 300.0, 250.0), (400.0, 300.0, 500.0, 380.0)


def boxes_of(proposed: Proposed) -> list[tuple[float, ...]]:
    return [each.box_xyxy for each in proposed.boxes]


def coco(tmp_path: Path, boxes: list[list[float]], scores: list[float] | None = None, **size: int) -> str:
    """A COCO file of one picture, a.jpg."""
    annotations = [
        {"id": n, "image_id": 1, "category_id": n % 2, "bbox": box, **({"score": scores[n]} if scores else {})}
        for n, box in enumerate(boxes)
    ]
    content = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": H, "width": W, **size}],
        "annotations": annotations,
        "categories": [{"id": 0, "name": "cat"}, {"id": 1, "name": "dog"}],
    }
    path = tmp_path / "found.json"
    path.write_text(json.dumps(content))
    return str(path)


def parquet(tmp_path: Path, boxes: list[Any], image: str = "a.jpg") -> str:
    path = tmp_path / "found.parquet"
    pq.write_table(pa.table({"image": [image] * len(boxes), "box": boxes}), path)
    return str(path)


def test_coco_boxes_are_corner_and_size(tmp_path: Path) -> None:
    place = coco(tmp_path, [[100, 50, 200, 200], [400, 300, 100, 80], [0, 0, 9, 9]], [0.4, 0.9, 0.1])
    proposed = Detections(place=place).propose(IMAGE, "a.jpg")
    found = [(each.box_xyxy, each.score, each.label) for each in proposed.boxes]
    assert found == [(SECOND, 0.9, "dog"), (FIRST, 0.4, "cat")]
    assert proposed.notes == []
    assert boxes_of(Detections(place=place, labels=["cat"], min_score=0).propose(IMAGE, "a.jpg"))[0] == FIRST


def test_a_file_of_results_needs_the_names_of_its_pictures(tmp_path: Path) -> None:
    images = coco(tmp_path, [])
    results = tmp_path / "results.json"
    results.write_text(json.dumps([{"image_id": 1, "category_id": 1, "bbox": [100, 50, 200, 200], "score": 0.8}]))
    with pytest.raises(ManifestError, match=r"set boxes\.images to the COCO JSON"):
        Detections(place=str(results)).check(["a.jpg"])
    proposed = Detections(place=str(results), images=images).propose(IMAGE, "a.jpg")
    assert [(each.box_xyxy, each.label, each.score) for each in proposed.boxes] == [(FIRST, "dog", 0.8)]


def test_parquet_has_one_row_a_box_or_one_row_a_picture(tmp_path: Path) -> None:
    assert boxes_of(Detections(place=parquet(tmp_path, [FIRST, SECOND])).propose(IMAGE, "a.jpg")) == [FIRST, SECOND]
    table = pa.table({"image": ["b.jpg", "a.jpg"], "boxes": [[], [FIRST, SECOND]], "scores": [[], [0.5, 0.6]]})
    pq.write_table(table, tmp_path / "lists.parquet")
    lists = Detections(place=str(tmp_path / "lists.parquet"))
    assert boxes_of(lists.propose(IMAGE, "a.jpg")) == [SECOND, FIRST]
    assert lists.propose(IMAGE, "b.jpg") == ([], [])


@pytest.mark.parametrize(
    ("order", "coordinates", "box"),
    [
        ("xyxy", "pixels", [100, 50, 300, 250]),
        ("yxyx", "pixels", [50, 100, 250, 300]),
        ("xywh", "pixels", [100, 50, 200, 200]),
        ("cxcywh", "pixels", [200, 150, 200, 200]),
        ("cxcywh", "normalised", [200 / W, 150 / H, 200 / W, 200 / H]),
        ("xyxy", "normalised", [100 / W, 50 / H, 300 / W, 250 / H]),
        ("yxyx", "permille", [125, 500 / 3, 625, 500]),
    ],
)
def test_every_order_and_unit_gives_the_same_box(
    order: str, coordinates: str, box: list[float], tmp_path: Path
) -> None:
    floats = [float(value) for value in box]
    detections = Detections(place=parquet(tmp_path, [floats]), order=order, coordinates=coordinates)
    assert boxes_of(detections.propose(IMAGE, "a.jpg"))[0] == pytest.approx(FIRST)


def test_normalised_boxes_are_told_before_the_work(tmp_path: Path) -> None:
    place = coco(tmp_path, [[0.1, 0.2, 0.3, 0.4], [0.5, 0.5, 0.5, 0.5]])
    with pytest.raises(
        ConfigError, match=r"all numbers of its 2 boxes are from 0 to 1.*boxes\.coordinates to \"normal"
    ):
        Detections(place=place).check(["a.jpg"])
    assert len(Detections(place=place, coordinates="normalised").propose(IMAGE, "a.jpg").boxes) == 2


def permille_boxes() -> list[list[float]]:
    corners = [float(n * 100) for n in range(9)]
    return [[x, x, x + 190.0, x + 195.0] for x in corners]


@pytest.mark.parametrize("shape", [(H, W), (1080, 1920), (800, 1200)])
def test_permille_boxes_are_told(shape: tuple[int, int], tmp_path: Path) -> None:
    place = parquet(tmp_path, permille_boxes())
    image = np.zeros((*shape, 3), np.uint8)
    with pytest.raises(PictureError) as error:
        Detections(place=place).propose(image, "a.jpg")
    assert error.value.code == "coordinates"
    assert 'Set boxes.coordinates to "permille", or to "pixels"' in str(error.value)
    assert len(Detections(place=place, coordinates="permille").propose(image, "a.jpg").boxes) == 9
    pixels = Detections(place=place, coordinates="pixels").propose(np.zeros((1080, 1920, 3), np.uint8), "a.jpg")
    assert boxes_of(pixels)[0] == (0, 0, 190, 195)


def test_a_picture_of_a_thousand_pixels_is_no_reason_to_stop(tmp_path: Path) -> None:
    image = np.zeros((1000, 1000, 3), np.uint8)
    assert len(Detections(place=parquet(tmp_path, permille_boxes())).propose(image, "a.jpg").boxes) == 9


@pytest.mark.parametrize(
    ("box", "code", "kept", "message"),
    [
        (
            [700, 10, 800, 90],
            "box_outside",
            None,
            "the box of row 0, [700, 10, 800, 90], lies outside the picture, which",
        ),
        ([-20, 10, 800, 90], "box_larger", None, "is larger than the picture, which has 600 x 400 pixels"),
        ([500, 10, 640, 90], "box_clipped", (500, 10, 600, 90), "reaches out of the picture"),
        ([300, 10, 200, 90], "box_invalid", None, "has no area as xyxy: check boxes.order"),
        ([300, 10, 200], "box_invalid", None, "[300.0, 10.0, 200.0], has no area"),
        ([float("nan"), 10, 200, 30], "box_invalid", None, "has no area"),
    ],
)
def test_a_box_that_does_not_fit_is_noted(
    box: list[float], code: str, kept: tuple[float, ...] | None, message: str, tmp_path: Path
) -> None:
    place = parquet(tmp_path, [[float(value) for value in box], list(FIRST)])
    proposed = Detections(place=place).propose(IMAGE, "a.jpg")
    assert set(boxes_of(proposed)) == {FIRST, kept} - {None}
    assert [note.code for note in proposed.notes] == [code]
    assert message in str(proposed.notes[0])


def test_less_than_a_pixel_outside_is_rounding(tmp_path: Path) -> None:
    proposed = Detections(place=parquet(tmp_path, [[-0.4, 0.0, 600.6, 300.0]])).propose(IMAGE, "a.jpg")
    assert proposed.notes == []
    assert boxes_of(proposed) == [(0, 0, 600, 300)]


def test_another_picture_size_and_missing_pictures_are_told(tmp_path: Path) -> None:
    detections = Detections(place=coco(tmp_path, [[100, 50, 200, 200]], width=1200, height=800))
    with pytest.raises(PictureError, match=r"is about a picture of 1200 x 800 pixels, this one has 600 x 400"):
        detections.propose(IMAGE, "a.jpg")
    with pytest.raises(PictureError, match=r"says nothing about b\.jpg"):
        detections.propose(IMAGE, "b.jpg")
    with pytest.raises(
        ManifestError, match=r"it names none of the 1 picture: the file has a\.jpg, the folder has b\.jpg"
    ):
        detections.check(["b.jpg"])


@pytest.fixture(scope="module")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A detector of random weights whose heads always say: a dog in the middle, surer than 0.9."""
    import torch
    from transformers import YolosConfig, YolosForObjectDetection, YolosImageProcessor

    names = {0: "cat", 1: "dog"}
    config = YolosConfig(
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        image_size=[32, 48],
        num_detection_tokens=2,
        id2label=names,
        label2id={name: number for number, name in names.items()},
    )
    model = YolosForObjectDetection(config)
    last, labels = model.bbox_predictor.layers[-1], model.class_labels_classifier.layers[-1]
    with torch.no_grad():
        for layer, bias in ((last, torch.tensor([0.0, 0.0, -1.0986, 0.0])), (labels, torch.tensor([0.0, 5.0, 0.0]))):
            layer.weight.zero_()
            layer.bias.copy_(bias)  # a sigmoid: centre 0.5, 0.5; width 0.25, height 0.5
    folder = tmp_path_factory.mktemp("model")
    model.save_pretrained(folder)
    YolosImageProcessor(size={"height": 32, "width": 48}).save_pretrained(folder)
    return str(folder)


@pytest.mark.slow
def test_a_model_of_transformers_is_loaded_and_run(tiny_model: str) -> None:
    detections = Detections(model=tiny_model, min_score=0.9)
    assert detections.check(["a.jpg"]) == []
    for proposer in (detections, pickle.loads(pickle.dumps(detections))):  # noqa: S301
        proposed = proposer.propose(IMAGE, "a.jpg")
        assert len(proposed.boxes) == 2
        assert proposed.boxes[0].label == "dog"
        assert proposed.boxes[0].box_xyxy == pytest.approx((225, 100, 375, 300), abs=0.1)
    assert Detections(model=tiny_model, labels=["cat"], min_score=0.9).propose(IMAGE, "a.jpg") == ([], [])


@pytest.mark.slow
@pytest.mark.parametrize("content", [None, '{"model_type": "bert"}'])
def test_a_model_that_cannot_be_loaded_is_told_before_the_work(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match=r"boxes\.model .* cannot be loaded"):
        Detections(model=str(tmp_path)).check(["a.jpg"])


def test_labels_and_scores_that_leave_nothing_say_so(tmp_path: Path) -> None:
    place = coco(tmp_path, [[100, 50, 200, 200], [400, 300, 100, 80]], [0.1, 0.25])
    with pytest.raises(ManifestError, match=r"no object is 'Cat' \(did you mean cat\?\): there is cat, dog"):
        Detections(place=place, labels=["Cat"]).check(["a.jpg"])
    assert [note.code for note in Detections(place=place, labels=["cat", "cow"]).check(["a.jpg"])] == ["label_unknown"]
    proposed = Detections(place=place).propose(IMAGE, "a.jpg")
    assert [(note.code, note.message) for note in proposed.notes] == [
        ("score_low", "2 of its boxes have a score below boxes.min_score, 0.3: the surest has 0.25")
    ]


def test_an_id_as_text_is_another_id_than_a_number(tmp_path: Path) -> None:
    place = Path(coco(tmp_path, [[100, 50, 200, 200]]))
    place.write_text(place.read_text().replace('"image_id": 1', '"image_id": "1"'))
    (note,) = Detections(place=str(place)).check(["a.jpg"])
    assert 'image_id "1": `images` has no such id' in note.message
