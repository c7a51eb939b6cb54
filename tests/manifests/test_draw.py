"""Drawings of samples: their size, and where they have colour."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from manifests.draw import HELD, MAX_SIDE, MIN_WIDTH, PALETTE, draw_boxes, draw_sample
from sgi2v.trajectory import BoxTracks

GREY = 128


def grey(height: int, width: int) -> NDArray[np.uint8]:
    return np.full((height, width, 3), GREY, np.uint8)


def tracks(boxes: list[list[float]], ends: list[list[float]], height: int, width: int) -> BoxTracks:
    paths = [np.array([[0.0, 0.0], end]) for end in ends]
    return BoxTracks.from_paths(np.array(boxes), paths, 14, height, width)


def drawn_on(picture: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Where a picture differs from its grey background."""
    return np.asarray((np.abs(picture.astype(int) - GREY) > 3).any(axis=-1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("height", "width", "shown"),
    [(576, 1024, (576, 1024)), (48, 64, (576, 768)), (3000, 4000, (1200, 1600)), (4000, 1000, (1600, 400))],
)
def test_small_images_are_enlarged_and_large_ones_reduced(height: int, width: int, shown: tuple[int, int]) -> None:
    picture = draw_sample(grey(height, width), tracks([], [], height, width), "cat")
    assert (picture.mode, picture.width) == ("RGB", shown[1])
    assert MIN_WIDTH <= picture.width <= MAX_SIDE or height > width
    assert shown[0] < picture.height < shown[0] + 80
    assert not drawn_on(np.asarray(picture)[: shown[0]]).any()


def test_the_first_box_the_path_and_the_last_box_are_in_their_places() -> None:
    picture = np.asarray(draw_sample(grey(600, 1000), tracks([[100, 100, 200, 180]], [[600, 300]], 600, 1000), "cat"))
    assert tuple(picture[140, 99]) == PALETTE[0]
    assert tuple(picture[179, 120]) == PALETTE[0]
    has_colour = drawn_on(picture[:600])
    assert has_colour[110, 110], "the first box is filled"
    assert has_colour[[140 + 150], [150 + 300]].all(), "the path passes its middle"
    assert has_colour[399:402, 700:800].any(), "the last box is outlined"
    assert not has_colour[445:470, 705:735].any(), "the last box is not filled"
    assert not has_colour[500:].any()


def test_boxes_that_stay_are_grey_and_objects_with_a_mask_are_tinted() -> None:
    mask_NHW = np.zeros((2, 300, 500), np.uint8)
    mask_NHW[0, 50:70, 50:100] = 255  # the upper half of the first box, and beside it nothing counts
    mask_NHW[1] = 255
    given = tracks([[100, 100, 200, 180], [600, 300, 700, 400]], [[600, 300], [0, 0]], 600, 1000)
    given = replace(given, still_N=np.array([False, True]), masks_NHW=mask_NHW)
    has_colour = drawn_on(np.asarray(draw_sample(grey(600, 1000), given, "cat"))[:600])
    assert has_colour[135, 180], "the object is tinted"
    assert not has_colour[160, 180], "the rest of its box is not"
    assert not has_colour[120, 210], "nor what is beside the box"
    assert has_colour[350, 650], "a box without a mask is all object"
    assert tuple(np.asarray(draw_sample(grey(600, 1000), given, "cat"))[350, 599]) == HELD


def test_tracks_of_another_frame_size_are_rescaled_to_the_image() -> None:
    large = tracks([[100, 100, 200, 180]], [[600, 300]], 600, 1000)
    direct = np.asarray(draw_sample(grey(600, 1000), large, None))
    rescaled = np.asarray(draw_sample(grey(600, 1000), large.rescale(300, 500), None))
    # rounding the points of a path may move an edge by a third of a pixel
    assert (direct != rescaled).any(axis=-1).mean() < 0.001


@pytest.mark.slow
def test_a_margin_shows_what_leaves_the_frame() -> None:
    inside = draw_sample(grey(600, 1000), tracks([[100, 100, 200, 180]], [[10, 0]], 600, 1000), None)
    leaving = draw_sample(grey(600, 1000), tracks([[100, 100, 200, 180]], [[-250, 0]], 600, 1000), None)
    far = draw_sample(grey(600, 1000), tracks([[100, 100, 200, 180]], [[-1e6, 1e6]], 600, 1000), None)
    assert inside.width == 1000
    assert 1150 <= leaving.width <= 1200
    assert far.width == 1250
    margin = np.asarray(leaving)[:600, :100]
    assert (margin != margin[0, 0]).any()


@pytest.mark.parametrize(
    ("far", "on_its_way"), [(1e7, (140, 700)), (1_764_270_000.0, (140, 700)), (-1e300, (390, 100))]
)
def test_a_point_far_outside_costs_no_more_than_one_nearby(far: float, on_its_way: tuple[int, int]) -> None:
    paths = [np.array([[150.0, 140], [far, 140], [350, 140]]), np.array([[400.0, 300], [far, far]])]
    boxes = np.array([[100.0, 100, 200, 180], [350, 250, 450, 350]])
    start = time.process_time()
    picture = np.asarray(draw_sample(grey(600, 1000), BoxTracks.from_paths(boxes, paths, 15, 600, 1000), "cat"))
    assert time.process_time() - start < 5
    assert np.abs(picture[on_its_way].astype(int) - PALETTE[0]).max() < 40


@pytest.mark.parametrize("boxes", [[[0.0, 0, 1e9, 1e9]], [[-1e12, 10, 50, 1e12]]])
def test_a_box_far_larger_than_the_frame_can_be_drawn(boxes: list[list[float]]) -> None:
    start = time.process_time()
    draw_sample(grey(100, 200), tracks(boxes, [[500, 0]], 100, 200), None)
    assert draw_boxes(grey(100, 200), np.array(boxes), 1.0).size == (200, 100)
    assert time.process_time() - start < 5


@pytest.mark.parametrize(("height", "width"), [(1, 200_000), (200_000, 1)])
def test_a_strip_of_one_pixel_can_be_drawn(height: int, width: int) -> None:
    picture = draw_sample(grey(height, width), tracks([], [], height, width), "cat")
    assert max(picture.size) < MAX_SIDE + 100


def test_still_boxes_single_frames_and_many_boxes_can_be_drawn() -> None:
    still = tracks([[10, 10, 60, 40]] * 9, [[0, 0]] * 9, 100, 200)
    assert draw_sample(grey(100, 200), still, "x" * 128).width == MIN_WIDTH
    assert draw_sample(grey(100, 200), still.resample(1), None).width == MIN_WIDTH
    back = BoxTracks.from_paths(still.boxes_NT4[:1, 0], [np.array([[0, 0], [50, 0], [50, 0], [0, 0.0]])], 4, 100, 200)
    assert draw_sample(grey(100, 200), back, "there and back").width == MIN_WIDTH


def test_the_caption_shows_the_title() -> None:
    with_title = np.asarray(draw_sample(grey(600, 1000), tracks([], [], 600, 1000), "cat"))
    without = np.asarray(draw_sample(grey(600, 1000), tracks([], [], 600, 1000), None))
    changed = np.argwhere((with_title != without).any(axis=-1))
    assert changed[:, 0].min() >= 600
    assert changed[:, 1].max() < 100
