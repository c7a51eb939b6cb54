"""`mc-bench/md-vid`: MD-Vid of MC-Bench (MotionPro, arXiv 2505.20287), which Time-to-Move calls CTD.

Read at HiDream-ai/MotionPro@347097c, `tools/eval_co_tracker_acc.py`. Lower is better.

Axes: N objects, T frames; Q query points of one object; 2 is xy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sgi2v.metrics.clip import Clip
from sgi2v.metrics.following import track
from sgi2v.tracking.tracker import PointTracker
from sgi2v.trajectory import Floats

BLOCK = 8
"""Queries along each side of the block around a start."""
PIXEL_CENTRE = 0.5
"""In the published program the centre of the first pixel is 0."""
ROUNDING_PX = 1e-6
"""A start that was scaled to the video and back may have lost so much, pixels."""


def md_vid(clip: Clip, tracker: PointTracker) -> dict[str, Any]:
    """The mean distance of the tracked starts from their paths, pixels of the picture, over frames after 0.

    Blocks of 8 x 8 queries of whole pixels, x - 4 to x + 3, all in one call; of each block only the start itself is
    scored. Visibility is unused. Mean over the objects that move and the frames. The block's start is found by its
    place and not by a fixed stride, which reads wrong tracks where a block is cut off at the frame's border.
    """
    clip = clip.at_source_size()
    moving = np.flatnonzero(clip.moving_N)
    reason = None
    if not len(moving):
        reason = "no_boxes"
    elif len(clip.frames_THWC) < 2:
        reason = "one_frame"
    if reason is not None:
        return {"md_vid_px": None, "md_vid_null_reason": reason}
    blocks, scored, targets, count = [], [], [], 0
    for n in moving:
        start_2 = np.floor(clip.starts_N2[n] + ROUNDING_PX)
        block_Q2 = _block(start_2)
        targets.append(clip.target_NT2[n] - clip.starts_N2[n] + start_2)
        scored.append(count + int(np.flatnonzero((block_Q2 == start_2).all(axis=-1))[0]))
        count += len(block_Q2)
        blocks.append(block_Q2)
    points = track(tracker, clip.frames_THWC, np.concatenate(blocks) + PIXEL_CENTRE)
    tracked_NT2 = points.points_TQ2[:, scored].swapaxes(0, 1) - PIXEL_CENTRE
    distance_NT = np.linalg.norm(tracked_NT2 - np.stack(targets), axis=-1)
    return {"md_vid_px": float(distance_NT[:, 1:].mean()), "md_vid_null_reason": None}


def _block(start_2: Floats) -> Floats:
    """The queries around a start, x outermost, those left of or above the frame left out."""
    x, y = start_2.astype(int)
    half = BLOCK // 2
    return np.array(
        [(i, j) for i in range(max(x - half, 0), x + half) for j in range(max(y - half, 0), y + half)], np.float64
    )
