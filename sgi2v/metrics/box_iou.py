"""`track-box-iou`: the overlap of the asked box and the frame-0 box moved by its points. Higher is better.

Not the mIoU of any paper: MagicBench's definition is not known, and Go-with-the-Flow does not say how its boxes are
made. Of fixed size, so that a method that only controls positions is not judged by sizes.

Axes: N boxes, T frames, Q query points of one box; 2 is xy, 4 is xyxy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sgi2v.metrics.clip import Clip
from sgi2v.metrics.following import track
from sgi2v.tracking.tracker import PointTracker
from sgi2v.trajectory import Floats

GRID = 5
"""Queries along each side of a box, at the centres of even cells."""
MIN_VISIBLE = 3
"""A frame counts where at least so many of a box's points are visible."""


def track_box_iou(clip: Clip, tracker: PointTracker) -> dict[str, Any]:
    """The mean overlap over the frames after 0 that count, then over the boxes that move. Nothing is clipped."""
    overlaps, counted = [], 0
    for n in np.flatnonzero(clip.moving_N):
        boxes_T4 = clip.tracks.boxes_NT4[n]
        queries_Q2 = _grid(boxes_T4[0])
        points = track(tracker, clip.frames_THWC, queries_Q2)
        of_box = []
        for t in range(1, len(boxes_T4)):
            visible_Q = points.visible_TQ[t]
            if visible_Q.sum() >= MIN_VISIBLE:
                moved_2 = np.median((points.points_TQ2[t] - queries_Q2)[visible_Q], axis=0)
                of_box.append(overlap(boxes_T4[0] + np.tile(moved_2, 2), boxes_T4[t]))
        counted += len(of_box)
        if of_box:
            overlaps.append(float(np.mean(of_box)))
    moving = int(clip.moving_N.sum())
    reason = None
    if not overlaps:
        is_short = len(clip.frames_THWC) < 2
        reason = "no_boxes" if not moving else "one_frame" if is_short else "too_few_visible_points"
    share = counted / (moving * (len(clip.frames_THWC) - 1)) if moving and len(clip.frames_THWC) > 1 else None
    return {
        "grid_box_iou": float(np.mean(overlaps)) if overlaps else None,
        "grid_box_iou_counted": share,
        "grid_box_iou_null_reason": reason,
    }


def overlap(box_4: Floats, other_4: Floats) -> float:
    """Intersection over union of two half-open boxes."""
    shared = float(np.clip(np.minimum(box_4[2:], other_4[2:]) - np.maximum(box_4[:2], other_4[:2]), 0, None).prod())
    areas = sum(float((each[2:] - each[:2]).prod()) for each in (box_4, other_4))
    return shared / (areas - shared)


def _grid(box_4: Floats) -> Floats:
    places = (np.arange(GRID) + 0.5) / GRID
    (x0, y0), size_2 = box_4[:2], box_4[2:] - box_4[:2]
    return np.stack(np.meshgrid(x0 + places * size_2[0], y0 + places * size_2[1]), axis=-1).reshape(-1, 2)
