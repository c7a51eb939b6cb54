"""The catalog of an output: the current record of every finished sample.

A record is unsealed while it is an object of its own in records/, and sealed once it is in a part. See
docs/output-format.md, Parts.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output.keys import VIDEO_COLUMNS, is_own_key, names_own_videos, parse_record_key, video_names
from pipeline.output.labels import OF_SAMPLE
from pipeline.output.lease import check_epoch
from pipeline.output.parts import (
    BATCH_ROWS,
    NAMING,
    PARTS,
    REMOVED,
    is_named_by,
    parquet_of,
    parse_part,
    read_part,
    row_groups,
)
from pipeline.output.records import (
    FLAT_SCHEMA,
    RECORD_SCHEMA,
    RECORDS,
    SampleRecord,
    Status,
    parse_records,
    record_key,
    table_of,
)
from pipeline.output.storage import Storage
from sgi2v.errors import ConfigError
from sgi2v.metrics.objmc import MIN_TARGET_PX

PART_ROWS = 5000
"""Unsealed records that make a part: a few pages of a listing, some tens of megabytes of Parquet."""
INDEX_SCHEMA = pa.schema(
    [
        RECORD_SCHEMA.field(name)
        for name in (
            *("sample_id", "status", "attempts", "row_digest", "error_code", "file_name", "dtype", "finished_at"),
            *("objmc_px", "static_objmc_px", "control_gain", "objmc_nulls_frozen_px", "null_reason"),
            *("background_change", "background_motion_px"),
            *("seconds_encode", "seconds_guide", "seconds_denoise", "seconds_decode"),
            *("seconds_candidates", "seconds_baseline", "baseline_file_name", "gain_over_baseline"),
        )
    ]
)
"""The columns that are held in memory of every sample: a few hundred bytes."""

_UNSEALED = np.iinfo(np.int32).max
"""Part number of an unsealed record: behind every part."""
_NUMBERED_SCHEMA = INDEX_SCHEMA.append(pa.field("_part", pa.int32()))
"""INDEX_SCHEMA with the position of each record's part in `Catalog._parts`."""

Unsealed = tuple[str, SampleRecord]
"""The key of an unsealed record, and the record."""


@dataclass(frozen=True)
class Damage:
    """A record, or a whole part, that is not one that this program writes. It counts for no sample."""

    key: str
    """Of the object."""
    sample_id: str | None
    """Sample that the record's key or the part's row states; None for a whole part."""
    attempts: int
    """Attempts that these state; 0 for a whole part."""
    problem: str
    """What is wrong with it, as the end of a sentence."""

    @property
    def in_part(self) -> bool:
        """Whether it is a part, or a row of one."""
        return self.key.startswith(f"{PARTS}/")


class Catalog:
    """The finished samples of an output: as they were when it was read, and what its run has added since."""

    def __init__(self, storage: Storage, without_damaged_parts: bool = False, reads_labels: bool = False) -> None:
        """Read every record. Raises StorageError, and ConfigError for a damaged part.

        without_damaged_parts: go on without them, though their samples are then missing; `damaged` names them.
        reads_labels: read the labels in parts too, which takes long, to find those that are damaged.
        """
        self.storage = storage
        self.damaged: list[Damage] = []
        """Records and parts that cannot be used, as they were when the catalog was read."""
        unsealed = self._read_unsealed(but=set())  # before the parts: a record sealed meanwhile is then read twice
        self._parts: list[str] = []
        indexes = [_NUMBERED_SCHEMA.empty_table()]
        for key in storage.keys(PARTS):
            if not is_own_key(key):  # a copy, or a table: its rows would supersede, and so delete, the right ones
                continue
            try:
                data = storage.get(key) or b""
                part = parse_part(storage, key, data, FLAT_SCHEMA)
                if reads_labels:
                    deque(row_groups(storage, key, data, ["labels"]), maxlen=0)
            except ConfigError as error:
                if not without_damaged_parts:
                    raise
                self.damaged.append(Damage(key, None, 0, str(error)))
                continue
            indexes.append(_numbered(part.select(INDEX_SCHEMA.names), len(self._parts)))
            self._parts.append(key)
        rows = pa.concat_tables(indexes)
        is_removal = pc.equal(rows["status"], REMOVED)
        self._removed = _most_attempts(rows.filter(is_removal))
        rows = rows.filter(pc.invert(is_removal))
        is_sound = names_own_videos(rows)
        self.damaged += self._damaged_rows(rows.filter(pc.invert(is_sound)))
        self._index_of_parts = rows.filter(is_sound)
        self._replaced_ids: list[str] = []
        self._added_ids: set[str] = set()
        self._unsealed: dict[str, Unsealed] = {}
        self._superseded: list[Unsealed] = []
        self._choose_current(unsealed)

    @property
    def _sealed(self) -> pa.Table:
        """_NUMBERED_SCHEMA of the samples whose current record is in a part.

        Samples that `add` has replaced are filtered out here, once for many of them.
        """
        if self._replaced_ids:
            is_replaced = pc.is_in(
                self._index_of_parts["sample_id"], value_set=pa.array(self._replaced_ids, pa.string())
            )
            self._index_of_parts = self._index_of_parts.filter(pc.invert(is_replaced))
            self._replaced_ids = []
        return self._index_of_parts

    @property
    def index(self) -> pa.Table:
        """INDEX_SCHEMA of every finished sample, in the order of `tables`."""
        return pa.concat_tables([self._sealed.select(INDEX_SCHEMA.names), _index(self._unsealed_records())])

    def tables(self, status: Status) -> Iterator[pa.Table]:
        """FLAT_SCHEMA of every sample with this status, a part at a time, by sample id within each."""
        for key, current in self._parts_with(status):
            part = read_part(self.storage, key, FLAT_SCHEMA)
            yield part.filter(is_named_by(part, current))
        unsealed = [record for record in self._unsealed_records() if record.status == status]
        if unsealed:
            yield pa.Table.from_pylist([record.flat() for record in unsealed], FLAT_SCHEMA)

    def with_labels(self) -> Iterator[pa.Table]:
        """The columns OF_SAMPLE and `labels` of every committed sample, as `batches`."""
        return self.batches("committed", [*OF_SAMPLE, "labels"])

    def batches(self, status: Status, names: Sequence[str]) -> Iterator[pa.Table]:
        """These columns of every sample with this status, BATCH_ROWS at a time, in the order of `tables`; labels too.

        Needs the memory of a part's file and of one batch.
        """
        for key, current in self._parts_with(status):
            data = self.storage.get(key) or b""
            is_named = is_named_by(parse_part(self.storage, key, data, NAMING), current)
            done = 0
            for batch in row_groups(self.storage, key, data, names):
                yield batch.filter(is_named.slice(done, batch.num_rows))
                done += batch.num_rows
        unsealed = [record for record in self._unsealed_records() if record.status == status]
        for first in range(0, len(unsealed), BATCH_ROWS):
            yield table_of(unsealed[first : first + BATCH_ROWS]).select(names)

    def _parts_with(self, status: Status) -> Iterator[tuple[str, pa.Table]]:
        """The key of each part that has current records with this status, and their index."""
        with_status = self._sealed.filter(pc.equal(self._sealed["status"], status))
        for number in pc.unique(with_status["_part"]).to_pylist():
            yield self._parts[number], with_status.filter(pc.equal(with_status["_part"], number))

    def get(self, sample_id: str) -> SampleRecord | None:
        """The current record of a sample; None if it is not finished."""
        if sample_id in self._unsealed:
            return self._unsealed[sample_id][1]
        current = self._sealed.filter(pc.equal(self._sealed["sample_id"], sample_id))
        if not current.num_rows:
            return None
        key = self._parts[current["_part"][0].as_py()]
        data = self.storage.get(key) or b""
        row = pc.index(is_named_by(parse_part(self.storage, key, data, NAMING), current), True).as_py()
        for rows in row_groups(self.storage, key, data, RECORD_SCHEMA.names):
            if row < rows.num_rows:
                return SampleRecord.from_row(rows.slice(row, 1).to_pylist()[0])
            row -= rows.num_rows
        return None

    def add(self, record: SampleRecord) -> bool:
        """Note a record that this run has committed. Returns False if the sample was added before."""
        if record.sample_id in self._added_ids:
            return False
        self._added_ids.add(record.sample_id)
        earlier = self._unsealed.pop(record.sample_id, None)
        if earlier is not None:
            self._superseded.append(earlier)
        elif record.attempts > 1:  # a first attempt replaces nothing, which saves the search
            self._replaced_ids.append(record.sample_id)
        self._unsealed[record.sample_id] = (record_key(record.sample_id, record.attempts), record)
        return True

    def seal_if_due(self, epoch: int) -> None:
        """Seal the unsealed records into a part if there are PART_ROWS of them.

        epoch: of the run's lease. Raises LeaseError if the run has lost it.
        """
        if len(self._unsealed) >= PART_ROWS:
            self.seal(epoch)

    def seal(self, epoch: int) -> None:
        """Write the unsealed records into a part, then delete their objects. epoch, errors: as `seal_if_due`."""
        records = self._unsealed_records()
        batches = (table_of(records[first : first + BATCH_ROWS]) for first in range(0, len(records), BATCH_ROWS))
        number = self._put_part(batches, epoch)
        check_epoch(self.storage, epoch)
        self.storage.delete_many(key for key, _ in self._unsealed.values())
        self._index_of_parts = pa.concat_tables([self._sealed, _numbered(_index(records), number)])
        self._unsealed = {}

    def adopt(self, records: pa.Table, epoch: int) -> None:
        """Seal records of another output into a part; they replace those that are here.

        records: RECORD_SCHEMA, without two of a sample. Their videos are here already. epoch, errors: as `seal_if_due`.
        """
        number = self._put_part([records], epoch)
        ids = records["sample_id"].to_pylist()
        self._superseded += [self._unsealed.pop(sample_id) for sample_id in ids if sample_id in self._unsealed]
        self._replaced_ids.extend(ids)
        self._index_of_parts = pa.concat_tables([self._sealed, _numbered(records.select(INDEX_SCHEMA.names), number)])

    def refresh(self) -> None:
        """Read the unsealed records that were not added: of workers that could not report to their driver."""
        known = [*self._unsealed.values(), *self._superseded]
        self._choose_current([*known, *self._read_unsealed(but={key for key, _ in known})])

    def delete_superseded(self, epoch: int) -> None:
        """Delete the unsealed records that are not current, and their videos. epoch, errors: as `seal_if_due`."""
        if not self._superseded:
            return
        check_epoch(self.storage, epoch)
        # after a kill during sealing these are copies of a part's records: their videos are current, and the index
        # knows that without reading the part
        superseded_ids = pa.array([record.sample_id for _, record in self._superseded], pa.string())
        index = self.index
        current = index.filter(pc.is_in(index["sample_id"], value_set=superseded_ids))
        current_videos = set(video_names(current))
        videos = [video.key for _, record in self._superseded for video in record.videos]
        self.storage.delete_many(video for video in videos if video not in current_videos)
        self.storage.delete_many(key for key, _ in self._superseded)
        self._superseded = []

    def remove(self, sample_ids: Iterable[str], epoch: int) -> None:
        """Take every record of these samples away, so that the next run makes them. epoch, errors: as `seal_if_due`.

        A new part says so: a driver that was stopped may still put a part with such a record, or delete its object.
        """
        removed = dict.fromkeys(sorted(set(sample_ids)), 1)
        if not removed:
            return
        pairs = [*self._superseded, *self._unsealed.values()]
        found = [(record.sample_id, record.attempts) for _, record in pairs]
        found += [(damage.sample_id, damage.attempts) for damage in self.damaged if damage.sample_id is not None]
        ids = pa.array(list(removed), pa.string())
        for key in self._parts:
            part = read_part(self.storage, key, INDEX_SCHEMA)
            found += _most_attempts(part.filter(pc.is_in(part["sample_id"], value_set=ids))).items()
        for sample_id, attempts in found:
            if sample_id in removed:
                removed[sample_id] = max(removed[sample_id], attempts)
        rows = [{"sample_id": name, "status": REMOVED, "attempts": number} for name, number in removed.items()]
        self._put_part([pa.Table.from_pylist(rows, RECORD_SCHEMA)], epoch)
        check_epoch(self.storage, epoch)
        self.storage.delete_many(key for key, record in pairs if record.sample_id in removed)
        self._removed.update(removed)
        self._replaced_ids.extend(removed)
        self._unsealed = {sample_id: pair for sample_id, pair in self._unsealed.items() if sample_id not in removed}
        self._superseded = [(key, record) for key, record in self._superseded if record.sample_id not in removed]

    def remove_damaged(self, named: set[str], epoch: int) -> list[str]:
        """Take damaged records and parts away, but nothing that they name. epoch, errors: as `seal_if_due`.

        named: the samples of these records, and the keys of these parts. Returns the samples that have no other record,
        so that the next run makes them.
        """
        damaged = [damage for damage in self.damaged if (damage.sample_id or damage.key) in named]
        check_epoch(self.storage, epoch)
        self.storage.delete_many(damage.key for damage in damaged if damage.sample_id is None)
        finished = set(self.index["sample_id"].to_pylist())
        lost = {damage.sample_id for damage in damaged if damage.sample_id is not None} - finished
        self.remove(lost, epoch)
        check_epoch(self.storage, epoch)
        self.storage.delete_many(damage.key for damage in damaged if not damage.in_part)
        for key in {damage.key for damage in damaged if damage.in_part and damage.sample_id is not None}:
            part = read_part(self.storage, key, RECORD_SCHEMA)
            self.storage.put(key, parquet_of([part.filter(names_own_videos(part))]))
        self.damaged = [damage for damage in self.damaged if damage not in damaged]
        return sorted(lost)

    def lost_attempts(self, sample_ids: pa.ChunkedArray) -> pa.ChunkedArray:
        """Per sample the highest attempt that was taken away or is damaged, else 0. No later record may have it."""
        lost = dict(self._removed)
        for sample_id, attempts in _most_attempts_of(self.damaged).items():
            lost[sample_id] = max(lost.get(sample_id, 0), attempts)
        return _look_up(lost, sample_ids)

    def _damaged_rows(self, rows: pa.Table) -> Iterator[Damage]:
        """The damage of rows of parts that name another video than one of their sample, unless they were taken away."""
        rows = rows.filter(pc.greater(rows["attempts"], _look_up(self._removed, rows["sample_id"])))
        for row in rows.to_pylist():
            names = [repr(row[column]) for column in VIDEO_COLUMNS if row[column] is not None]
            which = "the video" if len(names) == 1 else "videos"
            problem = f"names {' and '.join(names)} as {which} of {row['sample_id']!r}"
            yield Damage(self._parts[row["_part"]], row["sample_id"], row["attempts"], problem)

    def _put_part(self, batches: Iterable[pa.Table], epoch: int) -> int:
        """Write a new part. Returns its position in `_parts`. batches: of RECORD_SCHEMA. Raises as `seal_if_due`."""
        check_epoch(self.storage, epoch)
        number = sum(key.startswith(_part_prefix(epoch)) for key in self._parts)
        key = f"{_part_prefix(epoch)}{number:04d}.parquet"
        if not self.storage.put_new(key, parquet_of(batches)):
            raise ConfigError(f"{self.storage.url}/{key} is not of this run: move it away")
        self._parts.append(key)
        return len(self._parts) - 1

    def _read_unsealed(self, but: set[str]) -> list[Unsealed]:
        """The unsealed records, by key. Notes the damaged ones. but: keys to skip."""
        keys = sorted(key for key in self.storage.keys(RECORDS) if parse_record_key(key) and key not in but)
        unsealed: list[Unsealed] = []
        problems: dict[str, str] = {}
        for first in range(0, len(keys), BATCH_ROWS):
            contents = self.storage.get_many(keys[first : first + BATCH_ROWS])
            sound, damaged = parse_records(sorted(contents.items()))
            unsealed += sound
            problems |= damaged
        known = {damage.key for damage in self.damaged}
        for key, problem in problems.items():
            stated = parse_record_key(key)
            if stated is not None and key not in known:
                self.damaged.append(Damage(key, stated.sample_id, stated.attempts, problem))
        return unsealed

    def _unsealed_records(self) -> list[SampleRecord]:
        """The unsealed current records, by sample id."""
        return [self._unsealed[sample_id][1] for sample_id in sorted(self._unsealed)]

    def _choose_current(self, unsealed: list[Unsealed]) -> None:
        """Divide the records into current and superseded ones. unsealed: all that there are."""
        records = pa.concat_tables([self._sealed, _numbered(_index(record for _, record in unsealed), _UNSEALED)])
        is_current = _is_current(records, _look_up(self._removed, records["sample_id"]))
        self._index_of_parts = records.filter(pa.array(is_current & (records["_part"].to_numpy() != _UNSEALED)))
        is_unsealed_current = is_current[len(is_current) - len(unsealed) :]
        pairs = list(zip(unsealed, is_unsealed_current, strict=True))
        self._unsealed = {record.sample_id: (key, record) for (key, record), current in pairs if current}
        self._superseded = [pair for pair, current in pairs if not current]


def count(index: pa.Table, status: Status) -> int:
    """The number of samples with this status."""
    return int(pc.sum(pc.equal(index["status"], status)).as_py() or 0)


def mean_of(index: pa.Table, column: str) -> float | None:
    """The mean of a metric over the samples that have it; None if none has."""
    mean: float | None = pc.mean(index[column]).as_py()
    return mean


@dataclass(frozen=True)
class MeanFidelity:
    """Means of motion fidelity over committed samples. A mean is None without any sample that has the value."""

    measured: int
    """Samples with objmc_px."""
    objmc_px: float | None
    static_objmc_px: float | None
    control_gain: float | None
    with_paths: int
    """Samples with objmc_nulls_frozen_px: the measured ones, and those in which no box could be measured."""
    objmc_nulls_frozen_px: float | None
    control_gain_nulls_frozen: float | None
    """A box that could not be measured counts as one that stood still, in both."""


def mean_fidelity(index: pa.Table) -> MeanFidelity:
    """The means over the committed samples of an index."""
    committed = index.filter(pc.equal(index["status"], "committed"))
    measured = committed.filter(pc.is_valid(committed["objmc_px"]))
    with_paths = committed.filter(pc.is_valid(committed["objmc_nulls_frozen_px"]))
    moving = with_paths.filter(pc.greater_equal(with_paths["static_objmc_px"], MIN_TARGET_PX))
    gains = pc.subtract(1.0, pc.divide(moving["objmc_nulls_frozen_px"], moving["static_objmc_px"]))
    return MeanFidelity(
        measured=measured.num_rows,
        objmc_px=mean_of(measured, "objmc_px"),
        static_objmc_px=mean_of(measured, "static_objmc_px"),
        control_gain=mean_of(measured, "control_gain"),
        with_paths=with_paths.num_rows,
        objmc_nulls_frozen_px=mean_of(with_paths, "objmc_nulls_frozen_px"),
        control_gain_nulls_frozen=pc.mean(gains).as_py(),
    )


def counts_of(index: pa.Table, column: Literal["error_code", "null_reason"]) -> Mapping[str, int]:
    """The number of samples per value of a column, most first; null counts as `unknown`."""
    counts = pc.fill_null(index[column], "unknown").value_counts().to_pylist()
    pairs = [(count["values"], count["counts"]) for count in counts]
    return dict(sorted(pairs, key=lambda pair: (-pair[1], pair[0])))


def failed_by_code(index: pa.Table) -> Mapping[str, int]:
    """Failed samples per error code, most first."""
    return counts_of(index.filter(pc.equal(index["status"], "failed")), "error_code")


def _part_prefix(epoch: int) -> str:
    return f"{PARTS}/{epoch:06d}-"


def _index(records: Iterable[SampleRecord]) -> pa.Table:
    return pa.Table.from_pylist([record.flat() for record in records], INDEX_SCHEMA)


def _numbered(index: pa.Table, part: int) -> pa.Table:
    """The index with the number of the records' part."""
    return index.append_column("_part", pa.array(np.full(index.num_rows, part, np.int32)))


def _most_attempts(rows: pa.Table) -> dict[str, int]:
    """The highest attempt of each sample of an index."""
    grouped = rows.group_by("sample_id").aggregate([("attempts", "max")])
    return dict(zip(grouped["sample_id"].to_pylist(), grouped["attempts_max"].to_pylist(), strict=True))


def _most_attempts_of(damaged: Iterable[Damage]) -> dict[str, int]:
    """The highest attempt of each sample that has a damaged record."""
    known = ((damage.sample_id, damage.attempts) for damage in damaged if damage.sample_id is not None)
    return dict(sorted(known, key=lambda pair: pair[1]))


def _look_up(attempts: Mapping[str, int], sample_ids: pa.ChunkedArray) -> pa.ChunkedArray:
    """The attempts of each of these samples; 0 for a sample that is not there."""
    positions = pc.index_in(sample_ids, value_set=pa.array(list(attempts), pa.string()))
    return pc.fill_null(pa.array(list(attempts.values()), pa.int64()).take(positions), 0)


def _is_current(records: pa.Table, removed: pa.ChunkedArray) -> np.ndarray:
    """Which rows of _NUMBERED_SCHEMA are current records. removed: the highest attempt of each that was taken away."""
    is_current = np.array(pc.greater(records["attempts"], removed))
    records = records.append_column("_row", pa.array(np.arange(records.num_rows))).filter(pa.array(is_current))
    if pc.count_distinct(records["sample_id"]).as_py() == records.num_rows:
        return is_current
    ranked = records.append_column("_failed", pc.not_equal(records["status"], "committed"))
    keys = [("sample_id", "ascending"), ("_failed", "ascending"), ("attempts", "descending"), ("_part", "ascending")]
    order = pc.sort_indices(ranked, sort_keys=keys)
    ids = records["sample_id"].take(order).combine_chunks()
    is_first = np.r_[True, pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)]
    is_current[:] = False
    is_current[records["_row"].to_numpy()[order.to_numpy()[is_first]]] = True
    return is_current
