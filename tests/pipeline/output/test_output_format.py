"""docs/output-format.md describes every file, entry, column, event and number of the output."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pytest

from manifests import shards
from pipeline.flow.nodes import Change
from pipeline.inspect.phase import Phase
from pipeline.inspect.status import read_status
from pipeline.output import card, catalog, lease, log, parts
from pipeline.output.labels import DECIMALS, LABEL_SCHEMA, LABELS
from pipeline.output.records import (
    RECORD_SCHEMA,
    RECORD_VERSION,
    RECORDS,
    VIDEOS,
    baseline_key,
    record_key,
    video_key,
)
from pipeline.output.run_file import RUN_FILE, RunFile, create_run_file, describe_run
from pipeline.output.storage import Storage
from pipeline.output.tables import COPIES, FAILURE_COLUMNS, FAILURES, METADATA
from sgi2v.metrics.following import MIN_VISIBLE_POINTS
from tests.pipeline.output.outputs import settings

ROOT = Path(__file__).parents[3]
DOCUMENT = (ROOT / "docs" / "output-format.md").read_text()
SECTIONS = dict(re.findall(r"^#{2,3} (.+)\n((?:(?!#{2,3} ).*\n)*)", DOCUMENT, re.MULTILINE))
SOURCES = [file.read_text() for file in sorted((ROOT / "pipeline").rglob("*.py"))]


def first_column(section: str) -> list[str]:
    """The names in code style in the first column of a section's tables."""
    cells = re.findall(r"^\| (`[^|]*) \|", SECTIONS[section], re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`([^`]+)`", cell)]


def test_every_file_is_described() -> None:
    keys = [
        *(RUN_FILE, METADATA, LABELS, FAILURES, card.CARD, card.PICTURE, card.PREVIEW),
        *(f"{card.SPLIT_FOLDER}/{name}" for name in (METADATA, VIDEOS)),
        f"{lease.FOLDER}/<epoch>.json",
        f"{parts.PARTS}/<epoch>-<number>.parquet",
        f"{log.FOLDER}/<epoch>/<segment>.jsonl",
        f"{COPIES}/<epoch>-<table>",
        f"{shards.FOLDER}/<number>",
        video_key("<sample_id>", "<attempt>"),
        baseline_key(video_key("<sample_id>", "<attempt>")),
        record_key("<sample_id>", 1),
        record_key("<sample_id>", 2).replace("2", "<n>"),
    ]
    assert sorted(first_column("Files")) == sorted(keys)
    assert record_key("<sample_id>", 2) in SECTIONS["Records"]


def test_every_folder_and_table_is_on_the_page_about_outputs() -> None:
    folders = [f"{folder}/" for folder in (lease.FOLDER, VIDEOS, RECORDS, parts.PARTS, log.FOLDER)]
    page = (ROOT / "docs" / "outputs.md").read_text()
    assert [name for name in (RUN_FILE, *folders, METADATA, LABELS, FAILURES) if f"\n  {name} " not in page] == []


def test_every_column_is_described_with_its_type_and_in_order() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \|", SECTIONS["Columns"], re.MULTILINE)
    assert rows == [(field.name, shown(field.type)) for field in RECORD_SCHEMA]


def test_every_column_of_the_labels_is_described_with_its_type_and_in_order() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\S+) \|", SECTIONS["Labels"], re.MULTILINE)
    assert rows == [(field.name, shown(field.type)) for field in LABEL_SCHEMA]


def shown(kind: pa.DataType) -> str:
    """A type as the tables write it; of structs without their fields."""
    return re.sub(r"struct<.*>>$", "struct>", str(kind).replace("item: ", ""))


def test_every_field_of_a_candidate_is_described_with_its_type_and_in_order() -> None:
    rows = re.findall(r"^\| (`.+`) \| (\w+) \|", SECTIONS["Candidates"], re.MULTILINE)
    described = [(name, kind) for names, kind in rows for name in re.findall(r"`(\w+)`", names)]
    assert described == [(field.name, str(field.type)) for field in RECORD_SCHEMA.field("candidates").type.value_type]


def test_every_column_of_the_failures_is_listed_in_order() -> None:
    assert ", ".join(f"`{name}`" for name in FAILURE_COLUMNS) in " ".join(SECTIONS["Tables"].split())


def test_every_entry_of_the_run_file_is_described() -> None:
    entries = first_column("run.json")
    assert sorted(entries) == sorted(describe_run(settings(), "digest", 1))
    assert set(RunFile.model_fields) <= set(entries)


def test_every_entry_of_a_claim_is_described() -> None:
    assert first_column("Lease") == [field.name for field in dataclasses.fields(lease.Claim)]


def test_every_event_of_the_log_is_described() -> None:
    written = {
        name for source in SOURCES for name in re.findall(r'(?:log\.write(?:_now)?|log_line)\(\s*"(\w+)"', source)
    }
    ends = {"run_finished", "run_interrupted", *(f"node_{kind}" for kind in get_args(Change))}
    assert written
    assert sorted(first_column("Logs")) == sorted({*written, *ends, "sample_committed", "sample_failed"})


def test_every_key_of_the_status_is_described() -> None:
    storage = Storage("memory://described-status")
    create_run_file(storage, settings(), "digest", 1)
    with lease.acquire(storage):
        keys = read_status(storage.url).as_dict()
    assert re.findall(r"`(\w+)`", " ".join(re.findall(r"^\| (`[^|]*) \|", SECTIONS["Status"], re.MULTILINE))) == [*keys]
    described = next(line for line in SECTIONS["Status"].splitlines() if line.startswith("| `driver`"))
    assert [name for name in keys["driver"] if f"`{name}`" not in described] == []
    assert [phase for phase in Phase if f"`{phase.value}`" not in SECTIONS["Status"]] == []


@pytest.mark.parametrize(
    ("section", "text"),
    [
        ("Lease", f"rewrites its claim every {lease.HEARTBEAT_S:g} s"),
        ("Lease", f"without a heartbeat for {lease.EXPIRY_S:g} s"),
        ("Lease", f"a heartbeat younger than {lease.HEARTBEAT_S * lease.MISSED_HEARTBEATS:g} s"),
        ("Parts", f"{catalog.PART_ROWS} unsealed records"),
        ("Logs", f"written again every {log.FLUSH_S:g} s; a segment of {log.SEGMENT_LINES} lines"),
        ("Columns", f"`{RECORD_VERSION}`"),
        ("Parts", f"row groups of at most {parts.BATCH_ROWS} rows"),
        ("Labels", f"rounded to {10**-DECIMALS:g} px"),
        ("Labels", f"at least {MIN_VISIBLE_POINTS} of its points"),
    ],
)
def test_the_numbers_are_those_of_the_code(section: str, text: str) -> None:
    assert text in SECTIONS[section]


def test_docstrings_and_links_name_sections_that_exist() -> None:
    named = {
        name for source in SOURCES for name in re.findall(r"docs/output-format\.md, ([\w. ]+?)\.?(?:\"|\n)", source)
    }
    assert named
    assert named <= set(SECTIONS)
    anchors = {re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in SECTIONS}
    assert set(re.findall(r"\]\(#([\w-]+)\)", DOCUMENT)) <= anchors
