"""Two manifests into one output: own columns of other types, told before a sample is made; and a manifest read once."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.pipeline.in_process import here, run_tiny_here, without_ray
from tests.pipeline.runs import picture, records, row, table, write_rows

pytestmark = pytest.mark.slow


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """An output with the samples s1, which has own columns, and bad, which failed."""
    picture(0).save(tmp_path / "a.png")
    rows = [row("s1", image="a.png"), row("bad", image="none.png")]
    own = {"tags": pa.array([["x"], ["y"]]), "score": pa.array([0.5, 2.0]), "height": pa.array([3, 4])}
    first = write_rows(tmp_path / "first.parquet", rows, **own)
    with without_ray():
        assert run_tiny_here(first, tmp_path / "out").returncode == 1
    return tmp_path / "out"


def second(output: Path, sample_id: str = "s2", **columns: Any) -> Path:
    return write_rows(output.parent / "second.parquet", [row(sample_id, image="a.png")], **columns)


def files(output: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in output.rglob("*") if path.is_file() and "lease" not in path.parts}


def test_columns_of_two_manifests_are_joined(output: Path) -> None:
    manifest = second(output, score=pa.array([1]), tags=pa.array([[]], pa.list_(pa.int64())), new=pa.array(["n"]))
    with without_ray():
        made = run_tiny_here(manifest, output)
    assert "[1/1] s2 done" in made.stderr
    names = ("sample_id", "score", "tags", "manifest_height", "new")
    assert table(output).select(names).to_pylist() == [
        {"sample_id": "s1", "score": 0.5, "tags": ["x"], "manifest_height": 3, "new": None},
        {"sample_id": "s2", "score": 1.0, "tags": [], "manifest_height": None, "new": "n"},
    ]
    assert table(output, "failures.parquet").select(names).to_pylist() == [
        {"sample_id": "bad", "score": 2.0, "tags": ["y"], "manifest_height": 4, "new": None}
    ]


def test_columns_that_cannot_be_joined_are_refused_before_a_sample(output: Path) -> None:
    before = files(output)
    manifest = second(output, tags=pa.array(["x"]))
    for words in ((), ("--dry-run",)):
        with without_ray():
            refused = run_tiny_here(manifest, output, *words)
        assert refused.returncode == 2
        assert refused.stderr == (
            f"error: column tags is list<element: string> in {output}/metadata.parquet and string in the manifest: "
            "no type holds both list<element: string> and string. "
            "Rename the column in the manifest, convert it, or use another --output.\n"
        )
        after = {path: data for path, data in files(output).items() if "logs" not in path.parts}
        assert after == {path: data for path, data in before.items() if "logs" not in path.parts}


@pytest.mark.parametrize("command", ["validate", "run", "dry run"])
def test_a_column_that_cannot_be_written_is_refused_by_every_command(command: str, tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.png")
    same_names = pa.StructArray.from_arrays([pa.array([1]), pa.array([2])], names=["q", "q"])
    manifest = write_rows(tmp_path / "m.parquet", [row("s1", image="a.png")], own=same_names)
    words = {"validate": [], "run": [], "dry run": ["--dry-run"]}[command]
    is_run = command != "validate"
    refused = run_tiny_here(manifest, tmp_path / "out", *words) if is_run else here("manifest", "validate", manifest)
    assert refused.returncode == 2
    assert "manifest: own: a struct has more than one field called 'q': keep one [column_type]" in refused.stderr
    assert not (tmp_path / "out").exists()


def test_an_id_that_differs_from_a_finished_one_in_case_is_refused(output: Path) -> None:
    for words in ((), ("--dry-run",)):
        with without_ray():
            refused = run_tiny_here(second(output, "S1"), output, *words)
        assert refused.returncode == 2
        assert "ids of the manifest and of finished samples differ only in case: S1 and s1. " in refused.stderr
    assert sorted(records(output)) == ["bad", "s1"]


def test_the_digest_is_of_the_bytes_that_were_run(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Here another manifest takes the place of the first after it was read."""
    import pipeline.cli.run

    manifest = second(output)
    data = manifest.read_bytes()
    settled = pipeline.cli.run.request_of

    def request_of(uri: str, options: Any) -> Any:
        pq.write_table(pq.read_table(manifest).append_column("other", pa.array([1])), manifest)
        return settled(uri, options)

    monkeypatch.setattr(pipeline.cli.run, "request_of", request_of)
    with without_ray():
        assert "[1/1] s2 done" in run_tiny_here(manifest, output).stderr
    assert manifest.read_bytes() != data
    run = json.loads((output / "run.json").read_text())
    assert run["manifest_sha256"] == hashlib.sha256(data).hexdigest()
    assert "other" not in table(output).column_names
