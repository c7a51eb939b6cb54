"""Parquet files that are written part by part, so that a large one does not need much memory."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Self

import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from sgi2v.errors import ConfigError, StorageError
from sgi2v.locations import credentials_advice, local_path, open_store


class RowGroupWriter:
    """Writes a Parquet file as a stream of row groups. The file appears whole, or not at all.

    Only what a row group needs is in memory. A URL is uploaded at the end, from a temporary file.
    """

    def __init__(self, uri: str, schema: pa.Schema) -> None:
        if not uri.lower().endswith(".parquet"):
            raise ConfigError(f"{uri} must end with .parquet: a manifest is made as Parquet only")
        self.uri, path = uri, local_path(uri)
        try:
            if path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            folder = None if path is None else path.parent
            handle, name = tempfile.mkstemp(suffix=".partial", prefix=".manifest", dir=folder)
            os.close(handle)
        except OSError as error:
            raise StorageError(f"{uri} cannot be written: {error}") from error
        self.partial = Path(name)
        self.writer = pq.ParquetWriter(self.partial, schema, compression="zstd")

    def write(self, table: pa.Table) -> None:
        """Add a table as one row group."""
        self.writer.write_table(table, row_group_size=max(table.num_rows, 1))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.writer.close()
        try:
            if kind is None:
                self._publish()
        finally:
            self.partial.unlink(missing_ok=True)

    def _publish(self) -> None:
        try:
            file_system, path = open_store(self.uri)
            if isinstance(file_system, LocalFileSystem):
                umask = os.umask(0)
                os.umask(umask)
                self.partial.chmod(0o666 & ~umask)
                self.partial.replace(path)
            else:
                file_system.put_file(str(self.partial), path)
        except (OSError, ValueError, ImportError) as error:
            raise StorageError(f"{self.uri} cannot be written: {error}{credentials_advice(error, self.uri)}") from error
