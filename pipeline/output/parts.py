"""Parts: thousands of sealed records in one Parquet file. See docs/output-format.md, Parts."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import get_args

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.schema import SAMPLE_ID_PATTERN
from pipeline.output.records import RECORD_SCHEMA, Status
from pipeline.output.storage import Storage
from sgi2v.errors import ConfigError

PARTS = "parts"
BATCH_ROWS = 500
"""Records whose labels are held in memory at a time: a row group of a part."""
REMOVED = "removed"
"""Status of a row in a part that takes the sample's records away: those with as many attempts or fewer."""
NAMING = pa.schema([RECORD_SCHEMA.field(name) for name in ("sample_id", "status", "attempts", "file_name")])
"""The columns that say whose row of a part it is."""


def parquet_of(batches: Iterable[pa.Table]) -> bytes:
    """The content of a Parquet file with these rows of RECORD_SCHEMA, in row groups of BATCH_ROWS at most."""
    sink = io.BytesIO()
    with pq.ParquetWriter(sink, RECORD_SCHEMA, compression="zstd", write_page_checksum=True) as writer:
        for batch in batches:
            writer.write_table(batch, BATCH_ROWS)
    return sink.getvalue()


def is_named_by(part: pa.Table, current: pa.Table) -> pa.Array:
    """Which rows of a part an index names, each once. A damaged part may hold other rows of the same samples."""
    named = {tuple(row.values()) for row in current.select(NAMING.names).to_pylist()}
    is_named = []
    for row in part.select(NAMING.names).to_pylist():
        key = tuple(row.values())
        is_named.append(key in named)
        named.discard(key)
    return pa.array(is_named, pa.bool_())


def read_part(storage: Storage, key: str, schema: pa.Schema) -> pa.Table:
    """These columns of a part; those that an earlier version did not write are null. Raises ConfigError."""
    return parse_part(storage, key, storage.get(key) or b"", schema)


def parse_part(storage: Storage, key: str, data: bytes, schema: pa.Schema) -> pa.Table:
    """The same from the content of the part's file. schema: of NAMING's columns, and others."""
    with _damage_of(storage, key):
        part = _columns(_open(data), schema)
        is_id = pc.match_substring_regex(part["sample_id"], SAMPLE_ID_PATTERN)
        is_status = pc.is_in(part["status"], value_set=pa.array([*get_args(Status), REMOVED]))
        is_sound = pc.and_(pc.and_(is_id, is_status), pc.greater_equal(part["attempts"], 1))
        if not pc.all(pc.fill_null(is_sound, False), min_count=0).as_py():
            raise KeyError("a column of every record")
    return part


def row_groups(storage: Storage, key: str, data: bytes, names: Sequence[str]) -> Iterator[pa.Table]:
    """These columns of a part, some hundred rows at a time. data: its content. Raises ConfigError."""
    schema = pa.schema([RECORD_SCHEMA.field(name) for name in names])
    with _damage_of(storage, key):
        file = _open(data)
    for number in range(file.num_row_groups):
        with _damage_of(storage, key):
            rows = _columns(file, schema, [number])
        yield rows


def _open(data: bytes) -> pq.ParquetFile:
    return pq.ParquetFile(pa.BufferReader(data), pre_buffer=False, page_checksum_verification=True)


def _columns(file: pq.ParquetFile, schema: pa.Schema, row_groups: Sequence[int] | None = None) -> pa.Table:
    """Columns of a part; those that an earlier version did not write are null. row_groups: None for all."""
    known = [name for name in schema.names if name in file.schema_arrow.names]
    numbers = range(file.num_row_groups) if row_groups is None else row_groups
    # without Arrow's threads, which can abort a process that ends right after a read
    table = file.read_row_groups(list(numbers), known, use_threads=False)
    columns = [
        table[field.name].cast(field.type) if field.name in known else pa.nulls(len(table), field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)


@contextmanager
def _damage_of(storage: Storage, key: str) -> Iterator[None]:
    """Raise ConfigError where a part cannot be read, with what to do about it."""
    try:
        yield
    except (pa.ArrowException, KeyError, OSError) as error:
        raise ConfigError(
            f"{storage.url}/{key} is not a part of this program, or is damaged, so its samples are unknown: restore it "
            "from a copy, or take it away with `sgi2v-batch verify --repair`; the next run then makes them again"
        ) from error
