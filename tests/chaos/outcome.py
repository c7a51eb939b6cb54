"""What a scenario came to: faults against what became of the rows."""

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
"""Whether the suite runs in full, as `make chaos` has it, or in the shortened form of every test run."""

OUTCOME = "outcome"
"""Property of a test's report that holds its `Outcome`, as a dict."""


def scaled(short: int, whole: int) -> int:
    """A number of rows or faults."""
    return whole if IS_WHOLE else short


@dataclass(frozen=True)
class Outcome:
    """One line of the suite's table."""

    kind: str
    rows: int
    faults: int
    lost: int
    """Rows without a record, or with one whose video is not there."""
    doubled: int
    """Rows with two committed records, or twice in the table."""
    quarantined: int
    """Rows that failed, all of them innocent."""
    made_twice: int
    """Rows that were generated to the end more than once: work done again, which is no harm."""
    orphans: int
    """Videos that no record names, for `verify --repair` to take away."""
    seconds: float

    def line(self) -> str:
        """As a row of a Markdown table."""
        return (
            "| " + " | ".join(f"{each:.0f}" if isinstance(each, float) else str(each) for each in astuple(self)) + " |"
        )

    @staticmethod
    def head() -> str:
        names = [each.name.replace("_", " ") for each in fields(Outcome)]
        return f"| {' | '.join(names)} |\n|{' --- |' * len(names)}"


def outcome(kind: str, manifest: Path, output: str, journal: Path, faults: int, seconds: float) -> Outcome:
    """Read an output and say what became of the manifest's rows."""
    ids = read_manifest(str(manifest))["sample_id"].to_pylist()
    storage = Storage(output)
    catalog = Catalog(storage)
    index = catalog.index.to_pylist()
    videos = set(storage.keys(VIDEOS))
    committed = {row["sample_id"] for row in index if row["status"] == "committed" and row["file_name"] in videos}
    failed = [row["sample_id"] for row in index if row["status"] == "failed"]
    tabled = storage.read("metadata.parquet", lambda stream: pq.ParquetFile(stream).read(["sample_id"]).to_pydict())
    in_table = Counter((tabled or {"sample_id": []})["sample_id"])
    assert set(in_table) == committed, "the table holds what is committed"
    made = Counter(read_journal(journal, "generated"))
    return Outcome(
        kind=kind,
        rows=len(ids),
        faults=faults,
        lost=len(set(ids) - committed - set(failed)),
        doubled=sum(number > 1 for number in in_table.values()) + _committed_twice(storage),
        quarantined=len(failed),
        made_twice=sum(number > 1 for number in made.values()),
        orphans=len(videos - {row["file_name"] for row in index}),
        seconds=seconds,
    )


def _committed_twice(storage: Storage) -> int:
    """Samples of which two different videos have records, sealed or loose."""
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
