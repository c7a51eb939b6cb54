"""Manifests from VIPSeg: boxes from panoptic masks of the first frame, paths from the masks of the first frames.

Layout: `imgs/<video>/<frame>.jpg` (`images` after the authors' 720p script) and `panomasks/<video>/<frame>.png`. A mask
has one channel of 8 or 16 bits: 0 is VOID; 1 to 124 are regions of stuff, by class; 125 and more are things, each
`class * 100 + number`. Frame names are numbers with gaps. The data set has about 5 of these frames a second.

The publication of SG-I2V does not say how it makes boxes and paths from masks. Every choice is a setting here, and the
manifest says which was made. The camera's motion is part of the paths. A box keeps its size.

Axes: T frames, P path points (one per frame), H W pixels; 2 is xy, 4 is xyxy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from manifests.boxes.geometry import tight_box
from manifests.masks import png_of
from manifests.schema import EXTENSION_SCHEMA
from manifests.skipped import Skipped
from manifests.sources.made import REFERENCE, Made, names_of, still_of, together
from manifests.sources.processes import in_processes
from manifests.urls import relative_path
from sgi2v.errors import ManifestError, Problem
from sgi2v.settings import Settings
from sgi2v.trajectory import Floats
from sgi2v.wording import counted

Mask = NDArray[np.uint16]

IMAGE_FOLDERS = ("imgs", "images")
MASK_FOLDER = "panomasks"
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png")
LIST = "val.txt"
FIRST_THING = 125
"""Smallest value of a thing in a mask."""
INSTANCES = 100
"""Values per class of things."""
MASK_MODES = frozenset({"L", "I", "I;16", "I;16L", "I;16B"})
"""Pillow's names for one channel of integers."""

Share = Annotated[float, Field(ge=0, le=1)]

OWN_COLUMNS = [
    EXTENSION_SCHEMA.field("still"),
    EXTENSION_SCHEMA.field("masks"),
    pa.field("reference", REFERENCE),
    pa.field("group", pa.string()),
    pa.field("path_source", pa.string()),
    pa.field("mask_values", pa.list_(pa.int64())),
    pa.field("classes", pa.list_(pa.int64())),
    pa.field("touches_border", pa.list_(pa.bool_())),
]
"""`group`: `moving`, or `static` where no box moves. Per box: whether it is told to stay, its mask in frame 0, its
value in the masks, its class as in them (its COCO category id + 1), and whether it touches the border later."""


class VipsegSettings(Settings):
    """Which objects of VIPSeg become boxes, and what their paths are."""

    section: ClassVar[str] = "vipseg"

    frames: Annotated[int, Field(ge=2, le=1000)] = 14
    """Annotated frames that a path takes, the first ones of a video. A video with fewer is left out."""
    regions: Literal["things", "all"] = "things"
    """things: values of 125 and more. all: stuff too; VOID never."""
    min_area: Share = 0.01
    """Smallest area of an object in frame 0, as a share of the frame."""
    min_side: Annotated[float, Field(ge=0)] = 32.0
    """Smallest width and height of its box, pixels of the videos to be made. 32 are 4 latent cells."""
    height: Annotated[int, Field(ge=1)] = 576
    """Height of these videos, pixels."""
    width: Annotated[int, Field(ge=1)] = 1024
    """Width of these videos, pixels."""
    max_objects: Annotated[int, Field(ge=1, le=256)] = 4
    """Objects of a video, at most: the largest in frame 0; of equal ones the smaller value."""
    min_left: Share = 0.2
    """Smallest area in every frame, as a share of the object's area in frame 0. Below, it vanishes and is left out."""
    min_part: Share = 0.8
    """Smallest share of the object that its largest connected part has in frame 0. Below, it is split and left out."""
    border: Literal["drop", "keep"] = "drop"
    """What becomes of an object that touches the border in frame 0."""
    path: Literal["centroid", "box"] = "centroid"
    """centroid: the box's centre plus what the mask's centroid moved by. box: the centre of each frame's own box."""
    min_path: Share = 0.02
    """An object that gets less far from its start than this share of the frame's diagonal is static."""
    static: Literal["still", "keep", "drop"] = "still"
    """What becomes of static objects: told to stay where they are (column `still`), asked to move as they did, as all
    others, or left out. Where nothing moves, paths that stay say it: a row needs a box that is scored."""
    masks: Literal["none", "objects"] = "none"
    """none: features are compared in the whole box, as in SG-I2V. objects: under the object's mask (column `masks`)."""


class VideoFolders(NamedTuple):
    """One video of the data set."""

    key: str
    name: str
    """Its sample id."""
    images: str
    masks: str


def from_vipseg(
    folder: str,
    target_folder: str,
    settings: VipsegSettings,
    list_file: str | None = None,
    processes: int = 1,
    on_video: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Made, str]:
    """One row per video with an object, and what says which videos were taken.

    target_folder: of the manifest. list_file: ids of videos, one a line; None: `val.txt` in the folder or its parent,
    else every video with masks. on_video: called with the number of videos that are done, and of all. Raises
    ManifestError.
    """
    root = Path(folder)
    images = next((root / name for name in IMAGE_FOLDERS if (root / name).is_dir()), None)
    if images is None or not (root / MASK_FOLDER).is_dir():
        found = "no such folder" if not root.is_dir() else f"it needs {' or '.join(IMAGE_FOLDERS)}, and {MASK_FOLDER}"
        raise _unusable(folder, "layout_unknown", f"{found}: give the folder of VIPSeg or VIPSeg_720P")
    ids, listed_by = _ids(root, list_file)
    videos = [
        VideoFolders(key, name, str(images / key), str(root / MASK_FOLDER / key))
        for key, name in zip(ids, names_of(ids), strict=True)
    ]
    work = partial(row_of_video, target_folder=target_folder, settings=settings)
    parts = [Made() for _ in videos]
    for done, (number, part) in enumerate(in_processes(work, videos, processes), start=1):
        message = "the process that read it died: check its files"
        parts[number] = part or Made(skipped=[Skipped(videos[number].key, "video_crashed", message)])
        on_video(done, len(videos))
    return together(parts), listed_by


def _ids(root: Path, list_file: str | None) -> tuple[list[str], str]:
    """The ids of the videos, and where they are from."""
    places = [Path(list_file)] if list_file else [root / LIST, root.parent / LIST]
    file = next((place for place in places if place.is_file()), None)
    if file is not None:
        ids = list(dict.fromkeys(line.strip() for line in file.read_text().splitlines() if line.strip()))
        listed_by = file.name
    elif list_file:
        raise _unusable(list_file, "list_missing", "no such file: give a list of ids, one a line")
    else:
        ids = sorted(path.name for path in (root / MASK_FOLDER).iterdir() if path.is_dir())
        listed_by = MASK_FOLDER
    if not ids:
        raise _unusable(str(file or root / MASK_FOLDER), "videos_missing", "it names no video")
    return ids, listed_by


def _unusable(source: str, code: str, message: str) -> ManifestError:
    return ManifestError(source, [Problem(None, None, None, code, message)])


class _VideoError(Exception):
    """A video that gives no row: code and message."""


def row_of_video(video: VideoFolders, target_folder: str, settings: VipsegSettings) -> Made:
    """The row of one video, and the objects that are not in it."""
    made = Made()
    try:
        image, masks_THW, frames = _read(video, settings.frames)
        objects = _sized_objects(masks_THW[0], settings, made.skipped, video.key)
        tracked = list(_tracked(objects, masks_THW, settings, made.skipped, video.key))
        for each in tracked[settings.max_objects :]:
            message = f"the video has more than {settings.max_objects} objects"
            made.skipped.append(_left_out(video.key, "objects_many", message, each.object))
        kept = []
        for each in tracked[: settings.max_objects]:
            if each.is_static and settings.static == "drop":
                made.skipped.append(_left_out(video.key, "static", "it hardly moves", each.object))
            else:
                kept.append(each)
        if not kept:
            raise _VideoError("no_objects", "none of its objects can be used")
    except _VideoError as error:
        made.skipped.append(Skipped(video.key, *error.args))
        return made
    is_static = all(each.is_static for each in kept)
    stay = [each.is_static and settings.static == "still" for each in kept]
    made.rows.append(
        {
            "sample_id": video.name,
            "image": relative_path(image, target_folder),
            "boxes": [list(each.object.box) for each in kept],
            "trajectories": [
                (each.path_P2[:1].repeat(settings.frames, axis=0) if stays else each.path_P2).round(3).tolist()
                for each, stays in zip(kept, stay, strict=True)
            ],
            "still": still_of(stay),
            "masks": [png_of(masks_THW[0] == each.object.value) for each in kept] if settings.masks != "none" else None,
            "reference": {"uri": relative_path(Path(video.images), target_folder), "frames": frames},
            "group": "static" if is_static else "moving",
            "path_source": settings.path,
            "mask_values": [each.object.value for each in kept],
            "classes": [class_of(each.object.value) for each in kept],
            "touches_border": [each.touches_border for each in kept],
        }
    )
    return made


def class_of(value: int) -> int:
    """The class of a mask's value. COCO's `category_id` is one less."""
    return value if value < FIRST_THING else value // INSTANCES


def _read(video: VideoFolders, frames: int) -> tuple[Path, NDArray[np.uint16], list[str]]:
    """The first image, the first masks [T, H, W], and the names of their images. Raises _VideoError."""
    files = list(Path(video.masks).glob("*.png"))
    if not files:
        raise _VideoError("masks_missing", f"there are no masks in {MASK_FOLDER}")
    if any(not file.stem.isdecimal() for file in files):
        raise _VideoError("frame_name", "the names of its masks are not all numbers")
    if len(files) < frames:
        raise _VideoError("short_video", f"it has {counted(len(files), 'annotated frame')}, fewer than {frames}")
    ordered = sorted(files, key=lambda file: int(file.stem))[:frames]
    images = [_image_of(file, Path(video.images)) for file in ordered]
    masks = [read_mask(file) for file in ordered]
    from PIL import Image

    with Image.open(images[0]) as picture:
        sizes = {(picture.height, picture.width)} | {mask.shape for mask in masks}
    if len(sizes) > 1:
        found = ", ".join(f"{width} x {height}" for height, width in sorted(sizes))
        raise _VideoError("mask_size", f"its first image and its masks have different sizes (width x height): {found}")
    return images[0], np.stack(masks), [image.name for image in images]


def _image_of(mask: Path, folder: Path) -> Path:
    """The image that a mask is of. Raises _VideoError."""
    for ending in IMAGE_ENDINGS:
        if (image := folder / f"{mask.stem}{ending}").is_file():
            return image
    raise _VideoError("image_missing", f"there is no image {folder.name}/{mask.stem}{IMAGE_ENDINGS[0]}")


def read_mask(file: Path) -> Mask:
    """A mask with its 16-bit values, [H, W]. Raises _VideoError for a file that is not one channel of numbers."""
    from PIL import Image

    try:
        with Image.open(file) as picture:
            mode, values_HW = picture.mode, np.asarray(picture)
    except (OSError, ValueError, SyntaxError) as error:
        raise _VideoError("mask_unreadable", f"{file.name} cannot be read ({error}): copy it again") from error
    if mode not in MASK_MODES:
        message = f"{file.name} is no mask of one channel, but {mode}: use {MASK_FOLDER}, not panomasksRGB"
        raise _VideoError("mask_format", message)
    return values_HW.astype(np.uint16)


class Region(NamedTuple):
    """An object in frame 0."""

    value: int
    area: int
    box: tuple[float, float, float, float]


class TrackedRegion(NamedTuple):
    """An object that is there in every frame."""

    object: Region
    path_P2: Floats
    touches_border: bool
    is_static: bool


def _left_out(key: str, code: str, message: str, region: Region) -> Skipped:
    return Skipped(key, code, f"object {region.value}: {message}", box=list(region.box))


def _sized_objects(mask_HW: Mask, settings: VipsegSettings, skipped: list[Skipped], key: str) -> list[Region]:
    """The objects of frame 0 that are large enough, whole and off the border, largest first."""
    import cv2

    height, width = mask_HW.shape
    least = FIRST_THING if settings.regions == "things" else 1
    kept = []
    for value in np.unique(mask_HW[mask_HW >= least]).tolist():
        is_in_HW = mask_HW == value
        box = tight_box(is_in_HW)
        region = Region(value, int(is_in_HW.sum()), box)
        sides = (box[2] - box[0]) * settings.width / width, (box[3] - box[1]) * settings.height / height
        area = region.area / mask_HW.size
        parts = cv2.connectedComponentsWithStats(is_in_HW.astype(np.uint8), connectivity=8)[2][1:, cv2.CC_STAT_AREA]
        if area < settings.min_area or min(sides) < settings.min_side:
            message = f"it takes {area:.2%} of the frame, {sides[0]:.0f} x {sides[1]:.0f} px of the video"
            skipped.append(_left_out(key, "small", message, region))
        elif settings.border == "drop" and _touches_border(box, mask_HW):
            skipped.append(_left_out(key, "border", "it touches the border in the first frame", region))
        elif parts.max() < settings.min_part * region.area:
            message = f"its largest connected part is {parts.max() / region.area:.0%} of it"
            skipped.append(_left_out(key, "split", message, region))
        else:
            kept.append(region)
    return sorted(kept, key=lambda region: (-region.area, region.value))


def _tracked(
    objects: Sequence[Region],
    masks_THW: NDArray[np.uint16],
    settings: VipsegSettings,
    skipped: list[Skipped],
    key: str,
) -> Iterator[TrackedRegion]:
    diagonal = float(np.hypot(*masks_THW.shape[1:]))
    for region in objects:
        is_in_THW = masks_THW == region.value
        left_T = is_in_THW.sum(axis=(1, 2)) / region.area
        gone = np.flatnonzero(left_T < max(settings.min_left, 1 / (2 * region.area)))
        if len(gone):
            message = f"it has {left_T[gone[0]]:.0%} of its first area in frame {gone[0]}"
            skipped.append(_left_out(key, "vanishes", message, region))
            continue
        boxes = [tight_box(is_in_HW) for is_in_HW in is_in_THW]
        corners_T4 = np.array(boxes)
        centre_T2 = (corners_T4[:, :2] + corners_T4[:, 2:]) / 2
        points_T2 = centre_T2 if settings.path == "box" else np.stack([_centroid(each) for each in is_in_THW])
        path_P2 = centre_T2[0] + points_T2 - points_T2[0]
        distance = float(np.linalg.norm(path_P2 - path_P2[0], axis=-1).max())
        touches = any(_touches_border(box, masks_THW[0]) for box in boxes[1:])
        yield TrackedRegion(region, path_P2, touches, distance < settings.min_path * diagonal)


def _centroid(is_in_HW: NDArray[np.bool_]) -> Floats:
    y, x = np.nonzero(is_in_HW)
    return np.array([x.mean(), y.mean()]) + 0.5


def _touches_border(box: Sequence[float], mask_HW: Mask) -> bool:
    height, width = mask_HW.shape
    return box[0] == 0 or box[1] == 0 or box[2] == width or box[3] == height


def recipe_of(settings: VipsegSettings, listed_by: str) -> dict[str, Any]:
    """What the manifest says about how it was made."""
    return {"source": "vipseg", "list": listed_by, "vipseg": settings.plain()}
