"""Where samples are chosen and exported from: the tables and videos of an output, or a selection of it."""

from __future__ import annotations

import heapq
import json
import shutil
import tempfile
from collections.abc import Callable, Container, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.schema import SAMPLE_ID_PATTERN
from pipeline.output.keys import names_own_videos
from pipeline.output.labels import LABELS
from pipeline.output.lease import is_alive, read_claim
from pipeline.output.run_file import RUN_FILE, location_of
from pipeline.output.storage import Storage
from pipeline.output.tables import METADATA
from sgi2v.errors import ConfigError
from sgi2v.locations import local_path
from sgi2v.wording import counted

SELECTION = b"sgi2v_selection"
"""Entry of a selection's schema metadata: the output that it is of, and how it was chosen, as JSON."""
SMALL_COLUMNS = ("sample_id", "file_name", "video_sha256", "video_bytes", "num_boxes", "image_sha256", "image_uri")
"""What is held in memory of every sample."""
BATCH_ROWS = 64
"""Rows that are held as Python objects at a time, of each row group."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Source:
    """The samples of an output or of a selection, as its tables were when it was opened."""

    storage: Storage
    """The output, which holds the videos."""
    is_of_run: bool
    """Whether it has a run.json. An evaluation has none."""
    fingerprint: str | None
    """Of the output's deciding settings; None where it has no run.json."""
    metadata: Path
    """Local copy of metadata.parquet or of the selection."""
    labels: Path | None
    """Local copy of labels.parquet; None where the output has none."""
    is_running: bool
    """Whether a run was writing to the output."""
    changed: dict[str, str]
    """Samples of a selection whose videos are gone from the output's tables or are others now, each with the reason."""

    @property
    def schema(self) -> pa.Schema:
        """The columns of the samples, without notes of the file's writer."""
        return pq.read_schema(self.metadata).remove_metadata()

    def describe(self) -> dict[str, Any]:
        """What is written of it into selections and exports."""
        return {"output": location_of(self.storage.url), "fingerprint": self.fingerprint}

    def small(self) -> pa.Table:
        """SMALL_COLUMNS of every sample; a column that the output lacks is null."""
        return _small_columns(self.metadata)

    def has_own_videos(self, small: pa.Table) -> list[bool]:
        """For each sample, whether its video has the key that this program gives it. No other object is read."""
        if self.is_of_run:
            return pc.fill_null(names_own_videos(small), False).to_pylist()  # type: ignore[no-any-return]
        keys = pc.binary_join_element_wise("videos/", small["sample_id"], ".mp4", "")  # as `evaluate` names its links
        is_id = pc.match_substring_regex(small["sample_id"], SAMPLE_ID_PATTERN)
        is_own = pc.or_(pc.and_(pc.equal(small["file_name"], keys), is_id), names_own_videos(small))
        return pc.fill_null(is_own, False).to_pylist()  # type: ignore[no-any-return]

    def rows(self, wanted: Container[str]) -> Iterator[Row]:
        """The rows of these samples, by sample id."""
        return _sorted_rows(self.metadata, wanted)

    def labels_of(self, wanted: Container[str]) -> Iterator[tuple[str, list[Row]]]:
        """The labels of these samples, one row a box, by sample id. Samples without labels are left out."""
        rows = iter(()) if self.labels is None else _sorted_rows(self.labels, wanted)
        for sample_id, boxes in groupby(rows, key=itemgetter("sample_id")):
            yield sample_id, sorted(boxes, key=itemgetter("box"))


@contextmanager
def open_source(location: str, output: str | None = None) -> Iterator[Source]:
    """The source at a location, whose tables are copied to a temporary folder of this machine.

    location: of an output, or of a selection (a `.parquet` file). output: where the output of a selection is now, if it
    was moved. Raises ConfigError for anything else, and for an output without a sample.
    """
    with tempfile.TemporaryDirectory(prefix="sgi2v-export-") as folder:
        yield _open(location, output, Path(folder))


def _open(location: str, output: str | None, folder: Path) -> Source:
    if not location.endswith(".parquet"):
        if output is not None:
            raise ConfigError(f"--source is for selections, and {location} is an output")
        return _open_output(location, folder)
    chosen = folder / "selection.parquet"
    parent, name = _folder_and_name(location)
    if not _copy(Storage(parent), name, chosen):
        raise ConfigError(f"there is no selection {location}")
    said = selection_of(chosen, location)
    rows = pq.read_metadata(chosen).num_rows
    if not rows:
        raise ConfigError(f"{location} is a selection that keeps no sample: select again with other conditions")
    source = _open_output(output or said["output"], folder, of_selection=location)
    if source.fingerprint != said.get("fingerprint"):
        raise ConfigError(
            f"{location} is a selection of another output: its samples were made with other settings than those of "
            f"{source.storage.url}. Select again, or name the right output with --source"
        )
    changed = _changed(_small_columns(chosen), source.small())
    if len(changed) == rows:
        raise ConfigError(
            f"{location} is a selection of another output: {source.storage.url} has none of its "
            f"{counted(rows, 'video')}. Select again, or name the right output with --source"
        )
    return replace(source, metadata=chosen, changed=changed)


def selection_of(file: Path, location: str) -> Row:
    """What a selection says of itself. Raises ConfigError for a file that is none. location: for the message."""
    try:
        said = json.loads((pq.read_schema(file).metadata or {})[SELECTION])
        if isinstance(said["output"], str):
            return dict(said)
    except (pa.ArrowException, KeyError, ValueError, TypeError):
        pass
    raise ConfigError(
        f"{location} is not a selection: make one with `sgi2v-batch select OUT --where ... -o {location}`"
    )


def _open_output(location: str, folder: Path, of_selection: str | None = None) -> Source:
    storage = Storage(location)
    claim = read_claim(storage)
    run = _run_entries(storage)
    metadata = folder / METADATA
    # the labels last: a run writes them beside the metadata, and a sample without its labels waits for the next call
    if not _copy(storage, METADATA, metadata):
        whose = "" if of_selection is None else f" (the output of {of_selection}; was it moved? --source names it)"
        what = "no run" if run is None else "no committed sample yet"
        raise ConfigError(f"there is {what} at {storage.url}{whose}: it has no {METADATA}")
    labels = folder / LABELS
    has_labels = _copy(storage, LABELS, labels)
    missing = {"sample_id", "file_name", "video_sha256"} - set(_columns_of(metadata, storage))
    if missing:
        raise ConfigError(f"{storage.url}/{METADATA} lacks {', '.join(sorted(missing))}: it is not of this program")
    if not pq.read_metadata(metadata).num_rows:
        raise ConfigError(f"{storage.url} has no committed sample: `sgi2v-batch status` says why")
    is_running = claim is not None and is_alive(claim)
    fingerprint = None if run is None else run.get("fingerprint")
    return Source(storage, run is not None, fingerprint, metadata, labels if has_labels else None, is_running, {})


def _columns_of(file: Path, storage: Storage) -> list[str]:
    try:
        return list(pq.read_schema(file).names)
    except pa.ArrowException as error:
        raise ConfigError(f"{storage.url}/{METADATA} cannot be read as Parquet ({error})") from error


def _run_entries(storage: Storage) -> Row | None:
    """run.json; None where there is none, as in folders that no run made."""
    data = storage.get(RUN_FILE)
    try:
        return None if data is None else dict(json.loads(data))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{storage.url}/{RUN_FILE} is damaged: {error}") from error


def _copy(storage: Storage, key: str, file: Path) -> bool:
    """Copy an object to this machine's disk. Returns whether there is one."""

    def copy(stream: BinaryIO) -> bool:
        with file.open("wb") as target:
            shutil.copyfileobj(stream, target, 1 << 20)
        return True

    return storage.read(key, copy) is not None


def _small_columns(file: Path) -> pa.Table:
    parquet = pq.ParquetFile(file, pre_buffer=False)
    there = [name for name in SMALL_COLUMNS if name in parquet.schema_arrow.names]
    table = parquet.read(there, use_threads=False)
    for name in SMALL_COLUMNS:
        if name not in there:
            table = table.append_column(name, pa.nulls(len(table)))
    return table.select(list(SMALL_COLUMNS))


def _changed(chosen: pa.Table, current: pa.Table) -> dict[str, str]:
    """The samples of a selection whose videos the output does not have any more."""
    videos = dict(zip(current["sample_id"].to_pylist(), current["video_sha256"].to_pylist(), strict=True))
    pairs = zip(chosen["sample_id"].to_pylist(), chosen["video_sha256"].to_pylist(), strict=True)
    return {
        sample_id: "was made again since it was selected" if sample_id in videos else "is not in the output any more"
        for sample_id, digest in pairs
        if videos.get(sample_id) != digest
    }


def _sorted_rows(file: Path, wanted: Container[str]) -> Iterator[Row]:
    """The wanted rows of a table, by sample id. Memory: a few rows of each row group.

    The tables of an output are sorted within each row group. A table that is not is sorted in memory.
    """
    parquet = pq.ParquetFile(file, memory_map=True, pre_buffer=False)
    groups = range(parquet.num_row_groups)
    if all(_is_sorted(parquet.read_row_group(group, ["sample_id"], use_threads=False)) for group in groups):
        batches = [parquet.iter_batches(BATCH_ROWS, row_groups=[group], use_threads=False) for group in groups]
    else:
        batches = [iter(parquet.read(use_threads=False).sort_by("sample_id").to_batches(BATCH_ROWS))]
    streams = (_wanted_rows(each, wanted) for each in batches)
    return heapq.merge(*streams, key=itemgetter("sample_id"))


def _wanted_rows(batches: Iterator[pa.RecordBatch], wanted: Container[str]) -> Iterator[Row]:
    for batch in batches:
        is_wanted = [sample_id in wanted for sample_id in batch["sample_id"].to_pylist()]
        yield from batch.filter(pa.array(is_wanted, pa.bool_())).to_pylist()


def _is_sorted(table: pa.Table) -> bool:
    ids = table["sample_id"].combine_chunks()
    return bool(pc.all(pc.less_equal(ids[:-1], ids[1:]), min_count=0).as_py())


def check_free_or_selection(location: str) -> None:
    """Raise ConfigError if another file than a selection is at a location, such as a manifest or a table."""
    parent, name = _folder_and_name(location)

    def notes_of(stream: BinaryIO) -> dict[bytes, bytes]:
        return pq.ParquetFile(stream, pre_buffer=False).schema_arrow.metadata or {}

    try:
        notes = Storage(parent).read(name, notes_of)
    except pa.ArrowException:
        notes = {}
    if notes is not None and SELECTION not in notes:
        raise ConfigError(f"--output {location}: this file is there and is no selection: give another name")


def write_file(location: str, write: Callable[[Path], None]) -> None:
    """Write a single file to a path or URL, whole. write: is given a temporary file."""
    parent, name = _folder_and_name(location)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "file"
        write(file)
        Storage(parent).put_file(name, file)


def _folder_and_name(location: str) -> tuple[str, str]:
    path = local_path(location)
    if path is not None:
        return str(path.parent), path.name
    folder, _, name = location.rpartition("/")
    return folder, name
