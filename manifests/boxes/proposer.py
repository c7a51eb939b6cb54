"""What a box proposer is: a picture in, boxes of the things in it out.

Axes: H, W of the source image. Boxes are xyxy, pixels of the source image, half-open.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sgi2v.errors import SGI2VError


class PictureError(SGI2VError):
    """A picture, or a box of it, that cannot be used; `str()` says why, `code` names the kind."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, eq=False)
class Proposal:
    """One box of one picture."""

    box_xyxy: tuple[float, float, float, float]
    score: float = 1.0
    """How sure the proposer is, 0 to 1; the best come first."""
    label: str = ""
    """Class of the object where the proposer knows it."""
    mask_HW: NDArray[np.bool_] | None = None
    """Pixels of the object where the proposer knows them, in the source image."""


class BoxProposer(Protocol):
    """A source of boxes. It is picklable, and gives the same boxes for the same picture and name in every process."""

    name: str

    def propose(self, image_HWC: NDArray[np.uint8], key: str) -> list[Proposal]:
        """The boxes of one picture, best first; an empty list where it has none.

        image_HWC: RGB, upright as it is displayed. key: the picture's location relative to the place that was asked
        for, by which masks and detections are found. Raises PictureError.
        """
        ...
