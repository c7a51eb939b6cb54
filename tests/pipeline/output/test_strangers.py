"""What people and programs leave in an output does not count, and is not lost; nor is what an output lies in."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.output.catalog import Catalog
from pipeline.output.nested import FOLDERS, check_not_nested
from pipeline.output.storage import Storage
from sgi2v.errors import ConfigError
from tests.pipeline.in_process import here, run_tiny_here, without_ray
from tests.pipeline.runs import records, write_good

STRANGERS = (
    *(".DS_Store", "Thumbs.db", "desktop.ini", "notes.txt"),
    *("records/._s00.json", "records/s00 2.json", "records/s00 (1).json", "records/s00.json.tmp", "records/s00.json~"),
    *("videos/._s00.mp4", "videos/s00.mp4", "videos/copy of s00.mp4", "lease/000009 2.json", "logs/readme"),
    *("parts/old.parquet", "parts/000001-0000 (1).parquet", "parts/._000001-0000.parquet", "parts/a/b.parquet"),
)


@pytest.fixture
def finished(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """A manifest and its output."""
    manifest, output = write_good(tmp_path / "in", 3), tmp_path / "out"
    with without_ray():
        assert run_tiny_here(manifest, output).returncode == 0
        yield manifest, output


def test_strange_files_do_not_count_and_stay(finished: tuple[Path, Path]) -> None:
    manifest, output = finished
    for name in STRANGERS:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (output / name).write_bytes(b"\0\5\x16\7junk")
    again = run_tiny_here(manifest, output)
    assert (again.returncode, again.stdout[:30]) == (0, "0 made, 0 failed, 3 done befor"), again.stderr
    assert here("status", output).returncode == 0
    for words in ([], ["--repair"]):
        verified = here("verify", output, *words)
        assert "everything is there and whole" in verified.stdout
    assert all((output / name).exists() for name in STRANGERS)


@pytest.mark.parametrize(
    "name", ["parts/metadata.parquet", "parts/000001-0000 (1).parquet", "parts/new/000009-0000.parquet"]
)
def test_a_table_in_the_folder_of_parts_supersedes_nothing(
    finished: tuple[Path, Path], tmp_path: Path, name: str
) -> None:
    """Its rows name other videos. Taken for current, they had the right records and videos deleted."""
    manifest, output = finished
    assert run_tiny_here(manifest, tmp_path / "other").returncode == 0
    stranger = output / name
    stranger.parent.mkdir(parents=True)
    shutil.copy(tmp_path / "other" / "metadata.parquet", stranger)
    before = {file: file.read_bytes() for file in (output / "videos").iterdir()}
    kept = records(output)
    assert run_tiny_here(manifest, output).returncode == 0
    assert records(output) == kept
    assert {file: file.read_bytes() for file in (output / "videos").iterdir()} == before
    assert here("verify", output).returncode == 0
    assert set(pq.read_table(output / "metadata.parquet")["file_name"].to_pylist()) == {
        file.relative_to(output).as_posix() for file in before
    }


@pytest.mark.parametrize("folder", [*FOLDERS, "records/attempt-2", "videos/a/b"])
def test_an_output_in_a_folder_of_another_is_refused(finished: tuple[Path, Path], folder: str) -> None:
    manifest, output = finished
    before = sorted(output.rglob("*"))
    done = run_tiny_here(manifest, output / folder)
    assert done.returncode == 2
    assert f"lies in the folder {folder.partition('/')[0]} of the output {output}" in done.stderr
    assert sorted(output.rglob("*")) == before


def test_an_output_beside_or_in_other_folders_is_taken(finished: tuple[Path, Path], tmp_path: Path) -> None:
    manifest, output = finished
    for place in (output / "inner", tmp_path / "records", tmp_path / "videos" / "x"):
        assert run_tiny_here(manifest, place).returncode == 0
        assert here("verify", place).returncode == 0
    assert here("verify", output).returncode == 0
    assert len(Catalog(Storage(str(output))).index) == 3


def test_the_folder_of_a_url_is_not_its_bucket() -> None:
    Storage("memory://outer/x").put("run.json", b"{}")
    with pytest.raises(ConfigError, match="lies in the folder records of the output memory://outer/x"):
        check_not_nested(Storage("memory://outer/x/records/y"))
    check_not_nested(Storage("memory://records/x"))
    check_not_nested(Storage("memory://outer/x/y"))
