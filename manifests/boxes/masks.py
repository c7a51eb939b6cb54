"""Boxes around masks: a folder of PNGs of ids, COCO JSON (instances or panoptic), or RLE in a Parquet column.

Axes: H, W of the source image. Boxes are xyxy, pixels of the source image, half-open.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import PurePosixPath
from typing import Annotated, Any, ClassVar, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydantic import Field

from manifests.boxes.annotations import ENDINGS, AnnotatedPicture, Annotation, Annotations, fail, read_annotations
from manifests.boxes.geometry import tight_box
from manifests.boxes.proposer import PictureError, Proposal, Proposed
from manifests.masks import Mask, decode_rle
from manifests.urls import read_image_bytes
from sgi2v.errors import ConfigError, ErrorCode, SampleError, StorageError
from sgi2v.locations import credentials_advice, open_store
from sgi2v.settings import Settings
from sgi2v.wording import escaped

FARTHEST = 10
"""Polygons with points farther away than this many sides of the picture are refused: pycocotools walks along every
pixel of an outline."""

LEAST_PART = 0.8
"""Share of a mask's largest connected part below which it is noted: one id may stand for several objects."""


class Masks(Settings):
    """One box around each mask, the largest first. All pieces of one mask have one box."""

    section: ClassVar[str] = "boxes"
    name: ClassVar[str] = "masks"
    finds_objects: ClassVar[bool] = True

    place: Annotated[str, Field(min_length=1)]
    """A folder of PNGs, a `.json` file (COCO) or a `.parquet` file, as a path or any fsspec URL."""
    suffix: Annotated[str, Field(min_length=1)] = ".png"
    """What stands in place of the picture's ending in the name of its PNG."""
    ids: Literal["auto", "value", "rgb"] = "auto"
    """What a pixel's id is: its grey value or palette index, or R + 256 G + 65536 B. `auto`: rgb for colour PNGs."""
    background: Annotated[tuple[int, ...], Field(strict=False)] = (0,)
    """Ids that are no object."""
    labels: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """COCO categories to keep. Empty keeps all."""
    crowd: bool = False
    """Whether crowd regions, which are several objects in one mask, are used too."""
    images: str | None = None
    """The COCO JSON that names the pictures, where `place` is a file of COCO results."""
    png_folder: str | None = None
    """Folder of the PNGs of a COCO panoptic JSON. None: the folder that has the JSON's name without `.json`."""

    @cached_property
    def _annotations(self) -> Annotations | None:
        """The file's annotations; None for a folder."""
        if self.place.lower().endswith(ENDINGS):
            return read_annotations(self.place, self.images)
        if self.labels:
            raise ConfigError("boxes.labels needs a COCO JSON or Parquet file: a folder of PNGs has no categories")
        return None

    def check(self, keys: Sequence[str]) -> list[PictureError]:
        """Masks that no picture will use. Raises ConfigError, ManifestError and StorageError."""
        if self._annotations is not None:
            return [*self._annotations.check(keys), *self._annotations.check_labels(self.labels)]
        try:
            file_system, root = open_store(self.place)
            found = [str(name).removeprefix(root).lstrip("/") for name in file_system.find(root)]
        except (ValueError, ImportError) as error:
            fail(self.place, "mask_missing", f"it cannot be opened ({error}): check the path")
        except Exception as error:  # each fsspec file system raises its own library's errors
            advice = credentials_advice(error, self.place)
            raise StorageError(f"{self.place} cannot be listed: {error}{advice}") from error
        masks = [name for name in found if name.endswith(self.suffix)]
        wanted = {self._png_name(key) for key in keys}
        unused = [name for name in masks if name not in wanted]
        if keys and len(unused) == len(masks):
            has = f"it has {escaped(masks[0])}" if masks else f"it has no file that ends in {escaped(self.suffix)}"
            missing = f"{escaped(self._png_name(keys[0]))} is not there, and no other mask either ({has})"
            fail(self.place, "mask_missing", f"{missing}: check boxes.place and boxes.suffix")
        return [PictureError("annotation_unused", f"the mask {escaped(name)} belongs to no picture") for name in unused]

    def propose(self, image_HWC: NDArray[np.uint8], key: str) -> Proposed:
        """The boxes of one picture. Raises PictureError where its masks are missing, unreadable or of another size."""
        height, width, _ = image_HWC.shape
        notes: list[PictureError] = []
        if self._annotations is None:
            named_masks = self._in_png(f"{self.place.rstrip('/')}/{self._png_name(key)}", (height, width))
        else:
            picture = self._annotations.of(key)
            named_masks = self._in_file(picture, (height, width), notes)
        ranked: list[tuple[float, int, int, Proposal]] = []
        for annotation, mask_HW in named_masks:
            if not mask_HW.any():
                notes.append(PictureError("mask_empty", f"the mask of {annotation.where} has no pixels"))
                continue
            if (share := _largest_part(mask_HW)) < LEAST_PART:
                message = (
                    f"the largest part of the mask of {annotation.where} is {share:.0%} of it: one box is around all"
                )
                notes.append(PictureError("mask_parts", f"{message}. Does one id stand for several objects?"))
            proposal = Proposal(tight_box(mask_HW), annotation.score, annotation.label, mask_HW)
            ranked.append((-proposal.score, -int(np.count_nonzero(mask_HW)), len(ranked), proposal))
        return Proposed([proposal for *_, proposal in sorted(ranked)], notes)

    def _png_name(self, key: str) -> str:
        return key.removesuffix(PurePosixPath(key).suffix) + self.suffix

    def _in_file(
        self, picture: AnnotatedPicture, size: tuple[int, int], notes: list[PictureError]
    ) -> Iterator[tuple[Annotation, Mask]]:
        """The masks of a picture in a file; what cannot be used becomes a note."""
        if picture.size is not None and picture.size != size:
            raise _other_size(escaped(self.place), picture.size, size)
        if picture.png is not None:
            folder = self.png_folder or self.place[: -len(".json")]
            found = {each.where: mask_HW for each, mask_HW in self._in_png(f"{folder.rstrip('/')}/{picture.png}", size)}
            pairs: list[tuple[Annotation, Any]] = [
                (segment, found.get(f"id {number}", np.zeros(size, np.bool_)))
                for number, segment in picture.segments.items()
            ]
        else:
            pairs = [(each, each.mask) for each in picture.objects]
        for annotation, mask in pairs:
            if self.labels and annotation.label not in self.labels:
                continue
            if annotation.crowd and not self.crowd:
                message = f"{annotation.where} is a crowd, several objects in one mask: boxes.crowd = true uses it"
                notes.append(PictureError("crowd", message))
                continue
            if not 0 <= annotation.score <= 1:
                message = f"the score of {annotation.where} is {annotation.score}, not a number from 0 to 1"
                notes.append(PictureError("annotation_invalid", message))
                continue
            try:
                yield annotation, mask if isinstance(mask, np.ndarray) else decode_mask(mask, size, annotation.where)
            except PictureError as error:
                notes.append(error)

    def _in_png(self, uri: str, size: tuple[int, int]) -> Iterator[tuple[Annotation, Mask]]:
        """The mask of every id in a PNG."""
        ids_HW = read_ids(uri, size, self.ids)
        for number in np.unique(ids_HW).tolist():
            if number not in self.background:
                yield Annotation(f"id {number}"), ids_HW == number


def _largest_part(mask_HW: Mask) -> float:
    """Share of a mask that its largest connected part has."""
    areas = cv2.connectedComponentsWithStats(mask_HW.astype(np.uint8), connectivity=8)[2][1:, cv2.CC_STAT_AREA]
    return float(areas.max() / areas.sum())


def read_ids(uri: str, size: tuple[int, int], ids: str) -> NDArray[np.int64]:
    """The id of every pixel of a PNG [H, W]. size: height and width of the picture.

    Raises PictureError (mask_missing, mask_unreadable, mask_size) and StorageError.
    """
    try:
        data = read_image_bytes(uri)
    except SampleError as error:
        code = "mask_missing" if error.code == ErrorCode.IMAGE_MISSING else "mask_unreadable"
        raise PictureError(code, f"the mask cannot be read: {error.message}") from error
    except OSError as error:
        raise StorageError(f"{uri} cannot be read: {error}{credentials_advice(error, uri)}") from error
    shown = escaped(uri)
    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.format != "PNG":
                message = f"the mask {shown} is a {image.format} file: give PNGs, because other formats may change ids"
                raise PictureError("mask_unreadable", message)
            if (image.height, image.width) != size:
                raise _other_size(f"the mask {shown}", (image.height, image.width), size)
            depth, colour_type = data[24:26]  # of the header
            if depth == 16 and colour_type in (2, 6):  # Pillow would drop the low bytes
                message = f"the mask {shown} has colours of 16 bits: write ids as 16-bit grey, or as 8-bit RGB"
                raise PictureError("mask_unreadable", message)
            if ids == "rgb" or (ids == "auto" and image.mode in ("RGB", "RGBA")):
                rgb_HWC = np.asarray(image.convert("RGB"), np.int64)
                return np.asarray(rgb_HWC @ np.array([1, 256, 65536]))
            values = np.asarray(image, np.int64)
            return values if values.ndim == 2 else values[..., 0]
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise PictureError("mask_unreadable", f"the mask {shown} cannot be decoded: {error}") from error


def decode_mask(mask: Any, size: tuple[int, int], where: str) -> Mask:
    """The pixels of a mask as COCO writes it: polygons, or RLE that is compressed or not. size: height and width.

    A polygon's parts outside the picture are cut off. Raises PictureError (mask_size, annotation_invalid).
    """
    if isinstance(mask, dict) and isinstance(mask.get("size"), list | tuple) and "counts" in mask:
        if tuple(mask["size"]) != size:
            raise _other_size(f"the mask of {where}", mask["size"], size)
        try:
            return decode_rle(mask["counts"], *size)
        except ValueError as error:
            raise _invalid(where, f"it {error}") from error
    if isinstance(mask, list) and mask and all(_is_polygon(each, size) for each in mask):
        try:
            from pycocotools import mask as coco
        except ImportError as error:
            raise ConfigError(
                f"{where} is a polygon, which needs the package pycocotools: install `sgi2v-batch[masks]`"
            ) from error
        polygons = [[float(value) for value in each] for each in mask]
        return np.asarray(coco.decode(coco.merge(coco.frPyObjects(polygons, *size))), np.bool_)
    expected = "RLE (`size` and `counts`) nor polygons of three or more points near the picture"
    raise _invalid(where, f"it is neither {expected}")


def _is_polygon(values: Any, size: tuple[int, int]) -> bool:
    limit = FARTHEST * max(size)
    return (
        isinstance(values, list)
        and len(values) >= 6
        and len(values) % 2 == 0
        and all(isinstance(each, int | float) and abs(each) <= limit for each in values)
    )


def _invalid(where: str, reason: str) -> PictureError:
    return PictureError("annotation_invalid", f"the mask of {where} cannot be used: {reason}")


def _other_size(what: str, found: Sequence[int], size: tuple[int, int]) -> PictureError:
    turned = " (is the picture turned by its EXIF orientation?)" if tuple(found[::-1]) == size else ""
    sizes = f"{found[1]} x {found[0]} pixels, the picture has {size[1]} x {size[0]}"
    return PictureError("mask_size", f"{what} has {sizes}{turned}: give masks of the picture's size")
