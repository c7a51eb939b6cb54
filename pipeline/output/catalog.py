"""The catalog of an output: every finished sample, in sealed parts and in records that are still loose.

    parts/000003-0007.parquet    the eighth part that the third run has sealed

A run that has PART_ROWS loose records writes them into one part, by conditional put, and deletes them then. Readers
look at the loose records first and at the parts after them, so that what is sealed meanwhile is seen twice and never
missed. Of several records of one sample one stands: a committed one before a failed one, more attempts before fewer,
a sealed one before a loose one, an earlier part's before a later one's. A run that is killed between any two steps
leaves nothing else behind than a sample with two records.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.io import read_parquet
from pipeline.output.lease import check_epoch
from pipeline.output.records import RECORD_SCHEMA, RECORDS, SampleRecord, Status, record_key
from pipeline.output.storage import Storage
from sgi2v.errors import ConfigError

PARTS = "parts"
PART_ROWS = 5000
"""Loose records that make a part: a few pages of a listing, a few megabytes of Parquet."""
INDEX_SCHEMA = pa.schema(
    [
        RECORD_SCHEMA.field(name)
        for name in (
            *("sample_id", "status", "attempts", "row_digest", "error_code", "file_name", "dtype", "finished_at"),
            *("objmc_px", "static_objmc_px", "control_gain", "null_reason"),
            *("seconds_encode", "seconds_guide", "seconds_denoise", "seconds_decode"),
        )
    ]
)
"""What is held in memory of every sample: a few hundred bytes."""

_LOOSE = np.iinfo(np.int32).max
_PLACED_SCHEMA = INDEX_SCHEMA.append(pa.field("_part", pa.int32()))

Loose = tuple[str, SampleRecord]
"""The key of a record, and the record."""


class Catalog:
    """The finished samples of one output, as they were when it was read and as its run has added to them."""

    def __init__(self, storage: Storage) -> None:
        """Read what is there. Raises StorageError, ConfigError for a part of another program."""
        self.storage = storage
        loose = _read_loose(storage, set())
        self._parts = [key for key in storage.keys(PARTS) if key.endswith(".parquet")]
        placed = [_place(_read_part(storage, key).select(INDEX_SCHEMA.names), n) for n, key in enumerate(self._parts)]
        self._placed = pa.concat_tables([_PLACED_SCHEMA.empty_table(), *placed])
        self._replaced: list[str] = []
        self._added: set[str] = set()
        self._loose: dict[str, Loose] = {}
        self._superseded: list[Loose] = []
        self._settle(loose)

    @property
    def _sealed(self) -> pa.Table:
        """The samples that stand in parts. What has been replaced is taken out here: once for many, not at each."""
        if self._replaced:
            found = pc.is_in(self._placed["sample_id"], value_set=pa.array(self._replaced, pa.string()))
            self._placed = self._placed.filter(pc.invert(found))
            self._replaced = []
        return self._placed

    @property
    def index(self) -> pa.Table:
        """INDEX_SCHEMA of every sample, in the order of `tables`."""
        return pa.concat_tables([self._sealed.select(INDEX_SCHEMA.names), _index(self._standing_loose())])

    def tables(self, status: Status) -> Iterator[pa.Table]:
        """RECORD_SCHEMA of every sample of that status, a part at a time, by sample id within each."""
        of_status = self._sealed.filter(pc.equal(self._sealed["status"], status))
        for number in pc.unique(of_status["_part"]).to_pylist():
            wanted = of_status.filter(pc.equal(of_status["_part"], number))["sample_id"]
            part = _read_part(self.storage, self._parts[number])
            part = part.filter(pc.equal(part["status"], status))
            yield part.filter(pc.is_in(part["sample_id"], value_set=wanted.combine_chunks()))
        loose = [record for record in self._standing_loose() if record.status == status]
        if loose:
            yield pa.Table.from_pylist([record.row() for record in loose], RECORD_SCHEMA)

    def get(self, sample_id: str) -> SampleRecord | None:
        """The record that stands for a sample, or None."""
        if sample_id in self._loose:
            return self._loose[sample_id][1]
        places = self._sealed.filter(pc.equal(self._sealed["sample_id"], sample_id))["_part"].to_pylist()
        if not places:
            return None
        part = _read_part(self.storage, self._parts[places[0]])
        (row,) = part.filter(pc.equal(part["sample_id"], sample_id)).to_pylist()
        return SampleRecord.from_row(row)

    def add(self, record: SampleRecord) -> bool:
        """Note a record that this run has committed; False where it has noted the sample's before."""
        if record.sample_id in self._added:
            return False
        self._added.add(record.sample_id)
        earlier = self._loose.pop(record.sample_id, None)
        if earlier is not None:
            self._superseded.append(earlier)
        elif record.attempts > 1:  # a first finish has nothing before it, and to look for it would take its time
            self._replaced.append(record.sample_id)
        self._loose[record.sample_id] = (record_key(record.sample_id, record.attempts), record)
        return True

    def seal_if_due(self, epoch: int) -> None:
        """Seal the loose records into a part, where there are PART_ROWS of them.

        epoch: of the run's lease. Raises LeaseError where the run has been overtaken.
        """
        if len(self._loose) >= PART_ROWS:
            self.seal(epoch)

    def seal(self, epoch: int) -> None:
        """Seal the loose records into a part, and delete them. Raises as seal_if_due."""
        records = self._standing_loose()
        check_epoch(self.storage, epoch)
        number = sum(key.startswith(_part_key(epoch)) for key in self._parts)
        key = f"{_part_key(epoch)}{number:04d}.parquet"
        table = pa.Table.from_pylist([record.row() for record in records], RECORD_SCHEMA)
        if not self.storage.put_new(key, _parquet(table)):
            raise ConfigError(f"{self.storage.url}/{key} is not of this run: move it away")
        check_epoch(self.storage, epoch)
        self.storage.delete_many(key for key, _ in self._loose.values())
        self._placed = pa.concat_tables([self._sealed, _place(_index(records), len(self._parts))])
        self._parts.append(key)
        self._loose = {}

    def refresh(self) -> None:
        """Note the loose records that nobody has told of: of workers whose driver was interrupted, or died."""
        known = [*self._loose.values(), *self._superseded]
        self._settle([*known, *_read_loose(self.storage, {key for key, _ in known})])

    def sweep(self, epoch: int) -> None:
        """Delete the loose records that do not stand, and their videos. Raises LeaseError as seal_if_due."""
        if not self._superseded:
            return
        check_epoch(self.storage, epoch)
        # behind a kill inside sealing these are a part's records, whose videos stand in it: no part is read for that
        swept = pa.array([record.sample_id for _, record in self._superseded], pa.string())
        index = self.index
        standing = set(index.filter(pc.is_in(index["sample_id"], value_set=swept))["file_name"].to_pylist())
        names = [record.file_name for _, record in self._superseded if record.file_name is not None]
        self.storage.delete_many(name for name in names if name not in standing)
        self.storage.delete_many(key for key, _ in self._superseded)
        self._superseded = []

    def remove(self, sample_ids: Iterable[str], epoch: int) -> None:
        """Forget these samples, so that they are made again. Raises LeaseError as seal_if_due."""
        check_epoch(self.storage, epoch)
        gone = set(sample_ids)
        for key, record in [*self._superseded, *self._loose.values()]:
            if record.sample_id in gone:
                self.storage.delete(key)
        ids = pa.array(sorted(gone), pa.string())
        for key in self._parts:
            part = _read_part(self.storage, key)
            kept = part.filter(pc.invert(pc.is_in(part["sample_id"], value_set=ids)))
            if kept.num_rows < part.num_rows:
                self.storage.put(key, _parquet(kept))
        self._replaced.extend(gone)
        self._loose = {sample_id: each for sample_id, each in self._loose.items() if sample_id not in gone}
        self._superseded = [each for each in self._superseded if each[1].sample_id not in gone]

    def _standing_loose(self) -> list[SampleRecord]:
        return [self._loose[sample_id][1] for sample_id in sorted(self._loose)]

    def _settle(self, loose: list[Loose]) -> None:
        """Find the record that stands for each sample."""
        every = pa.concat_tables([self._sealed, _place(_index(record for _, record in loose), _LOOSE)])
        stands = _stands(every)
        self._placed = every.filter(pa.array(stands & (every["_part"].to_numpy() != _LOOSE)))
        of_loose = stands[len(stands) - len(loose) :]
        self._loose = {each[1].sample_id: each for each, it_does in zip(loose, of_loose, strict=True) if it_does}
        self._superseded = [each for each, it_does in zip(loose, of_loose, strict=True) if not it_does]


def _parquet(table: pa.Table) -> bytes:
    """The table as a file."""
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def count(index: pa.Table, status: Status) -> int:
    """Samples of that status."""
    return int(pc.sum(pc.equal(index["status"], status)).as_py() or 0)


def mean_of(index: pa.Table, column: str) -> float | None:
    """Mean of a metric over the samples that have it; None where none has."""
    mean: float | None = pc.mean(index[column]).as_py()
    return mean


def counts_of(index: pa.Table, column: Literal["error_code", "null_reason"]) -> Mapping[str, int]:
    """Samples by their value there, most first; `unknown` where there is none."""
    values = pc.fill_null(index[column], "unknown").value_counts().to_pylist()
    return {
        each["values"]: each["counts"] for each in sorted(values, key=lambda each: (-each["counts"], each["values"]))
    }


def _part_key(epoch: int) -> str:
    return f"{PARTS}/{epoch:06d}-"


def _index(records: Iterable[SampleRecord]) -> pa.Table:
    return pa.Table.from_pylist([record.row() for record in records], INDEX_SCHEMA)


def _place(index: pa.Table, part: int) -> pa.Table:
    return index.append_column("_part", pa.array(np.full(index.num_rows, part, np.int32)))


def _read_loose(storage: Storage, but: set[str]) -> list[Loose]:
    keys = [key for key in storage.keys(RECORDS) if key.endswith(".json") and key not in but]
    return [(key, SampleRecord.from_json(data)) for key, data in sorted(storage.get_many(keys).items())]


def _read_part(storage: Storage, key: str) -> pa.Table:
    """A part, with nulls in the columns that were unknown when it was written."""
    try:
        part = read_parquet(storage.get(key) or b"")
        columns = [
            part[field.name].cast(field.type) if field.name in part.column_names else pa.nulls(len(part), field.type)
            for field in RECORD_SCHEMA
        ]
        part["sample_id"], part["status"], part["attempts"]
    except (pa.ArrowException, KeyError, OSError) as error:
        raise ConfigError(f"{storage.url}/{key} is not a part of this program: move it away") from error
    return pa.Table.from_arrays(columns, schema=RECORD_SCHEMA)


def _stands(index: pa.Table) -> np.ndarray:
    """Which rows of a placed index stand for their samples."""
    if pc.count_distinct(index["sample_id"]).as_py() == index.num_rows:
        return np.ones(index.num_rows, bool)
    ranked = index.append_column("_failed", pc.not_equal(index["status"], "committed"))
    keys = [("sample_id", "ascending"), ("_failed", "ascending"), ("attempts", "descending"), ("_part", "ascending")]
    order = pc.sort_indices(ranked, sort_keys=keys)
    ids = index["sample_id"].take(order).combine_chunks()
    is_first = np.r_[True, pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)]
    stands = np.zeros(index.num_rows, bool)
    stands[order.to_numpy()[is_first]] = True
    return stands
