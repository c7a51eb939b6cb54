"""Pyramidal Lucas-Kanade of OpenCV: the default tracker, without weights.

Axes: T frames, H W pixels; Q query points; A of them alive; 2 is xy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from sgi2v.tracking.tracker import Flags, PointTracks
from sgi2v.trajectory import Floats
from sgi2v.video import Frames

ROUND_TRIP_PX = 1.0
"""How far from its place a point tracked to the next frame and back may end, pixels."""
MIN_EIGENVALUE = 1e-4
"""OpenCV's measure of texture below which a point cannot be placed; (levels per pixel)^2 / 1024."""


class LucasKanade:
    """Pyramidal Lucas-Kanade of OpenCV, chained from frame to frame, with a forward-backward check.

    A point is lost where the image around it has no texture in some direction, where tracking it back misses its
    place, or where it leaves the frame; a point once lost stays lost and keeps its last place.

    Its own error, measured on photographs shifted by 0.4 to 4.2 px a frame over 14 frames with the truth known,
    pixels, over all frames (`tests/benchmarks/tracker_error.py`; `delivered`: after the mp4 round trip; `lost`:
    points reported lost that were in the frame, mostly where it has little texture):

        frame      video      mean   95th percentile  lost
        576x1024   exact      0.03   0.08             6%
        576x1024   delivered  0.10   0.28             5%
        128x192    exact      0.06   0.14             2%
        128x192    delivered  0.09   0.24             3%
        64x64      exact      0.08   0.23             2%
        64x64      delivered  0.10   0.27             2%
    """

    name = "lucas-kanade"
    num_cpus = 0.25
    """CPUs that a process with this tracker reserves."""
    num_gpus = 0.0
    """GPUs that a process with this tracker reserves."""

    @property
    def version(self) -> str:
        """This class's own version and OpenCV's, whose arithmetic it is."""
        import cv2

        return f"1+opencv-{cv2.__version__}"

    def track(self, frames_THWC: Frames, queries_Q2: Floats) -> PointTracks:
        """Follow queries (xy in frame 0, pixels) through all frames; the same input gives the same output."""
        import cv2

        height, width = frames_THWC.shape[1:3]
        window, levels = search_window(height, width)
        points_TQ2 = np.repeat(np.asarray(queries_Q2, np.float64)[None], len(frames_THWC), axis=0)
        visible_TQ = np.zeros(points_TQ2.shape[:2], np.bool_)
        visible_TQ[0] = _inside(points_TQ2[0], height, width)
        with single_opencv_thread():
            grey_T = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in frames_THWC]
            for t in range(1, len(grey_T)):
                points_TQ2[t] = points_TQ2[t - 1]
                (alive,) = np.nonzero(visible_TQ[t - 1])
                if len(alive) == 0:
                    continue
                before_A2 = points_TQ2[t - 1, alive]
                after_A2, found_A = _lucas_kanade(grey_T[t - 1], grey_T[t], before_A2, window, levels)
                back_A2, found_back_A = _lucas_kanade(grey_T[t], grey_T[t - 1], after_A2, window, levels)
                returned_A = np.linalg.norm(back_A2 - before_A2, axis=-1) <= ROUND_TRIP_PX
                kept_A = found_A & found_back_A & returned_A & _inside(after_A2, height, width)
                points_TQ2[t, alive[kept_A]] = after_A2[kept_A]
                visible_TQ[t, alive[kept_A]] = True
        return PointTracks(points_TQ2, visible_TQ)


def search_window(height: int, width: int) -> tuple[int, int]:
    """Side of Lucas-Kanade's window in pixels (odd) and the highest pyramid level, for a frame's size.

    The window is a twelfth of the shorter side, between 11 and 21: large enough for texture, small enough to lie
    on one object. The pyramid ends (at level 4) where the window would cover more than half of the shorter side.
    """
    side = min(height, width)
    window = int(np.clip(side // 12, 11, 21)) | 1
    levels = int(np.log2(max(side / (2 * window), 1.0)))
    return window, min(levels, 4)


def _lucas_kanade(
    source_HW: Frames, target_HW: Frames, points_Q2: Floats, window: int, levels: int
) -> tuple[Floats, Flags]:
    import cv2

    half_pixel = 0.5  # OpenCV puts the centre of the first pixel at 0
    moved, status, _ = cv2.calcOpticalFlowPyrLK(
        source_HW,
        target_HW,
        (points_Q2 - half_pixel).astype(np.float32)[:, None],
        None,
        winSize=(window, window),
        maxLevel=levels,
        criteria=(cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 30, 0.01),
        minEigThreshold=MIN_EIGENVALUE,
    )
    return moved[:, 0].astype(np.float64) + half_pixel, status[:, 0] == 1


def _inside(points_Q2: Floats, height: int, width: int) -> Flags:
    return np.asarray(((points_Q2 >= 0) & (points_Q2 < [width, height])).all(axis=-1))


@contextmanager
def single_opencv_thread() -> Iterator[None]:
    """One OpenCV thread inside, the former number after: results must not depend on how work was divided."""
    import cv2

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)
