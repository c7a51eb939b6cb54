"""The default tracker: template matching, then OpenCV's pyramidal Lucas-Kanade. It needs no weights.

Axes: T frames, H W pixels, C colours; Q query points; A of them alive; 2 is xy, 4 is xyxy.
"""

from __future__ import annotations

import numpy as np

from sgi2v.opencv import single_opencv_thread
from sgi2v.tracking.tracker import Flags, Limit, PointTracks
from sgi2v.trajectory import Floats
from sgi2v.video import Frames

ROUND_TRIP_PX = 1.0
"""A point tracked to the next frame and back may end at most this far from where it started, pixels."""
MIN_EIGENVALUE = 1e-4
"""Below this much texture a point is lost. OpenCV's measure, (levels per pixel)^2 / 1024."""
MIN_BOX_PX = 12.0
"""Shortest side of a box that can be followed, pixels."""
FAST_BOX_PX = 24.0
"""A box with a shorter side is followed only at steps of up to half its side, pixels."""
MIN_TEXTURE = 1.0
"""Least texture of a box that can be followed: grey levels per pixel in the direction in which it changes least."""
STEP_SHARE, LEAST_REACH_PX = 16, 8
"""An object is looked for within a 16th of the frame's longer side, and 8 px at least, from where it was in the frame
before."""
TEMPLATE_PX = 64
"""A template with a longer side is matched at a smaller scale, pixels."""
ERROR_PX = ((0.4, 0.019), (1.3, 0.032), (4.2, 0.025), (8.7, 0.029), (12.3, 0.028), (40.0, 0.028))
"""Pixels from frame to frame, and the mean error of the measured centre of a box at this speed, pixels. Above 12.3 px
no larger error was found."""
LEAST_LEVELS = 4.0
"""A farther match must be better by up to this much, (8-bit levels)^2 of the mean squared difference."""


class LucasKanade:
    """OpenCV's pyramidal Lucas-Kanade from each frame to the next, with a forward-backward check.

    From frame to frame, what is around all queries is first found as a whole, by matching it against its surroundings
    forth and back. Lucas-Kanade follows each point from there, so that an object may go farther in one step than
    its points could be followed alone. Queries that lie all over the frame are followed without that, each by itself.

    A point is lost where the image around it has no texture in some direction, where tracking it back does not end
    where it started, or where it leaves the frame. A lost point stays lost and keeps its last position.

    Its error in pixels over all frames, measured by `tests/benchmarks/tracker_error.py` on photographs that are
    shifted by known steps of 0.4 to 4.2 px a frame over 14 frames. `delivered`: after the mp4 round trip. `lost`:
    points inside the frame that it lost, mostly where there is little texture.

        frame      video      mean   95th percentile  lost
        576x1024   exact      0.03   0.08             6%
        576x1024   delivered  0.10   0.28             5%
        128x192    exact      0.06   0.14             2%
        128x192    delivered  0.09   0.24             3%
        64x64      exact      0.08   0.23             2%
        64x64      delivered  0.10   0.27             2%

    At the speeds of objects, delivered at 576 x 1024 px: ERROR_PX has the mean error of the centre of a box.
    `tests/benchmarks/label_error.py` measures it on squares of 26 to 200 px that go by fractions of a pixel: up to
    12.3 px a frame it is 0.02 to 0.03 px, at most 0.08 px. `tests/benchmarks/followers.py` measures whole pixels a
    frame, on squares of 12 to 200 px: from 8 to 40 px a frame it is 0.02 px, at most 0.06 px; at 4 px a frame a square
    of few pixels was 0.52 px off. Neither loses a square of 26 px or more.
    """

    name = "lucas-kanade"
    licence = "Apache-2.0 (OpenCV)"
    num_cpus = 0.25
    num_gpus = 0.0
    licence = "Apache-2.0 (OpenCV)"

    @property
    def version(self) -> str:
        """The version of this class and that of OpenCV, on whose arithmetic the points depend."""
        import cv2

        return f"2+opencv-{cv2.__version__}"

    def track(self, frames_THWC: Frames, queries_Q2: Floats) -> PointTracks:
        """Follow queries (xy in frame 0, pixels) through all frames. The same input gives the same points."""
        import cv2

        height, width = frames_THWC.shape[1:3]
        points_TQ2 = np.repeat(np.asarray(queries_Q2, np.float64)[None], len(frames_THWC), axis=0)
        visible_TQ = np.zeros(points_TQ2.shape[:2], np.bool_)
        visible_TQ[0] = _inside(points_TQ2[0], height, width)
        round_trip_px_TQ = np.zeros(points_TQ2.shape[:2])
        window, levels = search_window(height, width, _extent(points_TQ2[0]))
        with single_opencv_thread():
            grey_T = [cv2.cvtColor(np.ascontiguousarray(frame), cv2.COLOR_RGB2GRAY) for frame in frames_THWC]
            for t in range(1, len(grey_T)):
                points_TQ2[t] = points_TQ2[t - 1]
                (alive,) = np.nonzero(visible_TQ[t - 1])
                if len(alive) == 0:
                    continue
                before_A2 = points_TQ2[t - 1, alive]
                step_2 = _common_step(frames_THWC[t - 1], frames_THWC[t], before_A2, window)
                after_A2, found_A = _lucas_kanade(grey_T[t - 1], grey_T[t], before_A2, step_2, window, levels)
                back_A2, found_back_A = _lucas_kanade(grey_T[t], grey_T[t - 1], after_A2, -step_2, window, levels)
                round_trip_px_A = np.linalg.norm(back_A2 - before_A2, axis=-1)
                returned_A = round_trip_px_A <= ROUND_TRIP_PX
                kept_A = found_A & found_back_A & returned_A & _inside(after_A2, height, width)
                points_TQ2[t, alive[kept_A]] = after_A2[kept_A]
                visible_TQ[t, alive[kept_A]] = True
                round_trip_px_TQ[t, alive[kept_A]] = round_trip_px_A[kept_A]
        return PointTracks(points_TQ2, visible_TQ, round_trip_px_TQ)

    def error_px(self, step_px: float) -> float:
        """Mean error of the centre of a box that goes this far from frame to frame, pixels."""
        steps_px, errors_px = np.transpose(ERROR_PX)
        return float(np.interp(step_px, steps_px, errors_px))

    def limit(self, first_frame_HWC: Frames, boxes_T4: Floats) -> Limit | None:
        """What keeps it from following an object on its path. None: nothing is known to."""
        sides_T2 = boxes_T4[:, 2:] - boxes_T4[:, :2]
        centres_T2 = (boxes_T4[:, :2] + boxes_T4[:, 2:]) / 2
        side_px = float(sides_T2.min())
        step_px = float(np.linalg.norm(np.diff(centres_T2, axis=0), axis=-1).max(initial=0.0))
        if side_px < MIN_BOX_PX:
            return Limit.BOX_TOO_SMALL
        farthest_px = reach_px(*first_frame_HWC.shape[:2])
        if step_px > (farthest_px if side_px >= FAST_BOX_PX else min(farthest_px, side_px / 2)):
            return Limit.STEP_TOO_LARGE
        return Limit.NO_TEXTURE if texture(first_frame_HWC, boxes_T4[0]) < MIN_TEXTURE else None


def search_window(height: int, width: int, extent_px: float | None) -> tuple[int, int]:
    """The side of Lucas-Kanade's window in pixels (odd) and the highest pyramid level.

    The window is a twelfth of the frame's shorter side, between 11 and 21 px, and at most the extent of the queries
    but at least 7 px: large enough to contain texture, small enough to lie on one object. The highest level is the
    last at which the window covers at most half of the frame's shorter side, and all of the extent, and at most 4.
    extent_px: shorter side of the smallest box around the queries; None for a single one.
    """
    side = min(height, width)
    window = int(np.clip(side // 12, 11, 21)) | 1
    levels = _halvings(side / (2 * window))
    if extent_px is not None:
        window = min(window, int(max(extent_px, 7)) | 1)
        levels = min(levels, _halvings(extent_px / window))
    return window, min(levels, 4)


def _halvings(ratio: float) -> int:
    return int(np.log2(max(ratio, 1.0)))


def reach_px(height: int, width: int) -> int:
    """How far from its place in the frame before an object is looked for along each axis, pixels."""
    return max(max(height, width) // STEP_SHARE, LEAST_REACH_PX)


def texture(frame_HWC: Frames, box_4: Floats) -> float:
    """How much a box changes in the direction in which it changes least, grey levels per pixel.

    The root of the smaller eigenvalue of the mean structure tensor (Shi and Tomasi, "Good Features to Track").
    """
    import cv2

    height, width = frame_HWC.shape[:2]
    x0, y0 = np.clip(np.floor(box_4[:2]).astype(int), 0, [width, height])
    x1, y1 = np.clip(np.ceil(box_4[2:]).astype(int), 0, [width, height])
    if x1 - x0 < 3 or y1 - y0 < 3:
        return 0.0
    grey_HW = cv2.cvtColor(np.ascontiguousarray(frame_HWC[y0:y1, x0:x1]), cv2.COLOR_RGB2GRAY).astype(np.float32)
    down_HW, across_HW = np.gradient(grey_HW)
    gradients_P2 = np.stack([across_HW.ravel(), down_HW.ravel()], axis=-1).astype(np.float64)
    return float(np.sqrt(max(0.0, np.linalg.eigvalsh(gradients_P2.T @ gradients_P2 / len(gradients_P2))[0])))


def _extent(points_Q2: Floats) -> float | None:
    """Shorter side of the smallest box around the points. None for fewer than two of them, and for points in line."""
    if len(points_Q2) < 2:
        return None
    return float((points_Q2.max(axis=0) - points_Q2.min(axis=0)).min()) or None


def _common_step(before_HWC: Frames, after_HWC: Frames, points_A2: Floats, window: int) -> Floats:
    """The step, xy, of what is around all points. Zero where looking for it back from there does not lead back."""
    low_2 = np.floor(points_A2.min(axis=0) - window / 2).astype(int)
    high_2 = np.ceil(points_A2.max(axis=0) + window / 2).astype(int)
    scale = max(1, int((high_2 - low_2).max()) // TEMPLATE_PX)
    step_2 = _match(before_HWC, after_HWC, low_2, high_2, scale)
    back_2 = _match(after_HWC, before_HWC, low_2 + step_2, high_2 + step_2, scale)
    return (step_2 if np.abs(step_2 + back_2).max() <= 2 * scale else np.zeros(2, int)).astype(np.float64)


def _match(source_HWC: Frames, target_HWC: Frames, low_2: Floats, high_2: Floats, scale: int) -> Floats:
    """Where the part low..high of the source lies in the target, whole pixels from its own place. scale: shrunk by."""
    import cv2

    height, width = source_HWC.shape[:2]
    size_2 = np.array([width, height])
    reach = reach_px(height, width)
    low_2, high_2 = np.maximum(low_2, 0), np.minimum(high_2, size_2)
    if (high_2 - low_2 < 4).any():
        return np.zeros(2, int)
    from_2, to_2 = np.maximum(low_2 - reach, 0), np.minimum(high_2 + reach, size_2)
    template_HWC = _shrunk(source_HWC[low_2[1] : high_2[1], low_2[0] : high_2[0]], scale)
    area_HWC = _shrunk(target_HWC[from_2[1] : to_2[1], from_2[0] : to_2[0]], scale)
    difference_HW = cv2.matchTemplate(area_HWC, template_HWC, cv2.TM_SQDIFF) / template_HWC.size
    own_place = (low_2 - from_2) / scale
    y_HW, x_HW = np.mgrid[: difference_HW.shape[0], : difference_HW.shape[1]]
    distance_HW = np.hypot(x_HW - own_place[0], y_HW - own_place[1]) * scale
    best = np.argmin(difference_HW + LEAST_LEVELS * distance_HW / reach)
    y, x = np.unravel_index(best, difference_HW.shape)
    return np.rint((np.array([x, y]) - own_place) * scale).astype(int)


def _shrunk(frame_HWC: Frames, scale: int) -> Frames:
    import cv2

    if scale == 1:
        return np.ascontiguousarray(frame_HWC)
    height, width = frame_HWC.shape[:2]
    size = (max(width // scale, 1), max(height // scale, 1))
    return np.asarray(cv2.resize(frame_HWC, size, interpolation=cv2.INTER_AREA), np.uint8)


def _lucas_kanade(
    source_HW: Frames, target_HW: Frames, points_Q2: Floats, step_2: Floats, window: int, levels: int
) -> tuple[Floats, Flags]:
    """Where points of the source are in the target, and whether they were found. step_2: where to look first."""
    import cv2

    half_pixel = 0.5  # in OpenCV the centre of the first pixel is 0
    moved, status, _ = cv2.calcOpticalFlowPyrLK(
        source_HW,
        target_HW,
        (points_Q2 - half_pixel).astype(np.float32).reshape(-1, 1, 2),
        (points_Q2 + step_2 - half_pixel).astype(np.float32, order="C").reshape(-1, 1, 2),
        winSize=(window, window),
        maxLevel=levels,
        criteria=(cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 30, 0.01),
        flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
        minEigThreshold=MIN_EIGENVALUE,
    )
    return moved[:, 0].astype(np.float64) + half_pixel, status[:, 0] == 1


def _inside(points_Q2: Floats, height: int, width: int) -> Flags:
    return np.asarray(((points_Q2 >= 0) & (points_Q2 < [width, height])).all(axis=-1))
