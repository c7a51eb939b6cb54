"""What a format of an export has to offer, and what they share."""

from __future__ import annotations

import base64
import hashlib
import io
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.export.destination import Destination
from pipeline.export.source import Row


@dataclass(frozen=True)
class Sample:
    """One sample on its way into a shard."""

    row: Row
    """Its row of metadata.parquet."""
    labels: list[Row] | None
    """Its rows of labels.parquet, by box; None where it has none."""
    video: bytes
    """The mp4."""

    @property
    def stem(self) -> str:
        """The name of its files, without an ending."""
        return stem_of(self.row["sample_id"])


class Layout(ABC):
    """How a format stores samples in a shard, and what it adds to the whole. By default a shard holds the videos."""

    needs_labels = False
    """Whether it makes no sense for an output without labels."""

    def __init__(self, columns: pa.Schema, label_columns: pa.Schema) -> None:
        """columns, label_columns: of every row and label that it writes."""
        self.columns = columns
        self.label_columns = label_columns

    def left_out(self, sample: Sample) -> str | None:
        """Why this format has no place for a sample; None if it has one."""
        return None

    def files(self, sample: Sample) -> dict[str, bytes]:
        """The files of a sample, by name. The video, if there is one, is called `<stem>.mp4`."""
        return {f"{sample.stem}.mp4": sample.video}

    def shard_files(self, samples: Sequence[Sample]) -> dict[str, bytes]:
        """The files that belong to a shard as a whole, by name. samples: without their videos."""
        return {}

    def finish(self, destination: Destination) -> Iterator[str]:
        """Write what belongs to the whole export. Yields the keys of these objects."""
        yield from ()

    @abstractmethod
    def loading(self, url: str, splits: Sequence[str]) -> str:
        """How to load the export, as Markdown."""


def stem_of(sample_id: str) -> str:
    """The name of a sample's files: its id, in which nothing is a dot.

    Readers take what follows the first dot (`webdataset`) or any dot (`datasets`) for the kind of file.
    """
    if "." not in sample_id:
        return sample_id
    return f"{sample_id.replace('.', '_')}-{hashlib.sha256(sample_id.encode()).hexdigest()[:16]}"


def plain_json(value: Any) -> Any:
    """A value of a table as JSON can hold it: NaN is null, bytes are Base64, times ISO 8601, decimals text."""
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {str(name): plain_json(each) for name, each in value.items()}
        case list() | tuple():
            return [plain_json(each) for each in value]
        case bytes():
            return base64.b64encode(value).decode()
        case date() | time():
            return value.isoformat()
        case timedelta() | Decimal():
            return str(value)
    return value


def parquet_of(rows: Sequence[Row], schema: pa.Schema) -> bytes:
    """Rows as the content of a Parquet file."""
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(rows), schema), sink, compression="zstd")
    return sink.getvalue()
