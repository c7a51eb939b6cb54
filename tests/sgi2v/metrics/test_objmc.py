"""Motion fidelity of videos whose motion is known."""

from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import skimage.data

from sgi2v.errors import ErrorCode, SampleError, TrajectoryError
from sgi2v.metrics.following import query_grid
from sgi2v.metrics.objmc import METRICS_VERSION, Fidelity, motion_fidelity
from sgi2v.tracking.lucas_kanade import LucasKanade
from sgi2v.tracking.tracker import PointTracks
from sgi2v.trajectory import BoxTracks
from sgi2v.video import decode_mp4, encode_mp4

T, H, W = 14, 128, 192
BOX = (30, 40, 70, 80)
VALUES = (
    "objmc_px",
    "objmc_norm",
    "visible_fraction",
    "endpoint_error_px",
    "direction_cosine",
    "static_objmc_px",
    "control_gain",
    "objmc_nulls_frozen_px",
    "track_box_iou",
    "failure",
    "identity",
    "round_trip_px",
)
BACKGROUND_HWC = cv2.resize(skimage.data.chelsea(), (W, H), interpolation=cv2.INTER_AREA)
OBJECT_HWC = cv2.resize(skimage.data.astronaut()[40:200, 150:310], (40, 40), interpolation=cv2.INTER_AREA)
RIGHT = np.array([[0, 0], [3 * (T - 1), 0]], float)
STILL = np.zeros((2, 2))


def scene(*objects):
    """Frames of a photograph over which objects move. Each object is (its frame-0 box, whole pixels xy per frame)."""
    frames_THWC = np.repeat(BACKGROUND_HWC[None], T, axis=0)
    for (x0, y0, x1, y1), (step_x, step_y) in objects:
        object_HWC = cv2.resize(OBJECT_HWC, (x1 - x0, y1 - y0), interpolation=cv2.INTER_AREA)
        for t in range(T):
            x, y = x0 + step_x * t, y0 + step_y * t
            top, left = max(y, 0), max(x, 0)
            visible_HWC = object_HWC[top - y :, left - x :][: max(H - top, 0), : max(W - left, 0)]
            frames_THWC[t, top : top + visible_HWC.shape[0], left : left + visible_HWC.shape[1]] = visible_HWC
    return frames_THWC


def box_tracks(*boxes_and_paths, scales=None):
    boxes, paths = zip(*boxes_and_paths, strict=True)
    return BoxTracks.from_paths(np.array(boxes, float), paths, T, H, W, scales)


def measure(frames_THWC, tracks):
    return motion_fidelity(frames_THWC, tracks, LucasKanade())


def test_queries_span_the_central_half_of_the_box():
    queries_Q2 = query_grid(np.array([10.0, 20.0, 30.0, 60.0]))
    assert queries_Q2.shape == (25, 2)
    np.testing.assert_array_equal(queries_Q2.min(axis=0), [15, 30])
    np.testing.assert_array_equal(queries_Q2.max(axis=0), [25, 50])
    np.testing.assert_array_equal(queries_Q2[12], [20, 40])


@pytest.mark.parametrize("delivered", [False, True])
def test_an_object_on_its_path_scores_near_zero(delivered):
    frames_THWC = scene((BOX, (3, 1)))
    if delivered:
        frames_THWC = decode_mp4(encode_mp4(frames_THWC, fps=7))
    fidelity = measure(frames_THWC, box_tracks((BOX, np.array([[0, 0], [39, 13]], float))))
    assert fidelity.objmc_px < 0.1
    assert fidelity.objmc_norm == pytest.approx(fidelity.objmc_px / np.hypot(H, W))
    assert fidelity.endpoint_error_px < 0.1
    assert fidelity.direction_cosine == pytest.approx(1, abs=1e-4)
    assert fidelity.control_gain == pytest.approx(1, abs=0.01)
    assert fidelity.static_objmc_px == pytest.approx(np.hypot(3, 1) * np.arange(1, T).mean())
    assert fidelity.visible_fraction == 1
    assert fidelity.null_reason is None


def test_objmc_is_the_mean_distance_from_the_path():
    fidelity = measure(scene((BOX, (2, 0))), box_tracks((BOX, RIGHT)))
    assert fidelity.objmc_px == pytest.approx(np.arange(1, T).mean(), abs=0.05)
    assert fidelity.endpoint_error_px == pytest.approx(13, abs=0.1)
    assert fidelity.control_gain == pytest.approx(1 / 3 * 2, abs=0.01)


def test_a_frozen_video_scores_static_objmc_and_zero_gain():
    fidelity = measure(scene((BOX, (0, 0))), box_tracks((BOX, RIGHT)))
    assert fidelity.objmc_px == pytest.approx(fidelity.static_objmc_px, abs=1e-4)
    assert fidelity.control_gain == pytest.approx(0, abs=1e-5)
    assert fidelity.direction_cosine is None
    assert fidelity.null_reason == "no_measured_motion"


def test_motion_in_the_opposite_direction_has_negative_gain_and_cosine():
    fidelity = measure(scene((BOX, (-1, 0))), box_tracks((BOX, RIGHT)))
    assert fidelity.control_gain == pytest.approx(-1 / 3, abs=0.01)
    assert fidelity.direction_cosine == pytest.approx(-1, abs=1e-4)


def test_a_static_target_has_a_distance_but_no_gain_and_no_direction():
    fidelity = measure(scene((BOX, (1, 0))), box_tracks((BOX, STILL)))
    assert fidelity.objmc_px == pytest.approx(np.arange(1, T).mean(), abs=0.05)
    assert fidelity.static_objmc_px == 0
    assert (fidelity.control_gain, fidelity.direction_cosine) == (None, None)
    assert fidelity.null_reason == "static_target, target_at_start"


def test_a_path_that_returns_to_its_start_has_gain_but_no_direction():
    there_and_back = np.array([[0, 0], [26, 0], [0, 0]], float)
    fidelity = measure(scene((BOX, (0, 0))), box_tracks((BOX, there_and_back)))
    assert fidelity.control_gain == pytest.approx(0, abs=1e-5)
    assert fidelity.null_reason == "target_at_start"


def test_a_zoom_about_its_centre_does_not_move_a_box():
    x0, y0, x1, y1 = BOX
    centre = np.array([(x0 + x1) / 2, (y0 + y1) / 2]) - 0.5
    scale_T = 1 + 0.03 * np.arange(T)
    frames_THWC = np.stack(
        [
            cv2.warpAffine(
                scene((BOX, (0, 0)))[0],
                np.column_stack([np.eye(2) * scale, centre * (1 - scale) + [2 * t, 0]]),
                (W, H),
                flags=cv2.INTER_CUBIC,
                borderMode=cv2.BORDER_REFLECT,
            )
            for t, scale in enumerate(scale_T)
        ]
    )
    path = np.column_stack([2.0 * np.arange(T), np.zeros(T)])
    fidelity = measure(frames_THWC, box_tracks((BOX, path), scales=[scale_T]))
    assert fidelity.objmc_px < 0.5
    assert fidelity.control_gain > 0.95


def test_frames_whose_target_is_outside_do_not_count():
    box = (120, 40, 160, 80)
    path = np.array([[0, 0], [8 * (T - 1), 0]], float)
    fidelity = measure(scene((box, (8, 0))), box_tracks((box, path)))
    inside = [8 * t for t in range(1, T) if 140 + 8 * t < W]
    assert fidelity.static_objmc_px == pytest.approx(np.mean(inside))
    assert fidelity.objmc_px < 0.2
    assert 0.3 < fidelity.visible_fraction < 1
    assert fidelity.null_reason is None


def test_a_target_that_is_never_inside_has_no_value():
    path = np.array([[0, 0], [13 * 200, 0]], float)
    fidelity = measure(scene((BOX, (3, 0))), box_tracks((BOX, path)))
    assert [getattr(fidelity, name) for name in VALUES] == [None] * len(VALUES)
    assert fidelity.boxes[0].null_reason == fidelity.null_reason == "target_outside"
    assert type(fidelity.boxes[0].null_reason) is str


def test_a_box_partly_outside_the_frame_is_clipped_to_it():
    partly_outside = (-20, 40, 20, 80)
    frames_THWC = scene((partly_outside, (3, 0)))
    fidelity = measure(frames_THWC, box_tracks((partly_outside, RIGHT)))
    assert fidelity.objmc_px < 0.1
    assert fidelity.boxes == measure(frames_THWC, box_tracks(((0, 40, 20, 80), RIGHT))).boxes


def test_a_video_without_texture_has_no_value():
    fidelity = measure(np.full((T, H, W, 3), 120, np.uint8), box_tracks((BOX, RIGHT)))
    assert (fidelity.objmc_px, fidelity.visible_fraction, fidelity.failure) == (None, None, None)
    assert fidelity.objmc_nulls_frozen_px == fidelity.static_objmc_px == pytest.approx(3 * np.arange(1, T).mean())
    assert fidelity.null_reason == "no_texture"


def test_an_object_that_is_lost_has_failed():
    frames_THWC = scene((BOX, (3, 0)))
    frames_THWC[1:] = 120
    fidelity = measure(frames_THWC, box_tracks((BOX, RIGHT)))
    assert (fidelity.objmc_px, fidelity.visible_fraction, fidelity.failure) == (None, 0, 1)
    assert fidelity.identity > 20
    assert fidelity.objmc_nulls_frozen_px == fidelity.static_objmc_px == pytest.approx(3 * np.arange(1, T).mean())
    assert fidelity.null_reason == "too_few_visible_points"


@pytest.mark.parametrize(
    ("box", "path", "reason"),
    [
        ((30, 40, 40, 80), RIGHT, "box_too_small"),
        (BOX, np.array([[0, 0], [11 * (T - 1), 0]], float), None),
        (BOX, np.array([[0, 0], [0, 14 * (T - 1)]], float), "step_too_large"),
    ],
)
def test_a_box_that_the_tracker_cannot_follow_has_no_value_in_any_video(box, path, reason):
    right_THWC, frozen_THWC = scene((BOX, (11, 0))), scene((BOX, (0, 0)))
    for frames_THWC in (right_THWC, frozen_THWC):
        fidelity = measure(frames_THWC, box_tracks((box, path)))
        assert (fidelity.objmc_px is None) == (reason is not None)
        assert fidelity.objmc_nulls_frozen_px is not None
        if reason:
            assert fidelity.null_reason == reason


def test_failure_is_the_share_of_frames_that_are_far_from_the_target():
    fidelity = measure(scene((BOX, (0, 0))), box_tracks((BOX, np.array([[0, 0], [7 * (T - 1), 0]], float))))
    assert fidelity.failure == pytest.approx(np.mean([7 * t > 30 for t in range(1, T)]))


def test_the_overlap_of_boxes_is_intersection_over_union():
    path = np.array([[0, 0], [4 * (T - 1), 0]], float)
    away_T = 4.0 * np.arange(1, T)
    expected = np.mean(np.maximum(40 - away_T, 0) / (40 + np.minimum(away_T, 40)))
    assert measure(scene((BOX, (0, 0))), box_tracks((BOX, path))).track_box_iou == pytest.approx(expected, abs=1e-3)


def test_identity_is_the_change_of_the_box_in_grey_levels():
    frames_THWC = np.minimum(scene((BOX, (3, 0))), 245)
    assert measure(frames_THWC, box_tracks((BOX, RIGHT))).identity < 0.5
    frames_THWC[1:] += 10
    assert measure(frames_THWC, box_tracks((BOX, RIGHT))).identity == pytest.approx(10, abs=0.5)


def test_the_control_gain_of_a_sample_is_of_its_measured_boxes():
    small, path = (100, 70, 108, 78), 2 * RIGHT
    both = measure(scene((BOX, (3, 0))), box_tracks((BOX, RIGHT), (small, path)))
    assert both.control_gain == both.boxes[0].control_gain
    static_px = 3 * np.arange(1, T).mean()
    assert both.static_objmc_px == pytest.approx(1.5 * static_px)
    assert both.objmc_nulls_frozen_px == pytest.approx(static_px, abs=0.1)


@pytest.mark.parametrize(("visible_frames", "has_value"), [(5, False), (6, False), (7, True)])
def test_fewer_than_half_of_the_due_frames_are_too_few(visible_frames, has_value):
    frames_THWC = scene((BOX, (1, 0)))
    frames_THWC[1 + visible_frames :] = 120
    fidelity = measure(frames_THWC, box_tracks((BOX, RIGHT)))
    assert (fidelity.objmc_px is not None) == has_value
    if has_value:
        assert fidelity.static_objmc_px == pytest.approx(3 * np.arange(1, 8).mean())
        assert fidelity.endpoint_error_px == pytest.approx(14, abs=0.1)


def test_a_sample_is_the_mean_of_its_boxes_which_are_measured_independently():
    other = (100, 70, 140, 110)
    frames_THWC = scene((BOX, (3, 0)), (other, (1, 0)))
    both = measure(frames_THWC, box_tracks((BOX, RIGHT), (other, RIGHT)))
    alone = [measure(frames_THWC, box_tracks((box, RIGHT))) for box in (BOX, other)]
    assert both.boxes == (alone[0].boxes[0], alone[1].boxes[0])
    for name in VALUES:
        assert getattr(both, name) == pytest.approx(np.mean([getattr(box, name) for box in both.boxes]))


def test_the_mean_leaves_out_boxes_without_a_value():
    frames_THWC = scene((BOX, (3, 0)))
    frames_THWC[1:, 90:, 100:] = 120
    fidelity = measure(frames_THWC, box_tracks(((110, 95, 150, 125), RIGHT), (BOX, RIGHT)))
    row = fidelity.as_dict()
    assert row["objmc_px_per_box"][0] is None
    assert row["objmc_px"] == row["objmc_px_per_box"][1]
    assert row["visible_fraction"] == pytest.approx(0.5, abs=0.05)
    assert row["null_reason_per_box"] == ["too_few_visible_points", None]
    assert row["null_reason"] is None


def test_a_sample_without_boxes_has_no_value():
    row = measure(scene(), BoxTracks(np.empty((0, T, 4)), H, W)).as_dict()
    assert row["null_reason"] == "no_boxes"
    assert all(row[name] is None and row[f"{name}_per_box"] == [] for name in VALUES)


def test_rows_have_the_same_columns_with_and_without_boxes():
    full = measure(scene((BOX, (3, 0))), box_tracks((BOX, RIGHT))).as_dict()
    empty = measure(scene(), BoxTracks(np.empty((0, T, 4)), H, W)).as_dict()
    columns = [*VALUES, "null_reason"]
    assert list(full) == list(empty)
    assert list(full) == [
        *columns,
        *(f"{name}_per_box" for name in columns),
        "tracker",
        "tracker_version",
        "metrics_version",
    ]
    assert (full["tracker"], full["metrics_version"]) == ("lucas-kanade", METRICS_VERSION)
    assert full["tracker_version"] == LucasKanade().version
    assert all(type(full[name]) is float for name in VALUES)


def test_tracks_of_another_video_are_refused():
    tracks = box_tracks((BOX, RIGHT))
    for other in (tracks.resample(T + 1), tracks.rescale(2 * H, 2 * W)):
        with pytest.raises(TrajectoryError, match="do not match") as caught:
            measure(scene(), other)
        assert caught.value.code == ErrorCode.TRAJECTORY_INVALID
    with pytest.raises(TrajectoryError) as caught:
        measure(scene(), box_tracks(((-50, 0, -10, 20), RIGHT)))
    assert caught.value.code == ErrorCode.BOX_OUTSIDE


def test_any_exception_in_a_tracker_becomes_tracking_failed():
    def fail(frames_THWC, queries_Q2):
        raise RuntimeError("no memory for the pyramid")

    def track_one_point(frames_THWC, queries_Q2):
        return PointTracks(np.zeros((T, 1, 2)), np.ones((T, 1), bool))

    for track, message in (
        (fail, "RuntimeError: no memory"),
        (track_one_point, r"ValueError: expected .* \[14, \d+\]"),
    ):
        tracker = SimpleNamespace(name="broken", version="0", track=track, limit=lambda frame_HWC, boxes_T4: None)
        with pytest.raises(SampleError, match=f"the tracker broken failed: {message}") as caught:
            motion_fidelity(scene(), box_tracks((BOX, RIGHT)), tracker)
        assert caught.value.code == ErrorCode.TRACKING_FAILED


def test_a_box_that_is_told_to_stay_is_not_scored_and_not_in_the_mean():
    frames_THWC = scene((BOX, (3, 0)), ((100, 40, 140, 80), (0, 2)))
    alone = measure(frames_THWC, box_tracks((BOX, RIGHT)))
    both = replace(box_tracks((BOX, RIGHT), ((100, 40, 140, 80), STILL)), still_N=np.array([False, True]))
    fidelity = measure(frames_THWC, both)
    assert fidelity.boxes[0] == alone.boxes[0]
    assert fidelity.boxes[1] == Fidelity(null_reason="still")
    assert (fidelity.objmc_px, fidelity.control_gain) == (alone.objmc_px, alone.control_gain)
    assert fidelity.null_reason is None
