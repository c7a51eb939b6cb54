"""How a picture fills the frames of a video of another shape. Boxes, paths and masks go with it.

    crop      the largest part of the picture that has the video's shape. It holds the boxes and their paths, and is as
              near the picture's centre as that allows
    pad       the whole picture, with black bars beside it
    stretch   the whole picture, squeezed along one side
    bucket    frames of the size that is nearest to the picture's shape, among the sizes that the model can make of at
              most the run's area; what is left over is cropped

Axes: N boxes, T frames, H W pixels, C colours. Boxes are xyxy, pixels, half-open.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from manifests.masks import Mask
from sgi2v.errors import ErrorCode, SampleError, TrajectoryError
from sgi2v.trajectory import BoxTracks, boxes_outside
from sgi2v.video import resize_image

Fit = Literal["crop", "pad", "stretch", "bucket"]
FITS: tuple[Fit, ...] = get_args(Fit)

BUCKET_AREA = 0.85
"""Smallest area of a bucket, as a share of the run's. None is larger than the run's, so the memory tier that was chosen
for the run's size holds for all of them."""
BUCKET_SHAPE = 3.0
"""Longest bucket: its longer side in its shorter ones. Longer pictures are cropped: the model was trained on 16:9."""
ROUNDING_PX = 0.1
"""Boxes that reach this far out of the window are held by it: manifests have rounded coordinates."""
FILLED_PX = 1.0
"""Boxes whose extent differs from the window's by less than this fill it."""


@dataclass(frozen=True)
class VideoSize:
    """The size of a run's videos, and how pictures of another shape are fitted if their rows do not say."""

    height: int
    width: int
    fit: Fit = "crop"
    multiple: int = 64
    """Height and width of every video that the model can make are multiples of this, pixels."""

    @cached_property
    def buckets(self) -> frozenset[tuple[int, int]]:
        """(height, width) of every size that `bucket` chooses from; its own among them."""
        area = self.height * self.width
        sizes = {
            (height, width)
            for height in range(self.multiple, area // self.multiple + 1, self.multiple)
            for width in range(self.multiple, area // height + 1, self.multiple)
            if height * width >= BUCKET_AREA * area and max(height, width) <= BUCKET_SHAPE * min(height, width)
        }
        return frozenset({*sizes, (self.height, self.width)})


@dataclass(frozen=True)
class Placement:
    """Which part of a picture fills which part of a video's frames."""

    fit: Fit
    height: int
    """Of the frames, pixels."""
    width: int
    """Of the frames, pixels."""
    source_box: tuple[float, float, float, float]
    """The part of the picture that is shown, in its pixels."""
    picture_box: tuple[int, int, int, int]
    """The part of the frames that shows it; the rest is black."""
    holds_all: bool = True
    """Whether every box, in every frame, lies in the part that is shown, but for what is outside the picture. If the
    boxes fill the part in frame 0, the camera moves: they leave every part, and where they begin counts."""

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of the frames for a pixel of the picture, in x and in y."""
        (x0, y0, x1, y1), (left, top, right, bottom) = self.source_box, self.picture_box
        return (right - left) / (x1 - x0), (bottom - top) / (y1 - y0)

    def image(self, image_HWC: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """A frame [H, W, 3] that shows the picture."""
        left, top, right, bottom = self.picture_box
        picture_HWC = resize_image(image_HWC, bottom - top, right - left, self.source_box)
        if picture_HWC.shape[:2] == (self.height, self.width):
            return picture_HWC
        frame_HWC = np.zeros((self.height, self.width, 3), np.uint8)
        frame_HWC[top:bottom, left:right] = picture_HWC
        return frame_HWC

    def mask(self, mask_HW: Mask | None) -> NDArray[np.uint8]:
        """How much of each pixel of the frame is the object: 255 is all, as everywhere without a mask."""
        frame_HW = np.zeros((self.height, self.width), np.uint8)
        left, top, right, bottom = self.picture_box
        if mask_HW is None:
            frame_HW[:] = 255
        else:
            image = Image.fromarray(mask_HW.astype(np.uint8) * 255)
            resized = image.resize((right - left, bottom - top), Image.Resampling.BOX, self.source_box)
            frame_HW[top:bottom, left:right] = np.asarray(resized)
        return frame_HW

    def box_masks(self, masks: Iterable[Mask | None], tracks: BoxTracks) -> Iterator[NDArray[np.uint8]]:
        """The mask of each box as `mask` gives it, one after the other. tracks: of the picture.

        Raises SampleError(mask_invalid) for an object of which nothing is shown in its box: nothing could be compared.
        """
        first_N4 = np.clip(self.tracks(tracks).boxes_NT4[:, 0], 0, [self.width, self.height] * 2)
        for n, (mask_HW, box) in enumerate(zip(masks, first_N4, strict=True)):
            frame_HW = self.mask(mask_HW)
            (x0, y0), (x1, y1) = np.floor(box[:2]).astype(int), np.ceil(box[2:]).astype(int)
            if not frame_HW[y0:y1, x0:x1].any():
                message = (
                    f"nothing of mask {n} is in the part of the picture that fit = {self.fit} keeps "
                    f"({np.round(self.source_box).astype(int).tolist()}): use fit = pad"
                )
                raise SampleError(ErrorCode.MASK_INVALID, message)
            yield frame_HW

    def tracks(self, tracks: BoxTracks) -> BoxTracks:
        """The tracks, given in pixels of the picture, in pixels of the frames."""
        (x0, y0, x1, y1), (left, top, right, bottom) = self.source_box, self.picture_box
        own_size, size = np.array([x1 - x0, y1 - y0] * 2), np.array([right - left, bottom - top] * 2)
        # multiply first, or a coordinate on a cell's border could land just below it
        boxes_NT4 = (tracks.boxes_NT4 - np.array([x0, y0, x0, y0])) * size / own_size + np.array([left, top, left, top])
        return replace(tracks, boxes_NT4=boxes_NT4, height=self.height, width=self.width)

    def lost_boxes(self, tracks: BoxTracks) -> Iterator[tuple[int, TrajectoryError]]:
        """Yield (index, error) for each box that has nothing in the shown part in frame 0. tracks: of the picture."""
        for n, _ in boxes_outside(self.tracks(tracks).boxes_NT4[:, 0], self.height, self.width):
            x0, y0, x1, y1 = (round(side) for side in self.source_box)
            message = (
                f"box {n} {np.round(tracks.boxes_NT4[n, 0], 2).tolist()} lies outside the part of the picture that "
                f"fit = {self.fit} keeps ([{x0}, {y0}, {x1}, {y1}]): use fit = pad, or give the row fewer boxes"
            )
            yield n, TrajectoryError(ErrorCode.BOX_OUTSIDE, message)


def place(tracks: BoxTracks, size: VideoSize, fit: Fit | None = None) -> Placement:
    """How a picture and its boxes fill the frames of a run.

    tracks: in pixels of the picture. fit: the row's; None takes the run's.
    """
    fit = fit or size.fit
    height, width = size.height, size.width
    if fit == "bucket":
        height, width = min(size.buckets, key=lambda each: _bucket_rank(each, tracks))
    whole = (0.0, 0.0, float(tracks.width), float(tracks.height))
    if fit == "stretch" or tracks.width * height == tracks.height * width:
        return Placement(fit, height, width, whole, (0, 0, width, height))
    if fit == "pad":
        scale = min(height / tracks.height, width / tracks.width)
        shown = max(1, round(tracks.width * scale)), max(1, round(tracks.height * scale))
        left, top = (width - shown[0]) // 2, (height - shown[1]) // 2
        return Placement(fit, height, width, whole, (left, top, left + shown[0], top + shown[1]))
    if tracks.width * height > tracks.height * width:
        x0, x1, holds_all = _window(tracks, axis=0, length=tracks.height * width / height, side=tracks.width)
        source_box = (x0, 0.0, x1, whole[3])
    else:
        y0, y1, holds_all = _window(tracks, axis=1, length=tracks.width * height / width, side=tracks.height)
        source_box = (0.0, y0, whole[2], y1)
    return Placement(fit, height, width, source_box, (0, 0, width, height), holds_all)


def _bucket_rank(bucket: tuple[int, int], tracks: BoxTracks) -> tuple[float, int]:
    """How far a bucket is from the picture's shape; of two that are as near, the larger one comes first."""
    height, width = bucket
    return abs(math.log(width / height * tracks.height / tracks.width)), -height * width


def _window(tracks: BoxTracks, axis: int, length: float, side: int) -> tuple[float, float, bool]:
    """Start and end, along an axis, of a window of this length in a picture of this side, and whether it holds all."""
    start = (side - length) / 2
    holds_all = True
    if tracks.num_boxes:
        for extent in _extents(tracks, axis):
            low, high = (min(max(each, 0.0), float(side)) for each in extent)
            if high - low <= length + ROUNDING_PX:
                start = min(max(start, high - length, 0.0), low, side - length)
                break
            holds_all = False
        else:
            start = min(max((low + high - length) / 2, 0.0), side - length)
        holds_all = holds_all or abs(high - low - length) <= FILLED_PX
    return start, min(start + length, float(side)), holds_all


def _extents(tracks: BoxTracks, axis: int) -> Iterator[tuple[float, float]]:
    """What the window should hold, as (low, high) along an axis: all, then only what matters more and more."""
    low_NT, high_NT = tracks.boxes_NT4[..., axis], tracks.boxes_NT4[..., 2 + axis]
    yield float(low_NT.min()), float(high_NT.max())
    centre_NT = tracks.centres_NT2[..., axis]
    first_low, first_high = float(low_NT[:, 0].min()), float(high_NT[:, 0].max())
    yield min(first_low, float(centre_NT.min())), max(first_high, float(centre_NT.max()))
    yield first_low, first_high
