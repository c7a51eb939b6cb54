"""The outcome of a scenario: its faults, and what became of the rows."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import pyarrow.parquet as pq

from manifests.io import read_manifest
from pipeline.output.catalog import Catalog
from pipeline.output.records import VIDEOS, SampleRecord
from pipeline.output.storage import Storage
from tests.chaos.faulty import read_journal

IS_WHOLE = os.environ.get("SGI2V_CHAOS") == "whole"
"""Whether the suite runs in full (`make chaos`) or shortened, as part of every test run."""

OUTCOME = "outcome"
"""Name of the property of a test's report that holds its `Outcome` as a dict."""


def scaled(short: int, whole: int) -> int:
    """The number of rows or faults for this form of the suite."""
    return whole if IS_WHOLE else short


@dataclass(frozen=True)
class Outcome:
    """One row of the suite's table."""

    kind: str
    rows: int
    faults: int
    lost: int
    """Rows without a record, or whose record names a missing video."""
    doubled: int
    """Rows with two committed records, or twice in the table."""
    quarantined: int
    """Rows that failed; all are innocent."""
    made_twice: int
    """Rows that were generated more than once: repeated work, but harmless."""
    orphans: int
    """Videos that no record names; `verify --repair` deletes them."""
    seconds: float

    def line(self) -> str:
        """This row in Markdown."""
        cells = [f"{value:.0f}" if isinstance(value, float) else str(value) for value in astuple(self)]
        return f"| {' | '.join(cells)} |"

    @staticmethod
    def head() -> str:
        """The head of the table in Markdown."""
        names = [field.name.replace("_", " ") for field in fields(Outcome)]
        return f"| {' | '.join(names)} |\n|{' --- |' * len(names)}"


def outcome(kind: str, manifest: Path, output: str, journal: Path, faults: int, seconds: float) -> Outcome:
    """Read an output and count what became of the manifest's rows."""
    ids = read_manifest(str(manifest))["sample_id"].to_pylist()
    storage = Storage(output)
    catalog = Catalog(storage)
    index = catalog.index.to_pylist()
    videos = set(storage.keys(VIDEOS))
    committed = {row["sample_id"] for row in index if row["status"] == "committed" and row["file_name"] in videos}
    failed = [row["sample_id"] for row in index if row["status"] == "failed"]
    columns = storage.read("metadata.parquet", lambda stream: pq.ParquetFile(stream).read(["sample_id"]).to_pydict())
    in_table = Counter((columns or {"sample_id": []})["sample_id"])
    assert set(in_table) == committed, "the table holds what is committed"
    generated = Counter(read_journal(journal, "generated"))
    return Outcome(
        kind=kind,
        rows=len(ids),
        faults=faults,
        lost=len(set(ids) - committed - set(failed)),
        doubled=sum(number > 1 for number in in_table.values()) + _committed_twice(storage),
        quarantined=len(failed),
        made_twice=sum(number > 1 for number in generated.values()),
        orphans=len(videos - {row["file_name"] for row in index}),
        seconds=seconds,
    )


def _committed_twice(storage: Storage) -> int:
    """Number of samples with records of two different videos, sealed or loose."""
    named: dict[str, set[str | None]] = {}
    for key in storage.keys("parts"):
        part = storage.read(key, lambda stream: pq.ParquetFile(stream).read(["sample_id", "status", "file_name"]))
        for row in part.to_pylist() if part is not None else []:
            if row["status"] == "committed":
                named.setdefault(row["sample_id"], set()).add(row["file_name"])
    for data in storage.get_many(key for key in storage.keys("records") if key.endswith(".json")).values():
        record = SampleRecord.from_json(data)
        if record.status == "committed":
            named.setdefault(record.sample_id, set()).add(record.file_name)
    return sum(len(names) > 1 for names in named.values())
