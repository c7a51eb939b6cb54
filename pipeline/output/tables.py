"""The tables for readers, metadata.parquet and failures.parquet. See docs/output-format.md, Tables."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.output.catalog import Catalog
from pipeline.output.keys import epoch_of
from pipeline.output.lease import check_epoch
from pipeline.output.records import RECORD_SCHEMA, Status
from pipeline.output.storage import Storage
from sgi2v.errors import ConfigError, StorageError

METADATA = "metadata.parquet"
FAILURES = "failures.parquet"
COPIES = "tables"
"""Folder of the copies of the tables, each under a key of its run."""
_EPOCH = b"sgi2v_epoch"
"""Entry of a table's schema metadata: the run that wrote it."""
METADATA_COLUMNS = (
    *("file_name", "sample_id"),
    *(name for name in RECORD_SCHEMA.names if name not in {"file_name", "sample_id", "error_code", "message"}),
)
FAILURE_COLUMNS = ("sample_id", "error_code", "message", "attempts", "finished_at", "host", "row_digest", "seed")
ResultT = TypeVar("ResultT")


def write_tables(catalog: Catalog, manifest: pa.Table, epoch: int) -> None:
    """Write both tables, each with the manifest's own columns, by sample id within each part of the catalog.

    A sample that is not in this manifest keeps the manifest columns it has in the existing table. Needs the memory of
    one part and of the manifest. epoch: of the run's lease. Raises ConfigError if an existing table is of another
    program, LeaseError if the run has lost its lease.
    """
    _write(catalog, manifest, epoch, METADATA, "committed", METADATA_COLUMNS, set(RECORD_SCHEMA.names))
    _write(catalog, manifest, epoch, FAILURES, "failed", FAILURE_COLUMNS, set(FAILURE_COLUMNS))


def check_tables(storage: Storage) -> None:
    """Raise ConfigError if a file that a table would replace is of another program."""
    for name in (METADATA, FAILURES):
        _read(storage, name, lambda file: None)


def read_ids(storage: Storage, name: str) -> set[str]:
    """The sample ids of a table. Raises ConfigError for a file of another program."""
    table = _read(storage, name, lambda file: file.read(["sample_id"], use_threads=False))
    return set() if table is None else {str(sample_id) for sample_id in table["sample_id"].to_pylist()}


def is_replaced_by_older(storage: Storage, name: str) -> bool:
    """Whether a table is of an earlier run than the newest copy of it: a driver that was stopped has put it late."""
    epoch = _read(storage, name, lambda file: int((file.schema_arrow.metadata or {}).get(_EPOCH, 0)))
    return epoch is not None and epoch < epoch_of(_newest_copy(storage, name))


def _newest_copy(storage: Storage, name: str) -> str:
    """The key of the copy of a table that belongs to the last run; the table's own if there are no copies.

    No other run writes a copy, so no driver that was stopped and woken can replace it by an older one.
    """
    copies = [key for key in storage.keys(COPIES) if key.endswith(f"-{name}")]
    return max(copies, key=epoch_of, default=name)


def _write(
    catalog: Catalog,
    manifest: pa.Table,
    epoch: int,
    name: str,
    status: Status,
    columns: tuple[str, ...],
    reserved: set[str],
) -> None:
    """Write one table, a part at a time, to a temporary file, then put that. reserved: names of record columns."""
    index = catalog.index
    ids = index.filter(pc.equal(index["status"], status))["sample_id"]
    own, rows = _own_columns(ids, manifest, catalog.storage, name, reserved)
    schema = pa.schema([*(RECORD_SCHEMA.field(column) for column in columns), *own.schema], {_EPOCH: str(epoch)})
    storage = catalog.storage
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / name
            with pq.ParquetWriter(file, schema, compression="zstd") as writer:
                for table in _with_own_columns(catalog.tables(status), columns, own, rows):
                    writer.write_table(table)
            check_epoch(storage, epoch)  # as late as possible: the driver may have been suspended meanwhile
            storage.put_file(f"{COPIES}/{epoch:06d}-{name}", file)
            storage.put_file(name, file)
            copies = (key for key in storage.keys(COPIES) if key.endswith(f"-{name}"))
            storage.delete_many(key for key in copies if epoch_of(key) < epoch)
    except OSError as error:  # of this machine's disk: the store raises StorageError
        message = f"making {name} in {tempfile.gettempdir()} failed: {error}"
        raise StorageError(f"{message}: make room there, or set TMPDIR to another folder") from error


def _with_own_columns(
    tables: Iterator[pa.Table], columns: tuple[str, ...], own: pa.Table, rows: pa.ChunkedArray
) -> Iterator[pa.Table]:
    """Each table of records with the own columns of its samples appended. own, rows: as `_own_columns` gives them."""
    done = 0
    for records in tables:
        rows_of_records = rows.slice(done, records.num_rows)
        done += records.num_rows
        records = records.select(columns)
        for field in own.schema:
            column = own[field.name]
            values = column.take(rows_of_records) if len(column) else pa.nulls(records.num_rows, field.type)
            records = records.append_column(field, values)
        yield records


def _own_columns(
    ids: pa.ChunkedArray, manifest: pa.Table, storage: Storage, name: str, reserved: set[str]
) -> tuple[pa.Table, pa.ChunkedArray]:
    """The manifest's columns without `sample_id`, and the row of each sample in them (null if it has none).

    A reserved name gets the prefix `manifest_`. Samples that are not in the manifest have their rows from the existing
    table `name`; these follow the manifest's rows.
    """
    columns: dict[str, pa.ChunkedArray] = {}
    for column in manifest.column_names:
        if column != "sample_id":
            stored_as = column
            while stored_as in reserved or stored_as in columns:
                stored_as = f"manifest_{stored_as}"
            columns[stored_as] = manifest[column]
    rows = pc.index_in(ids, value_set=manifest["sample_id"].combine_chunks())
    existing = None
    if rows.null_count:
        existing = _read(storage, _newest_copy(storage, name), lambda file: _read_own_columns(file, reserved))
    if existing is None:
        existing = pa.table({"sample_id": pa.array([], pa.string())})
    else:
        other_ids = ids.filter(pc.is_null(rows)).combine_chunks()
        existing = existing.filter(pc.is_in(existing["sample_id"], value_set=other_ids))
    existing_rows = pc.index_in(ids, value_set=existing["sample_id"].combine_chunks())
    rows = pc.coalesce(rows, pc.add(existing_rows, manifest.num_rows))
    kept = [column for column in existing.column_names if column not in reserved]
    own = {
        column: _concat(
            columns.get(column), manifest.num_rows, existing[column] if column in kept else None, existing.num_rows
        )
        for column in dict.fromkeys([*columns, *kept])
    }
    return pa.table(own), rows


def _concat(new: pa.ChunkedArray | None, new_rows: int, old: pa.ChunkedArray | None, old_rows: int) -> pa.ChunkedArray:
    """The new column followed by the old one. None is a column of nulls. Old values are cast to the new type; where
    that fails they become null."""
    if new is None or (old is not None and pa.types.is_null(new.type)):
        assert old is not None
        new = pa.chunked_array([pa.nulls(new_rows, old.type)])
    try:
        old = pa.chunked_array([pa.nulls(old_rows, new.type)]) if old is None else old.cast(new.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        old = pa.chunked_array([pa.nulls(old_rows, new.type)])
    return pa.chunked_array([*new.chunks, *old.chunks], new.type)


def _read_own_columns(file: pq.ParquetFile, reserved: set[str]) -> pa.Table:
    """The sample ids of an existing table, and the columns that came from manifests."""
    names = [name for name in file.schema_arrow.names if name not in reserved or name == "sample_id"]
    return file.read(names, use_threads=False)


def _read(storage: Storage, name: str, read: Callable[[pq.ParquetFile], ResultT]) -> ResultT | None:
    """The result of `read` on an existing table; None if there is none. Raises ConfigError for another program's."""

    def parse(stream: BinaryIO) -> ResultT:
        # without Arrow's threads, which can abort a process that ends right after a read
        file = pq.ParquetFile(stream, pre_buffer=False)
        if not {"sample_id", "attempts", "row_digest"} <= set(file.schema_arrow.names):
            raise pa.ArrowInvalid("another table's columns")
        return read(file)

    try:
        return storage.read(name, parse)
    except pa.ArrowException as error:
        raise ConfigError(f"{storage.url}/{name} is not a table of this program: move it away") from error
