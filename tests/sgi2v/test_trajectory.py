"""Box tracks: resampling, rescaling, clipping, latent cells, and errors."""

from __future__ import annotations

import pickle

import numpy as np
import pytest

from sgi2v.errors import ErrorCode, TrajectoryError
from sgi2v.trajectory import BoxTracks, boxes_outside, resample_path

BOX = np.array([[10.0, 20.0, 50.0, 60.0]])
PATH = np.array([[100.0, 100.0], [113.0, 74.0]])


def moved(scales: list[np.ndarray] | None = None, frames: int = 14) -> BoxTracks:
    return BoxTracks.from_paths(BOX, [PATH], frames, 200, 300, scales)


def test_resampling_to_the_same_count_is_the_identity() -> None:
    points = np.random.default_rng(0).normal(size=(14, 2)) * 1000
    assert np.array_equal(resample_path(points, 14), points)


def test_resampling_is_linear_and_keeps_both_ends() -> None:
    path = resample_path(np.array([[0.0, 10.0], [4.0, 10.0], [4.0, 0.0]]), 5)
    assert path.tolist() == [[0, 10], [2, 10], [4, 10], [4, 5], [4, 0]]
    assert resample_path(path, 3).tolist() == [[0, 10], [4, 10], [4, 0]]


def test_a_box_moves_by_its_paths_displacement_and_not_onto_its_points() -> None:
    tracks = moved()
    assert np.array_equal(tracks.boxes_NT4[0, 0], BOX[0])
    assert tracks.boxes_NT4[0, -1] == pytest.approx([23.0, -6.0, 63.0, 34.0])
    assert tracks.boxes_NT4[0, 1] == pytest.approx([11.0, 18.0, 51.0, 58.0])


def test_scales_zoom_about_the_centre_relative_to_the_first() -> None:
    tracks = moved([np.array([2.0, 4.0])])
    assert np.array_equal(tracks.boxes_NT4[0, 0], BOX[0])
    assert tracks.boxes_NT4[0, -1] == pytest.approx([3.0, -26.0, 83.0, 54.0])
    assert np.allclose(tracks.centres_NT2, moved().centres_NT2)


def test_constant_scales_change_nothing() -> None:
    assert np.array_equal(moved([np.array([0.3, 0.3])]).boxes_NT4, moved().boxes_NT4)


def test_tracks_may_have_no_boxes() -> None:
    tracks = BoxTracks.from_paths(np.array([]), [], 14, 200, 300, [])
    assert tracks.boxes_NT4.shape == (0, 14, 4)
    assert tracks.clip_to_first_frame().rescale(64, 64).resample(7).cells(8).shape == (0, 7, 4)


def test_rescaling_scales_each_axis_and_is_exact_on_cell_borders() -> None:
    edges = np.arange(0.0, 1536.0, 12.0)
    boxes_NT4 = np.stack([edges, edges, edges + 12, edges + 12], axis=-1)[None]
    scaled = BoxTracks(boxes_NT4, 1536, 1536).rescale(768, 1024)
    assert (scaled.height, scaled.width) == (768, 1024)
    assert np.array_equal(scaled.boxes_NT4[0, :, 0], np.arange(128) * 8.0)
    assert np.array_equal(scaled.boxes_NT4[0, :, 1], np.arange(128) * 6.0)
    assert np.array_equal(scaled.cells(8)[0, :, 0], np.arange(128))


def test_rescaling_and_resampling_to_the_same_size_return_the_same_object() -> None:
    tracks = moved()
    assert tracks.rescale(200, 300) is tracks
    assert tracks.resample(14) is tracks
    assert np.allclose(tracks.resample(27).resample(14).boxes_NT4, tracks.boxes_NT4)


def test_clipping_cuts_the_same_share_of_the_box_under_zoom() -> None:
    # a quarter of the box lies outside on the left; then the box doubles in size while it moves right
    boxes = np.array([[-10.0, 20.0, 30.0, 60.0]])
    tracks = BoxTracks.from_paths(boxes, [np.array([[0.0, 0.0], [80.0, 0.0]])], 2, 200, 300, [np.array([1.0, 2.0])])
    clipped = tracks.clip_to_first_frame()
    assert clipped.boxes_NT4[0, 0] == pytest.approx([0.0, 20.0, 30.0, 60.0])
    last = tracks.boxes_NT4[0, 1]
    assert last == pytest.approx([50.0, 0.0, 130.0, 80.0])
    assert clipped.boxes_NT4[0, 1] == pytest.approx([70.0, 0.0, 130.0, 80.0])


def test_clipping_changes_no_box_that_starts_inside_and_leaves_later() -> None:
    tracks = BoxTracks.from_paths(BOX, [np.array([[0.0, 0.0], [900.0, 0.0]])], 5, 200, 300)
    assert np.array_equal(tracks.clip_to_first_frame().boxes_NT4, tracks.boxes_NT4)


@pytest.mark.parametrize(
    "box",
    [
        [300.0, 0.0, 340.0, 50.0],
        [-40.0, 0.0, 0.0, 50.0],
        [10.0, 200.0, 20.0, 210.0],
        [10.0, 10.0, 10.0, 20.0],
        [20.0, 10.0, 10.0, 20.0],
    ],
    ids=["right of it", "left of it", "below it", "no width", "reversed"],
)
def test_a_box_with_no_area_in_the_first_frame_is_an_error(box: list[float]) -> None:
    tracks = BoxTracks.from_paths(np.array([BOX[0], box]), [PATH, PATH], 14, 200, 300)
    with pytest.raises(TrajectoryError, match=r"box 1 .* no area inside the first frame \(300 x 200 px\)") as caught:
        tracks.clip_to_first_frame()
    assert caught.value.code is ErrorCode.BOX_OUTSIDE
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301
    assert [n for n, _ in boxes_outside(np.array([box, BOX[0], box]), 200, 300)] == [0, 2]


def test_cells_are_floored_and_at_least_one_a_side() -> None:
    boxes = np.array([[[7.9, 8.0, 15.9, 32.0], [3.0, 3.0, 4.0, 4.0], [-1.0, -8.0, 0.0, -0.5]]])
    assert BoxTracks(boxes, 64, 64).cells(8).tolist() == [[[0, 1, 1, 4], [0, 0, 1, 1], [-1, -1, 0, 0]]]


def test_centre_inside_is_half_open() -> None:
    centres = [(0.0, 0.0), (299.9, 199.9), (300.0, 10.0), (10.0, 200.0), (-0.1, 10.0)]
    boxes = np.array([[[x - 5, y - 5, x + 5, y + 5] for x, y in centres]])
    assert BoxTracks(boxes, 200, 300).centre_inside_NT().tolist() == [[True, True, False, False, False]]


@pytest.mark.parametrize(
    ("boxes", "paths", "scales", "match"),
    [
        (BOX, [], None, r"one trajectory per box \(1\), got 0"),
        (BOX, [PATH[:1]], None, "two or more"),
        (BOX, [np.zeros((3, 3))], None, "two or more"),
        (BOX, [PATH * np.nan], None, "NaN or infinite"),
        (BOX, [PATH * np.inf], None, "NaN or infinite"),
        (np.zeros((2, 6)), [PATH, PATH, PATH], None, "expected boxes of shape"),
        (BOX, [PATH], [], r"one list of scales per box \(1\), got 0"),
        (BOX, [PATH], [np.ones(3)], "2 positive numbers"),
        (BOX, [PATH], [np.array([0.0, 1.0])], "2 positive numbers"),
        (BOX, [PATH], [np.array([1.0, np.nan])], "2 positive numbers"),
    ],
)
def test_paths_that_cannot_be_followed_are_errors(
    boxes: np.ndarray, paths: list[np.ndarray], scales: list[np.ndarray] | None, match: str
) -> None:
    with pytest.raises(TrajectoryError, match=match) as caught:
        BoxTracks.from_paths(boxes, paths, 14, 200, 300, scales)
    assert caught.value.code is ErrorCode.TRAJECTORY_INVALID


def test_tracks_of_a_wrong_shape_are_an_error() -> None:
    with pytest.raises(TrajectoryError, match=r"\[boxes, frames, 4\]"):
        BoxTracks(np.zeros((2, 4)), 10, 10)


def test_masks_and_still_need_an_entry_per_box_and_masks_may_be_of_bool() -> None:
    boxes_NT4 = np.zeros((2, 3, 4))
    tracks = BoxTracks(boxes_NT4, 8, 8, masks_NHW=np.ones((2, 4, 4), bool))
    assert tracks.masks_NHW is not None
    assert tracks.masks_NHW.dtype == np.uint8
    assert tracks.masks_NHW.min() == 255
    for changes in ({"masks_NHW": np.ones((1, 4, 4), bool)}, {"still_N": np.array([True])}):
        with pytest.raises(TrajectoryError, match=r"expected .* per box|expected masks of shape \[2, height, width\]"):
            BoxTracks(boxes_NT4, 8, 8, **changes)
