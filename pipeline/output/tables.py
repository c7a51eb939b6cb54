"""The tables that people read: metadata.parquet and failures.parquet, each renewed as a whole."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.output.catalog import Catalog
from pipeline.output.lease import check_epoch
from pipeline.output.records import RECORD_SCHEMA, Status
from pipeline.output.storage import Storage
from sgi2v.errors import ConfigError, StorageError

METADATA = "metadata.parquet"
FAILURES = "failures.parquet"
METADATA_COLUMNS = (
    *("file_name", "sample_id"),
    *(name for name in RECORD_SCHEMA.names if name not in {"file_name", "sample_id", "error_code", "message"}),
)
FAILURE_COLUMNS = ("sample_id", "error_code", "message", "attempts", "finished_at", "host", "row_digest", "seed")
ResultT = TypeVar("ResultT")


def write_tables(catalog: Catalog, manifest: pa.Table, epoch: int) -> None:
    """Write both tables, each with the manifest's own columns, by sample id within each part of the catalog.

    A sample that this manifest does not hold keeps the manifest columns that it has in the tables there. Needs the
    memory of a part and of the manifest. epoch: of the run's lease. Raises ConfigError where a table there is none of
    ours, LeaseError where the run has been overtaken.
    """
    _write(catalog, manifest, epoch, METADATA, "committed", METADATA_COLUMNS, set(RECORD_SCHEMA.names))
    _write(catalog, manifest, epoch, FAILURES, "failed", FAILURE_COLUMNS, set(FAILURE_COLUMNS))


def check_tables(storage: Storage) -> None:
    """Raise ConfigError where a file that a table would replace is none of ours."""
    for name in (METADATA, FAILURES):
        _read(storage, name, lambda file: None)


def read_ids(storage: Storage, name: str) -> set[str]:
    """The samples of a table. Raises ConfigError for a foreign file."""
    table = _read(storage, name, lambda file: file.read(["sample_id"], use_threads=False))
    return set() if table is None else {str(sample_id) for sample_id in table["sample_id"].to_pylist()}


def _write(
    catalog: Catalog,
    manifest: pa.Table,
    epoch: int,
    name: str,
    status: Status,
    columns: tuple[str, ...],
    taken: set[str],
) -> None:
    """Write one table through a file of this machine's, a part at a time."""
    index = catalog.index
    ids = index.filter(pc.equal(index["status"], status))["sample_id"]
    own, places = _riding_along(ids, manifest, catalog.storage, name, taken)
    fields = [*(RECORD_SCHEMA.field(each) for each in columns), *own.schema]
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / name
            with pq.ParquetWriter(file, pa.schema(fields), compression="zstd") as writer:
                for table in _joined(catalog.tables(status), columns, own, places):
                    writer.write_table(table)
            check_epoch(catalog.storage, epoch)  # as late as can be: a driver may have been stopped for long meanwhile
            catalog.storage.put_file(name, file)
    except OSError as error:  # of this machine's disk: the store's are StorageErrors
        message = f"making {name} in {tempfile.gettempdir()} failed: {error}"
        raise StorageError(f"{message}: make room there, or set TMPDIR to another folder") from error


def _joined(
    tables: Iterator[pa.Table], columns: tuple[str, ...], own: pa.Table, places: pa.ChunkedArray
) -> Iterator[pa.Table]:
    """Records with the columns of their manifest rows behind them."""
    done = 0
    for records in tables:
        rows = places.slice(done, records.num_rows)
        done += records.num_rows
        records = records.select(columns)
        for field in own.schema:
            column = own[field.name]
            taken = column.take(rows) if len(column) else pa.nulls(records.num_rows, field.type)
            records = records.append_column(field, taken)
        yield records


def _riding_along(
    ids: pa.ChunkedArray, manifest: pa.Table, storage: Storage, name: str, taken: set[str]
) -> tuple[pa.Table, pa.ChunkedArray]:
    """The columns that are the manifest's own, and each sample's row there; a name that is taken gets `manifest_`.

    Samples without a row in the manifest have theirs from the table `name` that is there.
    """
    columns: dict[str, pa.ChunkedArray] = {}
    for each in manifest.column_names:
        if each != "sample_id":
            stored = each
            while stored in taken or stored in columns:
                stored = f"manifest_{stored}"
            columns[stored] = manifest[each]
    rows = pc.index_in(ids, value_set=manifest["sample_id"].combine_chunks())
    earlier = _read(storage, name, lambda file: _beyond(file, taken)) if rows.null_count else None
    if earlier is None:
        earlier = pa.table({"sample_id": pa.array([], pa.string())})
    else:
        beyond = ids.filter(pc.is_null(rows)).combine_chunks()
        earlier = earlier.filter(pc.is_in(earlier["sample_id"], value_set=beyond))
    # places in the manifest's rows with the earlier table's behind them
    behind = pc.index_in(ids, value_set=earlier["sample_id"].combine_chunks())
    places = pc.coalesce(rows, pc.add(behind, manifest.num_rows))
    kept = [each for each in earlier.column_names if each not in taken]
    own = {
        each: _stacked(columns.get(each), manifest.num_rows, earlier[each] if each in kept else None, earlier.num_rows)
        for each in dict.fromkeys([*columns, *kept])
    }
    return pa.table(own), places


def _stacked(new: pa.ChunkedArray | None, new_rows: int, old: pa.ChunkedArray | None, old_rows: int) -> pa.ChunkedArray:
    """One column of the other below it, nulls for one that is missing; of two types the new one."""
    if new is None or (old is not None and pa.types.is_null(new.type)):
        assert old is not None
        new = pa.chunked_array([pa.nulls(new_rows, old.type)])
    try:
        old = pa.chunked_array([pa.nulls(old_rows, new.type)]) if old is None else old.cast(new.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        old = pa.chunked_array([pa.nulls(old_rows, new.type)])
    return pa.chunked_array([*new.chunks, *old.chunks], new.type)


def _beyond(file: pq.ParquetFile, taken: set[str]) -> pa.Table:
    """The sample ids, and the columns that came from manifests."""
    names = [each for each in file.schema_arrow.names if each not in taken or each == "sample_id"]
    return file.read(names, use_threads=False)


def _read(storage: Storage, name: str, read: Callable[[pq.ParquetFile], ResultT]) -> ResultT | None:
    """What is read of the table that is there, or None. Raises ConfigError for a file that is none of ours."""

    def parse(stream: BinaryIO) -> ResultT:
        # Arrow's threads can abort a process that ends right after a read
        file = pq.ParquetFile(stream, pre_buffer=False)
        if not {"sample_id", "attempts", "row_digest"} <= set(file.schema_arrow.names):
            raise pa.ArrowInvalid("another table's columns")
        return read(file)

    try:
        return storage.read(name, parse)
    except pa.ArrowException as error:
        raise ConfigError(f"{storage.url}/{name} is not a table of this program: move it away") from error
