"""Box tracks: where each box should be in each frame. Needs NumPy only.

Axes: N boxes, T frames, P path points. Boxes are xyxy, pixels, half-open; x runs right, y down.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from sgi2v.errors import ErrorCode, TrajectoryError

Floats = NDArray[np.float64]


def resample_path(points: Floats, num_frames: int) -> Floats:
    """Resample evenly timed points [P, ...] linearly to [T, ...]; the identity if P = T."""
    points = np.asarray(points, np.float64)
    at = np.linspace(0.0, len(points) - 1.0, num_frames)
    lower = np.floor(at).astype(int)
    upper = np.minimum(lower + 1, len(points) - 1)
    fraction = (at - lower).reshape(-1, *[1] * (points.ndim - 1))
    # in this form, a path that stands still keeps its points to the bit
    resampled: Floats = points[lower] + (points[upper] - points[lower]) * fraction
    return resampled


def boxes_outside(boxes_N4: Floats, height: int, width: int) -> Iterator[tuple[int, TrajectoryError]]:
    """Yield (index, error) for each frame-0 box that has no area inside a frame of [height, width] pixels."""
    clipped_N4 = np.clip(boxes_N4, 0.0, np.array([width, height] * 2, np.float64))
    for n, (box, (x0, y0, x1, y1)) in enumerate(zip(boxes_N4, clipped_N4, strict=True)):
        if not (x0 < x1 and y0 < y1):
            message = (
                f"box {n} {np.round(box, 2).tolist()} has no area inside the first frame "
                f"({width} x {height} px): give [x0, y0, x1, y1] with x0 < x1 and y0 < y1 inside it"
            )
            yield n, TrajectoryError(ErrorCode.BOX_OUTSIDE, message)


@dataclass(frozen=True)
class BoxTracks:
    """N boxes over T frames, in pixels of a frame of the stated size."""

    boxes_NT4: Floats
    """xyxy per box and frame, pixels, half-open."""
    height: int
    """Height of the frame that the pixels refer to."""
    width: int
    """Width of the frame that the pixels refer to."""
    still_N: NDArray[np.bool_] | None = None
    """Whether each box is only held where it is, and not scored as followed; None: no box is."""

    masks_NHW: NDArray[np.uint8] | None = None
    """How much of each cell of an even grid over frame 0, of any size, is the object: 255 (or True) is all. None: the
    objects fill their boxes."""

    def __post_init__(self) -> None:
        boxes_NT4 = np.asarray(self.boxes_NT4, np.float64)
        if boxes_NT4.ndim != 3 or boxes_NT4.shape[-1] != 4:
            message = f"expected box tracks of shape [boxes, frames, 4], got {list(boxes_NT4.shape)}"
            raise TrajectoryError(ErrorCode.TRAJECTORY_INVALID, message)
        if not np.isfinite(boxes_NT4).all():
            raise TrajectoryError(ErrorCode.TRAJECTORY_INVALID, "box tracks contain NaN or infinite coordinates")
        if self.still_N is not None and self.still_N.shape != boxes_NT4.shape[:1]:
            message = f"expected one entry of still per box ({len(boxes_NT4)}), got {list(self.still_N.shape)}"
            raise TrajectoryError(ErrorCode.TRAJECTORY_INVALID, message)
        masks_NHW = self.masks_NHW
        if masks_NHW is not None and (masks_NHW.ndim != 3 or len(masks_NHW) != len(boxes_NT4)):
            message = f"expected masks of shape [{len(boxes_NT4)}, height, width], got {list(masks_NHW.shape)}"
            raise TrajectoryError(ErrorCode.TRAJECTORY_INVALID, message)
        if masks_NHW is not None and masks_NHW.dtype == bool:
            object.__setattr__(self, "masks_NHW", masks_NHW.astype(np.uint8) * 255)
        object.__setattr__(self, "boxes_NT4", boxes_NT4)

    @classmethod
    def from_paths(
        cls,
        boxes_N4: Floats,
        paths: Sequence[Floats],
        num_frames: int,
        height: int,
        width: int,
        scales: Sequence[Floats] | None = None,
    ) -> BoxTracks:
        """Move frame-0 boxes along paths of their centres.

        boxes_N4: frame-0 boxes, pixels. paths: per box [P, 2] xy in pixels, P >= 2, evenly spaced in time. A box
        moves by path_t - path_0, so that its path need not start at its centre. height, width: of the frame, pixels.
        scales: per box [P], its relative size at these points; None keeps the sizes. Raises TrajectoryError.
        """
        boxes_N4 = np.asarray(boxes_N4, np.float64)
        if boxes_N4.size == 0:
            boxes_N4 = np.empty((0, 4))
        if boxes_N4.ndim != 2 or boxes_N4.shape[-1] != 4:
            message = f"expected boxes of shape [boxes, 4] (x0, y0, x1, y1), got {list(boxes_N4.shape)}"
            raise TrajectoryError(ErrorCode.TRAJECTORY_INVALID, message)
        if scales is not None and len(scales) != len(boxes_N4):
            message = f"expected one list of scales per box ({len(boxes_N4)}), got {len(scales)}"
            raise TrajectoryError(ErrorCode.TRAJECTORY_INVALID, message)
        if len(paths) != len(boxes_N4):
            message = f"expected one trajectory per box ({len(boxes_N4)}), got {len(paths)}"
            raise TrajectoryError(ErrorCode.TRAJECTORY_INVALID, message)
        tracks = np.empty((len(boxes_N4), num_frames, 4))
        for n, (box, path) in enumerate(zip(boxes_N4, paths, strict=True)):
            path = np.asarray(path, np.float64)
            if path.ndim != 2 or path.shape[-1] != 2 or len(path) < 2:
                message = f"trajectory {n} must be two or more [x, y] points, got an array of {list(path.shape)}"
                raise TrajectoryError(ErrorCode.TRAJECTORY_INVALID, message)
            if not np.isfinite(path).all():
                message = f"trajectory {n} contains NaN or infinite coordinates"
                raise TrajectoryError(ErrorCode.TRAJECTORY_INVALID, message)
            path_T2 = resample_path(path, num_frames)
            shift_T4 = np.tile(path_T2 - path_T2[0], 2)
            tracks[n] = box + shift_T4
            if scales is not None:
                scale = np.asarray(scales[n], np.float64)
                if scale.shape != path.shape[:1] or not (np.isfinite(scale) & (scale > 0)).all():
                    message = f"scales of box {n} must be {len(path)} positive numbers, one per point of its trajectory"
                    raise TrajectoryError(ErrorCode.TRAJECTORY_INVALID, message)
                scale_T = resample_path(scale, num_frames)
                centre = np.tile((box[:2] + box[2:]) / 2, 2)
                zoomed_T4 = centre + (box - centre) * (scale_T / scale_T[0])[:, None]
                tracks[n] = np.where((scale_T == scale_T[0])[:, None], tracks[n], zoomed_T4 + shift_T4)
        return cls(tracks, height, width)

    @property
    def num_boxes(self) -> int:
        """N, the number of boxes."""
        return int(self.boxes_NT4.shape[0])

    @property
    def num_frames(self) -> int:
        """T, the number of frames."""
        return int(self.boxes_NT4.shape[1])

    @property
    def centres_NT2(self) -> Floats:
        """Centre of each box, xy, pixels."""
        return (self.boxes_NT4[..., :2] + self.boxes_NT4[..., 2:]) / 2

    def rescale(self, height: int, width: int) -> BoxTracks:
        """The same tracks in pixels of a frame of another size."""
        if (height, width) == (self.height, self.width):
            return self
        new_size, old_size = np.array([width, height] * 2), np.array([self.width, self.height] * 2)
        # multiply first, or a coordinate on a cell's border could land just below it
        return replace(self, boxes_NT4=self.boxes_NT4 * new_size / old_size, height=height, width=width)

    def resample(self, num_frames: int) -> BoxTracks:
        """The same motion over another number of frames, linearly interpolated."""
        if num_frames == self.num_frames:
            return self
        boxes_TN4 = resample_path(self.boxes_NT4.swapaxes(0, 1), num_frames)
        return replace(self, boxes_NT4=boxes_TN4.swapaxes(0, 1))

    def clip_to_first_frame(self) -> BoxTracks:
        """Cut off what lies outside the frame in frame 0: the same share of the box in every frame.

        Raises TrajectoryError(box_outside) for a box that is wholly outside in frame 0 or has no area there.
        """
        first_N4 = self.boxes_NT4[:, 0]
        for _, error in boxes_outside(first_N4, self.height, self.width):
            raise error
        clipped_N4 = np.clip(first_N4, 0.0, np.array([self.width, self.height] * 2, np.float64))
        first_size = np.tile(first_N4[:, 2:] - first_N4[:, :2], 2)
        size_NT4 = np.tile(self.boxes_NT4[..., 2:] - self.boxes_NT4[..., :2], 2)
        cut_NT4 = ((clipped_N4 - first_N4) / first_size)[:, None] * size_NT4
        return replace(self, boxes_NT4=self.boxes_NT4 + cut_NT4)

    def cells(self, cell_px: int) -> NDArray[np.int64]:
        """[N, T, 4] xyxy in latent cells of `cell_px` pixels a side: floor(px / cell_px), at least one cell a side."""
        cells_NT4 = np.floor(self.boxes_NT4 / cell_px).astype(np.int64)
        cells_NT4[..., 2:] = np.maximum(cells_NT4[..., 2:], cells_NT4[..., :2] + 1)
        return cells_NT4

    def centre_inside_NT(self) -> NDArray[np.bool_]:
        """[N, T]: whether the box's centre is inside the frame."""
        x, y = np.moveaxis(self.centres_NT2, -1, 0)
        return np.asarray((x >= 0) & (x < self.width) & (y >= 0) & (y < self.height))
