"""Motion fidelity, `objmc/v1`: how closely the object in each box followed the path of its box.

How one box is measured, all in output pixels:

    box       the frame-0 box and its path, both clipped to frame 0 first
    queries   5 x 5 points that span the central half of each side of the frame-0 box; a tracker follows them
    measured  per frame: the centre of the frame-0 box + the median displacement (per axis) of the visible points
    target    per frame: the centre of the box on its path
    due       the frames of 1 .. T-1 in which the target is inside the frame
    counted   the due frames in which at least 5 of the 25 points are visible

A box without a due frame, or with fewer than half of its due frames counted, has no value: null, with a reason. So has
a box that is told to stay. A sample's value is the mean over the boxes that have one. A sample's control gain is
computed from the sample's own means of objmc_px and static_objmc_px. No value is ever NaN.

Axes: N boxes, T frames, K counted frames, H W pixels, C colours, Q query points of one box; 2 is xy, 4 is xyxy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from enum import StrEnum

import numpy as np

from sgi2v.errors import ErrorCode, SampleError, TrajectoryError
from sgi2v.tracking.tracker import Flags, PointTracker, PointTracks
from sgi2v.trajectory import BoxTracks, Floats
from sgi2v.video import Frames

OBJMC_VERSION = "objmc/v1"
"""The version of the definitions in this file. A change that gives other numbers needs another version."""
GRID = 5
"""Query points along each side of a box."""
MIN_VISIBLE_POINTS = 5
"""A frame counts where at least this many of a box's 25 points are visible."""
MIN_COUNTED = 0.5
"""A box has a value where at least this fraction of its due frames count."""
MIN_TARGET_PX = 1.0
"""A target that moves less than this, pixels, counts as static: it has no control gain and no direction."""
MIN_MEASURED_PX = 0.1
"""A measured displacement shorter than this, pixels, has no direction: it may be the tracker's own error."""


class NullReason(StrEnum):
    """Why a value is null. Several reasons are joined by `, `."""

    NO_BOXES = "no_boxes"
    """The sample has no boxes: every value is null."""
    STILL = "still"
    """The box is told to stay, so it is not scored as followed: every value is null. The sample's leave it out."""
    TARGET_OUTSIDE = "target_outside"
    """The target is never inside the frame: every value is null."""
    TOO_FEW_VISIBLE_POINTS = "too_few_visible_points"
    """Fewer than half of the due frames count: every value but visible_fraction is null."""
    STATIC_TARGET = "static_target"
    """static_objmc_px is below 1 px: control_gain is null."""
    TARGET_AT_START = "target_at_start"
    """At the last counted frame the target is within 1 px of its start: direction_cosine is null."""
    NO_MEASURED_MOTION = "no_measured_motion"
    """At the last counted frame the measured displacement is below 0.1 px: direction_cosine is null."""


@dataclass(frozen=True)
class Fidelity:
    """The values of one box, or the mean of each value over a sample's boxes that have it."""

    objmc_px: float | None = None
    """Mean distance between the measured and the target centre over the counted frames, pixels. Lower is better."""
    objmc_norm: float | None = None
    """objmc_px / the length of the frame's diagonal."""
    visible_fraction: float | None = None
    """Mean fraction of the points that are visible, over the due frames."""
    endpoint_error_px: float | None = None
    """Distance between the measured and the target centre at the last counted frame, pixels."""
    direction_cosine: float | None = None
    """Cosine of the angle between the measured and the target displacement from frame 0 to the last counted frame."""
    static_objmc_px: float | None = None
    """objmc_px of a frozen first frame: the target's mean distance from its start over the counted frames, pixels."""
    control_gain: float | None = None
    """1 - objmc_px / static_objmc_px. 1: follows exactly. 0: no better than a still image. Below 0: worse."""
    null_reason: str | None = None
    """Why a value above is null. Null where none of them is null."""


@dataclass(frozen=True)
class MotionFidelity(Fidelity):
    """The fidelity of a sample and of each of its boxes, and what measured it."""

    boxes: tuple[Fidelity, ...] = ()
    """One per box, in the order of the boxes."""
    tracker: str = ""
    """Name of the tracker."""
    tracker_version: str = ""
    """Version of the tracker."""
    metrics_version: str = OBJMC_VERSION
    """Version of the definitions in this file."""

    def as_dict(self) -> dict[str, float | str | list[float | None] | list[str | None] | None]:
        """One flat row: the sample's values by name, and each value of its boxes as a list named `<name>_per_box`."""
        names = [field.name for field in fields(Fidelity)]
        return {
            **{name: getattr(self, name) for name in names},
            **{f"{name}_per_box": [getattr(box, name) for box in self.boxes] for name in names},
            "tracker": self.tracker,
            "tracker_version": self.tracker_version,
            "metrics_version": self.metrics_version,
        }


def motion_fidelity(frames_THWC: Frames, tracks: BoxTracks, tracker: PointTracker) -> MotionFidelity:
    """Measure how closely the objects in a video followed the tracks of their boxes.

    frames_THWC: uint8 RGB. tracks: in pixels of these frames, not yet clipped to frame 0. Each box is tracked by
    itself, so its values do not depend on the other boxes. Raises TrajectoryError for tracks of another length or
    size and for a box outside frame 0, SampleError(tracking_failed) for any exception in the tracker.
    """
    num_frames, height, width = frames_THWC.shape[:3]
    if (tracks.num_frames, tracks.height, tracks.width) != (num_frames, height, width):
        message = (
            f"box tracks for {tracks.num_frames} frames of {tracks.height} x {tracks.width} px "
            f"do not match a video of {num_frames} frames of {height} x {width} px (height x width)"
        )
        raise TrajectoryError(ErrorCode.TRAJECTORY_INVALID, message)
    clipped = tracks.clip_to_first_frame()
    still_N = np.zeros(clipped.num_boxes, bool) if clipped.still_N is None else clipped.still_N
    boxes = []
    for is_still, box_T4, target_T2, inside_T in zip(
        still_N, clipped.boxes_NT4, clipped.centres_NT2, clipped.centre_inside_NT(), strict=True
    ):
        if is_still:
            boxes.append(Fidelity(null_reason=_join([NullReason.STILL])))
            continue
        queries_Q2 = query_grid(box_T4[0])
        points = _track(tracker, frames_THWC, queries_Q2)
        boxes.append(_box_fidelity(points, queries_Q2, target_T2, inside_T, float(np.hypot(height, width))))
    moving = [box for box, is_still in zip(boxes, still_N, strict=True) if not is_still]
    return MotionFidelity(
        **asdict(_mean(moving or boxes)), boxes=tuple(boxes), tracker=tracker.name, tracker_version=tracker.version
    )


def query_grid(box_4: Floats) -> Floats:
    """A 5 x 5 grid of points, [25, 2] xy, that spans the central half of each side of a box."""
    x0, y0, x1, y1 = box_4
    fractions = np.linspace(0.25, 0.75, GRID)
    grid_x, grid_y = np.meshgrid(x0 + fractions * (x1 - x0), y0 + fractions * (y1 - y0))
    return np.stack([grid_x.ravel(), grid_y.ravel()], axis=-1)


def _track(tracker: PointTracker, frames_THWC: Frames, queries_Q2: Floats) -> PointTracks:
    try:
        points = tracker.track(frames_THWC, queries_Q2)
        if points.visible_TQ.shape != (len(frames_THWC), len(queries_Q2)):
            expected = [len(frames_THWC), len(queries_Q2)]
            raise ValueError(f"expected points of shape {expected}, got {list(points.visible_TQ.shape)}")
    except Exception as error:  # a tracker may be third-party code: an error in it fails this sample only
        message = f"the tracker {tracker.name} failed: {type(error).__name__}: {error}"
        raise SampleError(ErrorCode.TRACKING_FAILED, message) from error
    return points


def _box_fidelity(
    points: PointTracks, queries_Q2: Floats, target_T2: Floats, inside_T: Flags, diagonal_px: float
) -> Fidelity:
    due_T = inside_T.copy()
    due_T[0] = False
    if not due_T.any():
        return Fidelity(null_reason=_join([NullReason.TARGET_OUTSIDE]))
    visible_fraction = float(points.visible_TQ[due_T].mean())
    (counted,) = np.nonzero(due_T & (points.visible_TQ.sum(axis=1) >= MIN_VISIBLE_POINTS))
    if len(counted) < MIN_COUNTED * due_T.sum():
        return Fidelity(visible_fraction=visible_fraction, null_reason=_join([NullReason.TOO_FEW_VISIBLE_POINTS]))

    displacement_TQ2 = points.points_TQ2 - queries_Q2
    measured_K2 = np.stack([np.median(displacement_TQ2[t, points.visible_TQ[t]], axis=0) for t in counted])
    target_K2 = target_T2[counted] - target_T2[0]
    error_px_K = np.linalg.norm(measured_K2 - target_K2, axis=-1)
    target_px_K = np.linalg.norm(target_K2, axis=-1)
    measured_px = float(np.linalg.norm(measured_K2[-1]))
    objmc_px, static_px = float(error_px_K.mean()), float(target_px_K.mean())

    reasons, cosine = [], None
    gain = _control_gain(objmc_px, static_px)
    if gain is None:
        reasons.append(NullReason.STATIC_TARGET)
    if target_px_K[-1] < MIN_TARGET_PX:
        reasons.append(NullReason.TARGET_AT_START)
    elif measured_px < MIN_MEASURED_PX:
        reasons.append(NullReason.NO_MEASURED_MOTION)
    else:
        cosine = float(np.clip(measured_K2[-1] @ target_K2[-1] / (measured_px * target_px_K[-1]), -1.0, 1.0))
    return Fidelity(
        objmc_px=objmc_px,
        objmc_norm=objmc_px / diagonal_px,
        visible_fraction=visible_fraction,
        endpoint_error_px=float(error_px_K[-1]),
        direction_cosine=cosine,
        static_objmc_px=static_px,
        control_gain=gain,
        null_reason=_join(reasons),
    )


def _mean(boxes: Sequence[Fidelity]) -> Fidelity:
    if not boxes:
        return Fidelity(null_reason=_join([NullReason.NO_BOXES]))
    means: dict[str, float | None] = {}
    for name in (field.name for field in fields(Fidelity) if field.name != "null_reason"):
        values = [value for box in boxes if (value := getattr(box, name)) is not None]
        means[name] = float(np.mean(values)) if values else None
    objmc_px, static_px = means["objmc_px"], means["static_objmc_px"]
    if objmc_px is not None and static_px is not None:
        means["control_gain"] = _control_gain(objmc_px, static_px)
    reasons = [reason for box in boxes if box.null_reason for reason in box.null_reason.split(", ")]
    return Fidelity(**means, null_reason=_join(reasons) if None in means.values() else None)


def _control_gain(objmc_px: float, static_px: float) -> float | None:
    """1 - objmc / static. None for a static target."""
    return 1.0 - objmc_px / static_px if static_px >= MIN_TARGET_PX else None


def _join(reasons: Sequence[str]) -> str | None:
    return ", ".join(dict.fromkeys(reasons)) or None  # a plain str: records do not hold enum members
