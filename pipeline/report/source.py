"""What a report is made of: an output, read a batch at a time, with its own columns and labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.inspect.status import RunStatus, read_status
from pipeline.output.catalog import INDEX_SCHEMA, Catalog
from pipeline.output.labels import LABELS
from pipeline.output.records import RECORD_SCHEMA, Status
from pipeline.output.run_file import RunFile, read_run
from pipeline.output.storage import Storage
from pipeline.output.tables import FAILURES, FIRST_OWN, METADATA
from sgi2v.errors import ConfigError
from sgi2v.locations import split_protocol

LABEL_COLUMNS = (
    *("sample_id", "box", "still", "asked_boxes", "asked_centres", "measured_boxes", "measured_centres"),
    *("visible_fraction", "null_reason"),
)
"""Columns of the labels that a report shows. The points are left out: they are most of the file."""
TABLES: Mapping[Status, str] = {"committed": METADATA, "failed": FAILURES}
ROWS_AT_ONCE = 256
"""Rows of a table that are Python values at the same time: some have megabytes of text."""
CELL_CHARS = 8000
"""Characters of a text that are read; a report shows fewer."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Batch:
    """Some samples of one status: the rows of their records, their own columns and their labels, in the same order."""

    records: Sequence[Row]
    own: Sequence[Row]
    labels: Sequence[Sequence[Row]]


class Source:
    """An output, or a folder of tables in the same form: videos of another program that were measured."""

    def __init__(self, url: str) -> None:
        """Raises ConfigError if there is neither a run nor a table, StorageError."""
        if url.endswith(".parquet"):
            raise ConfigError(
                f"{url} is a table: a report shows a whole output or evaluation, and its gallery filters by any metric"
            )
        self.storage = Storage(url)
        self.run: RunFile | None = read_run(self.storage)
        self.catalog = None if self.run is None else Catalog(self.storage)
        if self.run is None and self._schema(METADATA) is None:
            raise ConfigError(
                f"there is nothing to report on at {self.storage.url}: it has neither run.json nor {METADATA}"
            )
        self.has_labels = self._schema(LABELS) is not None and self._num_rows(LABELS) > 0

    @property
    def url(self) -> str:
        return self.storage.url

    @property
    def name(self) -> str:
        """The name of its folder."""
        return split_protocol(self.storage.root)[1].rstrip("/").rpartition("/")[2] or "output"

    @cached_property
    def status(self) -> RunStatus | None:
        """The state of its run; None where there is no run."""
        return None if self.catalog is None else read_status(self.url, self.catalog)

    @cached_property
    def index(self) -> pa.Table:
        """INDEX_SCHEMA of every sample."""
        if self.catalog is not None:
            return self.catalog.index
        tables = [self._index_of(status) for status in TABLES]
        return pa.concat_tables(tables)

    def batches(self, status: Status) -> Iterator[Batch]:
        """Every sample of a status, a few thousand at a time. Labels and own columns may lag behind a run."""
        if self.catalog is None:
            yield from self._batches_of_table(status)
            return
        for records in self.catalog.tables(status):
            ids = records["sample_id"]
            own = self._own_rows(TABLES[status], ids)
            labels = self._label_rows(ids)
            for start in range(0, len(records), ROWS_AT_ONCE):
                rows = _python_rows(records.slice(start, ROWS_AT_ONCE))
                names = [row["sample_id"] for row in rows]
                yield Batch(rows, [own.get(name, {}) for name in names], [labels.get(name, []) for name in names])

    def _batches_of_table(self, status: Status) -> Iterator[Batch]:
        schema = self._schema(TABLES[status])
        if schema is None:
            return
        # behind those of an evaluation
        first = schema.names.index(FIRST_OWN) if FIRST_OWN in schema.names else 0
        own_names = [name for name in schema.names[first:] if name not in RECORD_SCHEMA.names]
        for number in range(self._row_groups(TABLES[status])):
            rows = self._read_rows(TABLES[status], None, schema.names, number)
            labels = self._label_rows(pa.chunked_array([pa.array([row["sample_id"] for row in rows], pa.string())]))
            yield Batch(
                [{**{n: v for n, v in row.items() if n not in own_names}, "status": status} for row in rows],
                [{name: row[name] for name in own_names} for row in rows],
                [labels.get(row["sample_id"], []) for row in rows],
            )

    def _own_rows(self, table: str, ids: pa.ChunkedArray) -> dict[str, Row]:
        schema = self._schema(table)
        if schema is None:
            return {}
        own = [name for name in schema.names if name not in RECORD_SCHEMA.names]
        rows = self._read_rows(table, ids, ["sample_id", *own]) if own else []
        return {row.pop("sample_id"): row for row in rows}

    def _label_rows(self, ids: pa.ChunkedArray) -> dict[str, list[Row]]:
        by_id: dict[str, list[Row]] = {}
        if self.has_labels:
            schema = self._schema(LABELS)
            names = [name for name in LABEL_COLUMNS if schema is not None and name in schema.names]
            for row in self._read_rows(LABELS, ids, names):
                by_id.setdefault(row["sample_id"], []).append(row)
        return by_id

    def _schema(self, table: str) -> pa.Schema | None:
        def schema_of(stream: BinaryIO) -> pa.Schema:
            return pq.ParquetFile(stream, pre_buffer=False).schema_arrow

        try:
            schema: pa.Schema | None = self.storage.read(table, schema_of)
        except pa.ArrowException as error:
            raise ConfigError(f"{self.url}/{table} is not a table of this program: {error}") from error
        return schema

    def _num_rows(self, table: str) -> int:
        return self.storage.read(table, lambda stream: pq.ParquetFile(stream, pre_buffer=False).metadata.num_rows) or 0

    def _row_groups(self, table: str) -> int:
        return self.storage.read(table, lambda stream: pq.ParquetFile(stream, pre_buffer=False).num_row_groups) or 0

    def _read_rows(
        self, table: str, ids: pa.ChunkedArray | None, columns: Sequence[str], row_group: int | None = None
    ) -> list[Row]:
        """The rows of some samples as Python values, their long texts cut. ids: None for all."""

        def parse(stream: BinaryIO) -> list[Row]:
            file = pq.ParquetFile(stream, pre_buffer=False)
            rows: list[Row] = []
            groups = None if row_group is None else [row_group]
            wanted = None if ids is None else ids.combine_chunks()
            # without Arrow's threads, which can abort a process that ends right after a read
            for batch in file.iter_batches(ROWS_AT_ONCE, groups, list(columns), use_threads=False):
                found = pa.Table.from_batches([batch])
                if wanted is not None:
                    found = found.filter(pc.is_in(found["sample_id"], value_set=wanted))
                rows += _python_rows(found)
            return rows

        return self.storage.read(table, parse) or []

    def _index_of(self, status: Status) -> pa.Table:
        schema = self._schema(TABLES[status])
        if schema is None:
            return INDEX_SCHEMA.empty_table()
        names = [name for name in INDEX_SCHEMA.names if name in schema.names]

        def parse(stream: BinaryIO) -> pa.Table:
            return pq.ParquetFile(stream, pre_buffer=False).read(names, use_threads=False)

        table: pa.Table = self.storage.read(TABLES[status], parse)
        columns = [
            pa.array([status] * len(table), pa.string())
            if field.name == "status"
            else (table[field.name].cast(field.type) if field.name in names else pa.nulls(len(table), field.type))
            for field in INDEX_SCHEMA
        ]
        return pa.Table.from_arrays(columns, schema=INDEX_SCHEMA)


def _python_rows(table: pa.Table) -> list[Row]:
    """The rows as Python values. Long texts are cut before they become Python's; bytes become their number."""
    for index, field in enumerate(table.schema):
        column = table[field.name]
        if pa.types.is_string(field.type) or pa.types.is_large_string(field.type):
            table = table.set_column(index, field.name, pc.utf8_slice_codeunits(column, 0, CELL_CHARS))
        elif pa.types.is_binary(field.type) or pa.types.is_large_binary(field.type):
            texts = pc.binary_join_element_wise(pc.binary_length(column).cast(pa.string()), pa.scalar("bytes"), " ")
            table = table.set_column(index, field.name, texts)
    rows: list[Row] = table.to_pylist()
    return rows
