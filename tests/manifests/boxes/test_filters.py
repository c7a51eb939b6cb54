"""Which boxes pass the filters, and which are held."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from manifests.boxes.filters import BoxFilters, filtered, still_boxes, texture
from manifests.boxes.proposer import Box, Proposal
from sgi2v.errors import ConfigError

NOISE = np.random.default_rng(5).integers(0, 256, (200, 400, 3), np.uint8)
OFF = BoxFilters(min_area=0, max_area=1, min_side=0, min_texture=0, min_border=0, max_overlap=1, max_boxes=256)
GOOD: Box = (100.0, 50.0, 180.0, 130.0)


def proposals(*boxes: Box) -> list[Proposal]:
    return [Proposal(box) for box in boxes]


@pytest.mark.parametrize(
    ("box", "setting", "code", "message"),
    [
        ((10, 10, 16, 16), {"min_area": 0.002}, "area_small", "takes 0.04% of the picture: filters.min_area is 0.20%"),
        ((10, 10, 390, 190), {"max_area": 0.6}, "area_large", "takes 86% of the picture: filters.max_area is 60%"),
        (
            (10, 10, 100, 30),
            {"min_side": 32},
            "side_small",
            "has a side of 20 px in the output: filters.min_side is 32 px",
        ),
        ((1, 50, 90, 130), {"min_border": 0.01}, "border_near", "is 0.5% of the shorter side away from the border"),
        ((50, 50, 130, 200), {"min_border": 0.01}, "border_near", "is 0.0% of the shorter side away from the border"),
    ],
)
def test_each_filter_drops_its_box_and_says_so(box: Box, setting: dict[str, Any], code: str, message: str) -> None:
    both = proposals(box, GOOD)
    kept, dropped = filtered(both, NOISE, OFF.replace(**setting))
    assert [each.box_xyxy for each in kept] == [GOOD]
    assert [each.code for each in dropped] == [code]
    assert message in str(dropped[0])
    assert filtered(both, NOISE, OFF) == (both, [])


def test_the_side_is_measured_in_the_output() -> None:
    small = proposals((10, 10, 40, 40))
    assert filtered(small, NOISE, OFF.replace(min_side=32)).kept == []
    assert filtered(small, NOISE, OFF.replace(min_side=32), (2.0, 2.0)).kept == small
    assert filtered(small, NOISE, OFF.replace(min_side=32), (2.0, 0.5)).kept == []


def test_smooth_and_striped_boxes_have_no_texture() -> None:
    image = np.full((200, 400, 3), 90, np.uint8)
    image[:, :100] += np.arange(100, dtype=np.uint8)[None, :, None]  # a ramp
    image[:, 100:200:8] = 250  # stripes, which cannot be followed along themselves
    image[::8, 200:300] = 250
    image[:, 200:300:8] = 250  # a lattice
    smooth, ramp, stripes, lattice = (310, 10, 390, 90), (10, 10, 90, 90), (110, 10, 190, 90), (210, 10, 290, 90)
    assert texture(smooth, image) == 0
    assert texture(ramp, image) == pytest.approx(0, abs=1e-3)
    assert texture(stripes, image) == pytest.approx(0, abs=1e-3)
    assert texture(lattice, image) > 10
    kept, dropped = filtered(proposals(smooth, ramp, stripes, lattice), image, OFF.replace(min_texture=1.0))
    assert [each.box_xyxy for each in kept] == [lattice]
    assert {each.code for each in dropped} == {"texture_low"}


def test_texture_is_measured_in_the_output() -> None:
    rng = np.random.default_rng(1)
    coarse = rng.integers(0, 256, (20, 20, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    box = (8, 8, 152, 152)
    assert texture(box, coarse, (2.0, 2.0)) < texture(box, coarse) < texture(box, coarse, (0.5, 0.5))
    large = coarse.repeat(4, axis=0).repeat(4, axis=1)
    assert texture((32, 32, 608, 608), large, (0.25, 0.25)) == pytest.approx(texture(box, coarse), rel=0.3)


def test_of_two_boxes_that_overlap_the_better_one_stays() -> None:
    inside, apart = (110.0, 60.0, 150.0, 100.0), (250.0, 50.0, 300.0, 100.0)
    kept, dropped = filtered(proposals(GOOD, inside, apart), NOISE, OFF.replace(max_overlap=0.5))
    assert [each.box_xyxy for each in kept] == [GOOD, apart]
    assert [each.code for each in dropped] == ["overlap"]
    assert "the box [110, 60, 150, 100] overlaps a better one" in str(dropped[0])


def test_the_best_boxes_stay_where_there_are_many() -> None:
    boxes = [(float(x), 20.0, x + 20.0, 60.0) for x in range(10, 300, 30)]
    kept, dropped = filtered(proposals(*boxes), NOISE, OFF.replace(max_boxes=4))
    assert [each.box_xyxy for each in kept] == boxes[:4]
    assert [each.code for each in dropped] == ["boxes_many"] * 6


def test_no_boxes_and_limits_that_cannot_be() -> None:
    assert filtered([], NOISE, BoxFilters()) == ([], [])
    with pytest.raises(ConfigError, match=r"filters\.min_border must be 0\.5 or less"):
        BoxFilters(min_border=0.7)


def moving(*boxes: Box) -> np.ndarray[Any, np.dtype[np.float64]]:
    """One box that is in each of these places in turn."""
    return np.array(boxes, np.float64)[:, None]


def test_still_boxes_keep_away_from_every_place_of_a_moving_box() -> None:
    chosen, part, target, on_the_way, near, far = (
        (100.0, 50.0, 180.0, 130.0),
        (120.0, 60.0, 140.0, 80.0),
        (300.0, 50.0, 380.0, 130.0),
        (210.0, 100.0, 240.0, 180.0),
        (100.0, 133.0, 180.0, 190.0),
        (10.0, 10.0, 60.0, 60.0),
    )
    path = moving(chosen, (200.0, 50.0, 280.0, 130.0), target)
    found = still_boxes(proposals(chosen, part, target, on_the_way, near, far), path, 8.0, 64)
    assert [each.box_xyxy for each in found] == [far]
    found = still_boxes(proposals(chosen, near, far), path, 2.0, 64)
    assert [each.box_xyxy for each in found] == [near, far]


def test_still_boxes_do_not_hold_one_thing_twice_and_are_limited() -> None:
    whole, part, other = (10.0, 10.0, 60.0, 60.0), (20.0, 20.0, 40.0, 40.0), (10.0, 100.0, 60.0, 150.0)
    path = moving((300.0, 50.0, 380.0, 130.0))
    assert [each.box_xyxy for each in still_boxes(proposals(whole, part, other), path, 8.0, 64)] == [whole, other]
    assert [each.box_xyxy for each in still_boxes(proposals(whole, part, other), path, 8.0, 1)] == [whole]
