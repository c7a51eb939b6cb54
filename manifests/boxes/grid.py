"""Boxes on a grid, whatever the picture shows. Boxes are xyxy, pixels of the source image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from manifests.boxes.proposer import PictureError, Proposal, Proposed
from sgi2v.settings import Settings


class Grid(Settings):
    """One box in the middle of every cell of a grid; those near the picture's centre come first."""

    section: ClassVar[str] = "boxes"
    name: ClassVar[str] = "grid"
    finds_objects: ClassVar[bool] = True

    columns: Annotated[int, Field(ge=1, le=16)] = 4
    """Cells across the picture."""
    rows: Annotated[int, Field(ge=1, le=16)] = 3
    """Cells down the picture."""
    fill: Annotated[float, Field(gt=0, le=1)] = 0.8
    """Share of a cell's width and height that its box takes."""

    def check(self, keys: Sequence[str]) -> list[PictureError]:
        """No entries: the pictures' sizes are all that is needed."""
        return []

    def propose(self, image_HWC: NDArray[np.uint8], key: str) -> Proposed:
        """One box a cell. The scores are 1, because nothing is known of what the boxes show."""
        height, width, _ = image_HWC.shape
        w, h = width / self.columns, height / self.rows
        cells = [(column + 0.5, row + 0.5) for row in range(self.rows) for column in range(self.columns)]
        cells.sort(key=lambda cell: math.hypot((cell[0] - self.columns / 2) * w, (cell[1] - self.rows / 2) * h))
        half = self.fill / 2
        boxes = [((x - half) * w, (y - half) * h, (x + half) * w, (y + half) * h) for x, y in cells]
        return Proposed([Proposal(box) for box in boxes], [])
