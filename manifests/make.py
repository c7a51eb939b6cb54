"""From a place of pictures to a manifest: find the pictures, find their boxes, spread the samples, draw them, write.

Each picture is read once. Rows depend on the seed and on the pictures alone: not on the number of processes.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from manifests.boxes.filters import described, filtered
from manifests.boxes.proposer import BoxProposer, PictureError, Proposal
from manifests.decode import decode_image
from manifests.fit import place
from manifests.io import read_manifest
from manifests.masks import png_of
from manifests.place import PICTURES, Place, find_files, name_fault, name_in_manifest
from manifests.recipe import METADATA_KEY, Recipe
from manifests.row_groups import RowGroupWriter
from manifests.sampling import Floats, NoPictureError, Picture, Plan, Refused, draw_sample, make_plan
from manifests.schema import EXTENSION_SCHEMA, MANIFEST_SCHEMA
from manifests.skipped import Skipped, SkippedTable, folder_of
from manifests.urls import read_image_bytes
from sgi2v.canonical import canonical_json
from sgi2v.errors import ConfigError, SampleError, StorageError
from sgi2v.trajectory import BoxTracks
from sgi2v.wording import counted, escaped, ranked

READERS = 8
"""Pictures that one process reads at the same time: a store answers slowly, but many requests at once."""
PICTURES_A_JOB = 16
"""Pictures of which one process looks for boxes at a time."""
ROWS_A_JOB = 4096
"""Samples that one process draws at a time. They become one row group."""
READ_ATTEMPTS = 3
"""Attempts at reading a picture from a store that answers with an error."""
FEW_PICTURES, FEW_ROWS = 8, 20_000
"""With fewer pictures and samples than these, further processes cost more time than they save."""

Progress = Callable[[str, int, int], None]
"""(what is counted, how many are done, of how many)."""
JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")


@dataclass
class Made:
    """What became of a place."""

    pictures: int = 0
    """Pictures in the place."""
    used: int = 0
    """Pictures with samples."""
    rows: int = 0
    """Samples in the manifest."""
    asked: int = 0
    """Samples that were planned: as many as were asked for, but for `per_image`."""
    left_out: list[str] = field(default_factory=list)
    """Motions that no picture has enough boxes for."""
    skipped: Counter[str] = field(default_factory=Counter)
    """Pictures and boxes that were left out, by code."""
    skipped_at: str = ""
    """Where the table of these is."""
    refused: Refused = field(default_factory=Refused)


def make_manifest(
    place: str,
    output: str,
    recipe: Recipe,
    proposer: BoxProposer,
    processes: int | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Made:
    """Write a manifest of samples of the pictures of a place, and `skipped.parquet` beside it.

    processes: None takes one per CPU where that pays. Raises ConfigError where nothing can be made (`skipped.parquet`
    is written then too), and StorageError.
    """
    found = find_files(place, PICTURES, "picture")
    tracks = _real_tracks(recipe.motion.tracks)
    made = Made(pictures=len(found.keys))
    folder = folder_of(output)
    with (
        RowGroupWriter(output, manifest_schema(recipe)) as writer,
        SkippedTable(folder) as skipped,
        _pool(processes, len(found.keys), recipe) as pool,
    ):
        made.skipped, made.skipped_at = skipped.counts, skipped.place
        for error in proposer.check(found.keys):
            skipped.add(Skipped(None, error.code, str(error)))
        pictures = list(_look_at_all(found, folder, recipe, proposer, pool, skipped, progress))
        try:
            plan = make_plan(recipe, [picture.apart for picture in pictures])
        except NoPictureError:
            message = f"{place}: none of its {counted(made.pictures, 'picture')} can be used for these motions"
            raise ConfigError(f"{message}; {skipped.reasons()}") from None
        made.used, made.asked = len(np.unique(plan.picture)), len(plan)
        made.left_out = plan.left_out
        for table, refused in _in_order(pool, _draw_rows, _row_jobs(plan, pictures, recipe, tracks)):
            made.refused.add(refused)
            made.rows += table.num_rows
            writer.write(table)
            progress("sample", made.rows, made.asked)
        if not made.rows:
            raise ConfigError(f"no sample meets the constraints ({ranked(made.refused.dropped)}): loosen the recipe")
    return made


def manifest_schema(recipe: Recipe) -> pa.Schema:
    """The columns of a manifest that is made by this recipe, which is in the metadata."""
    sample = recipe.sample
    asked_for = {"still": sample.still != "none", "masks": sample.masks, "fit": sample.fit is not None}
    extensions = [field for field in EXTENSION_SCHEMA if asked_for[field.name]]
    fields = [*MANIFEST_SCHEMA, pa.field("recipe", pa.string()), *extensions]
    return pa.schema(fields, metadata={METADATA_KEY: recipe.json()})


@dataclass(frozen=True, eq=False)
class _LookJob:
    """Pictures of which one process looks for boxes."""

    keys: tuple[str, ...]
    uris: tuple[str, ...]
    folder: str
    """Of the manifest."""
    recipe: Recipe
    proposer: BoxProposer


@dataclass(frozen=True, eq=False)
class _Looked:
    """What was found in one picture."""

    key: str
    digest: bytes
    picture: Picture | None
    skipped: list[Skipped]


def _look_at_all(
    found: Place,
    folder: str,
    recipe: Recipe,
    proposer: BoxProposer,
    pool: Executor | None,
    skipped: SkippedTable,
    progress: Progress,
) -> Iterator[Picture]:
    """The pictures that can be used, with their boxes. What cannot be is added to `skipped`."""
    total = len(found.keys)
    parts = (slice(first, first + PICTURES_A_JOB) for first in range(0, total, PICTURES_A_JOB))
    jobs = (_LookJob(found.keys[part], found.uris[part], folder, recipe, proposer) for part in parts)
    first_of: dict[bytes, str] = {}
    done = 0
    for batch in _in_order(pool, _look_at, jobs):
        for looked in batch:
            done += 1
            if looked.digest and looked.digest in first_of:
                message = f"it is the same file as {first_of[looked.digest]}"
                skipped.add(Skipped(looked.key, "duplicate", message))
                continue
            first_of[looked.digest] = looked.key
            for each in looked.skipped:
                skipped.add(each)
            if looked.picture is not None:
                yield looked.picture
        progress("picture", done, total)


def _look_at(job: _LookJob) -> list[_Looked]:
    with ThreadPoolExecutor(READERS) as readers:
        reads = list(readers.map(_read, job.uris))
    return [
        _look_at_one(key, name_in_manifest(uri, job.folder), data, job.recipe, job.proposer)
        for key, uri, data in zip(job.keys, job.uris, reads, strict=True)
    ]


def _read(uri: str) -> bytes | SampleError | OSError:
    """The bytes of a picture, or why there are none."""
    error: SampleError | OSError
    for _ in range(READ_ATTEMPTS):
        try:
            return read_image_bytes(uri)
        except SampleError as final:
            return final
        except OSError as passing:
            error = passing
    return error


def _look_at_one(
    key: str, image: str, data: bytes | SampleError | OSError, recipe: Recipe, proposer: BoxProposer
) -> _Looked:
    """Decode a picture and look for its boxes."""
    if fault := name_fault(image):
        return _Looked(key, b"", None, [Skipped(escaped(key), "name_invalid", fault)])
    if isinstance(data, SampleError):
        return _Looked(key, b"", None, [Skipped(key, data.code, data.message)])
    if isinstance(data, OSError):
        return _Looked(key, b"", None, [Skipped(key, "image_unreadable", f"the image cannot be read now ({data})")])
    digest = hashlib.sha256(data).digest()
    try:
        pixels_HWC = decode_image(data)
        proposed = proposer.propose(pixels_HWC, key)
    except SampleError as error:
        return _Looked(key, digest, None, [Skipped(key, error.code, error.message)])
    except PictureError as error:
        return _Looked(key, digest, None, [Skipped(key, error.code, str(error))])
    except Exception as error:  # one picture must not end the work on all others
        message = f"{proposer.name} failed on this picture: {type(error).__name__}: {error}"
        return _Looked(key, digest, None, [Skipped(key, "unknown", message)])
    height, width = pixels_HWC.shape[:2]
    notes, kept = list(proposed.notes), list[Proposal]()
    placement = place(BoxTracks(np.empty((0, 1, 4)), height, width), recipe.sample.video_size)
    x0, y0, x1, y1 = placement.source_box
    shown_2 = x1 - x0, y1 - y0
    if proposer.finds_objects:
        sifted = filtered(proposed.boxes, pixels_HWC, recipe.filters, placement.scale)
        notes += sifted.dropped
        for each in sifted.kept:
            left, top, right, bottom = each.box_xyxy
            if right - left <= shown_2[0] and bottom - top <= shown_2[1]:
                kept.append(each)
            else:
                message = f"{described(each.box_xyxy)} is larger than what fit = {placement.fit} keeps of the picture"
                notes.append(PictureError(f"fit_{placement.fit}", f"{message}: use --fit pad"))
    if not kept and all(motion for motion, _ in recipe.kinds):
        notes.append(PictureError("no_box", "no box of an object is left"))
        return _Looked(key, digest, None, [Skipped(key, note.code, str(note)) for note in notes])
    masks = [png_of(each.mask_HW) if recipe.sample.masks and each.mask_HW is not None else None for each in kept]
    movable, every = ([replace(each, mask_HW=None) for each in boxes] for boxes in (kept, proposed.boxes))
    picture = Picture(key, image, height, width, movable, every, masks, shown_2)
    return _Looked(key, digest, picture, [Skipped(key, note.code, str(note)) for note in notes])


@dataclass(frozen=True, eq=False)
class _RowJob:
    """Samples that one process draws."""

    samples: range
    plan: Plan
    """Of these samples only."""
    pictures: dict[int, Picture]
    digits: int
    recipe: Recipe
    tracks: tuple[Floats, ...]


def _row_jobs(plan: Plan, pictures: Sequence[Picture], recipe: Recipe, tracks: tuple[Floats, ...]) -> Iterator[_RowJob]:
    digits = max(6, len(str(len(plan) - 1)))
    for first in range(0, len(plan), ROWS_A_JOB):
        samples = range(first, min(first + ROWS_A_JOB, len(plan)))
        part = plan.part(slice(samples.start, samples.stop))
        yield _RowJob(samples, part, {n: pictures[n] for n in set(part.picture.tolist())}, digits, recipe, tracks)


def _draw_rows(job: _RowJob) -> tuple[pa.Table, Refused]:
    """The rows of some samples, and the draws that were thrown away."""
    rows, refused, seed = [], Refused(), job.recipe.sample.seed
    for number, sample in enumerate(job.samples):
        rng = np.random.default_rng([seed, 1, sample])
        picture = job.pictures[int(job.plan.picture[number])]
        row, its_refused = draw_sample(rng, picture, job.plan.stratum(number), job.recipe, job.tracks)
        refused.add(its_refused)
        if row is not None:
            row["recipe"] = canonical_json(row["recipe"] | {"seed": [seed, sample]})
            rows.append({**row, "sample_id": f"{seed}-{sample:0{job.digits}}", "fit": job.recipe.sample.fit})
    schema = manifest_schema(job.recipe)
    columns: dict[str, list[Any]] = {name: [row.get(name) for row in rows] for name in schema.names}
    return pa.table(columns, schema=schema), refused


@contextmanager
def _pool(processes: int | None, pictures: int, recipe: Recipe) -> Iterator[Executor | None]:
    """The processes that work; None where this one is enough."""
    if processes is None:
        rows = recipe.sample.samples or pictures * (recipe.sample.per_image or 1)
        processes = 1 if pictures < FEW_PICTURES and rows < FEW_ROWS else os.cpu_count() or 1
    if processes == 1:
        yield None
        return
    # not forked: clients of stores do not survive that
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"))
    try:
        yield pool
    except BrokenProcessPool as error:
        message = "a process ended too early, perhaps for want of memory: use fewer with --processes"
        raise StorageError(message) from error
    finally:
        pool.shutdown(cancel_futures=True)


def _in_order(pool: Executor | None, work: Callable[[JobT], ResultT], jobs: Iterable[JobT]) -> Iterator[ResultT]:
    """The results of the jobs in their order. Few results wait at a time, however slow the reader is."""
    if pool is None:
        yield from map(work, jobs)
        return
    running: deque[Future[ResultT]] = deque()
    for job in jobs:
        running.append(pool.submit(work, job))
        if len(running) > 2 * (os.cpu_count() or 1):
            yield running.popleft().result()
    while running:
        yield running.popleft().result()


def _real_tracks(manifest: str | None) -> tuple[Floats, ...]:
    """The paths of a manifest that go anywhere."""
    if manifest is None:
        return ()
    paths = (np.array(path) for row in read_manifest(manifest).column("trajectories").to_pylist() for path in row or ())
    tracks = tuple(path for path in paths if path.ndim == 2 and np.ptp(path, axis=0).any())
    if not tracks:
        raise ConfigError(f"motion.tracks: {manifest} has no path that moves")
    return tracks
