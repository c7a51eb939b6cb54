"""One box that is the whole picture, for moves of the camera. Boxes are xyxy, pixels of the source image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from manifests.boxes.proposer import PictureError, Proposal, Proposed
from sgi2v.settings import Settings


class Whole(Settings):
    """The whole picture."""

    section: ClassVar[str] = "boxes"
    name: ClassVar[str] = "whole"
    finds_objects: ClassVar[bool] = False

    def check(self, keys: Sequence[str]) -> list[PictureError]:
        """No entries: the pictures' sizes are all that is needed."""
        return []

    def propose(self, image_HWC: NDArray[np.uint8], key: str) -> Proposed:
        """One box of the picture's size."""
        height, width, _ = image_HWC.shape
        return Proposed([Proposal((0.0, 0.0, float(width), float(height)), label="camera")], [])
