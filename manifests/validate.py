"""Validation of a manifest: every problem and every doubt of every row, found before a GPU is used."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

import numpy as np
import pyarrow as pa

from manifests.access import Access
from manifests.fit import VideoSize, place
from manifests.images import load_image
from manifests.masks import masks_of
from manifests.plausible import FRAMES, RowWarning, row_warnings
from manifests.schema import Sample, box_error, known_columns, parse_row, row_problems, rows_of
from sgi2v.errors import Problem, SampleError
from sgi2v.trajectory import boxes_outside

PARALLEL_READS = 8
"""Images that are read and decoded at the same time."""

GLANCED_ROWS = 10_000
"""Rows whose numbers `glance` reads."""

GLANCED_IMAGES = 50
"""Rows whose images `glance` reads as well."""

GLANCE_S = 10.0
"""Seconds after which `glance` goes on without the images that have not arrived."""

_BATCH_ROWS = 4096

_SizeOrProblem = tuple[int, int] | Problem
"""(height, width) of an image that decodes, or its problem, without a row and a sample id."""


@dataclass
class Findings:
    """What a validation found, in the order of the rows."""

    problems: list[Problem] = field(default_factory=list)
    """Empty if every row can be generated."""
    warnings: list[RowWarning] = field(default_factory=list)
    """Doubts about rows that can be generated."""


def validate(table: pa.Table, manifest_uri: str, images: bool = True, access: Access | None = None) -> list[Problem]:
    """The problems of a conformed table, as `check` finds them."""
    return check(table, manifest_uri, images, access).problems


def check(
    table: pa.Table,
    manifest_uri: str,
    images: bool = True,
    access: Access | None = None,
    video_size: VideoSize | None = None,
    on_image: Callable[[int, int], None] = lambda done, total: None,
) -> Findings:
    """The problems and doubts of a conformed table.

    images: read and decode each distinct image once, and check the boxes against its size. access: where images may
    lie. video_size: of the videos to make, if it is known. on_image: called with the number of images
    that are checked, and of all, after each one.
    """
    sizes = _check_images(table, manifest_uri, access, on_image) if images else {}
    return _check_rows(table, sizes, video_size)


def glance(table: pa.Table, manifest_uri: str, access: Access | None, video_size: VideoSize) -> list[RowWarning]:
    """The doubts about the first rows of a table, found within seconds. A mistake of units is one of every row.

    Numbers of GLANCED_ROWS rows are read, and images of GLANCED_IMAGES of them.
    """
    names = _image_names(table.slice(0, GLANCED_IMAGES))
    waiting: SimpleQueue[str] = SimpleQueue()
    for name in names:
        waiting.put(name)
    sizes: dict[str, _SizeOrProblem] = {}

    def work() -> None:
        with suppress(Empty):
            while True:
                name = waiting.get_nowait()
                sizes[name] = _check_image(name, manifest_uri, access)

    # daemons, since a process waits at its end for the threads of a pool, and a server may be silent for minutes
    threads = [Thread(target=work, daemon=True) for _ in range(min(PARALLEL_READS, len(names)))]
    end = time.monotonic() + GLANCE_S
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(end - time.monotonic(), 0))
    return _check_rows(table.slice(0, GLANCED_ROWS), dict(sizes), video_size, problems=False).warnings


def _check_rows(
    table: pa.Table,
    checked_images: dict[str, _SizeOrProblem],
    video_size: VideoSize | None,
    problems: bool = True,
) -> Findings:
    """problems: False looks for doubts only, which is faster."""
    findings = Findings()
    row = 0
    for batch in known_columns(table).to_batches(max_chunksize=_BATCH_ROWS):
        for values in rows_of(pa.Table.from_batches([batch])):
            if problems:
                findings.problems.extend(_problems_of_row(row, values, checked_images))
            image = checked_images.get(values["image"])
            with suppress(SampleError):  # which is among the problems
                size = None if isinstance(image, Problem) else image
                sample = parse_row(values)
                findings.warnings.extend(row_warnings(sample, size, video_size))
                if problems and size is not None:
                    findings.problems.extend(_picture_problems(row, sample, size, video_size))
            row += 1
    return findings


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


def _picture_problems(
    row: int, sample: Sample, size: tuple[int, int], video_size: VideoSize | None
) -> Iterator[Problem]:
    """The boxes of a row that are lost as its picture is cropped, and its first mask that is wrong or lost.

    size: (height, width) of its image.
    """
    masks: Iterator[Any] = iter(())
    if sample.masks is not None:
        masks = masks_of(sample.masks, sample.boxes_N4, *size)
    if video_size is not None:
        tracks = sample.tracks(FRAMES, *size).clip_to_first_frame()
        placement = place(tracks, video_size, sample.fit)
        lost = list(placement.lost_boxes(tracks))
        for _, error in lost:
            yield Problem(row, sample.sample_id, "boxes", error.code, error.message)
        if sample.masks is not None and not lost:
            masks = placement.box_masks(masks, tracks)
    try:
        for _ in masks:
            pass
    except SampleError as error:
        yield Problem(row, sample.sample_id, "masks", error.code, error.message)


def _check_images(
    table: pa.Table, manifest_uri: str, access: Access | None, on_image: Callable[[int, int], None]
) -> dict[str, _SizeOrProblem]:
    """The size or the problem of each distinct image of the table."""
    names = _image_names(table)
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        checked: dict[str, _SizeOrProblem] = {}
        results = pool.map(lambda name: _check_image(name, manifest_uri, access), names)
        for name, result in zip(names, results, strict=True):
            checked[name] = result
            on_image(len(checked), len(names))
        return checked


def _image_names(table: pa.Table) -> list[str]:
    """The distinct images of the table. Blank names are left out."""
    return [name for name in table.column("image").unique().to_pylist() if name and name.strip()]


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
