"""What a box proposer is: a picture in, boxes of the things in it out.

Axes: H, W of the source image. Boxes are xyxy, pixels of the source image, half-open.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from sgi2v.errors import UnusableError

Box = tuple[float, float, float, float]


class PictureError(UnusableError):
    """A picture, or a box of it, that cannot be used."""


@dataclass(frozen=True, eq=False)
class Proposal:
    """One box of one picture."""

    box_xyxy: Box
    score: float = 1.0
    """How sure the proposer is, 0 to 1; the best come first."""
    label: str = ""
    """Class of the object where the proposer knows it."""
    mask_HW: NDArray[np.bool_] | None = None
    """Pixels of the object where the proposer knows them, in the source image."""


class Proposed(NamedTuple):
    """What a proposer says about one picture."""

    boxes: list[Proposal]
    """The boxes that can be used, best first. They lie inside the picture."""
    notes: list[PictureError]
    """One entry for each box that was left out or changed, and why."""


class BoxProposer(Protocol):
    """A source of boxes. It is picklable, and gives the same boxes for the same picture and key in every process."""

    name: ClassVar[str]
    """The proposer's name on the command line and in recipes."""
    finds_objects: ClassVar[bool]
    """Whether its boxes are of things in the picture, which filters apply to. False for boxes of the camera."""

    def check(self, keys: Sequence[str]) -> list[PictureError]:
        """Compare what the proposer knows with the pictures that will be asked for, once, before the work.

        Returns one entry for each thing that no picture will use, such as annotations of pictures that are not there.
        Raises ConfigError or ManifestError where nothing can work: a file that is missing or unreadable, no annotation
        for any of the pictures, coordinates of another system.
        """
        ...

    def propose(self, image_HWC: NDArray[np.uint8], key: str) -> Proposed:
        """The boxes of one picture; none where it has none.

        image_HWC: RGB, upright as it is displayed. key: the picture's location relative to the place that was asked
        for, by which masks and detections are found. Raises PictureError where the picture has no answer at all, such
        as a mask that is missing or of another size.
        """
        ...
