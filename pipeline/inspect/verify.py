"""Is an output what its records say? Every record against its video, every video against its record, and the sums."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from manifests.io import digest_file, read_manifest
from pipeline.output.catalog import Catalog, count
from pipeline.output.lease import Lease, acquire, check_epoch, is_alive, read_claim
from pipeline.output.records import VIDEOS, SampleRecord, Status
from pipeline.output.run_file import RUN_FILE, require_run
from pipeline.output.storage import Storage
from pipeline.output.tables import FAILURES, METADATA, read_ids, write_tables
from sgi2v.errors import ConfigError, SampleError, SGI2VError

DECODERS = 2
"""Processes that decode videos."""
AT_ONCE = 16
"""Videos fetched before they are handed to the decoders: what is held in memory."""
SHOWN = 5
"""Samples that a flaw of the whole names."""
PASSING = ("video_orphan", "table_stale")
"""What is no flaw while a run goes on: its videos go up before their records, its tables follow them."""


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
    running: str | None = None
    """Who has been at work on the output meanwhile, if anybody: what is PASSING has then not been judged."""
    unread: str | None = None
    """Why the records have been held against run.json's sums alone; None: against the manifest's ids."""

    @property
    def is_whole(self) -> bool:
        """Whether every row is finished, and nothing is wrong with any."""
        return not self.flaws and not self.left and self.running is None


def verify(output: str) -> Verdict:
    """Read the whole output. Raises ConfigError where there is no run, StorageError."""
    storage = Storage(output)
    require_run(storage)
    holder = read_claim(storage)
    was_running = holder is not None and is_alive(holder)
    videos = _videos(storage)
    catalog = Catalog(storage)
    index = catalog.index
    run = require_run(storage)  # behind the records: a new run tells its manifest before it finishes any of its rows
    verdict = Verdict(run["rows"], count(index, "committed"), count(index, "failed"))
    verdict.flaws += _check_rows(run, index, verdict)
    verdict.flaws += _check_videos(catalog, videos)
    verdict.flaws += _check_tables(catalog)
    last = read_claim(storage)
    if last is not None and (was_running or is_alive(last) or holder is None or holder.epoch != last.epoch):
        verdict.running = last.told()
        verdict.flaws = [flaw for flaw in verdict.flaws if flaw.code not in PASSING]
    return verdict


def repair(output: str, flaws: Sequence[Flaw]) -> int:
    """Take away what is still flawed, so that the next run makes it again; returns how many samples that are.

    Holds the output's lease meanwhile. Raises LeaseError where a run has it, or takes it.
    """
    storage = Storage(output)
    with acquire(storage) as lease:
        try:
            return _repair(storage, flaws, lease)
        except KeyboardInterrupt:
            lease.check()
            raise


def _repair(storage: Storage, flaws: Sequence[Flaw], lease: Lease) -> int:
    videos = _videos(storage)
    catalog = Catalog(storage)
    catalog.sweep(lease.epoch)
    # a run may have come and gone since, and its dead driver's workers may have committed what they had in hand
    found = list(_check_videos(catalog, videos, {flaw.key for flaw in flaws}))
    index = catalog.index
    again = index.filter(pc.is_in(index["sample_id"], value_set=pa.array([flaw.key for flaw in found], pa.string())))
    catalog.remove(again["sample_id"].to_pylist(), lease.epoch)
    nothing = pa.table({"sample_id": pa.array([], pa.string())})
    write_tables(catalog, nothing, lease.epoch)  # which keep the manifest's columns that they have
    # behind the tables, which must never name what is gone
    orphans = [flaw.key for flaw in found if flaw.code == "video_orphan"]
    kept = set(catalog.index["file_name"].to_pylist())
    check_epoch(storage, lease.epoch)
    storage.delete_many([*orphans, *(name for name in again["file_name"].drop_null().to_pylist() if name not in kept)])
    return int(again.num_rows)


def _videos(storage: Storage) -> set[str]:
    """Their keys; listed before the records are read, so that what is committed meanwhile is no orphan."""
    return set(storage.keys(VIDEOS))


def _check_rows(run: dict[str, Any], index: pa.Table, verdict: Verdict) -> Iterator[Flaw]:
    """The records against the manifest's rows; fills in what is left of these."""
    rows, others = run["rows"], run["other_samples"]
    try:
        ids = _manifest_ids(run)
    except SGI2VError as error:
        verdict.unread = " ".join(str(error).split())
        own = index.num_rows - others
        verdict.left = max(rows - own, 0)
        if own > rows:
            yield Flaw("row_missing", RUN_FILE, f"{own} samples are finished of {rows} rows")
        return
    verdict.left = int(pc.sum(pc.invert(pc.is_in(ids, value_set=index["sample_id"].combine_chunks()))).as_py())
    beyond = index["sample_id"].filter(pc.invert(pc.is_in(index["sample_id"], value_set=ids)))
    if len(beyond) > others:
        shown = ", ".join(sorted(beyond.to_pylist())[:SHOWN])
        told = f"{len(beyond)} samples are in no row of {run['manifest']}, and {others} are known from others"
        yield Flaw("row_missing", RUN_FILE, f"{told}: {shown}{', ...' if len(beyond) > SHOWN else ''}")
    if len(ids) != rows:
        yield Flaw("row_missing", RUN_FILE, f"{rows} rows are told, and {run['manifest']} has {len(ids)}")


def _manifest_ids(run: dict[str, Any]) -> pa.Array:
    """Raises ConfigError for a manifest that is another by now, ManifestError or StorageError for none."""
    if digest_file(run["manifest"]) != run.get("manifest_sha256"):
        raise ConfigError(f"{run['manifest']} is not what it was when the run was started")
    return read_manifest(run["manifest"])["sample_id"].combine_chunks()


def _check_videos(catalog: Catalog, there: set[str], among: set[str] | None = None) -> Iterator[Flaw]:
    """there: `_videos`, listed before. among: samples and keys to look at; None is every one."""
    storage = catalog.storage
    names = Counter(catalog.index["file_name"].drop_null().to_pylist())
    orphans = sorted(there - set(names) if among is None else (there - set(names)) & among)
    yield from (Flaw("video_orphan", key, "no record names it") for key in orphans)
    with _Decoders() as decoders:
        for batch in _in_batches(catalog, "committed"):
            some = [record for record in batch if among is None or record.sample_id in among]
            videos = storage.get_many(record.file_name for record in some if record.file_name is not None)
            for record in some:
                if names[record.file_name] > 1:
                    yield Flaw("video_shared", record.sample_id, f"{record.file_name} is another sample's too")
                elif record.file_name not in videos:
                    yield Flaw("video_missing", record.sample_id, f"{record.file_name} is not there")
                elif problem := _damage(record, videos[record.file_name], decoders):
                    yield Flaw("video_damaged", record.sample_id, f"{record.file_name} {problem}")


def _in_batches(catalog: Catalog, status: Status) -> Iterator[list[SampleRecord]]:
    for table in catalog.tables(status):
        for batch in table.to_batches(max_chunksize=AT_ONCE):
            yield [SampleRecord.from_row(row) for row in batch.to_pylist()]


def _damage(record: SampleRecord, video: bytes, decoders: _Decoders) -> str | None:
    """What is wrong with a video, or None."""
    if len(video) != record.video_bytes:
        return f"has {len(video)} bytes, not {record.video_bytes}"
    if hashlib.sha256(video).hexdigest() != record.video_sha256:
        return "has another checksum than its record"
    shape = (record.num_frames or 0, record.height or 0, record.width or 0)
    return decoders.problem(video, shape)


def _check_tables(catalog: Catalog) -> Iterator[Flaw]:
    index = catalog.index
    told: dict[str, Status] = {METADATA: "committed", FAILURES: "failed"}
    for name, status in told.items():
        expected = set(index.filter(pc.equal(index["status"], status))["sample_id"].to_pylist())
        found = read_ids(catalog.storage, name)
        missing, beyond = len(expected - found), len(found - expected)
        if missing or beyond:
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
