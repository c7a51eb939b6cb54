"""Manifests from MC-Bench, the benchmark of MotionPro (arXiv 2505.20287): pictures, brush masks and drawn drags.

Layout: `MC-Bench/<class>/<sample>/` with `first_frame.png`, `first_frame_mask.png` (any value but 0 may move) and
`meta_data.json` or `meta_data_new.json`, whose `traj_key_points` is a list of drags, each a list of [x, y] in pixels of
the first frame. Key points are at equal steps of time, and PCHIP goes through them.

A box is the tight box of the mask. It moves by what the drag moves by, from its own centre on: the drag may start
elsewhere in the mask. The own column `drag_starts` has these starts, where the published metric measures.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pydantic import Field

from manifests.boxes.geometry import tight_box
from manifests.schema import EXTENSION_SCHEMA
from manifests.skipped import Skipped
from manifests.sources.made import Made, names_of, still_of, together
from manifests.urls import relative_path
from sgi2v.errors import ManifestError, Problem
from sgi2v.settings import Settings
from sgi2v.trajectory import Floats
from sgi2v.wording import counted

CLASSES = ("Fine_grained_control", "object_control")
IMAGE, MASK = "first_frame.png", "first_frame_mask.png"
OLD, NEW = "meta_data.json", "meta_data_new.json"
DRAGS = "traj_key_points"

OWN_COLUMNS = [
    EXTENSION_SCHEMA.field("still"),
    pa.field("group", pa.string()),
    pa.field("drag_starts", pa.list_(pa.list_(pa.float64()))),
    pa.field("metadata_file", pa.string()),
]
"""Which boxes are told to stay, the class, where each drag starts (xy, pixels of the image), and its file."""


class McBenchSettings(Settings):
    """How samples of MC-Bench become rows. The defaults are those of the publications where they say it."""

    section: ClassVar[str] = "mc_bench"

    frames: Annotated[int, Field(ge=2, le=1000)] = 16
    """Points of a path. MotionPro makes 16 frames."""
    metadata: Literal["new-first", "old-first"] = "new-first"
    """Which file counts where both are there. MotionPro's evaluation reads meta_data_new.json only."""
    drags: Literal["one", "parts"] = "one"
    """Samples with several drags: one: left out, as in Time-to-Move. parts: each drag moves the connected part of the
    mask that it starts in."""
    one_point: Literal["published", "still"] = "published"
    """A drag of one point means stay. published: a path by (1, 1) px, as MotionPro makes it. still: a path that stays,
    whose box is told to stay (column `still`) where another one moves: a row needs a box that is scored."""


def from_mc_bench(folder: str, target_folder: str, settings: McBenchSettings) -> Made:
    """One row per sample of MC-Bench. target_folder: of the manifest. Raises ManifestError."""
    root = Path(folder)
    root = root / "MC-Bench" if (root / "MC-Bench").is_dir() else root
    samples = [
        sample
        for name in CLASSES
        if (root / name).is_dir()
        for sample in sorted((root / name).iterdir())
        if sample.is_dir()
    ]
    if not samples:
        found = "no such folder" if not root.is_dir() else f"it has no samples in {' or '.join(CLASSES)}"
        raise ManifestError(folder, [Problem(None, None, None, "layout_unknown", f"{found}: give the folder MC-Bench")])
    names = names_of([f"{sample.parent.name}-{sample.name}" for sample in samples])
    return together([_made_of(*each, target_folder, settings) for each in zip(samples, names, strict=True)])


class _SampleError(Exception):
    """A sample that gives no row: code and message."""


def _made_of(sample: Path, name: str, target_folder: str, settings: McBenchSettings) -> Made:
    try:
        return Made(rows=[_row(sample, name, target_folder, settings)])
    except _SampleError as error:
        return Made(skipped=[Skipped(f"{sample.parent.name}/{sample.name}", *error.args)])


def _row(sample: Path, name: str, target_folder: str, settings: McBenchSettings) -> dict[str, Any]:
    file, drags = _read_drags(sample, settings)
    if len(drags) > 1 and settings.drags == "one":
        raise _SampleError("drags_many", f"it has {counted(len(drags), 'drag')}: --drags parts takes it")
    mask_HW = _read_mask(sample)
    height, width = mask_HW.shape
    boxes, paths, still = [], [], []
    for drag_K2 in drags:
        if not (0 <= drag_K2[0, 0] < width and 0 <= drag_K2[0, 1] < height):
            raise _SampleError("drag_outside", f"a drag starts at {drag_K2[0].tolist()}, outside the picture")
        box = tight_box(mask_HW if len(drags) == 1 else _part_at(mask_HW, drag_K2[0]))
        stays = len(drag_K2) == 1
        key_points_K2 = np.concatenate([drag_K2, drag_K2 + (settings.one_point == "published")]) if stays else drag_K2
        drag_P2 = pchip(key_points_K2, settings.frames)
        centre_2 = (np.array(box[:2]) + box[2:]) / 2
        boxes.append(list(box))
        paths.append((centre_2 + drag_P2 - drag_P2[0]).round(4).tolist())
        still.append(stays and settings.one_point == "still")
    return {
        "sample_id": name,
        "image": relative_path(sample / IMAGE, target_folder),
        "boxes": boxes,
        "trajectories": paths,
        "still": still_of(still),
        "group": sample.parent.name,
        "drag_starts": [drag_K2[0].tolist() for drag_K2 in drags],
        "metadata_file": file.name,
    }


def _read_drags(sample: Path, settings: McBenchSettings) -> tuple[Path, list[Floats]]:
    """The file, and its drags [K, 2] of one key point or more. Raises _SampleError."""
    order = (NEW, OLD) if settings.metadata == "new-first" else (OLD, NEW)
    file = next((sample / name for name in order if (sample / name).is_file()), None)
    if file is None:
        raise _SampleError("metadata_missing", f"{OLD} and {NEW} are missing")
    try:
        drags = [np.array(drag, np.float64) for drag in json.loads(file.read_text())[DRAGS]]
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
        message = f"{file.name} has no {DRAGS} as lists of [x, y] ({type(error).__name__}: {error})"
        raise _SampleError("metadata_invalid", message) from error
    if not drags or any(drag.ndim != 2 or drag.shape[1] != 2 or not np.isfinite(drag).all() for drag in drags):
        raise _SampleError("metadata_invalid", f"{DRAGS} in {file.name} is not lists of [x, y]")
    return file, drags


def _read_mask(sample: Path) -> NDArray[np.bool_]:
    """The pixels that may move, [H, W], in the size of the first frame. Raises _SampleError."""
    from PIL import Image

    sizes = []
    for name in (IMAGE, MASK):
        if not (sample / name).is_file():
            raise _SampleError("file_missing", f"{name} is missing")
        try:
            with Image.open(sample / name) as picture:
                sizes.append(picture.size)
                if name == MASK:
                    mask_HW = np.asarray(picture.convert("RGB")).any(axis=-1)
        except (OSError, ValueError, SyntaxError) as error:
            raise _SampleError("file_unreadable", f"{name} cannot be read ({error}): copy it again") from error
    if sizes[0] != sizes[1]:
        found = " and ".join(f"{width} x {height}" for width, height in sizes)
        raise _SampleError("mask_size", f"{IMAGE} and {MASK} have different sizes: {found}")
    if not mask_HW.any():
        raise _SampleError("mask_empty", f"{MASK} is 0 everywhere: nothing may move")
    return np.asarray(mask_HW)


def _part_at(mask_HW: NDArray[np.bool_], point_2: Floats) -> NDArray[np.bool_]:
    """The connected part of the mask at a point. Raises _SampleError."""
    import cv2

    labels_HW = cv2.connectedComponents(mask_HW.astype(np.uint8), connectivity=8)[1]
    x, y = point_2.astype(int)
    if not mask_HW[y, x]:
        raise _SampleError("drag_off_mask", f"a drag starts at {point_2.tolist()}, outside the mask")
    return np.asarray(labels_HW == labels_HW[y, x])


def pchip(points_K2: Floats, frames: int) -> Floats:
    """[frames, 2] on the PCHIP curve through key points at equal steps of time (Fritsch and Butland, 1984).

    It is SciPy's `PchipInterpolator`, which an installation of this program does not have.
    """
    steps_S2 = np.diff(points_K2, axis=0)
    slopes_K2 = np.zeros_like(points_K2)
    if len(steps_S2) == 1:
        slopes_K2[:] = steps_S2
    else:
        before_2, after_2 = steps_S2[:-1], steps_S2[1:]
        agree = before_2 * after_2 > 0
        slopes_K2[1:-1][agree] = (2 * before_2 * after_2)[agree] / (before_2 + after_2)[agree]
        slopes_K2[0] = _end_slope(steps_S2[0], steps_S2[1])
        slopes_K2[-1] = _end_slope(steps_S2[-1], steps_S2[-2])
    at_T = np.linspace(0, len(steps_S2), frames)
    k_T = np.minimum(at_T.astype(int), len(steps_S2) - 1)
    u = (at_T - k_T)[:, None]
    return np.asarray(
        (1 + 2 * u) * (1 - u) ** 2 * points_K2[k_T]
        + u * (1 - u) ** 2 * slopes_K2[k_T]
        + u**2 * (3 - 2 * u) * points_K2[k_T + 1]
        + u**2 * (u - 1) * slopes_K2[k_T + 1]
    )


def _end_slope(end_2: Floats, next_2: Floats) -> Floats:
    """The slope at an end from the first two steps, by the three-point formula, with PCHIP's limits."""
    slope_2 = (3 * end_2 - next_2) / 2
    too_steep = (np.sign(end_2) != np.sign(next_2)) & (np.abs(slope_2) > np.abs(3 * end_2))
    return np.where(np.sign(slope_2) != np.sign(end_2), 0.0, np.where(too_steep, 3 * end_2, slope_2))


def recipe_of(settings: McBenchSettings) -> dict[str, Any]:
    """What the manifest says about how it was made."""
    return {"source": "mc-bench", "mc_bench": settings.plain()}


def entered(made: Made) -> Iterator[str]:
    """Lines that say how many samples of each class are in rows, and by which file."""
    for name in CLASSES:
        rows = [row for row in made.rows if row["group"] == name]
        total = len(rows) + sum(str(one.key).startswith(f"{name}/") for one in made.skipped)
        if total:
            by_new = sum(row["metadata_file"] == NEW for row in rows)
            files = f"{by_new} by {NEW}, {len(rows) - by_new} by {OLD}"
            yield f"{name}: {len(rows)} of {counted(total, 'sample')} entered ({files})"
