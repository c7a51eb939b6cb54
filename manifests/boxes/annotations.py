"""Files of annotations: COCO JSON and Parquet, as objects per picture. Nothing here decodes a mask or a picture."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any, NoReturn

import pyarrow as pa

from manifests.boxes.proposer import PictureError
from manifests.io import read_parquet
from sgi2v.errors import ManifestError, Problem, StorageError
from sgi2v.locations import credentials_advice, open_store
from sgi2v.wording import counted, did_you_mean, escaped

ENDINGS = (".json", ".parquet")
"""Endings of files of annotations."""
SHOWN_LABELS = 20
"""Labels of a file that a message names, at most."""

_IMAGE_COLUMNS = ("image", "file_name", "image_path", "path")
_BOX_COLUMNS = ("boxes", "box", "bboxes", "bbox")
_MASK_COLUMNS = ("masks", "mask", "rle", "rles", "segmentation", "segmentations")
_LABEL_COLUMNS = ("labels", "label", "categories", "category")
_SCORE_COLUMNS = ("scores", "score")


@dataclass(frozen=True)
class Annotation:
    """One object of a picture, as the file has it."""

    where: str
    """How messages name it: `annotation 17`."""
    box: Any = None
    mask: Any = None
    """Polygons or RLE, as COCO has them."""
    label: str = ""
    score: float = 1.0
    crowd: bool = False


@dataclass(frozen=True)
class AnnotatedPicture:
    """What the file says about one picture."""

    name: str
    size: tuple[int, int] | None = None
    """Height and width of the picture that was annotated, where the file has them."""
    objects: list[Annotation] = field(default_factory=list)
    png: str | None = None
    """Name of the picture's PNG of ids (COCO panoptic)."""
    segments: dict[int, Annotation] = field(default_factory=dict)
    """The objects of the PNG by id (COCO panoptic)."""


class Annotations:
    """The annotated pictures of a file, found by a picture's key."""

    def __init__(self, place: str, pictures: Iterable[AnnotatedPicture], lost: Sequence[PictureError] = ()) -> None:
        self.place = place
        self.pictures = {picture.name: picture for picture in pictures}
        self.lost = list(lost)
        """Annotations that belong to no picture of the file."""
        self._by_last_part: dict[str, list[str]] = {}
        for name in self.pictures:
            self._by_last_part.setdefault(PurePosixPath(name).name, []).append(name)

    def name_of(self, key: str) -> str | None:
        """The name that the file has for a picture: the key itself, or the only name that ends or begins alike.

        Raises PictureError where several names could be meant.
        """
        if key in self.pictures:
            return key
        alike = [
            name
            for name in self._by_last_part.get(PurePosixPath(key).name, ())
            if f"/{name}".endswith(f"/{key}") or f"/{key}".endswith(f"/{name}")
        ]
        if len(alike) > 1:
            names = ", ".join(map(escaped, sorted(alike)[:3]))
            message = f"{escaped(self.place)} has several pictures that may be this one ({names}): use their full names"
            raise PictureError("annotation_ambiguous", message)
        return alike[0] if alike else None

    def of(self, key: str) -> AnnotatedPicture:
        """What the file says about a picture. Raises PictureError where it says nothing."""
        name = self.name_of(key)
        if name is None:
            raise PictureError("annotation_missing", f"{escaped(self.place)} says nothing about {escaped(key)}")
        return self.pictures[name]

    def check(self, keys: Sequence[str]) -> list[PictureError]:
        """What no picture will use.

        Raises ManifestError where no picture has an annotation, and where two pictures would have the same one.
        """
        used: dict[str, str] = {}
        for key in keys:
            try:
                name = self.name_of(key)
            except PictureError:  # the picture itself will say so
                continue
            if name is not None and used.setdefault(name, key) != key:
                both = f"{escaped(used[name])} and {escaped(key)} could both be its {escaped(name)}"
                fail(self.place, "annotation_ambiguous", f"{both}: give its pictures names with their folders")
        unused = [name for name in self.pictures if name not in used]
        if keys and self.pictures and len(unused) == len(self.pictures):
            names = f"the file has {escaped(unused[0])}, the folder has {escaped(keys[0])}"
            fail(self.place, "annotation_missing", f"it names none of the {counted(len(keys), 'picture')}: {names}")
        place = escaped(self.place)
        gone = [
            PictureError("annotation_unused", f"{escaped(name)} of {place} is not among the pictures")
            for name in unused
        ]
        return [*self.lost, *gone]

    def check_labels(self, labels: Sequence[str]) -> list[PictureError]:
        """An entry for each label that no object has. Raises ManifestError where no object has any of them."""
        has = {each.label for one in self.pictures.values() for each in (*one.objects, *one.segments.values())}
        lost = [label for label in labels if label not in has]
        names = ", ".join(sorted(map(escaped, has - {""}))[:SHOWN_LABELS]) or "no labels"
        notes = [
            PictureError(
                "label_unknown", f"no object is {escaped(label)!r}{did_you_mean(label, has)}: there is {names}"
            )
            for label in lost
        ]
        if notes and len(lost) == len(labels):
            fail(self.place, notes[0].code, notes[0].message)
        return notes


def read_annotations(place: str, images: str | None = None) -> Annotations:
    """The annotations of a COCO JSON or Parquet file.

    images: the COCO JSON that names the pictures of a file of COCO results, which has ids only. Raises ManifestError
    and StorageError.
    """
    if place.lower().endswith(".parquet"):
        return _read_parquet(place)
    content = _read_json(place)
    if isinstance(content, list):
        if images is None:
            advice = "set boxes.images to the COCO JSON that has `images`"
            fail(place, "annotation_invalid", f"it is a list of results, which has no names of pictures: {advice}")
        named = _read_json(images)
        content = {**named, "annotations": content} if isinstance(named, dict) else named
    if not isinstance(content, dict) or not all(_is_records(content.get(key)) for key in ("images", "annotations")):
        fail(place, "annotation_invalid", "it has no lists of objects `images` and `annotations`: give a COCO JSON")
    return _coco(place, content)


def _coco(place: str, content: Mapping[str, Any]) -> Annotations:
    categories = content.get("categories")
    names = (
        {each.get("id"): str(each.get("name", "")) for each in categories if _is_records([each])} if categories else {}
    )
    pictures: dict[Any, AnnotatedPicture] = {}
    for number, each in enumerate(content["images"]):
        name, height, width = each.get("file_name"), each.get("height"), each.get("width")
        if not isinstance(name, str) or not isinstance(each.get("id"), int | str):
            fail(place, "annotation_invalid", f"images[{number}] has no `id` or no `file_name`")
        if each["id"] in pictures:
            fail(place, "annotation_invalid", f"images[{number}] has the id of another picture, {each['id']!r}")
        size = (height, width) if isinstance(height, int) and isinstance(width, int) else None
        pictures[each["id"]] = AnnotatedPicture(name, size)
    if len({picture.name for picture in pictures.values()}) < len(pictures):
        fail(place, "annotation_invalid", "two of its `images` have the same `file_name`")
    orphans: dict[Any, int] = {}
    for number, each in enumerate(content["annotations"]):
        image_id = each.get("image_id")
        picture = pictures.get(image_id) if isinstance(image_id, int | str) else None
        if picture is None:
            shown = json.dumps(image_id, ensure_ascii=False)  # "7" is another id than 7
            orphans[shown] = orphans.get(shown, 0) + 1
            continue
        if _is_records(each.get("segments_info")):
            pictures[image_id] = AnnotatedPicture(
                picture.name, picture.size, picture.objects, str(each.get("file_name")), _segments(each, names)
            )
        else:
            picture.objects.append(_annotation(each, f"annotation {each.get('id', number)}", names))
    lost = []
    for image_id, count in orphans.items():
        what = f"{counted(count, 'annotation')} of {escaped(place)} with image_id {escaped(image_id)}"
        lost.append(PictureError("annotation_unused", f"{what}: `images` has no such id"))
    return Annotations(place, pictures.values(), lost)


def _annotation(record: Mapping[str, Any], where: str, names: Mapping[Any, str]) -> Annotation:
    score = record.get("score", 1.0)
    category = record.get("category_id")
    return Annotation(
        where,
        record.get("bbox"),
        record.get("segmentation"),
        names.get(category, "" if category is None else str(category)),
        float(score) if isinstance(score, int | float) else math.nan,
        bool(record.get("iscrowd", 0)),
    )


def _segments(record: Mapping[str, Any], names: Mapping[Any, str]) -> dict[int, Annotation]:
    return {
        each["id"]: _annotation(each, f"segment {each['id']}", names)
        for each in record["segments_info"]
        if "id" in each
    }


def _read_parquet(place: str) -> Annotations:
    try:
        table = read_parquet(read_bytes(place))
    except (pa.ArrowException, OSError) as error:
        fail(place, "annotation_invalid", f"it is no readable Parquet file ({error})")
    columns = {
        kind: next((name for name in names if name in table.column_names), None)
        for kind, names in (
            ("image", _IMAGE_COLUMNS),
            ("box", _BOX_COLUMNS),
            ("mask", _MASK_COLUMNS),
            ("label", _LABEL_COLUMNS),
            ("score", _SCORE_COLUMNS),
        )
    }
    if columns["image"] is None or not (columns["box"] or columns["mask"]):
        found = ", ".join(table.column_names)
        fail(place, "annotation_invalid", f"it needs a column `image` and one of `boxes` or `masks` (found: {found})")
    pictures: dict[str, AnnotatedPicture] = {}
    used = {kind: name for kind, name in columns.items() if name is not None}
    for number, row in enumerate(table.select(list(used.values())).to_pylist()):
        values = {kind: row[name] for kind, name in used.items()}
        if not isinstance(values["image"], str):
            fail(place, "annotation_invalid", f"row {number} has no name of a picture in `{used['image']}`")
        picture = pictures.setdefault(values["image"], AnnotatedPicture(values["image"]))
        picture.objects.extend(_objects(values, place, number))
    return Annotations(place, pictures.values())


def _objects(values: Mapping[str, Any], place: str, number: int) -> Iterator[Annotation]:
    """The objects of a row: one, or one for each entry of its lists."""
    first = values.get("box") if values.get("box") is not None else values.get("mask")
    if first is None:
        return
    is_list = isinstance(first, list) and not (first and isinstance(first[0], int | float))
    lists = {
        kind: value if is_list else [value] for kind, value in values.items() if kind != "image" and value is not None
    }
    if any(not isinstance(value, list) or len(value) != len(first if is_list else [0]) for value in lists.values()):
        fail(place, "annotation_invalid", f"the lists of row {number} have different lengths")
    for n in range(len(first) if is_list else 1):
        own = {kind: value[n] for kind, value in lists.items()}
        score = own.get("score", 1.0)
        yield Annotation(
            f"entry {n} of row {number}" if is_list else f"row {number}",
            own.get("box"),
            own.get("mask"),
            str(own.get("label") or ""),
            float(score) if isinstance(score, int | float) else math.nan,
        )


def _is_records(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(each, dict) for each in value)


def _read_json(place: str) -> Any:
    try:
        return json.loads(read_bytes(place))
    except (ValueError, RecursionError) as error:
        fail(place, "annotation_invalid", f"it is no JSON ({error})")


def read_bytes(place: str) -> bytes:
    """The bytes of a file. Raises ManifestError where there is no such file, and StorageError."""
    try:
        file_system, name = open_store(place)
        return bytes(file_system.cat_file(name))
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, ValueError, ImportError) as error:
        fail(place, "annotation_missing", f"it cannot be opened ({error or type(error).__name__}): check the path")
    except Exception as error:  # each fsspec file system raises its own library's errors
        raise StorageError(f"{place} cannot be read: {error}{credentials_advice(error, place)}") from error


def fail(place: str, code: str, message: str) -> NoReturn:
    """Raise a ManifestError about a whole file."""
    raise ManifestError(place, [Problem(None, None, None, code, message)])
