"""Pictures of squares whose boxes are known, and a proposer that finds them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from manifests.boxes.proposer import PictureError, Proposal, Proposed
from sgi2v.settings import Settings

WIDTH, HEIGHT = 256, 144


def boxes_of(number: int) -> list[tuple[int, int, int, int]]:
    """The boxes of a picture: one to three squares that do not touch, red, green and blue, with texture."""
    rng = np.random.default_rng(number)
    middles = [(48, 60), (128, 80), (208, 64)][: 1 + number % 3]
    sides = rng.integers(16, 40, len(middles)) // 2 * 2
    return [(x - s // 2, y - s // 2, x + s // 2, y + s // 2) for (x, y), s in zip(middles, sides.tolist(), strict=True)]


def draw_squares(number: int) -> Image.Image:
    """The picture with these boxes. Another number is another file."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), (40, 40, number % 200))
    pixels_HWC = np.array(picture)
    for channel, (x0, y0, x1, y1) in enumerate(boxes_of(number)):
        pixels_HWC[y0:y1, x0:x1] = 0
        pixels_HWC[y0:y1, x0:x1, channel] = np.random.default_rng(number).integers(100, 256, (y1 - y0, x1 - x0))
    return Image.fromarray(pixels_HWC)


def write_squares(folder: Path, count: int) -> Path:
    """A folder of such pictures: `00.png` and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        draw_squares(number).save(folder / f"{number:02}.png")
    return folder


class Squares(Settings):
    """Finds the squares by their colours."""

    section: ClassVar[str] = "boxes"
    name: ClassVar[str] = "squares"
    finds_objects: ClassVar[bool] = True

    unused: str | None = None
    """A picture that `check` tells of."""

    def check(self, keys: Sequence[str]) -> list[PictureError]:
        return [PictureError("annotation_unused", f"{self.unused} is not there")] if self.unused else []

    def propose(self, image_HWC: NDArray[np.uint8], key: str) -> Proposed:
        if image_HWC.shape[0] == 1:
            raise ZeroDivisionError("a fault of the proposer")
        if image_HWC.shape[:2] != (HEIGHT, WIDTH):
            raise PictureError("picture_size", "not a picture of squares")
        boxes = []
        for channel in range(3):
            mask_HW = (image_HWC[..., channel] >= 100) & (image_HWC.sum(2) == image_HWC[..., channel])
            if mask_HW.any():
                (y0, y1), (x0, x1) = (np.flatnonzero(mask_HW.any(axis))[[0, -1]] for axis in (1, 0))
                box = (float(x0), float(y0), float(x1 + 1), float(y1 + 1))
                boxes.append(Proposal(box, 1.0 - len(boxes) / 10, mask_HW=mask_HW))
        return Proposed(boxes, [])
