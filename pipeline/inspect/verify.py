"""verify: compare every record of an output with its video, its manifest row and its table row. Optionally repair."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from multiprocessing import get_context

import pyarrow as pa
import pyarrow.compute as pc

from manifests.io import load_manifest
from manifests.shards import Shard
from pipeline.output.card import write_card
from pipeline.output.catalog import Catalog, count
from pipeline.output.inputs import changed_rows, compare_images
from pipeline.output.keys import is_video_key, video_names
from pipeline.output.labels import LABEL_KEYS, LABELS, rows_of_boxes
from pipeline.output.lease import UNKNOWN, Lease, acquire, check_epoch, claim_key, is_alive, read_claim
from pipeline.output.records import VIDEOS, SampleRecord, Status, Video
from pipeline.output.run_file import RUN_FILE, RunFile, recorded_config, require_run
from pipeline.output.storage import ABANDONED_S, Storage
from pipeline.output.tables import (
    FAILURES,
    METADATA,
    is_replaced_by_older,
    read_ids,
    read_label_keys,
    write_tables,
)
from sgi2v.errors import ConfigError, SampleError, SGI2VError
from sgi2v.wording import counted, escaped

DECODER_PROCESSES = 2
VIDEO_BATCH = 16
"""Samples whose videos are held in memory at a time."""
SHOWN_IDS = 5
"""Sample ids that the message of a flaw names."""
NOT_REPAIRED = ("row_missing", "row_changed", "image_changed", "image_unreadable")
"""Codes of flaws that `repair` leaves: they are of the manifest or of an image, and the output is whole."""
NORMAL_DURING_RUN = ("video_orphan", "table_stale")
"""Codes that are no flaws during a run: it uploads a video before its record, and updates the tables after it."""


@dataclass(frozen=True)
class Flaw:
    """One thing that is wrong with an output."""

    code: str
    """record_damaged, part_damaged, lease_damaged, video_missing, video_damaged, video_orphan, table_stale, and those
    of NOT_REPAIRED."""
    key: str
    """Sample id, or the key of an object that belongs to no sample."""
    message: str

    def __str__(self) -> str:
        return escaped(f"{self.key}: {self.message} [{self.code}]")


@dataclass
class Verdict:
    """The result of a verification."""

    rows: int
    """Rows that the last run was asked for."""
    committed: int = 0
    """Samples with a video."""
    failed: int = 0
    """Samples that failed."""
    left: int = 0
    """Rows without a record, which the next run makes."""
    flaws: list[Flaw] = field(default_factory=list)
    active_run: str | None = None
    """The run that was at work during the verification, if any: flaws of NORMAL_DURING_RUN are then left out."""
    young_videos: int = 0
    """Videos without a record that are too young to be judged: their records may be on their way."""
    manifest_problem: str | None = None
    """Why the sample ids were not compared with the manifest's, but only counted; None if they were compared."""
    limit_of: int | None = None
    """Rows of the manifest, if the last run was asked for fewer."""
    images_unrecorded: int = 0
    """Samples whose images could not be compared, because their records have no digest."""

    @property
    def is_complete(self) -> bool:
        """Whether every row is finished, nothing is wrong and no run is at work."""
        return not self.flaws and not self.left and self.active_run is None


def verify(output: str, images: bool = False) -> Verdict:
    """Read the whole output, its videos included. images: read the image of every sample too.

    Raises ConfigError if there is no run, StorageError.
    """
    storage = Storage(output)
    require_run(storage)
    first_claim = read_claim(storage)
    was_alive = first_claim is not None and is_alive(first_claim)
    videos = _list_videos(storage)
    catalog = Catalog(storage, without_damaged_parts=True, reads_labels=True)
    index = catalog.index
    run = require_run(storage)  # after the records: a run updates run.json before it finishes a row of its manifest
    verdict = Verdict(run.asked_rows, count(index, "committed"), count(index, "failed"))
    verdict.limit_of = run.limit_of
    manifest, verdict.manifest_problem = _read_manifest(run)
    verdict.flaws += _check_records(catalog)
    verdict.flaws += _check_ids(run, index, manifest, verdict)
    verdict.flaws += _check_inputs(run, catalog, manifest, images, verdict)
    orphans = _orphans(catalog, videos)
    old_orphans = [key for key in sorted(orphans) if _is_abandoned(storage, key)]
    verdict.young_videos = len(orphans) - len(old_orphans)
    verdict.flaws += [Flaw("video_orphan", key, "no record names it") for key in old_orphans]
    verdict.flaws += _check_videos(catalog)
    verdict.flaws += _check_tables(catalog)
    verdict.flaws += _check_labels(catalog)
    last_claim = read_claim(storage)
    if last_claim is not None:
        if last_claim.owner == UNKNOWN:
            key = claim_key(last_claim.epoch)
            verdict.flaws.append(Flaw("lease_damaged", key, "cannot be read: the next run replaces it"))
        is_new = first_claim is None or first_claim.epoch != last_claim.epoch
        if was_alive or is_new or is_alive(last_claim):
            verdict.active_run = last_claim.describe()
            verdict.young_videos = 0
            verdict.flaws = [flaw for flaw in verdict.flaws if flaw.code not in NORMAL_DURING_RUN]
    return verdict


def repair(output: str, flaws: Sequence[Flaw]) -> int:
    """Delete the samples and objects that are still flawed. Returns the number of samples that the next run makes.

    Holds the output's lease meanwhile. Raises LeaseError if a run has it, or takes it over.
    """
    storage = Storage(output)
    with acquire(storage) as lease:
        try:
            return _repair(storage, flaws, lease)
        except KeyboardInterrupt:
            lease.check()
            raise


def _repair(storage: Storage, flaws: Sequence[Flaw], lease: Lease) -> int:
    videos = _list_videos(storage)
    catalog = Catalog(storage, without_damaged_parts=True, reads_labels=True)
    named = {flaw.key for flaw in flaws}
    # the videos of a damaged part are kept until the next repair: a copy of the part may be found
    orphans = _orphans(catalog, videos) & named
    lost = catalog.remove_damaged(named, lease.epoch)
    catalog.delete_superseded(lease.epoch)
    with_video_flaw = {flaw.key for flaw in flaws if flaw.code in {"video_missing", "video_damaged"}}
    # checked again: a run may have come and gone, and workers of a dead driver may have committed what they had
    flawed_keys = pa.array([flaw.key for flaw in _check_videos(catalog, only=with_video_flaw)], pa.string())
    index = catalog.index
    flawed = index.filter(pc.is_in(index["sample_id"], value_set=flawed_keys))
    catalog.remove(flawed["sample_id"].to_pylist(), lease.epoch)
    no_manifest = pa.table({"sample_id": pa.array([], pa.string())})  # the tables keep the manifest columns they have
    write_tables(catalog, no_manifest, lease.epoch)
    write_card(catalog, lease.epoch)
    # after the tables, which must never name a video that is deleted
    check_epoch(storage, lease.epoch)
    old_orphans = [key for key in orphans if _is_abandoned(storage, key)]
    storage.delete_many([*old_orphans, *video_names(flawed)])
    return len(lost) + int(flawed.num_rows)


def _check_records(catalog: Catalog) -> Iterator[Flaw]:
    """The records and parts that cannot be used."""
    for damage in catalog.damaged:
        if damage.sample_id is None:
            yield Flaw("part_damaged", damage.key, damage.problem)
        else:
            yield Flaw("record_damaged", damage.sample_id, f"{damage.key} {damage.problem}")


def _orphans(catalog: Catalog, videos: set[str]) -> set[str]:
    """The videos that no record names. videos: of `_list_videos`. None while a part cannot be read."""
    if any(damage.sample_id is None for damage in catalog.damaged):
        return set()
    return videos - set(video_names(catalog.index))


def _is_abandoned(storage: Storage, video: str) -> bool:
    """Whether a video without a record is so old that no worker will put its record."""
    return time.time() - storage.changed_at(video) > ABANDONED_S


def _list_videos(storage: Storage) -> set[str]:
    """The keys of all videos that this program made; other files in the folder are somebody else's.

    Called before the records are read, so that a sample committed then is no orphan.
    """
    return {key for key in storage.keys(VIDEOS) if is_video_key(key)}


def _read_manifest(run: RunFile) -> tuple[pa.Table | None, str | None]:
    """The manifest of the last run as it is now, and why it is not the one of that run; None if it is."""
    try:
        manifest = load_manifest(run.manifest)
        if run.shard is not None:
            manifest = Shard.parse(run.shard).part_of(manifest)
    except SGI2VError as error:
        return None, " ".join(str(error).split())
    if run.has_manifest(manifest.sha256):
        return manifest.table, None
    return manifest.table, f"{run.manifest} has changed since the run was started"


def _check_ids(run: RunFile, index: pa.Table, manifest: pa.Table | None, verdict: Verdict) -> Iterator[Flaw]:
    """Compare the samples with the rows that the run was asked for, and fill in `verdict.left`."""
    others = run.other_samples
    if manifest is None or verdict.manifest_problem is not None:
        finished = index.num_rows - others
        verdict.left = max(verdict.rows - finished, 0)
        if finished > verdict.rows:
            message = f"{counted(finished, 'sample')} finished of {counted(verdict.rows, 'row')}"
            yield Flaw("row_missing", RUN_FILE, message)
        return
    ids = manifest["sample_id"].slice(0, run.limit).combine_chunks()
    verdict.left = int(pc.sum(pc.invert(pc.is_in(ids, value_set=index["sample_id"].combine_chunks()))).as_py())
    without_row = index["sample_id"].filter(pc.invert(pc.is_in(index["sample_id"], value_set=ids)))
    if len(without_row) > others:
        shown = ", ".join(sorted(without_row.to_pylist())[:SHOWN_IDS]) + (
            ", ..." if len(without_row) > SHOWN_IDS else ""
        )
        message = f"{counted(len(without_row), 'sample')} without a row in {run.manifest}, expected {others}: {shown}"
        yield Flaw("row_missing", RUN_FILE, message)
    if manifest.num_rows != run.rows:
        message = f"expected {counted(run.rows, 'row')} in {run.manifest}, got {manifest.num_rows}"
        yield Flaw("row_missing", RUN_FILE, message)


def _check_inputs(
    run: RunFile, catalog: Catalog, manifest: pa.Table | None, images: bool, verdict: Verdict
) -> Iterator[Flaw]:
    """Compare the samples with what they were made from: their rows, and if `images` is set, their image files."""
    index = catalog.index
    failed = set(index.filter(pc.equal(index["status"], "failed"))["sample_id"].to_pylist())

    def advice(sample_id: str) -> str:
        return f"run again with {'--retry-failed' if sample_id in failed else '--redo-changed'}"

    for sample_id in changed_rows(manifest, index) if manifest is not None else []:
        message = f"its row in {run.manifest} has changed since the sample was made: {advice(sample_id)}"
        yield Flaw("row_changed", sample_id, message)
    if not images:
        return
    access = recorded_config(catalog.storage).execution.access
    compared = compare_images(catalog, manifest, run.manifest, access, as_recorded=True)
    verdict.images_unrecorded = compared.unrecorded
    for sample_id, place in compared.changed.items():
        message = f"its image {place} has changed since the sample was made: {advice(sample_id)}"
        yield Flaw("image_changed", sample_id, message)
    for sample_id, reason in compared.unreadable.items():
        yield Flaw("image_unreadable", sample_id, f"its image cannot be compared: {reason}")


def _check_videos(catalog: Catalog, only: set[str] | None = None) -> Iterator[Flaw]:
    """Compare the videos with the records. only: sample ids to check; None: all."""
    storage = catalog.storage
    with _Decoders() as decoders:
        for batch in _record_batches(catalog, "committed"):
            records = [record for record in batch if only is None or record.sample_id in only]
            contents = storage.get_many(video.key for record in records for video in record.videos)
            for record in records:
                if record.file_name is None:
                    yield Flaw("video_missing", record.sample_id, "its record names none")
                for video in record.videos:
                    if video.key not in contents:
                        yield Flaw("video_missing", record.sample_id, f"{video.key} is not there")
                    elif damage := _damage(record, video, contents[video.key], decoders):
                        yield Flaw("video_damaged", record.sample_id, f"{video.key} {damage}")


def _record_batches(catalog: Catalog, status: Status) -> Iterator[list[SampleRecord]]:
    for table in catalog.tables(status):
        for batch in table.to_batches(max_chunksize=VIDEO_BATCH):
            yield [SampleRecord.from_row(row) for row in batch.to_pylist()]


def _damage(record: SampleRecord, video: Video, data: bytes, decoders: _Decoders) -> str | None:
    """What is wrong with the bytes of a record's video, as the end of a sentence; None if nothing is."""
    if len(data) != video.size:
        return f"has {len(data)} bytes, not {video.size}"
    if hashlib.sha256(data).hexdigest() != video.sha256:
        return "has another checksum than its record"
    shape = (record.num_frames or 0, record.height or 0, record.width or 0)
    return decoders.damage(data, shape)


def _check_tables(catalog: Catalog) -> Iterator[Flaw]:
    """Compare the sample ids of the tables with those of the records."""
    index = catalog.index
    status_of: dict[str, Status] = {METADATA: "committed", FAILURES: "failed"}
    for name, status in status_of.items():
        expected = set(index.filter(pc.equal(index["status"], status))["sample_id"].to_pylist())
        if is_replaced_by_older(catalog.storage, name):
            yield Flaw("table_stale", name, "is of an earlier run than the last one: run again to update it")
            continue
        listed = read_ids(catalog.storage, name)
        missing, extra = len(expected - listed), len(listed - expected)
        if missing or extra:
            message = f"lacks {counted(missing, 'sample')} and has {extra} too many: run again to update it"
            yield Flaw("table_stale", name, message)


def _check_labels(catalog: Catalog) -> Iterator[Flaw]:
    """Compare labels.parquet with the labels of the records: samples, boxes, frames and digests of videos."""
    try:
        if is_replaced_by_older(catalog.storage, LABELS):
            yield Flaw("table_stale", LABELS, "is of an earlier run than the last one: run again to update it")
            return
        listed = read_label_keys(catalog.storage)
    except ConfigError as error:
        yield Flaw("table_stale", LABELS, f"{error}, and run again")
        return
    batches = (rows_of_boxes(batch).select(list(LABEL_KEYS)) for batch in catalog.with_labels())
    expected = pa.concat_tables([listed.slice(0, 0), *batches])
    by_box = [("sample_id", "ascending"), ("box", "ascending")]
    if not expected.sort_by(by_box).equals(listed.sort_by(by_box)):
        rows, own_rows = ({tuple(row.values()) for row in table.to_pylist()} for table in (listed, expected))
        samples = len({sample_id for sample_id, *_ in rows ^ own_rows})
        message = f"differs from the records in {counted(samples, 'sample')}: run again to update it"
        yield Flaw("table_stale", LABELS, message)


class _Decoders:
    """Processes that decode videos, so that a video which crashes the decoder is only a flaw of that video."""

    def __enter__(self) -> _Decoders:
        self._pool = self._new_pool()
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def damage(self, video: bytes, shape: tuple[int, int, int]) -> str | None:
        """Why this is not a video of [frames, height, width], as the end of a sentence; None if it is one."""
        try:
            return self._pool.submit(_decoding_damage, video, shape).result()
        except BrokenProcessPool:
            self._pool = self._new_pool()
            return "crashes the decoder"

    def _new_pool(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(DECODER_PROCESSES, mp_context=get_context("spawn"))


def _decoding_damage(video: bytes, shape: tuple[int, int, int]) -> str | None:
    from sgi2v.video import check_video, decode_mp4

    try:
        check_video(decode_mp4(video), *shape)
    except SampleError as error:
        return f"is no video of {shape[0]} frames of {shape[1]} x {shape[2]} px: {error.message}"
    return None
