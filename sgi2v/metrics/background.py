"""What the background did while the objects moved: its change, its motion, and the drift of held objects.

docs/metrics.md has the definitions of all metrics, and how each behaves on videos whose truth is known.

Axes: N boxes, T frames, H W pixels of shrunk frames, C colours, Q points of a grid; 2 is xy, 4 is xyxy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sgi2v.metrics.following import Following, NullReason, is_still, join, track
from sgi2v.opencv import single_opencv_thread
from sgi2v.scene import asks_camera
from sgi2v.tracking.tracker import Flags, PointTracker
from sgi2v.trajectory import BoxTracks, Floats
from sgi2v.video import Frames

SIDES_PX = (128, 256, 512)
"""Longer sides of the frames at which the background's shift is looked for, then refined."""
MARGIN_SHARE = 1 / 64
"""The background begins this far from every box, as a share of the frame's longer side."""
MIN_GROUND = 0.05
"""Least share of the frame that is background."""
MAX_ITERATIONS, SMALL_STEP_PX = 10, 0.01
"""A shift is refined so many times, or until it changes by less, pixels of the shrunk frames."""
MIN_OVERLAP = 0.2
"""A shift that is looked for leaves at least this share of the background inside the frame."""
MIN_TEXTURE = 0.1
"""Least texture of a background whose motion can be seen: grey levels per pixel in its smoothest direction."""
MIN_EXPLAINED = 0.5
"""Least share of the background's squared change that a shift explains if the background has moved by it."""
GRID = 16
"""Points along each side of the frame for bg_object_distance_px."""
MIN_VISIBLE = 0.25
"""Least share of these points that is visible."""
Ground = NDArray[np.float32]


@dataclass(frozen=True)
class Background:
    """What the background of one video did."""

    background_change: float | None = None
    """Mean difference of the background from frame 0 moved by background_motion_px, 8-bit levels. Lower is better."""
    background_motion_px: float | None = None
    """Mean distance of the whole background from its place in frame 0, pixels. Lower is better."""
    bg_object_distance_px: float | None = None
    """Mean length of the difference between the displacements of a point of a 16 x 16 grid over the frame and of an
    object, pixels: the BG-Obj CTD of Time-to-Move, from visible points. Higher is better."""
    background_null_reason: str | None = None
    """Why a value above is null. Null where none of them is null."""
    still_drift_px: float | None = None
    """Mean distance of what is in a held box from its place in frame 0, over the boxes that have it, pixels. Lower is
    better."""
    still_drift_px_per_box: tuple[float | None, ...] = ()
    """still_drift_px of each box. Null for a box that is not held, and for one that is not measured."""

    def as_dict(self) -> dict[str, float | str | list[float | None] | None]:
        """One flat row: the values by name."""
        return {**asdict(self), "still_drift_px_per_box": list(self.still_drift_px_per_box)}


class _Shifts(NamedTuple):
    """How the background of each frame lies to that of frame 0."""

    shift_T2: Floats
    """Its shift, pixels of the shrunk frames."""
    explained: float
    """Share of its squared change that the shifts explain, all frames together."""
    typical_change: float
    """What half of it changes by less than, apart from the median in each colour, in the worst frame, 8-bit levels."""


def background(
    frames_THWC: Frames, tracks: BoxTracks, followed: Sequence[Following], tracker: PointTracker
) -> Background:
    """Measure the background of a video. tracks, followed: as `follow_boxes` gives them."""
    drifts = tuple(
        float(np.linalg.norm(each.measured_T2[each.counted_T], axis=-1).mean())
        if still and each.null_reason is None
        else None
        for still, each in zip(is_still(tracks), followed, strict=True)
    )
    known = [drift for drift in drifts if drift is not None]
    held = Background(still_drift_px=float(np.mean(known)) if known else None, still_drift_px_per_box=drifts)

    def without(reason: NullReason) -> Background:
        return Background(**{**vars(held), "background_null_reason": join([reason])})

    if len(frames_THWC) < 2:
        return without(NullReason.ONE_FRAME)
    if asks_camera(tracks):
        return without(NullReason.CAMERA)
    reasons: list[str] = []
    with single_opencv_thread():
        change, motion_px = _change_and_motion(frames_THWC, tracks, reasons)
    distance_px = _object_distance(frames_THWC, tracks, followed, tracker, reasons)
    return Background(change, motion_px, distance_px, join(reasons), held.still_drift_px, drifts)


def _change_and_motion(frames_THWC: Frames, tracks: BoxTracks, reasons: list[str]) -> tuple[float | None, float | None]:
    """background_change and background_motion_px. Appends why one of them is None."""
    is_ground_HW = _ground(tracks)
    if is_ground_HW.mean() < MIN_GROUND:
        reasons.append(NullReason.NO_BACKGROUND)
        return None, None
    shrunk_THWC, ground_HW = _at_side(frames_THWC, is_ground_HW, SIDES_PX[-1])
    px = frames_THWC.shape[2] / shrunk_THWC.shape[2]  # of the video in one of the shrunk frames
    texture = _texture(shrunk_THWC[0], ground_HW)
    if texture < MIN_TEXTURE:
        reasons.append(NullReason.NO_TEXTURE)
        return _change(shrunk_THWC, ground_HW, np.zeros((len(shrunk_THWC), 2))), None
    shifts = _shifts(frames_THWC, is_ground_HW)
    # no shift explains the noise of a still ground; but a shift of a whole pixel would change most of it more
    if shifts.explained < MIN_EXPLAINED and shifts.typical_change > texture / 2:
        reasons.append(NullReason.NOT_A_SHIFT)
        return _change(shrunk_THWC, ground_HW, np.zeros((len(shrunk_THWC), 2))), None
    motion_px = float(np.linalg.norm(shifts.shift_T2[1:], axis=-1).mean()) * px
    return _change(shrunk_THWC, ground_HW, shifts.shift_T2), motion_px


def _ground(tracks: BoxTracks) -> Flags:
    """[height, width] of the frame: what no box covers in any frame, held boxes among them."""
    margin = max(2.0, MARGIN_SHARE * max(tracks.height, tracks.width))
    is_ground_HW = np.ones((tracks.height, tracks.width), np.bool_)
    size_4 = np.array([tracks.width, tracks.height] * 2)
    for boxes_T4 in tracks.boxes_NT4:
        # between two frames a box covers what lies between its places, too
        ends_T4 = np.concatenate([np.minimum(boxes_T4[:-1], boxes_T4[1:]), np.maximum(boxes_T4[:-1], boxes_T4[1:])], 1)
        swept_T4 = np.clip(ends_T4[:, [0, 1, 6, 7]] + [-margin, -margin, margin, margin], 0, size_4)
        for x0, y0, x1, y1 in swept_T4.round().astype(int):
            is_ground_HW[y0:y1, x0:x1] = False
    return is_ground_HW


def _at_side(frames_THWC: Frames, is_ground_HW: Flags, side_px: int) -> tuple[Ground, Ground]:
    """Frames and ground shrunk to a longer side of at most side_px; the ground in [0, 1]."""
    import cv2

    height, width = is_ground_HW.shape
    scale = min(1.0, side_px / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    shrunk = [cv2.resize(np.ascontiguousarray(frame), size, interpolation=cv2.INTER_AREA) for frame in frames_THWC]
    ground_HW = cv2.resize(is_ground_HW.astype(np.float32), size, interpolation=cv2.INTER_AREA)
    return np.stack(shrunk).astype(np.float32), (ground_HW > 0.99).astype(np.float32)


def _texture(frame_HWC: Ground, ground_HW: Ground) -> float:
    """How much the ground changes in the direction in which it changes least, grey levels per pixel."""
    down_HW, across_HW = np.gradient(frame_HWC.mean(axis=-1))
    inner = _inner(ground_HW) > 0
    gradients_P2 = np.stack([across_HW[inner], down_HW[inner]], axis=-1).astype(np.float64)
    if not len(gradients_P2):
        return 0.0
    return float(np.sqrt(max(0.0, np.linalg.eigvalsh(gradients_P2.T @ gradients_P2 / len(gradients_P2))[0])))


def _inner(ground_HW: Ground) -> Ground:
    """The ground without its outermost pixel, whose gradient reaches into the objects."""
    import cv2

    return np.asarray(cv2.erode(ground_HW, np.ones((3, 3), np.uint8)), np.float32)


def _shifts(frames_THWC: Frames, is_ground_HW: Flags) -> _Shifts:
    """The shift of each frame's background, found in the smallest frames and refined in larger ones."""
    scales = [_at_side(frames_THWC, is_ground_HW, side) for side in SIDES_PX]
    shift_T2 = np.stack([np.zeros(2), *_coarse_shifts(*scales[0])])
    before_THWC = scales[0][0]
    for shrunk_THWC, ground_HW in scales:
        shift_T2 = shift_T2 * shrunk_THWC.shape[2] / before_THWC.shape[2]
        before_THWC = shrunk_THWC
        shift_T2[1:] = np.stack(list(_refined(shrunk_THWC, ground_HW, shift_T2)))
    changed, left, typical = 0.0, 0.0, 0.0
    for t in range(1, len(shrunk_THWC)):
        residual_HWC, valid_HW = _difference(shrunk_THWC[0], shrunk_THWC[t], ground_HW, shift_T2[t])
        change_HWC, _ = _difference(shrunk_THWC[0], shrunk_THWC[t], ground_HW, np.zeros(2))
        if not valid_HW.any():
            continue
        residual_PC, change_PC = residual_HWC[valid_HW > 0], change_HWC[valid_HW > 0]
        # the same in the whole frame is a change of the light
        left += float(((residual_PC - residual_PC.mean(axis=0)) ** 2).sum())
        changed += float(((change_PC - change_PC.mean(axis=0)) ** 2).sum())
        typical = max(typical, float(np.median(np.abs(change_PC - np.median(change_PC, axis=0)))))
    return _Shifts(shift_T2, 1.0 - left / changed if changed > 0 else 0.0, typical)


def _coarse_shifts(frames_THWC: Ground, ground_HW: Ground) -> Iterator[Floats]:
    """The whole-pixel shift of each frame but the first at which the grounds that overlap differ least.

    All shifts at once, by correlation in the Fourier domain.
    """
    height, width = ground_HW.shape
    size = (2 * height, 2 * width)

    def transform(picture_HW: Ground) -> NDArray[np.complex128]:
        return np.fft.rfft2(picture_HW, size)

    def correlation(first: NDArray[np.complex128], later: NDArray[np.complex128]) -> Floats:
        return np.fft.irfft2(np.conj(first) * later, size)

    grey_THW = (frames_THWC - frames_THWC[0][ground_HW > 0].mean(axis=0)).mean(axis=-1)
    mask, first, first_squared = (transform(ground_HW * grey_THW[0] ** power) for power in (0, 1, 2))
    overlap_HW = correlation(mask, mask)
    enough_HW = overlap_HW >= MIN_OVERLAP * ground_HW.sum()
    y_H, x_W = (np.fft.fftfreq(length, 1 / length) for length in size)
    distance_HW = np.hypot(*np.meshgrid(x_W, y_H)) / np.hypot(*size)  # of equally good shifts the shortest
    for grey_HW in grey_THW[1:]:
        later, later_squared = (transform(ground_HW * grey_HW**power) for power in (1, 2))
        squared_HW = correlation(first_squared, mask) + correlation(mask, later_squared) - 2 * correlation(first, later)
        difference_HW = np.where(enough_HW, squared_HW / np.maximum(overlap_HW, 1.0), np.inf) + distance_HW
        y, x = np.unravel_index(np.argmin(difference_HW), size)
        yield np.array([x_W[x], y_H[y]])


def _refined(frames_THWC: Ground, ground_HW: Ground, shift_T2: Floats) -> Iterator[Floats]:
    """The shift of each frame but the first to a fraction of a pixel.

    Gauss-Newton on the pixels P of the ground, with Tukey's weights, which leave out what changed in another way.
    """
    inner_HW = _inner(ground_HW) > 0
    first_PC = frames_THWC[0][inner_HW]
    down_PC, across_PC = (np.gradient(frames_THWC[0], axis=axis)[inner_HW] for axis in (0, 1))
    for later_HWC, shift_2 in zip(frames_THWC[1:], shift_T2[1:], strict=True):
        for _ in range(MAX_ITERATIONS):
            seen_P1 = (_moved(ground_HW, -shift_2)[inner_HW] > 0.99)[:, None]
            residual_PC = _moved(later_HWC, -shift_2)[inner_HW] - first_PC
            if seen_P1.sum() < 16:
                break
            residual_PC -= np.median(residual_PC[seen_P1[:, 0]], axis=0)
            spread = max(1.0, 1.4826 * float(np.median(np.abs(residual_PC[seen_P1[:, 0]]))))
            weights_PC = seen_P1 * np.maximum(1 - (residual_PC / (4.685 * spread)) ** 2, 0) ** 2
            across_down = float((weights_PC * across_PC * down_PC).sum())
            tensor_22 = np.array(
                [
                    [float((weights_PC * across_PC**2).sum()), across_down],
                    [across_down, float((weights_PC * down_PC**2).sum())],
                ]
            )
            if np.linalg.det(tensor_22) <= 1e-9 * np.trace(tensor_22) ** 2:
                break
            towards_2 = [float((weights_PC * slope_PC * residual_PC).sum()) for slope_PC in (across_PC, down_PC)]
            step_2 = -np.linalg.solve(tensor_22, np.array(towards_2))
            shift_2 = shift_2 + np.clip(step_2, -2, 2)
            if np.abs(step_2).max() < SMALL_STEP_PX:
                break
        yield shift_2


def _moved(picture: Ground, shift_2: Floats) -> Ground:
    import cv2

    shift_23 = np.column_stack([np.eye(2), shift_2])
    return np.asarray(cv2.warpAffine(picture, shift_23, picture.shape[1::-1], flags=cv2.INTER_LINEAR), np.float32)


def _difference(first_HWC: Ground, later_HWC: Ground, ground_HW: Ground, shift_2: Floats) -> tuple[Ground, Ground]:
    """A frame minus frame 0 moved by a shift, and where both show the ground."""
    valid_HW = ground_HW * (_moved(ground_HW, shift_2) > 0.99)
    return later_HWC - _moved(first_HWC, shift_2), valid_HW.astype(np.float32)


def _change(frames_THWC: Ground, ground_HW: Ground, shift_T2: Floats) -> float | None:
    """background_change. None where the shifts leave nothing to compare."""
    changes = []
    for t in range(1, len(frames_THWC)):
        difference_HWC, valid_HW = _difference(frames_THWC[0], frames_THWC[t], ground_HW, shift_T2[t])
        if valid_HW.any():
            changes.append(float(np.abs(difference_HWC[valid_HW > 0]).mean()))
    return float(np.mean(changes)) if changes else None


def _object_distance(
    frames_THWC: Frames, tracks: BoxTracks, followed: Sequence[Following], tracker: PointTracker, reasons: list[str]
) -> float | None:
    """bg_object_distance_px. Appends why it is None."""
    moving = [each for each, still in zip(followed, is_still(tracks), strict=True) if not still]
    measured = [each for each in moving if each.null_reason is None]
    if not measured:
        reasons += [each.null_reason for each in moving if each.null_reason] or [
            NullReason.STILL if tracks.num_boxes else NullReason.NO_BOXES
        ]
        return None
    height, width = frames_THWC.shape[1:3]
    places = (np.arange(GRID) + 0.5) / GRID
    queries_Q2 = np.stack(np.meshgrid(places * width, places * height), axis=-1).reshape(-1, 2)
    points = track(tracker, frames_THWC, queries_Q2)
    if points.visible_TQ[1:].mean() < MIN_VISIBLE:
        reasons.append(NullReason.TOO_FEW_GROUND_POINTS)
        return None
    displacement_TQ2 = points.points_TQ2 - queries_Q2
    distances = []
    for each in measured:
        distance_TQ = np.linalg.norm(displacement_TQ2 - each.measured_T2[:, None], axis=-1)
        counted_TQ = points.visible_TQ & each.counted_T[:, None]
        if counted_TQ.any():
            distances.append(float(distance_TQ[counted_TQ].mean()))
    return float(np.mean(distances)) if distances else None
