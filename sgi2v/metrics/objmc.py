"""Motion fidelity, `objmc/v2`: how closely the object in each box followed the path of its box.

docs/metrics.md has the definitions of all metrics, and how each behaves on videos whose truth is known.

Axes: N boxes, T frames, K counted frames, H W pixels, C colours; 2 is xy, 4 is xyxy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields

import numpy as np

from sgi2v.metrics.following import Following, NullReason, follow_boxes, is_still, join
from sgi2v.opencv import single_opencv_thread
from sgi2v.tracking.tracker import PointTracker
from sgi2v.trajectory import BoxTracks, Floats
from sgi2v.video import Frames

METRICS_VERSION = "objmc/v2"
"""The version of the definitions in this package. A change that gives other numbers needs another version."""
MIN_TARGET_PX = 1.0
"""A target that moves less than this, pixels, counts as static: it has no control gain and no direction."""
MIN_MEASURED_PX = 0.1
"""A measured displacement shorter than this, pixels, has no direction: it may be the tracker's own error."""
FAILURE_PX = 30.0
"""An object farther than this from its target has failed to follow it, pixels."""


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
    """objmc_px of a frozen first frame: the target's mean distance from its start, pixels. Over the counted frames, or
    over the due ones where the box is not measured."""
    control_gain: float | None = None
    """1 - objmc_px / static_objmc_px. 1: follows exactly. 0: no better than a still image. Below 0: worse."""
    objmc_nulls_frozen_px: float | None = None
    """objmc_px; static_objmc_px where the box is not measured, as if it had stood still. Pixels."""
    track_box_iou: float | None = None
    """Mean overlap of the asked box and the frame-0 box at the measured centre, over the counted frames: intersection
    over union."""
    failure: float | None = None
    """Share of the due frames in which the object is lost or more than 30 px from its target."""
    identity: float | None = None
    """Mean change of what is in the central half of the box, over the due frames, 8-bit levels: looked for where the
    object was measured, and at its target where it was lost. Lower is better."""
    round_trip_px: float | None = None
    """The tracker's own error: mean distance from a point to where tracking it on and back ends, pixels."""
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
    metrics_version: str = METRICS_VERSION
    """Version of the definitions in this package."""

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

    frames_THWC: uint8 RGB. tracks: in pixels of these frames, not yet clipped to frame 0. Raises as `follow_boxes`.
    """
    return fidelity_of(frames_THWC, *follow_boxes(frames_THWC, tracks, tracker), tracker)


def fidelity_of(
    frames_THWC: Frames, tracks: BoxTracks, followed: Sequence[Following], tracker: PointTracker
) -> MotionFidelity:
    """The same from where the objects went. tracks, followed: as `follow_boxes` gives them."""
    still_N = is_still(tracks)
    boxes = [
        Fidelity(null_reason=join(filter(None, [NullReason.STILL, each.null_reason])))
        if still
        else _box_fidelity(frames_THWC, boxes_T4, each)
        for still, boxes_T4, each in zip(still_N, tracks.boxes_NT4, followed, strict=True)
    ]
    moving = [box for box, still in zip(boxes, still_N, strict=True) if not still]
    return MotionFidelity(
        **asdict(_mean(moving or boxes)), boxes=tuple(boxes), tracker=tracker.name, tracker_version=tracker.version
    )


def _box_fidelity(frames_THWC: Frames, boxes_T4: Floats, followed: Following) -> Fidelity:
    target_T2 = (boxes_T4[:, :2] + boxes_T4[:, 2:]) / 2
    target_T2 = target_T2 - target_T2[0]
    if followed.null_reason is not None:
        return _not_measured(frames_THWC, boxes_T4, target_T2, followed)
    counted_T = followed.counted_T
    measured_K2, target_K2 = followed.measured_T2[counted_T], target_T2[counted_T]
    error_px_K = np.linalg.norm(measured_K2 - target_K2, axis=-1)
    target_px_K = np.linalg.norm(target_K2, axis=-1)
    measured_px = float(np.linalg.norm(measured_K2[-1]))
    objmc_px, static_px = float(error_px_K.mean()), float(target_px_K.mean())

    reasons, cosine = [], None
    gain = control_gain(objmc_px, static_px)
    if gain is None:
        reasons.append(NullReason.STATIC_TARGET)
    if target_px_K[-1] < MIN_TARGET_PX:
        reasons.append(NullReason.TARGET_AT_START)
    elif measured_px < MIN_MEASURED_PX:
        reasons.append(NullReason.NO_MEASURED_MOTION)
    else:
        cosine = float(np.clip(measured_K2[-1] @ target_K2[-1] / (measured_px * target_px_K[-1]), -1.0, 1.0))
    num_due = int(followed.due_T.sum())
    failed = num_due - len(error_px_K) + int((error_px_K > FAILURE_PX).sum())
    return Fidelity(
        objmc_px=objmc_px,
        objmc_norm=objmc_px / float(np.hypot(*frames_THWC.shape[1:3])),
        visible_fraction=followed.visible_fraction,
        endpoint_error_px=float(error_px_K[-1]),
        direction_cosine=cosine,
        static_objmc_px=static_px,
        control_gain=gain,
        objmc_nulls_frozen_px=objmc_px,
        track_box_iou=float(np.mean(_overlaps(boxes_T4[0] + np.tile(measured_K2, 2), boxes_T4[counted_T]))),
        failure=failed / num_due,
        identity=_identity(frames_THWC, boxes_T4, target_T2, followed),
        round_trip_px=followed.round_trip_px,
        null_reason=join(reasons),
    )


def _not_measured(frames_THWC: Frames, boxes_T4: Floats, target_T2: Floats, followed: Following) -> Fidelity:
    """What is known of a box that is not measured: of one that was lost, that it was."""
    reason = join(filter(None, [followed.null_reason]))
    if not followed.due_T.any():
        return Fidelity(null_reason=reason)
    static_px = float(np.linalg.norm(target_T2[followed.due_T], axis=-1).mean())
    was_lost = followed.null_reason == NullReason.TOO_FEW_VISIBLE_POINTS
    return Fidelity(
        visible_fraction=followed.visible_fraction,
        static_objmc_px=static_px,
        objmc_nulls_frozen_px=static_px,
        failure=1.0 if was_lost else None,
        identity=_identity(frames_THWC, boxes_T4, target_T2, followed) if was_lost else None,
        null_reason=reason,
    )


def control_gain(objmc_px: float, static_px: float) -> float | None:
    """1 - objmc / static. None for a static target."""
    return 1.0 - objmc_px / static_px if static_px >= MIN_TARGET_PX else None


def _overlaps(boxes_K4: Floats, others_K4: Floats) -> Floats:
    """Intersection over union of each pair of boxes."""
    low_K2, high_K2 = np.maximum(boxes_K4[:, :2], others_K4[:, :2]), np.minimum(boxes_K4[:, 2:], others_K4[:, 2:])
    shared_K = np.maximum(high_K2 - low_K2, 0).prod(axis=-1)
    areas_K = sum((each_K4[:, 2:] - each_K4[:, :2]).prod(axis=-1) for each_K4 in (boxes_K4, others_K4))
    return np.asarray(shared_K / (areas_K - shared_K))


def _identity(frames_THWC: Frames, boxes_T4: Floats, target_T2: Floats, followed: Following) -> float | None:
    """Mean absolute difference from frame 0 in the central half of the box, where the object is taken to be.

    In frame t the part has the asked box's size, relative to frame 0. Pixels outside the frame do not count. None if
    none of them is inside.
    """
    import cv2

    centre_2, size_2 = (boxes_T4[0, :2] + boxes_T4[0, 2:]) / 2, boxes_T4[0, 2:] - boxes_T4[0, :2]
    part_2 = np.maximum(size_2 / 2, 1).astype(int)
    at_T2 = np.where(followed.counted_T[:, None], followed.measured_T2, target_T2)
    scale_T2 = (boxes_T4[:, 2:] - boxes_T4[:, :2]) / size_2

    def part(t: int) -> tuple[Floats, Floats]:
        """What the central half shows in frame t, and which of its pixels are inside the frame."""
        half_pixel = 0.5  # in OpenCV the centre of the first pixel is 0
        first_2 = centre_2 + at_T2[t] + (half_pixel - part_2 / 2) * scale_T2[t] - half_pixel
        to_frame_23 = np.column_stack([np.diag(scale_T2[t]), first_2])
        flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        shown = cv2.warpAffine(np.ascontiguousarray(frames_THWC[t]), to_frame_23, part_2.tolist(), flags=flags)
        ones_HW = np.ones(frames_THWC.shape[1:3], np.float32)
        inside = cv2.warpAffine(ones_HW, to_frame_23, part_2.tolist(), flags=flags) > 0.99
        return shown.astype(np.float64), inside.astype(np.float64)

    with single_opencv_thread():
        first_HWC, first_inside_HW = part(0)
        differences = []
        for t in np.flatnonzero(followed.due_T).tolist():
            shown_HWC, inside_HW = part(t)
            weights_HW = inside_HW * first_inside_HW
            if weights_HW.any():
                difference_HW = np.abs(shown_HWC - first_HWC).mean(axis=-1)
                differences.append(float((difference_HW * weights_HW).sum() / weights_HW.sum()))
    return float(np.mean(differences)) if differences else None


def _mean(boxes: Sequence[Fidelity]) -> Fidelity:
    if not boxes:
        return Fidelity(null_reason=join([NullReason.NO_BOXES]))
    means: dict[str, float | None] = {}
    for name in (field.name for field in fields(Fidelity) if field.name != "null_reason"):
        values = [value for box in boxes if (value := getattr(box, name)) is not None]
        means[name] = float(np.mean(values)) if values else None
    measured = [box for box in boxes if box.objmc_px is not None]
    means["control_gain"] = (
        control_gain(
            float(np.mean([box.objmc_px for box in measured])),
            float(np.mean([box.static_objmc_px for box in measured])),
        )
        if measured
        else None
    )
    reasons = [reason for box in boxes if box.null_reason for reason in box.null_reason.split(", ")]
    return Fidelity(**means, null_reason=join(reasons) if None in means.values() else None)
