"""What a source left out, and why: rows of `skipped.parquet`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass

import pyarrow as pa

SKIPPED_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("code", pa.string()),
        pa.field("message", pa.string()),
        pa.field("start_s", pa.float64()),
        pa.field("box", pa.list_(pa.float64())),
    ]
)


@dataclass(frozen=True)
class Skipped:
    """A file, a clip of it or a box that is in no row."""

    key: str
    """Of the file or folder, relative to the place that was asked for."""
    code: str
    message: str
    start_s: float | None = None
    """Where the clip begins, for a clip or a box in it."""
    box: list[float] | None = None
    """xyxy, pixels of the source image, for a box."""


def skipped_table(skipped: Iterable[Skipped]) -> pa.Table:
    """The entries as a table; it has its columns also where nothing was skipped."""
    return pa.Table.from_pylist([asdict(one) for one in skipped], schema=SKIPPED_SCHEMA)


def counts_by_code(skipped: Iterable[Skipped]) -> dict[str, int]:
    """How many entries each code has, most first."""
    return dict(Counter(one.code for one in skipped).most_common())
