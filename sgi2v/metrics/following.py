"""Where the object in each box went, as far as a tracker can tell. Every metric of motion starts from this.

Axes: N boxes, T frames, H W pixels, C colours, Q query points of one box; 2 is xy, 4 is xyxy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

import numpy as np

from sgi2v.errors import ErrorCode, SampleError, TrajectoryError
from sgi2v.opencv import single_opencv_thread
from sgi2v.tracking.tracker import Flags, PointTracker, PointTracks
from sgi2v.trajectory import BoxTracks, Floats
from sgi2v.video import Frames

GRID = 5
"""Query points along each side of a box."""
MAX_CORNERS = 25
"""Further query points of a box, at corners of its texture."""
CORNER_QUALITY = 0.05
"""Least texture of such a corner, as a share of the best one's."""
CORNER_SHARE = 0.7
"""Corners are looked for in this middle part of each side, which an ellipse in the box covers too."""
MIN_VISIBLE_POINTS = 5
"""A frame counts where at least this many of a box's points are visible."""
MIN_COUNTED = 0.5
"""A box has a value where at least this fraction of its due frames count."""


class NullReason(StrEnum):
    """Why a value is null. Several reasons are joined by `, `. docs/metrics.md says which values each makes null."""

    NO_BOXES = "no_boxes"
    """The sample has no boxes."""
    STILL = "still"
    """The box is told to stay, so it is not scored as followed. The sample's means leave it out."""
    TARGET_OUTSIDE = "target_outside"
    """The target is never inside the frame."""
    BOX_TOO_SMALL = "box_too_small"
    """The tracker cannot follow a box of this size."""
    NO_TEXTURE = "no_texture"
    """The tracker cannot follow what is in the box, or on the ground: it is too smooth in frame 0."""
    STEP_TOO_LARGE = "step_too_large"
    """The tracker cannot follow steps as large as the path's from frame to frame."""
    TOO_FEW_VISIBLE_POINTS = "too_few_visible_points"
    """Fewer than half of the due frames count."""
    STATIC_TARGET = "static_target"
    """static_objmc_px is below 1 px: control_gain is null."""
    TARGET_AT_START = "target_at_start"
    """At the last counted frame the target is within 1 px of its start: direction_cosine is null."""
    NO_MEASURED_MOTION = "no_measured_motion"
    """At the last counted frame the measured displacement is below 0.1 px: direction_cosine is null."""
    CAMERA = "camera"
    """The camera is what is asked to move, so that the background is no measure."""
    NO_BACKGROUND = "no_background"
    """The boxes sweep nearly the whole frame."""
    NOT_A_SHIFT = "not_a_shift"
    """No shift of the whole background explains how it changed."""
    TOO_FEW_GROUND_POINTS = "too_few_ground_points"
    """Too few points of the grid over the frame were followed."""
    ONE_FRAME = "one_frame"
    """The video has one frame."""


def join(reasons: Iterable[str]) -> str | None:
    """The text of some reasons. None for no reason."""
    return ", ".join(dict.fromkeys(map(str, reasons))) or None  # a plain str: records do not hold enum members


@dataclass(frozen=True)
class Following:
    """Where the object in one box went."""

    due_T: Flags
    """The frames of 1 .. T-1 in which the target is inside the frame."""
    counted_T: Flags
    """The due frames in which enough points are visible. None of them, where the box is not measured."""
    measured_T2: Floats
    """Displacement of the object since frame 0, pixels. Meaningless where the object is not seen."""
    visible_fraction: float | None = None
    """Mean fraction of the points that are visible, over the due frames. None: the tracker was not asked."""
    round_trip_px: float | None = None
    """Mean of the tracker's own error, tracking on and back, over the visible points of the counted frames, pixels."""
    null_reason: NullReason | None = None
    """Why the box is not measured. None: it is."""
    seen_T: Flags | None = None
    """The frames in which enough points are visible, whether they are due or not; frame 0 is one of them. None: the box
    is not measured."""
    points: PointTracks | None = None
    """The points that were followed. None: the tracker was not asked."""


def follow_boxes(
    frames_THWC: Frames, tracks: BoxTracks, tracker: PointTracker
) -> tuple[BoxTracks, tuple[Following, ...]]:
    """The tracks clipped to frame 0, and where the object in each box went.

    Each box is tracked by itself, so that the result does not depend on the other boxes. Raises TrajectoryError for
    tracks of another length or size and for a box outside frame 0, SampleError(tracking_failed) for any exception in
    the tracker.
    """
    num_frames, height, width = frames_THWC.shape[:3]
    if (tracks.num_frames, tracks.height, tracks.width) != (num_frames, height, width):
        message = (
            f"box tracks for {tracks.num_frames} frames of {tracks.height} x {tracks.width} px "
            f"do not match a video of {num_frames} frames of {height} x {width} px (height x width)"
        )
        raise TrajectoryError(ErrorCode.TRAJECTORY_INVALID, message)
    clipped = tracks.clip_to_first_frame()
    followed = tuple(
        _follow(frames_THWC, boxes_T4, inside_T, tracker)
        for boxes_T4, inside_T in zip(clipped.boxes_NT4, clipped.centre_inside_NT(), strict=True)
    )
    return clipped, followed


def is_still(tracks: BoxTracks) -> Flags:
    """[N]: which boxes are told to stay."""
    return np.zeros(tracks.num_boxes, np.bool_) if tracks.still_N is None else tracks.still_N


def track(tracker: PointTracker, frames_THWC: Frames, queries_Q2: Floats) -> PointTracks:
    """Follow points. Raises SampleError(tracking_failed) for any exception in the tracker."""
    try:
        points = tracker.track(frames_THWC, queries_Q2)
        if points.visible_TQ.shape != (len(frames_THWC), len(queries_Q2)):
            expected = [len(frames_THWC), len(queries_Q2)]
            raise ValueError(f"expected points of shape {expected}, got {list(points.visible_TQ.shape)}")
    except Exception as error:  # a tracker may be third-party code: an error in it fails this sample only
        message = f"the tracker {tracker.name} failed: {type(error).__name__}: {error}"
        raise SampleError(ErrorCode.TRACKING_FAILED, message) from error
    return points


def query_points(frame_HWC: Frames, box_4: Floats) -> Floats:
    """Points of a box that are followed, [Q, 2] xy: a grid over the central half of each side, then corners."""
    return np.concatenate([query_grid(box_4), _corners(frame_HWC, box_4)])


def query_grid(box_4: Floats) -> Floats:
    """A 5 x 5 grid of points, [25, 2] xy, that spans the central half of each side of a box."""
    x0, y0, x1, y1 = box_4
    fractions = np.linspace(0.25, 0.75, GRID)
    grid_x, grid_y = np.meshgrid(x0 + fractions * (x1 - x0), y0 + fractions * (y1 - y0))
    return np.stack([grid_x.ravel(), grid_y.ravel()], axis=-1)


def _corners(frame_HWC: Frames, box_4: Floats) -> Floats:
    """The corners of texture in the middle of a box, [at most 25, 2] xy (Shi and Tomasi, "Good Features to Track")."""
    import cv2

    centre_2, half_2 = (box_4[:2] + box_4[2:]) / 2, CORNER_SHARE * (box_4[2:] - box_4[:2]) / 2
    x0, y0 = np.maximum(np.ceil(centre_2 - half_2).astype(int), 0)
    x1, y1 = np.floor(centre_2 + half_2).astype(int)
    if x1 - x0 < 3 or y1 - y0 < 3:
        return np.empty((0, 2))
    with single_opencv_thread():
        grey_HW = cv2.cvtColor(np.ascontiguousarray(frame_HWC[y0:y1, x0:x1]), cv2.COLOR_RGB2GRAY)
        spacing = max(2.0, min(grey_HW.shape) / GRID)
        found = cv2.goodFeaturesToTrack(grey_HW, MAX_CORNERS, CORNER_QUALITY, spacing)
    if found is None:
        return np.empty((0, 2))
    half_pixel = 0.5  # in OpenCV the centre of the first pixel is 0
    corners_Q2: Floats = np.asarray(found, np.float64).reshape(-1, 2) + np.array([x0, y0]) + half_pixel
    return corners_Q2


def _follow(frames_THWC: Frames, boxes_T4: Floats, inside_T: Flags, tracker: PointTracker) -> Following:
    due_T = inside_T.copy()
    due_T[0] = False
    nothing = Following(due_T, np.zeros_like(due_T), np.zeros((len(due_T), 2)))
    if not due_T.any():
        return _without(nothing, NullReason.TARGET_OUTSIDE)
    last_due = int(np.flatnonzero(due_T)[-1])
    limit = tracker.limit(frames_THWC[0], boxes_T4[: last_due + 1])
    if limit is not None:
        return _without(nothing, NullReason(limit.value))
    queries_Q2 = query_points(frames_THWC[0], boxes_T4[0])
    points = track(tracker, frames_THWC, queries_Q2)
    visible_TQ = points.visible_TQ
    visible_fraction = float(visible_TQ[due_T].mean())
    seen_T = visible_TQ.sum(axis=1) >= MIN_VISIBLE_POINTS
    seen_T[0] = True  # there the box is given
    counted_T = due_T & seen_T
    if counted_T.sum() < MIN_COUNTED * due_T.sum():
        return replace(_without(nothing, NullReason.TOO_FEW_VISIBLE_POINTS, visible_fraction), points=points)
    measured_T2 = np.zeros((len(due_T), 2))
    for t in np.flatnonzero(seen_T[1:]) + 1:
        measured_T2[t] = np.median((points.points_TQ2[t] - queries_Q2)[visible_TQ[t]], axis=0)
    round_trip_px = None
    if points.round_trip_px_TQ is not None:
        round_trip_px = float(points.round_trip_px_TQ[counted_T][visible_TQ[counted_T]].mean())
    return Following(
        due_T, counted_T, measured_T2, visible_fraction, round_trip_px, null_reason=None, seen_T=seen_T, points=points
    )


def _without(nothing: Following, reason: NullReason, visible_fraction: float | None = None) -> Following:
    return Following(
        nothing.due_T, nothing.counted_T, nothing.measured_T2, visible_fraction=visible_fraction, null_reason=reason
    )
