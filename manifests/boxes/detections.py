"""Boxes of an object detector: from a file of detections, or from a model that is run on each picture.

Axes: H, W of the source image; N boxes. Boxes are xyxy, pixels of the source image.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from manifests.boxes.annotations import ENDINGS, AnnotatedPicture, Annotation, Annotations, read_annotations
from manifests.boxes.detector import Detector
from manifests.boxes.proposer import Box, PictureError, Proposal, Proposed
from sgi2v.errors import ConfigError
from sgi2v.settings import Settings
from sgi2v.wording import counted, escaped

UNIT = 1.001
"""Largest coordinate of normalised boxes, with room for rounding."""
PERMILLE = 1000
"""Largest coordinate of permille boxes."""
ENOUGH_BOXES = 8
"""Boxes whose largest coordinates say something about their unit."""
BEYOND = 0.1
"""Share of a side that boxes of pixels reach out of their picture at most. Detectors overshoot a little."""


class Detections(Settings):
    """Boxes that a detector found, in a file or by a model, the surest first."""

    section: ClassVar[str] = "boxes"
    name: ClassVar[str] = "detections"
    finds_objects: ClassVar[bool] = True

    place: str | None = None
    """A `.json` file (COCO) or a `.parquet` file with the boxes, as a path or any fsspec URL."""
    model: str | None = None
    """Object detection model of transformers: an id of the Hugging Face Hub, or a folder."""
    revision: str | None = None
    """Commit, branch or tag of the model. None: the newest."""
    device: str = "cpu"
    """Where the model runs: `cpu`, `cuda`, `cuda:1`."""
    images: str | None = None
    """The COCO JSON that names the pictures, where `place` is a file of COCO results."""
    coordinates: Literal["auto", "pixels", "normalised", "permille"] = "auto"
    """Unit of the file's boxes: pixels, shares of the picture's sides (0 to 1), or thousandths of them. `auto` takes
    pixels, and stops where the numbers look like another unit."""
    order: Literal["auto", "xyxy", "xywh", "yxyx", "cxcywh"] = "auto"
    """What the four numbers of the file's boxes are. `auto`: xywh in COCO, xyxy in Parquet."""
    min_score: Annotated[float, Field(ge=0, le=1)] = 0.3
    """Least score of a box. Boxes without a score have 1."""
    labels: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Classes to keep. Empty keeps all."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.place is None) == (self.model is None):
            raise ValueError("give one of boxes.place (a file of detections) and boxes.model (a transformers model)")
        if self.place is not None and not self.place.lower().endswith(ENDINGS):
            raise ValueError(f"boxes.place must end in {' or '.join(ENDINGS)}, not be {self.place!r}")
        return self

    @cached_property
    def _annotations(self) -> Annotations:
        assert self.place is not None
        annotations = read_annotations(self.place, self.images)
        if self.coordinates == "auto":
            raise_for_unit(annotations)
        return annotations

    @cached_property
    def _detector(self) -> Detector:
        assert self.model is not None
        return Detector(self.model, self.revision, self.device)

    def __getstate__(self) -> dict[Any, Any]:
        """Without the model: every process loads its own."""
        state = super().__getstate__()
        return {**state, "__dict__": {key: value for key, value in state["__dict__"].items() if key != "_detector"}}

    def check(self, keys: Sequence[str]) -> list[PictureError]:
        """Detections that no picture will use. Raises ConfigError, ManifestError and StorageError."""
        if self.model is None:
            return [*self._annotations.check(keys), *self._annotations.check_labels(self.labels)]
        self._detector.load()
        return []

    def propose(self, image_HWC: NDArray[np.uint8], key: str) -> Proposed:
        """The boxes of one picture. Raises PictureError where the file says nothing about it, or about another size."""
        height, width, _ = image_HWC.shape
        notes: list[PictureError] = []
        if self.model is not None:
            found = self._detector.detect(image_HWC, self.min_score)
            pairs: list[tuple[Annotation, Any]] = [(each, each.box) for each in found]
        else:
            picture = self._annotations.of(key)
            if picture.size is not None and picture.size != (height, width):
                sizes = f"{picture.size[1]} x {picture.size[0]} pixels, this one has {width} x {height}"
                message = (
                    f"{escaped(self._annotations.place)} is about a picture of {sizes}: give the picture it was made of"
                )
                raise PictureError("picture_size", message)
            if self.coordinates == "auto":
                self._raise_for_permille(picture, (height, width))
            pairs = [(each, self._pixels(each.box, (height, width))) for each in picture.objects]
        proposals, low = [], list[float]()
        for annotation, box in pairs:
            if self.labels and annotation.label not in self.labels:
                continue
            if not (0 <= annotation.score <= 1) or box is None:
                notes.append(_unusable(annotation, self._order))
            elif annotation.score >= self.min_score:
                inside = fitted(box, (height, width), annotation.where, notes)
                if inside is not None:
                    proposals.append(Proposal(inside, annotation.score, annotation.label))
            else:
                low.append(annotation.score)
        if low and not proposals:
            message = f"{len(low)} of its boxes have a score below boxes.min_score, {self.min_score:g}"
            notes.append(PictureError("score_low", f"{message}: the surest has {max(low):.3g}"))
        proposals.sort(key=lambda each: (-each.score, each.box_xyxy))
        return Proposed(proposals, notes)

    @property
    def _order(self) -> str:
        if self.order != "auto":
            return self.order
        return "xywh" if self.place is not None and self.place.lower().endswith(".json") else "xyxy"

    def _pixels(self, numbers: Any, size: tuple[int, int]) -> Box | None:
        """The file's four numbers as xyxy in pixels; None where they are no box."""
        if not _is_four_numbers(numbers):
            return None
        a, b, c, d = (float(value) for value in numbers)
        x0, y0, x1, y1 = {
            "xyxy": (a, b, c, d),
            "xywh": (a, b, a + c, b + d),
            "yxyx": (b, a, d, c),
            "cxcywh": (a - c / 2, b - d / 2, a + c / 2, b + d / 2),
        }[self._order]
        height, width = size
        full = {"normalised": 1.0, "permille": PERMILLE}.get(self.coordinates)
        across, down = (1.0, 1.0) if full is None else (width / full, height / full)
        return (x0 * across, y0 * down, x1 * across, y1 * down) if x0 < x1 and y0 < y1 else None

    def _raise_for_permille(self, picture: AnnotatedPicture, size: tuple[int, int]) -> None:
        """Raise PictureError where the file's numbers look like thousandths in a picture of this size.

        They do where all are whole and at most 1000, come close to it across and down, and the picture is smaller or
        larger than that, or a box reaches out of it. Pictures of 1000 pixels give such numbers too.
        """
        largest = self._largest_whole_numbers
        if largest is None or not all(0.9 * PERMILLE < value <= PERMILLE for value in largest):
            return
        boxes = [box for each in picture.objects if (box := self._pixels(each.box, size)) is not None]
        reaches_out = any(box[2] > size[1] + 1 or box[3] > size[0] + 1 for box in boxes)
        is_larger = min(size) >= 0.99 * PERMILLE and max(size) > (1 + BEYOND) * PERMILLE
        if max(size) < 0.9 * PERMILLE or is_larger or reaches_out:
            message = (
                f"the largest numbers of {escaped(str(self.place))} are {largest[0]:g} and {largest[1]:g}, and this "
                f"picture has {size[1]} x {size[0]} pixels: they look like thousandths of the sides. "
                'Set boxes.coordinates to "permille", or to "pixels" if that is what they are'
            )
            raise PictureError("coordinates", message)

    @cached_property
    def _largest_whole_numbers(self) -> tuple[float, float] | None:
        """The largest far corner of the file across and down; None for numbers with fractions, or too few boxes."""
        numbers = list(_numbers(self._annotations))
        if len(numbers) < ENOUGH_BOXES or any(value != int(value) for box in numbers for value in box):
            return None
        boxes = [box for box in (self._pixels(each, (1, 1)) for each in numbers) if box is not None]
        return (max(box[2] for box in boxes), max(box[3] for box in boxes)) if boxes else None


def raise_for_unit(annotations: Annotations) -> None:
    """Raise ConfigError where no number of any box is larger than 1: the boxes are normalised."""
    numbers = list(_numbers(annotations))
    if numbers and all(abs(value) <= UNIT for box in numbers for value in box):
        count = counted(len(numbers), "box").replace("boxs", "boxes")
        message = f"{escaped(annotations.place)}: all numbers of its {count} are from 0 to 1, so they are no pixels."
        raise ConfigError(f'{message} Set boxes.coordinates to "normalised", or to "pixels" if that is what they are')


def fitted(box: Box, size: tuple[int, int], where: str, notes: list[PictureError]) -> Box | None:
    """The part of a box inside a picture [height, width]; None where the box cannot be of it. Both are noted."""
    height, width = size
    x0, y0, x1, y1 = box
    numbers = ", ".join(f"{value:.5g}" for value in box)
    shown = f"the box of {where}, [{numbers}]"
    picture = f"the picture, which has {width} x {height} pixels"
    if x1 - x0 > width * (1 + BEYOND) or y1 - y0 > height * (1 + BEYOND):
        advice = "check that it was made of this picture, and boxes.coordinates"
        notes.append(PictureError("box_larger", f"{shown}, is larger than {picture}: {advice}"))
        return None
    inside = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
    if inside[0] >= inside[2] or inside[1] >= inside[3]:
        notes.append(PictureError("box_outside", f"{shown}, lies outside {picture}: check boxes.coordinates"))
        return None
    if inside != box and max(-x0, -y0, x1 - width, y1 - height) > 1:
        notes.append(PictureError("box_clipped", f"{shown}, reaches out of {picture}: its part inside is used"))
    return inside


def _unusable(annotation: Annotation, order: str) -> PictureError:
    if not 0 <= annotation.score <= 1:
        message = f"the score of {annotation.where} is {annotation.score}, not a number from 0 to 1"
        return PictureError("annotation_invalid", message)
    message = f"the box of {annotation.where}, {str(annotation.box)[:80]}, has no area as {order}: check boxes.order"
    return PictureError("box_invalid", message)


def _numbers(annotations: Annotations) -> Iterator[Sequence[float]]:
    """The four numbers of every box of the file that has four."""
    for picture in annotations.pictures.values():
        for each in picture.objects:
            if _is_four_numbers(each.box):
                yield each.box


def _is_four_numbers(value: Any) -> bool:
    return (
        isinstance(value, list) and len(value) == 4 and all(isinstance(n, int | float) and abs(n) < 1e9 for n in value)
    )
