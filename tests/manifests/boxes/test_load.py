"""Every proposer: its name, its options, and what holds for all of them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from manifests.boxes import PROPOSERS, load_proposer
from sgi2v.errors import ConfigError

IMAGE = np.full((60, 80, 3), 90, np.uint8)
IMAGE[20:40, 30:60] = (200, 40, 30)


@pytest.fixture
def options(tmp_path: Path) -> dict[str, dict[str, object]]:
    """What each proposer needs."""
    ids = np.zeros((60, 80), np.uint8)
    ids[20:40, 30:60] = 7
    (tmp_path / "masks").mkdir()
    Image.fromarray(ids).save(tmp_path / "masks/a.png")
    found = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 60, "width": 80}],
        "annotations": [{"id": 5, "image_id": 1, "category_id": 2, "bbox": [30, 20, 30, 20]}],
        "categories": [{"id": 2, "name": "brick"}],
    }
    (tmp_path / "found.json").write_text(json.dumps(found))
    return {"masks": {"place": str(tmp_path / "masks")}, "detections": {"place": str(tmp_path / "found.json")}}


@pytest.mark.parametrize("name", PROPOSERS)
def test_a_proposer_gives_boxes_inside_the_picture_and_the_same_ones_after_a_pickle(
    name: str, options: dict[str, dict[str, object]]
) -> None:
    proposer = load_proposer(name, **options.get(name, {}))
    assert proposer.name == name
    assert proposer.check(["a.jpg"]) == []
    boxes, notes = proposer.propose(IMAGE, "a.jpg")
    assert notes == []
    assert boxes
    scores = [each.score for each in boxes]
    assert scores == sorted(scores, reverse=True)
    for x0, y0, x1, y1 in (each.box_xyxy for each in boxes):
        assert 0 <= x0 < x1 <= 80
        assert 0 <= y0 < y1 <= 60
    again = pickle.loads(pickle.dumps(proposer)).propose(IMAGE, "a.jpg")  # noqa: S301
    assert [each.box_xyxy for each in again.boxes] == [each.box_xyxy for each in boxes]


@pytest.mark.parametrize("name", ["salient", "masks", "detections"])
def test_the_object_is_found(name: str, options: dict[str, dict[str, object]]) -> None:
    best = load_proposer(name, **options.get(name, {})).propose(IMAGE, "a.jpg").boxes[0]
    assert best.box_xyxy == pytest.approx((30, 20, 60, 40), abs=3)


def test_only_the_whole_picture_is_no_object() -> None:
    proposer = load_proposer("whole")
    assert not proposer.finds_objects
    assert [each.box_xyxy for each in proposer.propose(IMAGE, "a.jpg").boxes] == [(0, 0, 80, 60)]
    assert load_proposer("grid").finds_objects


def test_a_grid_has_its_cells_and_begins_in_the_middle() -> None:
    boxes = load_proposer("grid", columns=3, rows=3, fill=0.5).propose(IMAGE, "a.jpg").boxes
    assert len(boxes) == 9
    assert boxes[0].box_xyxy == pytest.approx((80 / 3 * 1.25, 25, 80 / 3 * 1.75, 35))
    centres = {(round(x0 + x1), round(y0 + y1)) for x0, y0, x1, y1 in (each.box_xyxy for each in boxes)}
    assert centres == {(x, y) for x in (27, 80, 133) for y in (20, 60, 100)}


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("salent", {}, "there is no box proposer 'salent' (did you mean salient?): use one of salient, masks"),
        ("grid", {"colums": 3}, "unknown setting boxes.colums (did you mean columns?)"),
        ("grid", {"rows": 0}, "boxes.rows must be 1 or more, not 0"),
        ("salient", {"max_boxes": "8"}, "boxes.max_boxes must be an integer, not '8'"),
        ("masks", {}, "boxes.place is missing"),
        ("detections", {}, "give one of boxes.place (a file of detections) and boxes.model"),
        ("detections", {"place": "a.json", "model": "b"}, "give one of boxes.place"),
        ("detections", {"place": "a.csv"}, "boxes.place must end in .json or .parquet, not be 'a.csv'"),
    ],
)
def test_options_that_cannot_be_used_are_named(name: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_proposer(name, **options)
    assert message in str(error.value)
