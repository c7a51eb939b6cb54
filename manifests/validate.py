"""Validation of a manifest: every problem of every row, found before a GPU is used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa

from manifests.access import Access
from manifests.images import load_image
from manifests.schema import MANIFEST_SCHEMA, box_error, row_problems, rows_of
from sgi2v.errors import Problem, SampleError
from sgi2v.trajectory import boxes_outside

PARALLEL_READS = 8
"""Images that are read and decoded at the same time."""

_BATCH_ROWS = 4096

_SizeOrProblem = tuple[int, int] | Problem
"""(height, width) of an image that decodes, or its problem, without a row and a sample id."""


def validate(
    table: pa.Table,
    manifest_uri: str,
    images: bool = True,
    access: Access | None = None,
    on_image: Callable[[int, int], None] = lambda done, total: None,
) -> list[Problem]:
    """The problems of a conformed table, in the order of its rows. Empty if every row can be generated.

    images: read and decode each distinct image once, and check the boxes against its size. access: where images may
    lie. on_image: called with the number of images that are checked, and of all, after each one.
    """
    checked_images = _check_images(table, manifest_uri, access, on_image) if images else {}
    problems: list[Problem] = []
    row = 0
    for batch in table.select(MANIFEST_SCHEMA.names).to_batches(max_chunksize=_BATCH_ROWS):
        for values in rows_of(pa.Table.from_batches([batch])):
            problems.extend(_problems_of_row(row, values, checked_images))
            row += 1
    return problems


def _problems_of_row(row: int, values: dict[str, Any], checked_images: dict[str, _SizeOrProblem]) -> Iterator[Problem]:
    sample_id = values["sample_id"]
    for column, error in row_problems(values):
        yield Problem(row, sample_id, column, error.code, error.message)
    image = checked_images.get(values["image"])
    if isinstance(image, Problem):
        yield image._replace(row=row, sample_id=sample_id)
    elif image is not None:
        # Invalid boxes were reported above. A box that fits stands in for them, so that the others keep their numbers.
        boxes = [box if box_error(n, box) is None else [0, 0, 1, 1] for n, box in enumerate(values["boxes"] or [])]
        for _, error in boxes_outside(np.array(boxes).reshape(-1, 4), *image):
            yield Problem(row, sample_id, "boxes", error.code, error.message)


def _check_images(
    table: pa.Table, manifest_uri: str, access: Access | None, on_image: Callable[[int, int], None]
) -> dict[str, _SizeOrProblem]:
    """The size or the problem of each distinct image of the table. Blank names are left out."""
    names = [name for name in table.column("image").unique().to_pylist() if name and name.strip()]
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        checked: dict[str, _SizeOrProblem] = {}
        results = pool.map(lambda name: _check_image(name, manifest_uri, access), names)
        for name, result in zip(names, results, strict=True):
            checked[name] = result
            on_image(len(checked), len(names))
        return checked


def _check_image(name: str, manifest_uri: str, access: Access | None) -> _SizeOrProblem:
    try:
        pixels_HWC = load_image(name, manifest_uri, access)
    except SampleError as error:
        return Problem(None, None, "image", error.code, error.message)
    except OSError as error:
        message = f"the image cannot be read now ({error}): try again later"
        return Problem(None, None, "image", "image_unreadable", message)
    height, width, _ = pixels_HWC.shape
    return height, width
