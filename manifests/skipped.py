"""`skipped.parquet`: what of a place is in no row of its manifest, and why."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

import pyarrow as pa

from manifests.row_groups import RowGroupWriter

SKIPPED = "skipped.parquet"
"""Name of the table. It is written beside the manifest."""

SKIPPED_SCHEMA = pa.schema(
    [
        pa.field("key", pa.string()),
        pa.field("code", pa.string()),
        pa.field("message", pa.string()),
        pa.field("start_s", pa.float64()),
        pa.field("box", pa.list_(pa.float64())),
    ]
)

ROWS_AT_ONCE = 4096
"""Entries that are in memory at a time. They become one row group."""

SHOWN_CODES = 12
"""Reasons that are printed, at most."""


class Skipped(NamedTuple):
    """A file, a clip of it or a box that is in no row."""

    key: str | None
    """Of the file or folder, relative to the place that was asked for; None for what belongs to no file there."""
    code: str
    message: str
    start_s: float | None = None
    """Where the clip begins, for a clip or a box in it."""
    box: list[float] | None = None
    """xyxy, pixels of the source image, for a box."""


class SkippedTable:
    """Writes `skipped.parquet`, and counts what is in it. It is written also where nothing could be made."""

    def __init__(self, folder: str) -> None:
        """folder: of the manifest, a path or a URL. Raises StorageError where nothing can be written there."""
        self.place = SKIPPED if folder == "." else f"{folder.rstrip('/')}/{SKIPPED}"
        self.writer = RowGroupWriter(self.place, SKIPPED_SCHEMA)
        self.counts: Counter[str] = Counter()
        """Entries by code."""
        self.first: dict[str, Skipped] = {}
        """The first entry of each code."""
        self.waiting: list[Skipped] = []

    def add(self, each: Skipped) -> None:
        """Add an entry."""
        self.counts[each.code] += 1
        self.first.setdefault(each.code, each)
        self.waiting.append(each)
        if len(self.waiting) >= ROWS_AT_ONCE:
            self._flush()

    def _flush(self) -> None:
        self.writer.write(pa.Table.from_pylist([each._asdict() for each in self.waiting], schema=SKIPPED_SCHEMA))
        self.waiting.clear()

    def reasons(self) -> str:
        """A line for each of the most frequent codes, with an example; for the message where nothing could be made."""
        lines = [f"what was left out, by reason (see {self.place}):"]
        for code, number in self.counts.most_common(SHOWN_CODES):
            first = self.first[code]
            lines.append(f"{number:6}  {code}, such as {f'{first.key}: ' if first.key else ''}{first.message}")
        return "\n".join(lines)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self.writer:
            self._flush()


def folder_of(output: str) -> str:
    """The folder, a path or a URL, that a manifest is written in."""
    return output.rpartition("/")[0] if "://" in output else str(Path(output).parent)
