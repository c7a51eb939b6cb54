"""Manifests from example folders in the layout of the SG-I2V publication: `NAME/img.png` and `NAME/traj.npy`.

`traj.npy` is [N, 2 + P, 2], xy in pixels of the image. For each of N boxes it has the top-left and the bottom-right
corner in frame 0, then the P points of the path of the box's centre.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from manifests.schema import MANIFEST_SCHEMA, MAX_BOXES, MAX_POINTS, conform
from manifests.urls import relative_path
from sgi2v.errors import ManifestError, Problem
from sgi2v.wording import escaped

IMAGE, PATHS = "img.png", "traj.npy"
MAX_REASON_CHARS = 200
"""Characters of NumPy's own message in ours; it may repeat a header of any length."""


def from_sgi2v(folder: str, relative_to: str) -> pa.Table:
    """A conformed manifest with one row per example folder in `folder`, in natural order of the folder names.

    relative_to: the folder that the manifest will be written in. Image paths are relative to it; they are absolute if
    it is a URL, or has only the root in common with `folder`. Raises ManifestError, which lists every bad folder.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ManifestError(folder, [_problem(None, "manifest_missing", "no such folder: check the path")])
    examples = [path for path in root.iterdir() if (path / IMAGE).exists() or (path / PATHS).exists()]
    if not examples:
        message = f"no example folders: each example is a folder in it with {IMAGE} and {PATHS}"
        raise ManifestError(folder, [_problem(None, "manifest_empty", message)])
    rows, problems = [], []
    for example in sorted(examples, key=lambda path: _natural(path.name)):
        try:
            rows.append(_row(example, relative_to))
        except (OSError, ValueError) as error:
            problems.append(_problem(example.name, "example_invalid", str(error)))
    if problems:
        raise ManifestError(folder, problems)
    return conform(pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA), folder)


def _row(example: Path, relative_to: str) -> dict[str, Any]:
    if not (example / IMAGE).is_file():
        raise ValueError(f"{IMAGE} is missing: add the first frame")
    if not (example / PATHS).is_file():
        raise ValueError(f"{PATHS} is missing: add the boxes and paths")
    array = _open_array(example / PATHS)
    if array.ndim != 3 or array.shape[1] < 4 or array.shape[2] != 2 or array.dtype.kind not in "iuf":
        found = f"{array.dtype} {list(array.shape)}"
        raise ValueError(f"{PATHS} is {found}, expected numbers [boxes, 2 + points, 2] with two points or more")
    if array.shape[0] > MAX_BOXES or array.shape[1] - 2 > MAX_POINTS:
        raise ValueError(
            f"{PATHS} is [boxes, 2 + points, 2] = {list(array.shape)}: give {MAX_BOXES:,} boxes and {MAX_POINTS:,} "
            "points for each, at most"
        )
    return {
        "sample_id": example.name,
        "image": relative_path(example / IMAGE, relative_to),
        "boxes": array[:, :2].reshape(-1, 4).tolist(),
        "trajectories": array[:, 2:].tolist(),
    }


def _open_array(file: Path) -> NDArray[Any]:
    """The array of a .npy file, whose numbers are not read yet: its header may promise any number of them.

    Raises ValueError for any other file.
    """
    try:
        with np.errstate(over="raise"):  # of the product of the header's numbers
            array = np.load(file, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged header makes NumPy raise many kinds, MemoryError and TypeError among them
        reason = escaped(f"{error}")[:MAX_REASON_CHARS]
        raise ValueError(f"{file.name} is not an array of numbers ({reason}): save it again with numpy.save") from error
    if not isinstance(array, np.ndarray):
        array.close()
        raise ValueError(f"{file.name} is an archive of arrays (numpy.savez): save the one array with numpy.save")
    return array


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """Sort key for natural order: 9, 15, 108, a."""
    parts = [part for part in re.split(r"(\d+)", name) if part]
    return [(False, int(part), "") if part.isdecimal() else (True, 0, part) for part in parts]


def _problem(sample_id: str | None, code: str, message: str) -> Problem:
    return Problem(None, sample_id, None, code, message)
