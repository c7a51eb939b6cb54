"""Is an output what its records say? Every record against its video, every video against its record, and the sums."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context

import pyarrow as pa

from pipeline.lease import acquire
from pipeline.plan import RUN_FILE, require_run
from pipeline.records import (
    FAILURES,
    METADATA,
    VIDEOS,
    SampleRecord,
    read_failures,
    read_metadata_ids,
    read_records,
    record_key,
    write_tables,
)
from pipeline.storage import Storage
from sgi2v.errors import SampleError

DECODERS = 2
"""Processes that decode videos."""
AT_ONCE = 16
"""Videos fetched before they are handed to the decoders: what is held in memory."""


@dataclass(frozen=True)
class Flaw:
    """One thing that is not as it should be."""

    code: str
    """video_missing, video_damaged, video_shared, video_orphan, row_missing, table_stale."""
    key: str
    """Sample id, or the object's key where no sample is concerned."""
    message: str

    def __str__(self) -> str:
        return f"{self.key}: {self.message} [{self.code}]"


@dataclass
class Verdict:
    """What was found."""

    rows: int
    committed: int = 0
    failed: int = 0
    left: int = 0
    """Rows without a record: they are the next run's."""
    flaws: list[Flaw] = field(default_factory=list)


def verify(output: str) -> Verdict:
    """Read the whole output. Raises ConfigError where there is no run, StorageError."""
    storage = Storage(output)
    run = require_run(storage)
    records = read_records(storage)
    own = len(records) - run["other_samples"]
    committed = [record for record in records if record.status == "committed"]
    verdict = Verdict(run["rows"], len(committed), len(records) - len(committed), max(run["rows"] - own, 0))
    if own > run["rows"]:
        verdict.flaws.append(Flaw("row_missing", RUN_FILE, f"{own} samples are finished of {run['rows']} rows"))
    verdict.flaws += _check_videos(storage, committed)
    verdict.flaws += _check_tables(storage, records)
    return verdict


def repair(output: str, flaws: Iterable[Flaw]) -> int:
    """Take away what is flawed, so that the next run makes it again; returns how many samples that are.

    Holds the output's lease meanwhile. Raises LeaseError where a run has it.
    """
    storage = Storage(output)
    again = 0
    with acquire(storage):
        standing = {record.sample_id: record for record in read_records(storage)}
        for flaw in flaws:
            if flaw.code == "video_orphan":
                storage.delete(flaw.key)
            elif (record := standing.pop(flaw.key, None)) is not None:
                storage.delete(record_key(record.sample_id))
                if record.file_name and all(record.file_name != other.file_name for other in standing.values()):
                    storage.delete(record.file_name)
                again += 1
        nothing = pa.table({"sample_id": pa.array([], pa.string())})
        write_tables(storage, standing.values(), nothing)  # which keep the manifest's columns that they have
    return again


def _check_videos(storage: Storage, committed: list[SampleRecord]) -> Iterator[Flaw]:
    names = Counter(record.file_name for record in committed)
    there = set(storage.keys(VIDEOS))
    yield from (Flaw("video_orphan", key, "no record names it") for key in sorted(there - set(names)))
    with _Decoders() as decoders:
        for first in range(0, len(committed), AT_ONCE):
            some = committed[first : first + AT_ONCE]
            videos = storage.get_many(record.file_name for record in some if record.file_name in there)
            for record in some:
                if names[record.file_name] > 1:
                    yield Flaw("video_shared", record.sample_id, f"{record.file_name} is another sample's too")
                elif record.file_name not in videos:
                    yield Flaw("video_missing", record.sample_id, f"{record.file_name} is not there")
                elif problem := _damage(record, videos[record.file_name], decoders):
                    yield Flaw("video_damaged", record.sample_id, f"{record.file_name} {problem}")


def _damage(record: SampleRecord, video: bytes, decoders: _Decoders) -> str | None:
    """What is wrong with a video, or None."""
    if len(video) != record.video_bytes:
        return f"has {len(video)} bytes, not {record.video_bytes}"
    if hashlib.sha256(video).hexdigest() != record.video_sha256:
        return "has another checksum than its record"
    shape = (record.num_frames or 0, record.height or 0, record.width or 0)
    return decoders.problem(video, shape)


def _check_tables(storage: Storage, records: list[SampleRecord]) -> Iterator[Flaw]:
    committed = {record.sample_id for record in records if record.status == "committed"}
    failed = {record.sample_id for record in records if record.status == "failed"}
    told = {
        METADATA: (committed, read_metadata_ids(storage)),
        FAILURES: (failed, {str(row["sample_id"]) for row in read_failures(storage)} - committed),
    }
    for name, (expected, found) in told.items():
        missing, beyond = len(expected - found), len(found - expected)
        if missing or (beyond and name == METADATA):  # a failure that made way for another try stays listed
            yield Flaw("table_stale", name, f"lacks {missing} samples and has {beyond} too many: run again to renew it")


class _Decoders:
    """Processes that decode, so that a video which crashes the decoder is that video's flaw."""

    def __enter__(self) -> _Decoders:
        self._pool = self._new()
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def problem(self, video: bytes, shape: tuple[int, int, int]) -> str | None:
        """Why this is no video of [frames, height, width], or None."""
        try:
            return self._pool.submit(_decoding_problem, video, shape).result()
        except BrokenProcessPool:
            self._pool = self._new()
            return "crashes the decoder"

    def _new(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(DECODERS, mp_context=get_context("spawn"))


def _decoding_problem(video: bytes, shape: tuple[int, int, int]) -> str | None:
    from sgi2v.video import check_video, decode_mp4

    try:
        check_video(decode_mp4(video), *shape)
    except SampleError as error:
        return f"is no video of {shape[0]} frames of {shape[1]} x {shape[2]}: {error.message}"
    return None
