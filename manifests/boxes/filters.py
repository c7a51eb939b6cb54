"""Which proposed boxes can be moved and followed, and which are told to stay.

Axes: T frames, N moving boxes, H W of the source image. Boxes are xyxy, pixels of the source image.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from manifests.boxes.geometry import areas, separate, shared_areas
from manifests.boxes.proposer import Box, PictureError, Proposal
from sgi2v.settings import Settings

LARGEST_CROP = 256
"""Longer side to which a box is shrunk before its texture is measured, pixels."""


class BoxFilters(Settings):
    """What a box must be like to be moved. A filter is off at its least strict value: 0, or 1 for the upper limits."""

    section: ClassVar[str] = "filters"

    min_area: Annotated[float, Field(ge=0, le=1)] = 0.002
    """Smallest area, as a share of the picture."""
    max_area: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Largest area, as a share of the picture."""
    min_side: Annotated[float, Field(ge=0)] = 32.0
    """Shortest side in the output, pixels. A tracker loses smaller boxes."""
    min_texture: Annotated[float, Field(ge=0)] = 1.0
    """Least texture: grey levels per output pixel in the direction in which the box changes least. A tracker cannot
    follow a smooth surface, or stripes along themselves."""
    min_border: Annotated[float, Field(ge=0, le=0.5)] = 0.01
    """Smallest distance from the picture's border, as a share of the picture's shorter side."""
    max_overlap: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Largest area that two boxes share, as a share of the smaller one. The better box stays."""
    max_boxes: Annotated[int, Field(ge=1, le=256)] = 8
    """Most boxes of one picture. The best ones stay."""


class Filtered(NamedTuple):
    """What filters left of a picture's boxes."""

    kept: list[Proposal]
    """In their order."""
    dropped: list[PictureError]
    """One entry for each other box."""


def filtered(
    proposals: Sequence[Proposal],
    image_HWC: NDArray[np.uint8],
    filters: BoxFilters,
    scale_xy: tuple[float, float] = (1.0, 1.0),
) -> Filtered:
    """The boxes that pass every filter; of each other one, the first filter that it does not pass.

    proposals: boxes inside the picture, best first. scale_xy: output pixels per pixel of the source image.
    """
    fits: list[Proposal] = []
    dropped: list[PictureError] = []
    for proposal in proposals:
        fault = _fault(proposal.box_xyxy, image_HWC, filters, scale_xy)
        if fault is None:
            fits.append(proposal)
        else:
            dropped.append(fault)
    apart = separate([each.box_xyxy for each in fits], filters.max_overlap)
    for n, each in enumerate(fits):
        if n not in apart:
            message = (
                f"{described(each.box_xyxy)} overlaps a better one: filters.max_overlap is {filters.max_overlap:g}"
            )
            dropped.append(PictureError("overlap", message))
    for n in apart[filters.max_boxes :]:
        limit = f"filters.max_boxes is {filters.max_boxes}"
        dropped.append(PictureError("boxes_many", f"{described(fits[n].box_xyxy)} is not among the best: {limit}"))
    return Filtered([fits[n] for n in apart[: filters.max_boxes]], dropped)


def _fault(
    box: Box, image_HWC: NDArray[np.uint8], filters: BoxFilters, scale_xy: tuple[float, float]
) -> PictureError | None:
    """The first filter that a box does not pass by itself."""
    height, width, _ = image_HWC.shape
    share = float(areas(box)[0]) / (height * width)
    side = min((box[2] - box[0]) * scale_xy[0], (box[3] - box[1]) * scale_xy[1])
    border = min(box[0], box[1], width - box[2], height - box[3]) / min(height, width)
    if share < filters.min_area:
        return _too("area_small", box, f"takes {share:.2%} of the picture", "min_area", f"{filters.min_area:.2%}")
    if share > filters.max_area:
        return _too("area_large", box, f"takes {share:.0%} of the picture", "max_area", f"{filters.max_area:.0%}")
    if side < filters.min_side:
        measured = f"has a side of {side:.0f} px in the output"
        return _too("side_small", box, measured, "min_side", f"{filters.min_side:g} px")
    if border < filters.min_border:
        measured = f"is {max(border, 0.0):.1%} of the shorter side away from the border"
        return _too("border_near", box, measured, "min_border", f"{filters.min_border:.1%}")
    if filters.min_texture and (measure := texture(box, image_HWC, scale_xy)) < filters.min_texture:
        measured = f"has a texture of {measure:.2f} grey levels per pixel"
        return _too("texture_low", box, measured, "min_texture", f"{filters.min_texture:g}")
    return None


def _too(code: str, box: Box, measured: str, name: str, limit: str) -> PictureError:
    return PictureError(code, f"{described(box)} {measured}: filters.{name} is {limit}")


def described(box: Box) -> str:
    """`the box [12, 30, 80, 95]`, for messages."""
    return f"the box [{', '.join(f'{value:.4g}' for value in box)}]"


def texture(box: Box, image_HWC: NDArray[np.uint8], scale_xy: tuple[float, float] = (1.0, 1.0)) -> float:
    """How much the box changes in the direction in which it changes least, grey levels per output pixel.

    It is the root of the smaller eigenvalue of the mean structure tensor, on which corner detectors and Lucas-Kanade
    trackers depend (Shi and Tomasi, "Good Features to Track", CVPR 1994). 0 for a box of less than three pixels.
    """
    height, width, _ = image_HWC.shape
    x0, y0 = max(0, int(box[0])), max(0, int(box[1]))
    x1, y1 = min(width, int(np.ceil(box[2]))), min(height, int(np.ceil(box[3])))
    if x1 - x0 < 3 or y1 - y0 < 3:
        return 0.0
    crop_HW = cv2.cvtColor(image_HWC[y0:y1, x0:x1], cv2.COLOR_RGB2GRAY).astype(np.float32)
    sides = np.array([(x1 - x0) * scale_xy[0], (y1 - y0) * scale_xy[1]])
    shrunk = min(1.0, LARGEST_CROP / float(sides.max()))
    size = np.maximum(np.rint(sides * shrunk), 3).astype(int).tolist()
    smaller = size[0] * size[1] < crop_HW.size
    crop_HW = cv2.resize(crop_HW, size, interpolation=cv2.INTER_AREA if smaller else cv2.INTER_LINEAR)
    across, down = (cv2.Sobel(crop_HW, cv2.CV_32F, *order) / 8 * shrunk for order in ((1, 0), (0, 1)))
    tensor = [[(across * across).mean(), (across * down).mean()], [(across * down).mean(), (down * down).mean()]]
    return float(np.sqrt(max(0.0, np.linalg.eigvalsh(np.array(tensor, np.float64))[0])))


def still_boxes(
    proposals: Sequence[Proposal], moving_TN4: NDArray[np.float64], margin_px: float, max_boxes: int
) -> list[Proposal]:
    """The proposed boxes to hold while others move, so that the method does not move the wrong thing; best first.

    proposals: all boxes of the picture, also those that no filter passed: a thing that is too small to be followed
    can still be told to stay. moving_TN4: the moving boxes in every frame. Left out are boxes that come within
    margin_px of where a moving box is in any frame, which would be told opposite things (the moving boxes themselves
    among them), boxes that overlap a better one by more than half, and what is beyond max_boxes.
    """
    room = np.array([-margin_px, -margin_px, margin_px, margin_px])
    taken = np.asarray(moving_TN4, np.float64).reshape(-1, 4) + room
    free = [each for each in proposals if not (shared_areas(each.box_xyxy, taken) > 0).any()]
    return [free[n] for n in separate([each.box_xyxy for each in free], 0.5)[:max_boxes]]
