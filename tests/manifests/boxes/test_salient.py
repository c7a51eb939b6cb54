"""Salient boxes against boxes that a person drew in photographs of installed packages."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from manifests.boxes.geometry import intersection_over_union
from manifests.boxes.salient import Salient

DRAWN: dict[str, dict[str, list[int]]] = json.loads(Path(__file__).with_name("drawn_boxes.json").read_text())[
    "pictures"
]


def installed(name: str) -> Path | None:
    """Where a picture of a package lies; None if the package is not installed."""
    package, _, rest = name.partition("/")
    spec = importlib.util.find_spec(package)
    path = Path(spec.origin).parent / rest if spec and spec.origin else None
    return path if path and path.exists() else None


def photograph(path: Path) -> NDArray[np.uint8]:
    return np.asarray(Image.open(path).convert("RGB"))


@pytest.mark.slow
def test_seven_of_ten_boxes_overlap_a_persons_box_by_half() -> None:
    paths = {name: path for name in DRAWN if (path := installed(name))}
    assert {name.partition("/")[0] for name in paths} >= {"skimage", "matplotlib"}
    overlaps = []
    for name, path in paths.items():
        boxes = Salient().propose(photograph(path), name).boxes
        drawn = list(DRAWN[name].values())
        overlaps += [float(intersection_over_union(each.box_xyxy, drawn).max()) for each in boxes]
    assert len(overlaps) >= 15
    assert np.mean(np.array(overlaps) >= 0.5) >= 0.7


def test_boxes_do_not_depend_on_the_pictures_size() -> None:
    rng = np.random.default_rng(3)
    small = np.full((90, 160, 3), (60, 110, 70), np.uint8) + rng.integers(0, 8, (90, 160, 3), np.uint8)
    small[30:60, 40:80] = (220, 180, 40)
    large = small.repeat(9, axis=0).repeat(9, axis=1)
    for image, scale in ((small, 1), (large, 9)):
        box = Salient().propose(image, "a.png").boxes[0].box_xyxy
        assert np.array(box) / scale == pytest.approx((40, 30, 80, 60), abs=2)


@pytest.mark.parametrize("shape", [(1, 1), (1, 500), (500, 3), (40, 40)])
def test_a_picture_without_things_has_no_boxes(shape: tuple[int, int]) -> None:
    assert Salient().propose(np.full((*shape, 3), 77, np.uint8), "a.png") == ([], [])


def test_a_lower_score_gives_more_boxes_and_max_boxes_keeps_the_best() -> None:
    image = np.full((120, 200, 3), 40, np.uint8)
    for n in range(6):
        x, y = 15 + 60 * (n % 3), 15 + 55 * (n // 3)
        image[y : y + 30, x : x + 35] = (60 + 30 * n, 200 - 20 * n, 40 * n)
    few = Salient(max_boxes=2, min_score=0.0).propose(image, "a.png").boxes
    many = Salient(min_score=0.0).propose(image, "a.png").boxes
    assert len(few) == 2
    assert [each.box_xyxy for each in few] == [each.box_xyxy for each in many[:2]]
    assert len(many) >= len(Salient(min_score=0.9).propose(image, "a.png").boxes)
