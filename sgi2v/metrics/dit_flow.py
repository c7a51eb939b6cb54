"""`motion-fidelity/ditflow`: motion fidelity against a reference video. Higher is better, 1 at most.

Defined by DMT (arXiv 2311.17009); read at ditflow/ditflow@4db379b, `eval/motion_fidelity_score.py`. Only the direction
of motion counts, not its speed or place. It needs a real video: from a drawn path alone it is not defined.

Two things are unlike the published program. It divides 0 by 0 for a point that stands still: here such a tracklet is
left out of both videos and counted, and of the others the steps in which they move count. It takes 1 from the diagonal
before the maximum, which punishes the point that matches: here nothing is taken away, as in the paper.

Axes: T frames, Q tracklets; 2 is xy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sgi2v.metrics.clip import Clip
from sgi2v.metrics.following import track
from sgi2v.tracking.tracker import PointTracker
from sgi2v.trajectory import Floats
from sgi2v.video import Frames

GRID = 55
"""Tracklets along each side of the frame, at the centres of even cells."""
STATIC_PX = 0.1
"""A tracklet whose steps add up to less than this stands still, pixels: a tracker's own error is as long."""


def motion_fidelity(clip: Clip, tracker: PointTracker) -> dict[str, Any]:
    """The similarity of each tracklet of the video to the most similar one of the reference, mean over tracklets.

    The similarity of a tracklet to another is the mean, over its own steps, of the cosine between its steps and the
    other's. From the video to the reference only. Over as many frames as the shorter of the two has.
    """
    nothing = {"motion_fidelity": None, "motion_fidelity_static": None}
    if clip.reference_THWC is None:
        return {**nothing, "motion_fidelity_null_reason": "no_reference"}
    num_frames = min(len(clip.frames_THWC), len(clip.reference_THWC))
    if num_frames < 2:
        return {**nothing, "motion_fidelity_null_reason": "one_frame"}
    steps, reference = (_steps(frames[:num_frames], tracker) for frames in (clip.frames_THWC, clip.reference_THWC))
    moving, reference_moving = (_directions(each) for each in (steps, reference))
    static = 1 - len(moving) / len(steps)
    if not len(moving) or not len(reference_moving):
        return {**nothing, "motion_fidelity_static": static, "motion_fidelity_null_reason": "no_measured_motion"}
    return {
        "motion_fidelity": similarity(moving, reference_moving),
        "motion_fidelity_static": static,
        "motion_fidelity_null_reason": None,
    }


def similarity(directions: Floats, reference: Floats) -> float:
    """The mean over tracklets of their largest similarity. directions, reference: unit steps [Q, T - 1, 2], or 0."""
    flat, other = (each.reshape(len(each), -1) for each in (directions, reference))
    steps_Q = directions.any(axis=-1).sum(axis=1)
    return float(((flat @ other.T).max(axis=1) / steps_Q).mean())


def _steps(frames_THWC: Frames, tracker: PointTracker) -> Floats:
    height, width = frames_THWC.shape[1:3]
    places = (np.arange(GRID) + 0.5) / GRID
    queries_Q2 = np.stack(np.meshgrid(places * width, places * height), axis=-1).reshape(-1, 2)
    return np.diff(track(tracker, frames_THWC, queries_Q2).points_TQ2, axis=0).swapaxes(0, 1)


def _directions(steps: Floats) -> Floats:
    """The directions of the tracklets that move. A step without motion is (0, 0)."""
    length = np.linalg.norm(steps, axis=-1, keepdims=True)
    moves = length.sum(axis=(1, 2)) >= STATIC_PX
    return np.asarray(np.divide(steps, length, out=np.zeros_like(steps), where=length > 0)[moves])
