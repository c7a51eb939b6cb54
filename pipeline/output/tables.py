"""The tables for readers: metadata.parquet, labels.parquet, failures.parquet. See docs/output-format.md, Tables."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.own_columns import PREFIX, check_writable, is_storable, join, plain, stored_name
from pipeline.output.catalog import Catalog
from pipeline.output.keys import epoch_of
from pipeline.output.labels import LABEL_KEYS, LABEL_SCHEMA, LABELS, rows_of_boxes
from pipeline.output.lease import check_epoch
from pipeline.output.records import FLAT_SCHEMA, RECORD_SCHEMA, Status
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
    *(name for name in FLAT_SCHEMA.names if name not in {"file_name", "sample_id", "error_code", "message"}),
)
FAILURE_COLUMNS = ("sample_id", "error_code", "message", "attempts", "finished_at", "host", "row_digest", "seed")
RESERVED = frozenset(RECORD_SCHEMA.names)
"""Names that own columns do not have in either table."""
_KNOWN_BY, _KNOWN_BY_LABELS = {"sample_id", "attempts", "row_digest"}, {"sample_id", "box", "asked_boxes"}
"""Columns by which a table is known as one of this program."""
FIRST_OWN = "image"
"""The first own column: of a conformed manifest the first after `sample_id`."""
ResultT = TypeVar("ResultT")


def write_tables(catalog: Catalog, manifest: pa.Table, epoch: int, with_labels: bool = True) -> None:
    """Write all tables, by sample id within each part of the catalog; but for the labels with the manifest's columns.

    A sample that is not in this manifest keeps the manifest columns it has in the existing tables. Needs the memory of
    one part, of the manifest and of the existing samples' own columns. epoch: of the run's lease. with_labels: write
    labels.parquet too, which takes longer than the others. Raises ConfigError as `check_own_columns`, LeaseError if the
    run has lost its lease.
    """
    is_of_manifest = pc.is_in(catalog.index["sample_id"], value_set=manifest["sample_id"].combine_chunks())
    has_others = not pc.all(is_of_manifest, min_count=0).as_py()
    # reading both tables at each renewal takes long in a large output
    own = _own_columns(catalog.storage, manifest) if has_others else _own_columns_of(manifest)
    write_tables_with(catalog, own, epoch, with_labels)


def write_tables_with(catalog: Catalog, own: pa.Table, epoch: int, with_labels: bool = True) -> None:
    """Write every table. own: the own columns of all samples, by `own_columns_of_outputs`. The rest: `write_tables`."""
    _write(catalog, own, epoch, METADATA, "committed", METADATA_COLUMNS)
    _write(catalog, own, epoch, FAILURES, "failed", FAILURE_COLUMNS)
    if with_labels:
        write_labels(catalog, epoch)


def write_labels(catalog: Catalog, epoch: int) -> None:
    """Write labels.parquet. Needs the memory of a part's file and of some hundred samples. Else as `write_tables`."""
    _read(catalog.storage, LABELS, lambda file: None)  # a file of another program is not replaced
    _put(catalog.storage, epoch, LABELS, LABEL_SCHEMA, map(rows_of_boxes, catalog.with_labels()))


def own_columns_of_outputs(outputs: Iterable[Storage]) -> pa.Table:
    """`sample_id` and the own columns of all samples of several outputs, as their tables have them.

    Of a sample that several have, those of the first. Raises ConfigError for columns that cannot be joined.
    """
    own = pa.table({"sample_id": pa.array([], pa.string())})
    for storage in outputs:
        own = _own_columns(storage, own, are_stored=True)
    return own


def check_own_columns(storage: Storage, manifest: pa.Table) -> None:
    """Check before any work that the tables can be written with the own columns of this manifest.

    Raises ConfigError if a column of the manifest and that of an existing table cannot be joined, if two columns would
    get the same name, or if an existing table is of another program.
    """
    own = _own_columns(storage, manifest)
    for name in own.column_names:
        try:
            check_writable(own[name])
        except ConfigError as error:
            raise ConfigError(f"column {name} of the manifest and the tables of {storage.url}: {error}") from error


def check_tables(storage: Storage) -> None:
    """Raise ConfigError if a file that a table would replace is of another program."""
    for name in (METADATA, FAILURES, LABELS):
        _read(storage, name, lambda file: None)


def read_ids(storage: Storage, name: str) -> set[str]:
    """The sample ids of a table. Raises ConfigError for a file of another program."""
    table = _read(storage, name, lambda file: file.read(["sample_id"], use_threads=False))
    return set() if table is None else {str(sample_id) for sample_id in table["sample_id"].to_pylist()}


def read_label_keys(storage: Storage) -> pa.Table:
    """LABEL_KEYS of every row of labels.parquet; no rows without the file.

    The whole file is read, so that damage is found. Raises ConfigError for it, and for a file of another program.
    """

    def read(file: pq.ParquetFile) -> pa.Table:
        try:
            rows = [
                file.read_row_group(number, use_threads=False).select(names) for number in range(file.num_row_groups)
            ]
        except OSError as error:
            if error.errno is not None:  # of the store, which is asked again
                raise
            raise pa.ArrowInvalid(str(error)) from error
        return pa.concat_tables([nothing, *(each.replace_schema_metadata() for each in rows)])

    names = list(LABEL_KEYS)
    nothing = LABEL_SCHEMA.empty_table().select(names)
    table = _read(storage, LABELS, read)
    return nothing if table is None else table


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


def _write(catalog: Catalog, own: pa.Table, epoch: int, name: str, status: Status, columns: tuple[str, ...]) -> None:
    """Write one table with own columns. own: as `_own_columns` gives it."""
    index = catalog.index
    ids = index.filter(pc.equal(index["status"], status))["sample_id"]
    rows = pc.index_in(ids, value_set=own["sample_id"].combine_chunks())
    own = own.drop_columns("sample_id")
    schema = pa.schema([*(RECORD_SCHEMA.field(column) for column in columns), *own.schema])
    _put(catalog.storage, epoch, name, schema, _with_own_columns(catalog.tables(status), columns, own, rows))


def _put(storage: Storage, epoch: int, name: str, schema: pa.Schema, tables: Iterable[pa.Table]) -> None:
    """Write a table, a part at a time, to a temporary file, then put that."""
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / name
            schema = schema.with_metadata({_EPOCH: str(epoch)})
            with pq.ParquetWriter(file, schema, compression="zstd", write_page_checksum=name == LABELS) as writer:
                for table in tables:
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
    """Each table of records with the own columns of its samples appended. rows: of each sample in `own`, or null."""
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


def _own_columns(storage: Storage, manifest: pa.Table, are_stored: bool = False) -> pa.Table:
    """`sample_id` and the own columns, as both tables have them: of the manifest's rows, then of the existing samples.

    are_stored: the manifest's columns have the names of the tables already. Where the two have a column of other types,
    it gets a type that holds the values of both. Raises ConfigError.
    """
    own = manifest if are_stored else _own_columns_of(manifest)
    for name in (METADATA, FAILURES):
        known_ids = own["sample_id"].combine_chunks()
        existing = _read(storage, _newest_copy(storage, name), partial(_read_own_columns, known_ids=known_ids))
        if existing is not None and existing.num_rows:
            is_first = own.column_names == ["sample_id"] and not own.num_rows
            # a column that is all null would lose its type where it is joined with none
            own = existing if is_first else _joined(own, existing, f"{storage.url}/{name}")
    return own


def _own_columns_of(manifest: pa.Table) -> pa.Table:
    """`sample_id` and the own columns of a manifest, under their names in the tables. Raises ConfigError."""
    return _renamed(manifest, lambda name: stored_name(name, RESERVED), "the manifest")


def _joined(own: pa.Table, existing: pa.Table, name: str) -> pa.Table:
    """The rows of `own`, then those of `existing`, with the columns of both. name: of the existing table."""
    columns = {}
    for column in dict.fromkeys([*own.column_names, *existing.column_names]):
        new = own[column] if column in own.column_names else _nulls(own)
        old = existing[column] if column in existing.column_names else _nulls(existing)
        try:
            old, new = join(old, new)
        except ConfigError as error:
            raise ConfigError(
                f"column {column} is {old.type} in {name} and {new.type} in the manifest: {error}. "
                "Rename the column in the manifest, convert it, or use another --output."
            ) from error
        columns[column] = pa.chunked_array([*new.chunks, *old.chunks], new.type)
    return pa.table(columns)


def _nulls(table: pa.Table) -> pa.ChunkedArray:
    return pa.chunked_array([pa.nulls(table.num_rows)])


def _renamed(table: pa.Table, rename: Callable[[str], str], where: str) -> pa.Table:
    """The table in plain types, its own columns under their names in the tables. Raises ConfigError."""
    columns: dict[str, pa.ChunkedArray] = {}
    for name in table.column_names:
        stored_as = name if name == "sample_id" else rename(name)
        if stored_as in columns:
            raise ConfigError(f"two columns of {where} would be called {stored_as} in the tables: rename {name}")
        try:
            columns[stored_as] = plain(table[name])
        except ConfigError as error:
            raise ConfigError(f"column {name} of {where}: {error}") from error
    return pa.table(columns)


def _read_own_columns(file: pq.ParquetFile, known_ids: pa.Array) -> pa.Table:
    """`sample_id` and the columns from manifests of an existing table, for samples that `known_ids` lacks."""
    ids = file.read(["sample_id"], use_threads=False)["sample_id"]
    is_other = pc.invert(pc.is_in(ids, value_set=known_ids))
    if not pc.any(is_other).as_py():
        return pa.table({"sample_id": pa.array([], pa.string())})
    names = file.schema_arrow.names
    # manifests have their images before all other own columns
    own = names[names.index(FIRST_OWN) :] if FIRST_OWN in names else []
    table = file.read(["sample_id", *own], use_threads=False).select(["sample_id", *own]).filter(is_other)

    def rename(name: str) -> str:
        """An earlier version renamed fewer columns, and `file_name` to `manifest_file_name`."""
        return name if is_storable(name, RESERVED) else stored_name(name.removeprefix(PREFIX), RESERVED)

    return _renamed(table, rename, "the existing table")


def _read(storage: Storage, name: str, read: Callable[[pq.ParquetFile], ResultT]) -> ResultT | None:
    """The result of `read` on an existing table; None if there is none. Raises ConfigError for another program's."""

    def parse(stream: BinaryIO) -> ResultT:
        # without Arrow's threads, which can abort a process that ends right after a read
        file = pq.ParquetFile(stream, pre_buffer=False, page_checksum_verification=True)
        if not (_KNOWN_BY_LABELS if name == LABELS else _KNOWN_BY) <= set(file.schema_arrow.names):
            raise pa.ArrowInvalid("another table's columns")
        return read(file)

    try:
        return storage.read(name, parse)
    except pa.ArrowException as error:
        raise ConfigError(f"{storage.url}/{name} is not a table of this program: move it away") from error
