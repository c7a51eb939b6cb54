"""What the boxes leave of a scene: the cells clear of their paths, and when there are none by rule."""

from __future__ import annotations

import numpy as np
import pytest

from sgi2v.scene import asks_camera, clear_cells
from sgi2v.trajectory import BoxTracks

CELL = 8


def tracks_of(*boxes: tuple[list[float], list[float]], still: list[bool] | None = None) -> BoxTracks:
    """Boxes and their displacements, in three frames of 6 x 10 cells."""
    paths = [np.array([[0.0, 0.0], by]) for _, by in boxes]
    tracks = BoxTracks.from_paths(np.array([box for box, _ in boxes]), paths, 3, 6 * CELL, 10 * CELL)
    return tracks if still is None else BoxTracks(tracks.boxes_NT4, tracks.height, tracks.width, np.array(still))


def drawn(tracks: BoxTracks) -> list[str]:
    return ["".join(".#"[is_clear] for is_clear in row) for row in clear_cells(tracks, 6, 10, CELL).astype(int)]


RIGHT = ([8.0, 16, 24, 24], [32.0, 0])
"""Two cells, at columns 1 and 2 of row 2, which go four cells to the right."""


def test_cells_are_clear_beyond_the_way_of_the_box_and_one_cell_around() -> None:
    assert drawn(tracks_of(RIGHT)) == [
        "##########",
        "........##",
        "........##",
        "........##",
        "##########",
        "##########",
    ]


def test_the_way_covers_what_lies_between_two_frames() -> None:
    down_right = ([0.0, 0, 8, 8], [48.0, 16])  # one cell, which goes three cells to the right and one down in a frame
    assert drawn(tracks_of(down_right)) == [
        "........##",
        "........##",
        "........##",
        "##......##",
        "##########",
        "##########",
    ]


def test_held_boxes_have_no_way_and_a_box_that_leaves_the_frame_is_no_error() -> None:
    held = ([48.0, 32, 80, 48], [0.0, 0])
    assert drawn(tracks_of(RIGHT, held, still=[False, True])) == drawn(tracks_of(RIGHT))
    away = ([8.0, 16, 24, 24], [-80.0, 0])
    assert drawn(tracks_of(away))[1:4] == ["....######"] * 3


@pytest.mark.parametrize(
    ("boxes", "still", "is_camera"),
    [
        ([([0.0, 0, 40, 48], [8.0, 0])], None, True),  # half of the frame
        ([([0.0, 0, 39, 48], [8.0, 0])], None, False),
        ([RIGHT, ([48.0, 40, 56, 48], [32.0, 0])], None, True),  # one path
        ([RIGHT, ([48.0, 40, 56, 48], [28.0, 0])], None, False),
        ([RIGHT, ([48.0, 40, 56, 48], [32.0, 0])], [False, True], False),  # held boxes ask for nothing
        ([([0.0, 0, 8, 8], [0.0, 0]), ([16.0, 0, 24, 8], [0.0, 0])], None, False),  # nothing moves
    ],
)
def test_the_camera_is_asked_by_a_large_box_or_by_boxes_on_one_path(
    boxes: list[tuple[list[float], list[float]]], still: list[bool] | None, is_camera: bool
) -> None:
    assert asks_camera(tracks_of(*boxes, still=still)) == is_camera


def test_nothing_is_clear_where_the_scene_itself_is_asked_to_move() -> None:
    nothing = ["." * 10] * 6
    assert drawn(tracks_of(RIGHT, ([48.0, 40, 56, 48], [32.0, 0]))) == nothing, "the camera"
    corners = [([x, y, x + 16, y + 16], [by, 0.0]) for x, y, by in ((0.0, 0.0, 8), (56.0, 0.0, -8), (0.0, 32.0, 16))]
    assert drawn(tracks_of(*corners)) != nothing
    assert drawn(tracks_of(*corners, ([40.0, 32, 64, 48], [8.0, 0]))) == nothing, "less than a quarter would be left"
    assert drawn(tracks_of(RIGHT, still=[True])) == nothing, "no box is asked to follow a path"
