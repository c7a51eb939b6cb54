"""Merge the outputs of all shards of a manifest into what one run would have given. See docs/output-format.md, Shards.

A merge copies and does not move: the shards stay whole, so it can be killed at any time and started again. Each record
goes into a part after its video is there, and samples that an earlier merge has brought are skipped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import get_args

import pyarrow as pa
import pyarrow.compute as pc

from manifests.shards import FOLDER, Shard
from pipeline.config import differences
from pipeline.output.card import write_card
from pipeline.output.catalog import PART_ROWS, Catalog
from pipeline.output.keys import is_own_key, video_names
from pipeline.output.lease import FOLDER as LEASE
from pipeline.output.lease import Lease, acquire, is_alive, read_claim
from pipeline.output.log import FOLDER as LOGS
from pipeline.output.log import RunLog
from pipeline.output.nested import check_not_nested
from pipeline.output.records import RECORD_SCHEMA, Status
from pipeline.output.run_file import RUN_FILE, RunFile, require_run, write_merged_run_file
from pipeline.output.storage import Storage
from pipeline.output.tables import (
    FAILURES,
    METADATA,
    check_tables,
    own_columns_of_outputs,
    read_ids,
    write_tables_with,
)
from sgi2v.errors import ConfigError
from sgi2v.wording import counted

PARALLEL_COPIES = 16
"""Videos that are copied at the same time."""
SHOWN = 5
"""Names that a message lists."""

OnProgress = Callable[[int, int], object]
"""Called with the number of samples that are merged, and of all."""


@dataclass(frozen=True)
class ShardOutput:
    """The finished output of one shard."""

    storage: Storage
    run: RunFile
    shard: Shard
    catalog: Catalog
    epoch: int
    """Of its last run."""


def shard_locations(output: str) -> list[str]:
    """The outputs of the shards below an output, by number. Raises ConfigError if there are none."""
    storage = Storage(output)
    numbers = sorted(int(name) for name in storage.names(FOLDER) if name.isdigit())
    if not numbers:
        raise ConfigError(
            f"{storage.url}/{FOLDER} has no shards: run the manifest with --output {storage.url} --shard I/N, or name "
            "the outputs of the shards"
        )
    return [f"{storage.url}/{FOLDER}/{number}" for number in numbers]


def open_shards(locations: Sequence[str]) -> list[ShardOutput]:
    """The outputs of all shards of one manifest, by number. Raises ConfigError that names whatever is wrong."""
    problems: list[str] = []
    shards: list[ShardOutput] = []
    for location in locations:
        try:
            shards.append(_open_shard(location))
        except ConfigError as error:
            problems.append(str(error))
    problems += _differences(shards)
    for shard in shards:
        problems += _unfinished(shard)
    if problems:
        raise ConfigError("the shards cannot be merged:\n" + "\n".join(f"  {line}" for line in problems))
    return sorted(shards, key=lambda each: each.shard.number)


def merge(output: str, shards: Sequence[ShardOutput], on_progress: OnProgress = lambda done, total: None) -> Catalog:
    """Bring every sample of the shards to the output, with its tables. Returns the catalog of the output.

    Holds the output's lease meanwhile. Raises ConfigError for an output with other settings, for a shard that has lost
    a video, and for one that ran meanwhile; LeaseError, StorageError.
    """
    storage = Storage(output)
    check_not_nested(storage)
    check_tables(storage)
    with acquire(storage) as lease, RunLog(storage, lease.epoch) as log:
        try:
            return _merge(storage, shards, lease, log, on_progress)
        except KeyboardInterrupt:
            lease.check()
            raise


def delete_shards(shards: Sequence[ShardOutput]) -> None:
    """Delete what merged shards hold, but not their logs. Raises LeaseError for one that runs again."""
    for shard in shards:
        with acquire(shard.storage) as lease:
            if lease.epoch != shard.epoch + 1:
                raise ConfigError(f"{shard.storage.url} ran after it was merged, and stays: merge again")
            shard.storage.delete(RUN_FILE)  # first: without it nobody takes the rest for a shard with rows left
            kept = (f"{LOGS}/", f"{LEASE}/")
            keys = (key for key in shard.storage.keys("") if is_own_key(key) and not key.startswith(kept))
            shard.storage.delete_many(keys)


def _merge(
    storage: Storage, shards: Sequence[ShardOutput], lease: Lease, log: RunLog, on_progress: OnProgress
) -> Catalog:
    rows = sum(shard.run.asked_rows for shard in shards)
    write_merged_run_file(storage, shards[0].storage, rows, other_samples=0)
    log.write_now("merge_started", shards=[shard.storage.url for shard in shards], rows=rows)
    catalog = Catalog(storage)
    replaced: list[str] = []
    total, done = sum(shard.catalog.index.num_rows for shard in shards), 0
    for shard in shards:
        for records in _new_records(shard.catalog, catalog):
            lease.check()
            _copy_videos(shard.storage, storage, records)
            index = catalog.index
            is_replaced = pc.is_in(index["sample_id"], value_set=records["sample_id"].combine_chunks())
            replaced += index.filter(is_replaced)["file_name"].drop_null().to_pylist()
            catalog.adopt(records, lease.epoch)
            done += records.num_rows
            on_progress(done, total)
    claims = {shard.storage.url: read_claim(shard.storage) for shard in shards}
    if changed := [url for url, claim in claims.items() if claim and claim.epoch != _epochs(shards)[url]]:
        raise ConfigError(f"a shard ran while it was merged: {', '.join(changed)}. Merge again when it has finished")
    lease.check()
    catalog.delete_superseded(lease.epoch)
    own = own_columns_of_outputs([*(shard.storage for shard in shards), storage])
    write_tables_with(catalog, own, lease.epoch)
    other_samples = max(catalog.index.num_rows - rows, 0)
    write_merged_run_file(storage, shards[0].storage, rows, other_samples)
    write_card(catalog, lease.epoch)
    current = set(catalog.index["file_name"].to_pylist())
    storage.delete_many(video for video in replaced if video not in current)  # after the tables, which named them
    log.write("merge_finished", samples=catalog.index.num_rows, copied=done)
    return catalog


def _epochs(shards: Sequence[ShardOutput]) -> dict[str, int]:
    return {shard.storage.url: shard.epoch for shard in shards}


def _open_shard(location: str) -> ShardOutput:
    """Raises ConfigError if there is no shard, or one with a damaged part."""
    storage = Storage(location)
    run = require_run(storage)
    if run.shard is None:
        raise ConfigError(f"{storage.url} has the results of a whole manifest, and not of a shard")
    claim = read_claim(storage)
    return ShardOutput(storage, run, Shard.parse(run.shard), Catalog(storage), 0 if claim is None else claim.epoch)


def _differences(shards: Sequence[ShardOutput]) -> Iterator[str]:
    """What keeps these shards from being all parts of one run, a line each."""
    if not shards:
        return
    first = shards[0]
    by_number: dict[int, ShardOutput] = {}
    for shard in shards:
        url = shard.storage.url
        if shard.shard.count != first.shard.count:
            yield f"{url} is the shard {shard.shard}, and {first.storage.url} is {first.shard}: of other counts"
            continue
        if (twin := by_number.setdefault(shard.shard.number, shard)) is not shard:
            yield f"{twin.storage.url} and {url} are both the shard {shard.shard}"
        for line in differences(first.run.deciding, shard.run.deciding):
            yield f"{url} has other settings than {first.storage.url}: {line}"
        if shard.run.manifest_sha256 != first.run.manifest_sha256:
            yield f"{url} was made from another manifest, or another version of it, than {first.storage.url}"
    for number in range(first.shard.count):
        if number not in by_number:
            missing = Shard(number, first.shard.count)
            yield f"the shard {missing} is missing: run it with --shard {missing}"


def _unfinished(shard: ShardOutput) -> Iterator[str]:
    """What is not finished or not whole in a shard, a line each."""
    url, catalog, again = shard.storage.url, shard.catalog, f"run it again with --shard {shard.shard}"
    claim = read_claim(shard.storage)
    if claim is not None and is_alive(claim):
        yield f"{url} still runs: {claim.describe()}"
        return
    if catalog.damaged:
        yield f"{url} has {counted(len(catalog.damaged), 'damaged record')}: `verify {url} --repair`, then {again}"
    if shard.run.limit_of is not None:
        yield f"{url} was run with --limit {shard.run.limit}: run it without"
    elif left := shard.run.rows_left(catalog.index.num_rows):
        yield f"{url} has {counted(left, 'row')} left: {again}"
    elif ids := set(catalog.index["sample_id"].to_pylist()) - _ids_of_tables(shard.storage):
        yield f"{url} has tables that lack {counted(len(ids), 'sample')}: {again}"


def _ids_of_tables(storage: Storage) -> set[str]:
    return read_ids(storage, METADATA) | read_ids(storage, FAILURES)


def _new_records(source: Catalog, target: Catalog) -> Iterator[pa.Table]:
    """RECORD_SCHEMA of the samples that the target lacks, or has an older record of; so many that they make a part."""
    waiting: list[pa.Table] = []
    statuses: tuple[Status, ...] = get_args(Status)
    for status in statuses:
        for table in source.batches(status, RECORD_SCHEMA.names):
            waiting.append(_only_new(table, target))
            rows = pa.concat_tables(waiting).combine_chunks()
            while rows.num_rows >= PART_ROWS:
                yield rows.slice(0, PART_ROWS)
                rows = rows.slice(PART_ROWS)
            waiting = [rows]
    rows = pa.concat_tables([RECORD_SCHEMA.empty_table(), *waiting])
    if rows.num_rows:
        yield rows


def _only_new(records: pa.Table, target: Catalog) -> pa.Table:
    """The records that are current once they are in the target: see docs/output-format.md, Current record."""
    index = target.index
    positions = pc.index_in(records["sample_id"], value_set=index["sample_id"].combine_chunks())
    is_new = pc.is_null(positions)
    is_better = pc.greater(_rank(records), pc.fill_null(_rank(index).take(positions), 0))
    records = records.filter(pc.or_(is_new, is_better))
    # attempts that were taken away there do not come back
    least = pc.add(target.lost_attempts(records["sample_id"]), 1)
    attempts = pc.max_element_wise(records["attempts"], least)
    return records.set_column(records.schema.get_field_index("attempts"), RECORD_SCHEMA.field("attempts"), attempts)


def _rank(records: pa.Table) -> pa.ChunkedArray:
    """A number that is higher for the record that is current of two: committed before failed, then more attempts."""
    is_committed = pc.cast(pc.equal(records["status"], "committed"), pa.int64())
    return pc.add(pc.multiply(is_committed, 1 << 40), records["attempts"])


def _copy_videos(source: Storage, target: Storage, records: pa.Table) -> None:
    """Copy what these records name. Raises ConfigError if the source lacks a video."""
    keys = video_names(records)
    with ThreadPoolExecutor(PARALLEL_COPIES) as pool:
        is_there = list(pool.map(lambda key: target.copy_from(source, key), keys))
    if missing := [key for key, found in zip(keys, is_there, strict=True) if not found]:
        shown = ", ".join(missing[:SHOWN]) + (f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else "")
        raise ConfigError(
            f"{source.url} lacks {counted(len(missing), 'video')}: {shown}. Repair it with `sgi2v-batch verify "
            f"{source.url} --repair`, and run it again"
        )
