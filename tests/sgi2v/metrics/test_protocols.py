"""Each protocol of another paper against a computation by hand, on three tiny videos.

The followers know where everything is: what a point shows is a square or the ground, whose motions are given.
"""

import numpy as np
import pytest

from pipeline.output.card import METRICS
from sgi2v.metrics.box_iou import overlap, track_box_iou
from sgi2v.metrics.clip import Clip
from sgi2v.metrics.dit_flow import motion_fidelity, similarity
from sgi2v.metrics.mc_bench import md_vid
from sgi2v.metrics.protocols import PROTOCOLS
from sgi2v.metrics.ttm import bg_obj_ctd
from sgi2v.tracking.tracker import PointTracks
from sgi2v.trajectory import BoxTracks

T, H, W = 4, 48, 80
BOX = np.array([8.0, 12.0, 24.0, 28.0])
ASKED = np.array([3.0, 1.0])
"""Pixels a frame that the square is asked to go, xy."""


class Known:
    """A tracker that knows the motion of the square and of the ground."""

    name = "known"
    version = "1"

    def __init__(self, square_T2, ground_T2=None):
        self.square_T2 = np.asarray(square_T2, float)
        self.ground_T2 = np.zeros_like(self.square_T2) if ground_T2 is None else np.asarray(ground_T2, float)

    def track(self, frames_THWC, queries_Q2):
        on_square = ((queries_Q2 >= BOX[:2]) & (queries_Q2 < BOX[2:])).all(axis=-1)
        moved = np.where(on_square[None, :, None], self.square_T2[:, None], self.ground_T2[:, None])
        points = queries_Q2[None] + moved
        return PointTracks(points, ((points >= 0) & (points < [W, H])).all(axis=-1))

    def limit(self, first_frame_HWC, boxes_T4):
        return None


def at(step):
    """Displacements [T, 2] of something that goes `step` a frame."""
    return np.arange(T)[:, None] * np.asarray(step, float)


def clip_of(starts=None, boxes=(BOX,), still=None, **more):
    tracks = BoxTracks.from_paths(np.array(boxes), [at(ASKED)] * len(boxes), T, H, W)
    if still is not None:
        tracks = BoxTracks(tracks.boxes_NT4, H, W, np.array(still))
    starts = tracks.centres_NT2[:, 0] if starts is None else np.array(starts, float)
    return Clip(np.zeros((T, H, W, 3), np.uint8), tracks, starts, **more)


PERFECT, FROZEN, PANNED = Known(at(ASKED)), Known(at((0, 0))), Known(at(ASKED), at(ASKED))
LENGTHS = [np.hypot(3, 1), 2 * np.hypot(3, 1), 3 * np.hypot(3, 1)]


@pytest.mark.parametrize(("tracker", "px"), [(PERFECT, 0.0), (FROZEN, np.mean(LENGTHS)), (PANNED, 0.0)])
def test_md_vid_is_the_mean_distance_from_the_path(tracker, px):
    assert md_vid(clip_of(), tracker) == {"md_vid_px": pytest.approx(px), "md_vid_null_reason": None}


def test_md_vid_scores_the_start_of_the_drag_and_not_the_box():
    # the drag starts on the ground: where that stands still, it is as far off as in a frozen video
    assert md_vid(clip_of(starts=[[40, 30]]), PERFECT)["md_vid_px"] == pytest.approx(np.mean(LENGTHS))
    assert md_vid(clip_of(starts=[[9, 13]]), PERFECT)["md_vid_px"] == pytest.approx(0.0)


def test_md_vid_of_a_start_near_the_border_reads_its_own_track():
    # its block has fewer than 64 queries, so a stride of 64 would read a track of the ground for the second drag
    corner = np.array([0.0, 0.0, 8.0, 8.0])
    clip = clip_of(boxes=(corner, BOX), starts=[[1, 2], [9, 13]])
    assert md_vid(clip, PERFECT)["md_vid_px"] == pytest.approx(np.mean(LENGTHS) / 2)


def test_md_vid_is_in_pixels_of_the_picture():
    twice = clip_of(source_size=(2 * H, 2 * W))
    measured = md_vid(twice, FROZEN)["md_vid_px"]
    assert measured == pytest.approx(2 * np.mean(LENGTHS))


@pytest.mark.parametrize(
    ("tracker", "px"),
    [
        # the square covers 8 to 24 of 80 and 12 to 28 of 48: of the grid's cells of 5 x 3 px, the centres at 12.5,
        # 17.5, 22.5 and at 13.5, 16.5, 19.5, 22.5, 25.5 lie on it: 15 of 256 points move along with the object
        (PERFECT, np.mean(LENGTHS) * 241 / 256),
        (FROZEN, 0.0),
        (PANNED, 0.0),
    ],
)
def test_bg_obj_ctd_is_the_mean_difference_of_displacements(tracker, px):
    assert bg_obj_ctd(clip_of(), tracker) == {"bg_obj_ctd_px": pytest.approx(px), "bg_obj_ctd_null_reason": None}


def test_bg_obj_ctd_takes_samples_of_one_path_only():
    two = clip_of(boxes=(BOX, BOX))
    assert bg_obj_ctd(two, PERFECT) == {"bg_obj_ctd_px": None, "bg_obj_ctd_null_reason": "several_paths"}
    held = clip_of(boxes=(BOX, BOX), still=[False, True])
    assert bg_obj_ctd(held, PERFECT)["bg_obj_ctd_px"] is not None


def iou(step):
    """The overlap of a box of 16 px and itself moved by so many pixels."""
    shared = max(16 - step[0], 0) * max(16 - step[1], 0)
    return shared / (2 * 256 - shared)


@pytest.mark.parametrize(
    ("tracker", "mean"),
    [(PERFECT, 1.0), (FROZEN, np.mean([iou(t * ASKED) for t in (1, 2, 3)])), (PANNED, 1.0)],
)
def test_track_box_iou_is_the_overlap_with_the_asked_box(tracker, mean):
    found = track_box_iou(clip_of(), tracker)
    assert found["grid_box_iou"] == pytest.approx(mean)
    assert found["grid_box_iou_counted"] == 1.0


def test_overlap_of_boxes():
    box = np.array([0.0, 0.0, 10.0, 10.0])
    assert overlap(box, box) == 1.0
    assert overlap(box, box + np.array([5.0, 0, 5, 0])) == pytest.approx(1 / 3)
    assert overlap(box, box + 10) == 0.0


def test_track_box_iou_counts_frames_with_three_visible_points():
    class Blind(Known):
        def track(self, frames_THWC, queries_Q2):
            points = super().track(frames_THWC, queries_Q2)
            points.visible_TQ[2:, 2:] = False
            return points

    found = track_box_iou(clip_of(), Blind(at(ASKED)))
    assert found["grid_box_iou_counted"] == pytest.approx(1 / 3)


RIGHT, DIAGONAL = np.array([1.0, 0.0]), np.array([1.0, 1.0]) / np.sqrt(2)


@pytest.mark.parametrize(
    ("ground", "mean", "static"),
    [
        (at((5, 0)), 1.0, 0.0),  # a pan in the reference's direction, at another speed
        (at((-2, 0)), -1.0, 0.0),  # the pan backwards
        (at((2, 2)), RIGHT @ DIAGONAL, 0.0),  # a pan at 45 degrees
    ],
)
def test_motion_fidelity_compares_directions(ground, mean, static):
    class Two(Known):
        """The reference pans to the right, the video as given."""

        def track(self, frames_THWC, queries_Q2):
            motion = at((3, 0)) if frames_THWC[0, 0, 0, 0] else ground
            points = queries_Q2[None] + motion[: len(frames_THWC), None]
            return PointTracks(points, ((points >= 0) & (points < [W, H])).all(axis=-1))

    clip = clip_of(reference_THWC=np.ones((T + 3, H, W, 3), np.uint8))
    found = motion_fidelity(clip, Two(at((0, 0))))
    assert found["motion_fidelity"] == pytest.approx(mean)
    assert found["motion_fidelity_static"] == static


def test_motion_fidelity_counts_what_stands_still():
    reference = np.ones((T, H, W, 3), np.uint8)
    found = motion_fidelity(clip_of(reference_THWC=reference), FROZEN)
    assert (found["motion_fidelity"], found["motion_fidelity_static"]) == (None, 1.0)
    assert found["motion_fidelity_null_reason"] == "no_measured_motion"
    found = motion_fidelity(clip_of(reference_THWC=reference), PERFECT)
    assert found["motion_fidelity"] == pytest.approx(1.0)  # against itself
    assert 0.9 < found["motion_fidelity_static"] < 1.0  # the ground stands still
    assert motion_fidelity(clip_of(), PERFECT)["motion_fidelity_null_reason"] == "no_reference"


def test_similarity_takes_the_best_of_the_reference():
    ours = np.array([[[1.0, 0], [1, 0]], [[0, 1], [0, 1]]])
    theirs = np.array([[[1.0, 0], [0, 1]], [[0, -1], [0, -1]]])
    # ours[0]: 0.5 and 0; ours[1]: 0.5 and -1
    assert similarity(ours, theirs) == pytest.approx(0.5)


def test_directions_are_those_of_the_dataset_card():
    better = {column.name: column.better for column in PROTOCOLS["objmc/v2"].columns}
    of_a_video = {name: direction for name, (_, direction, _) in METRICS.items() if "baseline" not in name}
    assert better == of_a_video


@pytest.mark.parametrize("name", [name for name in PROTOCOLS if name != "objmc/v2"])
def test_every_protocol_says_why_a_value_is_null(name):
    protocol = PROTOCOLS[name]
    nothing = Clip(np.zeros((1, H, W, 3), np.uint8), BoxTracks(np.zeros((0, 1, 4)), H, W), np.zeros((0, 2)))
    values = protocol.measure(nothing, FROZEN)
    assert set(values) == {column.name for column in protocol.columns} | {protocol.reason}
    assert values[protocol.columns[0].name] is None
    assert values[protocol.reason]
