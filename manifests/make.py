"""From a place of pictures to a manifest: find the pictures, find their boxes, spread the samples, draw them, write.

Each picture is read once. Rows depend on the seed and on the pictures alone: not on the number of processes.
"""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem
from PIL import Image

from manifests.boxes.filters import filtered
from manifests.boxes.proposer import BoxProposer, PictureError, Proposal
from manifests.decode import decode_image
from manifests.io import read_manifest
from manifests.place import Place, find_pictures, name_fault, name_in_manifest
from manifests.recipe import METADATA_KEY, Recipe
from manifests.sampling import Floats, NoPictureError, Picture, Plan, Refused, draw_sample, make_plan
from manifests.schema import MANIFEST_SCHEMA
from manifests.urls import read_image_bytes
from sgi2v.canonical import canonical_json
from sgi2v.errors import ConfigError, SampleError, StorageError
from sgi2v.locations import credentials_advice, local_path, open_store
from sgi2v.wording import counted, escaped

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
SKIPPED = "skipped.parquet"
"""Table of what was left out and why; it is written beside the manifest."""
SKIPPED_SCHEMA = pa.schema([("key", pa.string()), ("code", pa.string()), ("message", pa.string())])

Progress = Callable[[str, int, int], None]
"""(what is counted, how many are done, of how many)."""
JobT = TypeVar("JobT")
ResultT = TypeVar("ResultT")


class Skipped(NamedTuple):
    """A picture, or a box of it, that was left out."""

    key: str | None
    code: str
    message: str


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
    refused: Refused = field(default_factory=Refused)


class ManifestWriter:
    """Writes a manifest as a stream of row groups. The file appears whole, or not at all.

    Only what a row group needs is in memory. A URL is uploaded at the end, from a temporary file.
    """

    def __init__(self, uri: str, schema: pa.Schema) -> None:
        if not uri.lower().endswith(".parquet"):
            raise ConfigError(f"{uri} must end with .parquet: a manifest is made as Parquet only")
        self.uri, path = uri, local_path(uri)
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            folder = None if path is None else path.parent
            handle, name = tempfile.mkstemp(suffix=".partial", prefix=".manifest", dir=folder)
            os.close(handle)
        except OSError as error:
            raise StorageError(f"{uri} cannot be written: {error}") from error
        self.partial = Path(name)
        self.writer = pq.ParquetWriter(self.partial, schema, compression="zstd")

    def write(self, table: pa.Table) -> None:
        """Add a table as one row group."""
        self.writer.write_table(table, row_group_size=max(table.num_rows, 1))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.writer.close()
        try:
            if kind is None:
                self._publish()
        finally:
            self.partial.unlink(missing_ok=True)

    def _publish(self) -> None:
        try:
            file_system, path = open_store(self.uri)
            if isinstance(file_system, LocalFileSystem):
                umask = os.umask(0)
                os.umask(umask)
                self.partial.chmod(0o666 & ~umask)
                self.partial.replace(path)
            else:
                file_system.put_file(str(self.partial), path)
        except (OSError, ValueError, ImportError) as error:
            raise StorageError(f"{self.uri} cannot be written: {error}{credentials_advice(error, self.uri)}") from error


class SkippedTable:
    """Writes `skipped.parquet`, and counts what is in it. It is written also where nothing could be made."""

    def __init__(self, folder: str) -> None:
        self.writer = ManifestWriter(f"{folder.rstrip('/')}/{SKIPPED}" if folder else SKIPPED, SKIPPED_SCHEMA)
        self.counts: Counter[str] = Counter()
        self.first: Skipped | None = None
        self.waiting: list[Skipped] = []

    def add(self, each: Skipped) -> None:
        """Add a row."""
        self.counts[each.code] += 1
        self.first = self.first or each
        self.waiting.append(each)
        if len(self.waiting) >= ROWS_A_JOB:
            self._flush()

    def _flush(self) -> None:
        columns = list(zip(*self.waiting, strict=True)) or [(), (), ()]
        self.writer.write(pa.table([pa.array(each, pa.string()) for each in columns], schema=SKIPPED_SCHEMA))
        self.waiting.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self.writer:
            self._flush()


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
    found = find_pictures(place)
    tracks = _real_tracks(recipe.motion.tracks)
    made = Made(pictures=len(found.keys))
    folder = output.rpartition("/")[0] if "://" in output else str(Path(output).parent)
    with (
        SkippedTable(folder) as skipped,
        ManifestWriter(output, manifest_schema(recipe)) as writer,
        _pool(processes, len(found.keys), recipe) as pool,
    ):
        made.skipped = skipped.counts
        for error in proposer.check(found.keys):
            skipped.add(Skipped(None, error.code, str(error)))
        pictures = list(_look_at_all(found, folder, recipe, proposer, pool, skipped, progress))
        try:
            plan = make_plan(recipe, [picture.apart for picture in pictures])
        except NoPictureError:
            raise ConfigError(_nothing_made(place, made, skipped.first)) from None
        made.used, made.asked = len(np.unique(plan.picture)), len(plan)
        made.left_out = plan.left_out
        for table, refused in _in_order(pool, _draw_rows, _row_jobs(plan, pictures, recipe, tracks)):
            made.refused.add(refused)
            made.rows += table.num_rows
            writer.write(table)
            progress("sample", made.rows, made.asked)
        if not made.rows:
            raise ConfigError(f"no sample meets the constraints ({describe(made.refused.dropped)}): loosen the recipe")
    return made


def manifest_schema(recipe: Recipe) -> pa.Schema:
    """The columns of a manifest that is made by this recipe, which is in the metadata."""
    fields = [*MANIFEST_SCHEMA, pa.field("recipe", pa.string())]
    if recipe.sample.still != "none":
        fields.append(pa.field("still", pa.list_(pa.bool_())))
    if recipe.sample.masks:
        fields.append(pa.field("masks", pa.list_(pa.binary())))
    if recipe.sample.fit is not None:
        fields.append(pa.field("fit", pa.string()))
    return pa.schema(fields, metadata={METADATA_KEY: recipe.json()})


def describe(counts: Mapping[str, int]) -> str:
    """`stay_inside 12, collisions_none 3`."""
    return ", ".join(
        f"{name} {number}" for name, number in sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    )


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
    if proposer.finds_objects:
        scale = recipe.sample.output_scale(width, height)
        sifted = filtered(proposed.boxes, pixels_HWC, recipe.filters, scale)
        kept, notes = sifted.kept, [*notes, *sifted.dropped]
    if not kept and all(motion for motion, _ in recipe.kinds):
        notes.append(PictureError("no_box", "no box of an object is left"))
        return _Looked(key, digest, None, [Skipped(key, note.code, str(note)) for note in notes])
    masks = [_png(each) if recipe.sample.masks else None for each in kept]
    movable, every = ([replace(each, mask_HW=None) for each in boxes] for boxes in (kept, proposed.boxes))
    picture = Picture(key, image, height, width, movable, every, masks)
    return _Looked(key, digest, picture, [Skipped(key, note.code, str(note)) for note in notes])


def _png(proposal: Proposal) -> bytes | None:
    if proposal.mask_HW is None:
        return None
    buffer = io.BytesIO()
    Image.fromarray(proposal.mask_HW).convert("1").save(buffer, "PNG")
    return buffer.getvalue()


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


def _nothing_made(place: str, made: Made, first: Skipped | None) -> str:
    why = f" ({describe(made.skipped)}; the first: {first.key or place}: {first.message})" if first else ""
    pictures = counted(made.pictures, "picture")
    return f"{place}: none of its {pictures} has the boxes that the motions need: see {SKIPPED}{why}"
