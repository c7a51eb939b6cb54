"""How much memory the values of a Parquet file take, found before they are decoded.

A value that repeats is stored once, so a file of some kilobytes may decode to gigabytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_WIDTHS = {"BOOLEAN": 1, "INT32": 4, "INT64": 8, "INT96": 8, "FLOAT": 4, "DOUBLE": 8}
_OFFSET_BYTES = 4
_COUNTED_ENCODINGS = {"PLAIN", "PLAIN_DICTIONARY", "RLE_DICTIONARY", "RLE", "BIT_PACKED"}
"""Encodings that Arrow reads as a dictionary, so that a text that repeats is in memory once."""
_DICTIONARY_ROWS = 2**16
_WHOLE_ROWS = 256
"""Rows of a batch, with dictionaries and without."""


def decoded_bytes(data: bytes, limit: int) -> int:
    """A bound of the bytes that the values take in memory. It ends at the first sum that is above the limit.

    The file's metadata has the number of values of every column; those of text and bytes that repeat are read, without
    repeating them. Raises ArrowException or OSError for data that is not valid Parquet.
    """
    metadata = pq.read_metadata(pa.BufferReader(data))
    total, most = 0, 0
    repeating: dict[str, bool] = {}
    for number in range(metadata.num_columns):
        column: Any = metadata.schema.column(number)
        chunks = [metadata.row_group(group).column(number) for group in range(metadata.num_row_groups)]
        values = sum(chunk.num_values for chunk in chunks)
        is_text = column.physical_type == "BYTE_ARRAY"
        width = _OFFSET_BYTES if is_text else _WIDTHS.get(column.physical_type, column.length)
        total += values * (width + _OFFSET_BYTES * column.max_repetition_level)
        if is_text:
            total += sum(chunk.total_uncompressed_size for chunk in chunks)
            most += sum(chunk.num_values * chunk.total_uncompressed_size for chunk in chunks if _repeats(chunk))
            if any(map(_repeats, chunks)):
                repeating[column.path] = all(_COUNTED_ENCODINGS.issuperset(chunk.encodings) for chunk in chunks)
    if total > limit or total + most <= limit:
        return total
    for path, is_counted in repeating.items():
        for size in _text_sizes(data, path) if is_counted else _batch_sizes(data, path):
            total += size
            if total > limit:
                return total
    return total


def _repeats(chunk: Any) -> bool:
    """Whether a text may be stored once for several rows, whole or as the beginning of another."""
    return bool(chunk.has_dictionary_page or "DELTA_BYTE_ARRAY" in chunk.encodings)


def _text_sizes(data: bytes, path: str) -> Iterator[int]:
    """The bytes of a column's texts, for every so many rows, by the dictionary that they are in."""
    file = pq.ParquetFile(pa.BufferReader(data), read_dictionary=[path], pre_buffer=False)
    for batch in file.iter_batches(_DICTIONARY_ROWS, columns=[path], use_threads=False):
        leaf: Any = batch.column(0)
        while not pa.types.is_dictionary(leaf.type):
            leaf = leaf.field(0) if pa.types.is_struct(leaf.type) else leaf.values
        lengths: Any = pc.binary_length(leaf.dictionary)
        yield pc.sum(lengths.cast(pa.int64()).take(leaf.indices)).as_py() or 0


def _batch_sizes(data: bytes, path: str) -> Iterator[int]:
    """The bytes of a column, for every few rows."""
    file = pq.ParquetFile(pa.BufferReader(data), pre_buffer=False)
    for batch in file.iter_batches(_WHOLE_ROWS, columns=[path], use_threads=False):
        yield batch.nbytes
