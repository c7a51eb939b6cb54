"""Every problem of every row of a manifest, before any GPU is paid for."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from manifests.access import Access
from manifests.images import load_image
from manifests.schema import MANIFEST_SCHEMA, box_error, row_problems, rows_of
from sgi2v.errors import Problem, SampleError
from sgi2v.trajectory import boxes_outside

FETCHES = 8
"""Images fetched at once."""

_ROWS_AT_ONCE = 4096

_Outcome = tuple[int, int] | Problem
"""(height, width) of an image that decodes, or its problem with neither row nor sample."""


def validate(table: pa.Table, manifest_uri: str, images: bool = True, access: Access | None = None) -> list[Problem]:
    """The problems of a conformed table's rows, in their order; empty where every row can be generated.

    With `images`, each distinct image is fetched once and decoded whole, and boxes are held against its size.
    access: where images may lie.
    """
    outcomes = _check_images(table, manifest_uri, access) if images else {}
    problems: list[Problem] = []
    row = 0
    for batch in table.select(MANIFEST_SCHEMA.names).to_batches(max_chunksize=_ROWS_AT_ONCE):
        for values in rows_of(pa.Table.from_batches([batch])):
            problems.extend(_problems_of_row(row, values, outcomes))
            row += 1
    return problems


def _problems_of_row(row: int, values: dict[str, Any], outcomes: dict[str, _Outcome]) -> Iterator[Problem]:
    sample_id = values["sample_id"]
    for column, error in row_problems(values):
        yield Problem(row, sample_id, column, error.code, error.message)
    outcome = outcomes.get(values["image"])
    if isinstance(outcome, Problem):
        yield outcome._replace(row=row, sample_id=sample_id)
    elif outcome is not None:
        boxes = values["boxes"] or []
        sound = [n for n, box in enumerate(boxes) if box_error(n, box) is None]
        # unsound boxes were told above; here they are boxes that fit, so that the others keep their numbers
        boxes_N4 = np.array([box if n in sound else [0, 0, 1, 1] for n, box in enumerate(boxes)]).reshape(-1, 4)
        for _, error in boxes_outside(boxes_N4, *outcome):
            yield Problem(row, sample_id, "boxes", error.code, error.message)


def _check_images(table: pa.Table, manifest_uri: str, access: Access | None) -> dict[str, _Outcome]:
    """What became of each distinct image of the table that is not blank."""
    names = [name for name in table.column("image").unique().to_pylist() if name and name.strip()]
    with ThreadPoolExecutor(FETCHES) as pool:
        outcomes = pool.map(lambda name: _check_image(name, manifest_uri, access), names)
        return dict(zip(names, outcomes, strict=True))


def _check_image(name: str, manifest_uri: str, access: Access | None) -> _Outcome:
    try:
        pixels_HWC = load_image(name, manifest_uri, access)
    except SampleError as error:
        return Problem(None, None, "image", error.code, error.message)
    except OSError as error:
        return Problem(None, None, "image", "image_unreadable", f"it cannot be read now: {error}; try again")
    height, width, _ = pixels_HWC.shape
    return height, width
