"""Selections keep the rows that fulfil their conditions, say why the others went, and are of one output."""

from __future__ import annotations

import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from manifests.access import without_secrets
from pipeline.export.select import PRESETS, choice, select
from pipeline.export.source import open_source
from pipeline.output.conditions import parse_condition
from pipeline.output.records import RECORD_SCHEMA
from sgi2v.errors import ConfigError
from tests.pipeline.export.stand_in_output import ids, make_output
from tests.pipeline.in_process import here

SAMPLES = 30


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    groups = ["a", "b", None] * (SAMPLES // 3)
    return make_output(tmp_path_factory.mktemp("select") / "out", *ids(SAMPLES), columns={"category": groups})


def kept(target: Path) -> list[str]:
    return [str(each) for each in pq.read_table(target)["sample_id"].to_pylist()]


def test_the_command_keeps_rows_and_prints_what_each_condition_took(output: Path, tmp_path: Path) -> None:
    target = tmp_path / "kept.parquet"
    words = ("--where", "control_gain > 0.6 and flicker < 9", "--where", "objmc_px == None or objmc_px < 4")
    done = here("select", output, *words, "-o", target)
    assert done.returncode == 0, done.stderr
    rows = pq.read_table(output / "metadata.parquet").to_pylist()
    expected = [row for row in rows if row["control_gain"] > 0.6 and row["flicker"] < 9 and row["objmc_px"] < 4]
    assert pq.read_table(target).to_pylist() == expected != []
    assert f"kept {len(expected)} of {SAMPLES} samples" in done.stdout
    (line,) = [line for line in done.stdout.splitlines() if "flicker < 9" in line]
    by_first = [row for row in rows if row["control_gain"] > 0.6]
    taken = [sum(row["flicker"] >= 9 for row in each) for each in (by_first, rows)]
    assert line.split()[3:] == [str(taken[0]), "0", str(len(by_first) - taken[0]), str(taken[1])]


def test_the_best_of_each_group_are_kept_in_the_metrics_direction(output: Path, tmp_path: Path) -> None:
    target = tmp_path / "kept.parquet"
    with open_source(str(output)) as source:
        select(source, choice(top=2, per=["category"], by="control_gain"), str(target))
        rows = pq.read_table(target).to_pylist()
        assert len(rows) == 6
        for group in ("a", "b", None):
            assert sum(row["category"] == group for row in rows) == 2
            assert min(row["control_gain"] for row in rows if row["category"] == group) >= 0.8
        select(source, choice(top=5, by="flicker"), str(target))
    assert [row["flicker"] for row in pq.read_table(target).sort_by("flicker").to_pylist()] == [0.0, 0.0, 1.0, 1.0, 2.0]


def test_presets_are_conditions_on_columns_of_records() -> None:
    for conditions in PRESETS.values():
        for text in conditions:
            parse_condition(text, RECORD_SCHEMA)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--where", "control_gian > 1"), "there is no column 'control_gian' (did you mean control_gain?)"),
        (("--where", "null_reason == 'stil'"), "there is no code 'stil' (did you mean still?)"),
        (("--where", "__import__('os')"), "cannot be used"),
        (("--preset", "stric"), "did you mean strict"),
        (("--top", "3"), "give both"),
        (("--per", "category"), "give these too"),
        (("--top", "3", "--by", "objmc"), "did you mean objmc_px"),
        (("--top", "3", "--by", "sample_id"), "which has no best value"),
        (("--top", "3", "--by", "flicker", "--per", "categories"), "did you mean category"),
        ((), "nothing says what to keep"),
    ],
)
def test_what_cannot_be_selected_is_refused(output: Path, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    done = here("select", output, *words, "-o", tmp_path / "kept.parquet")
    assert done.returncode == 2
    assert message in done.stderr
    assert not (tmp_path / "kept.parquet").exists()


def test_a_selection_of_nothing_says_so(output: Path, tmp_path: Path) -> None:
    done = here("select", output, "--where", "control_gain > 9", "-o", tmp_path / "none.parquet")
    assert done.returncode == 0
    assert "no sample is kept" in done.stdout
    refused = here("export", tmp_path / "none.parquet", "--format", "videofolder", "-o", tmp_path / "x")
    assert refused.returncode == 2
    assert "keeps no sample" in refused.stderr
    assert "is a table: a report shows a whole output" in here("report", tmp_path / "none.parquet").stderr


def test_a_file_that_is_no_selection_stays(output: Path, tmp_path: Path) -> None:
    for name in ("table.parquet", "text.parquet"):
        mine = tmp_path / name
        mine.write_bytes((output / "metadata.parquet").read_bytes() if name[1] == "a" else b"mine")
        before = mine.read_bytes()
        done = here("select", output, "--where", "control_gain > 0.6", "-o", mine)
        assert (done.returncode, mine.read_bytes()) == (2, before)
        assert "this file is there and is no selection" in done.stderr


def test_a_selection_is_exported_from_its_output_wherever_that_is(output: Path, tmp_path: Path) -> None:
    moved = shutil.copytree(output, tmp_path / "first")
    target, export = tmp_path / "kept.parquet", ("--format", "webdataset", "-o", tmp_path / "x")
    assert here("select", moved, "--where", "control_gain > 0.6", "-o", target).returncode == 0
    moved.rename(tmp_path / "second")
    gone = here("export", target, *export)
    assert gone.returncode == 2
    assert "--source" in gone.stderr
    other = make_output(tmp_path / "other", "u1", "u2")
    refused = here("export", target, *export, "--source", other)
    assert refused.returncode == 2
    assert "is a selection of another output" in refused.stderr
    done = here("export", target, *export, "--source", tmp_path / "second")
    assert done.returncode == 0, done.stderr
    assert f"{len(kept(target))} samples exported" in done.stdout
    # a selection of a selection
    assert (
        here("select", target, "--source", tmp_path / "second", "--where", "flicker < 9", "-o", target).returncode == 0
    )
    assert here("export", output, "--source", output, *export).returncode == 2


def test_a_selected_sample_that_is_gone_is_listed(output: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(output, tmp_path / "out")
    target = tmp_path / "kept.parquet"
    assert here("select", copy, "--where", "control_gain > 0.6", "-o", target).returncode == 0
    table = pq.read_table(copy / "metadata.parquet")
    first = table["sample_id"].to_pylist().index(kept(target)[0])
    pq.write_table(table.take([row for row in range(len(table)) if row != first]), copy / "metadata.parquet")
    done = here("export", target, "--format", "webdataset", "-o", tmp_path / "x")
    assert done.returncode == 1
    assert f"{kept(target)[0]}: is not in the output any more" in done.stdout


def test_another_parquet_file_is_no_selection(output: Path, tmp_path: Path) -> None:
    done = here("export", output / "metadata.parquet", "--format", "webdataset", "-o", tmp_path / "x")
    assert done.returncode == 2
    assert "is not a selection" in done.stderr
    with pytest.raises(ConfigError, match="there is no selection"), open_source(str(tmp_path / "no.parquet")):
        pass


def test_a_selection_names_its_output_without_secrets(output: Path, tmp_path: Path) -> None:
    import fsspec

    fsspec.filesystem("memory").put(str(output), "/named", recursive=True)
    with open_source("memory://named") as source:
        said = source.describe()
    assert said["output"] == without_secrets(said["output"]) == "memory://named"
    assert said["fingerprint"]
