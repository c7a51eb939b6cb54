"""Reading and writing manifest files: Parquet, CSV and JSONL, at a local path or any fsspec URL."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from manifests.containers import other_name
from manifests.parquet_size import decoded_bytes
from manifests.schema import conform
from manifests.text_formats import format_csv, format_jsonl, parse_csv, parse_jsonl
from manifests.web import read_web
from sgi2v.errors import ErrorCode, ManifestError, Problem, SampleError, StorageError
from sgi2v.locations import credentials_advice, is_web, open_store, without_query

EXTENSIONS = (".parquet", ".csv", ".jsonl", ".ndjson")
"""Endings of manifest files. The ending decides the format."""

SMALL_BYTES = 512 * 2**20
"""Memory that the values of every Parquet manifest may take, however small the file is."""
LARGEST_EXPANSION = 200
"""Times its own size that a larger Parquet manifest may take. Some repetition is normal: a text that every row has is
stored once. A hostile file repeats a value a hundred thousand times."""
BATCH_ROWS = 1024
"""Rows that are read at once where a column is too large for one array."""

MAX_WEB_BYTES = 2**30
"""Largest manifest that is read over HTTP, bytes after decompression."""
WEB_S = 3600.0
"""Seconds that reading one may take."""

_PARQUET_MAGIC = b"PAR1"


@dataclass(frozen=True)
class Manifest:
    """A manifest and the digest of the very bytes that it was parsed from."""

    table: pa.Table
    """A conformed table."""
    sha256: str
    """Hexadecimal."""


def load_manifest(uri: str) -> Manifest:
    """The manifest at a local path or fsspec URL, and its digest, from one read.

    Raises ManifestError (manifest_missing, manifest_directory, manifest_format, manifest_empty,
    manifest_unreadable, manifest_too_large, row_unreadable, text_invalid, and the codes of `conform`) and StorageError.
    """
    extension = _extension(uri)
    data = _fetch(uri, extension)
    return Manifest(conform(_parse(data, extension, uri), uri), hashlib.sha256(data).hexdigest())


def read_manifest(uri: str) -> pa.Table:
    """The table of `load_manifest` alone."""
    return load_manifest(uri).table


def _parse(data: bytes, extension: str, uri: str) -> pa.Table:
    if not data or data.isspace():
        _fail(uri, "manifest_empty", "the file is empty: write one row per sample")
    if extension == ".parquet":
        return _read_parquet(data, uri)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        name = other_name(data)
        what = f"the file is {name}, not text" if name else f"the file is not UTF-8 text ({error})"
        _fail(uri, "manifest_unreadable", f"{what}: save it as UTF-8 text")
    return parse_csv(text, uri) if extension == ".csv" else parse_jsonl(text, uri)


def check_format(uri: str) -> None:
    """Raise ManifestError (manifest_format) where a manifest of this name could not be written."""
    if _extension(uri) not in EXTENSIONS:
        _fail(uri, "manifest_format", _unknown_ending(_extension(uri)))


def write_manifest(table: pa.Table, uri: str) -> None:
    """Write the table to `uri`, in the format of its ending. A local file appears whole or not at all.

    Raises ManifestError (manifest_format) for an unknown ending or a column that the format cannot hold, and
    StorageError.
    """
    check_format(uri)
    extension = _extension(uri)
    try:
        data = {".parquet": _format_parquet, ".csv": format_csv}.get(extension, format_jsonl)(table)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, TypeError) as error:
        _fail(uri, "manifest_format", f"a column cannot be written as {extension} ({error}): write .parquet")
    try:
        file_system, path = open_store(uri)
        if not isinstance(file_system, LocalFileSystem):
            file_system.pipe_file(path, data)
            return
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        partial.write_bytes(data)
        partial.replace(target)
    except (OSError, ValueError, ImportError) as error:
        raise StorageError(f"{uri} cannot be written: {error}{credentials_advice(error, uri)}") from error


def _unknown_ending(extension: str) -> str:
    return f"{extension or 'no ending'} is not a manifest format: use one of {', '.join(EXTENSIONS)}"


def _extension(uri: str) -> str:
    return PurePosixPath(without_query(uri)).suffix.lower()


def _fetch(uri: str, extension: str) -> bytes:
    try:
        file_system, path = open_store(uri)
    except (ValueError, ImportError) as error:
        _fail(uri, "manifest_missing", f"it cannot be opened ({error}): give a local path or an fsspec URL")
    if extension not in EXTENSIONS:
        if _is_folder(file_system, path):
            _fail_on_folder(uri)
        _fail(uri, "manifest_format", _unknown_ending(extension))
    try:
        return read_web(uri, MAX_WEB_BYTES, seconds=WEB_S) if is_web(uri) else bytes(file_system.cat_file(path))
    except SampleError as error:
        code = "manifest_unreadable" if error.code == ErrorCode.TIMED_OUT else "manifest_missing"
        _fail(uri, code, error.message.partition(": ")[2])
    except IsADirectoryError:
        _fail_on_folder(uri)
    except (FileNotFoundError, NotADirectoryError):
        if _is_folder(file_system, path):
            _fail_on_folder(uri)
        _fail(uri, "manifest_missing", "no such file: check the path")
    except PermissionError as error:
        advice = credentials_advice(error, uri) or ": change its permissions"
        _fail(uri, "manifest_unreadable", f"no permission to read it ({error}){advice}")
    except Exception as error:  # each fsspec file system raises its own library's errors
        advice = credentials_advice(error, uri)
        raise StorageError(f"{uri} cannot be read: {type(error).__name__}: {error}{advice}") from error


def _is_folder(file_system: Any, path: str) -> bool:
    try:
        return bool(file_system.isdir(path))
    except Exception:  # the answer only improves a message
        return False


def _fail_on_folder(uri: str) -> NoReturn:
    _fail(uri, "manifest_directory", "this is a folder: name the manifest file in it")


def _fail(uri: str, code: str, message: str) -> NoReturn:
    raise ManifestError(uri, [Problem(None, None, None, code, message)])


def _read_parquet(data: bytes, uri: str) -> pa.Table:
    if not data.startswith(_PARQUET_MAGIC):
        _fail(uri, "manifest_unreadable", "this is not a Parquet file: write it again as Parquet, or rename it")
    if len(data) < 12 or not data.endswith(_PARQUET_MAGIC):
        _fail(uri, "manifest_unreadable", "the Parquet file is truncated: copy or write it again")
    try:
        limit = max(SMALL_BYTES, LARGEST_EXPANSION * len(data))
        if decoded_bytes(data, limit) > limit:
            size = f"its {len(data):,} bytes would take more than {limit:,} bytes of memory"
            _fail(uri, "manifest_too_large", f"{size}: a value is repeated too often. Check how the file was made")
        return read_parquet(data)
    except (pa.ArrowException, OSError) as error:
        _fail(uri, "manifest_unreadable", f"the Parquet file is damaged ({error}): copy or write it again")


def read_parquet(data: bytes) -> pa.Table:
    """The table of a Parquet file. Checksums of its pages are compared, if it has any.

    Raises ArrowException or OSError for data that is not valid Parquet.
    """
    file = pq.ParquetFile(pa.BufferReader(data))
    table = _read_parquet_times(data, "ns")
    if all(file.schema.column(number).physical_type != "INT96" for number in range(len(file.schema))):
        return table
    # The times of Spark, Hive and Impala. Arrow reads them as nanoseconds, in which year 9999 silently becomes 1816.
    coarse = _read_parquet_times(data, "us")
    for number, field in enumerate(coarse.schema):
        try:
            coarse.column(number).cast(table.schema.field(number).type)
        except pa.ArrowInvalid:  # a time that nanoseconds do not reach
            table = table.set_column(number, field, coarse.column(number))
    return table


def _read_parquet_times(data: bytes, int96_unit: str) -> pa.Table:
    """The table, with old times (INT96) in this unit.

    Read in one thread: Arrow 26 aborts a process that ends soon after a threaded read.
    """
    file = pq.ParquetFile(
        pa.BufferReader(data),
        pre_buffer=False,
        coerce_int96_timestamp_unit=int96_unit,
        page_checksum_verification=True,
    )
    try:
        return file.read(use_threads=False)
    except pa.ArrowNotImplementedError:  # lists or structs with more than 2 GiB of text, which Arrow reads in batches
        return pa.Table.from_batches(file.iter_batches(BATCH_ROWS, use_threads=False), file.schema_arrow)


def _format_parquet(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue())
