"""`ttm/bg-obj-ctd`: BG-Obj CTD of Time-to-Move (arXiv 2511.08633, appendix B.1). Higher is better.

Its evaluation code is not published: this is the paper's definition. A frozen video has 0, and so has one in which a
camera carries everything along: the object's displacement is the tracked one. Points on the object are in it. It grows
with the asked path and with the resolution, so it compares on the same inputs only, and always beside `md_vid_px`.

Axes: T frames, Q points of the grid; 2 is xy.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sgi2v.metrics.clip import Clip
from sgi2v.metrics.following import track
from sgi2v.tracking.tracker import PointTracker

GRID = 16
"""Points along each side of the frame, at the centres of even cells: the paper says a uniform grid, not where."""


def bg_obj_ctd(clip: Clip, tracker: PointTracker) -> dict[str, Any]:
    """The mean distance between the displacements of 256 points and of the object, pixels of the picture.

    Over the frames after 0, for samples with one moving object only, as in the paper. Visibility is unused.
    """
    clip = clip.at_source_size()
    moving = np.flatnonzero(clip.moving_N)
    reason = None
    if len(moving) != 1:
        reason = "several_paths" if len(moving) else "no_boxes"
    elif len(clip.frames_THWC) < 2:
        reason = "one_frame"
    if reason is not None:
        return {"bg_obj_ctd_px": None, "bg_obj_ctd_null_reason": reason}
    height, width = clip.frames_THWC.shape[1:3]
    places = (np.arange(GRID) + 0.5) / GRID
    grid_Q2 = np.stack(np.meshgrid(places * width, places * height), axis=-1).reshape(-1, 2)
    ground_TQ2 = track(tracker, clip.frames_THWC, grid_Q2).points_TQ2
    object_T2 = track(tracker, clip.frames_THWC, clip.starts_N2[moving]).points_TQ2[:, 0]
    apart_TQ2 = (ground_TQ2 - ground_TQ2[0]) - (object_T2 - object_T2[0])[:, None]
    return {
        "bg_obj_ctd_px": float(np.linalg.norm(apart_TQ2[1:], axis=-1).mean()),
        "bg_obj_ctd_null_reason": None,
    }
