"""The `manifest` commands, run as a user runs them."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from manifests.io import read_manifest, write_manifest
from pipeline.cli.manifest import app
from sgi2v.errors import ConfigError, ManifestError, SampleError
from tests.manifests.rows import row, table


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)).save("cat.png")
    write_manifest(table(row(), row(sample_id="cat-2"), row(sample_id="dog", image="none.png", boxes=None)), "m.csv")
    return "m.csv"


def test_validate_prints_every_problem_whole_and_counts_them(manifest: str) -> None:
    result = run("validate", manifest)
    assert result.exit_code == 2
    lines = result.stdout.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("row 2 (dog): boxes: boxes is null")
    assert lines[1].startswith("row 2 (dog): image: ")
    assert lines[1].endswith("none.png: no such file: check the path [image_missing]")
    assert lines[2] == "2 problems in 1 of 3 rows"
    assert run("validate", manifest, "--no-images").stdout.splitlines()[-1] == "1 problem in 1 of 3 rows"


def test_validate_of_a_clean_manifest_ends_well(manifest: str) -> None:
    write_manifest(table(row()), "good.jsonl")
    result = run("validate", "good.jsonl")
    assert (result.exit_code, result.stdout) == (0, "1 row, no problems\n")
    assert run("validate", "good.jsonl", "--no-images").stdout == "1 row, no problems (images not looked at)\n"


def test_show_draws_the_first_sample_or_the_one_named(manifest: str) -> None:
    assert run("show", manifest, "--fit", "pad").stdout == "wrote cat.png\n"
    assert Image.open("cat.png").width >= 768
    Image.new("RGB", (64, 48)).save("cat.png")
    result = run("show", manifest, "cat-2", "-o", "picture.png", "--fit", "pad")
    assert (result.exit_code, result.stdout) == (0, "wrote picture.png\n")
    assert Image.open("picture.png").width >= 768


def test_show_draws_the_frame_that_a_run_makes_of_the_picture(manifest: str) -> None:
    cropped = run("show", manifest, "-o", "crop.png")
    assert cropped.stdout.splitlines()[1].startswith("warning: 1 row (cat): boxes or paths that are too far apart")
    lost = run("show", manifest, "-o", "wide.png", "--height", "16", "--width", "512").stdout.splitlines()[1]
    assert re.fullmatch(r"problem: box 0 .* lies outside the part of the picture .* Runs fail this row", lost)
    run("show", manifest, "-o", "pad.png", "--fit", "pad")
    run("show", manifest, "-o", "bucket.png", "--fit", "bucket", "--height", "768", "--width", "768")
    assert [Image.open(name).width for name in ("crop.png", "pad.png", "bucket.png")] == [1024, 1024, 832]
    assert np.asarray(Image.open("pad.png"))[10, 10].max() == 0
    assert "--fit must be one of crop, pad, stretch, bucket, not 'corp'" in str(
        run("show", "m.csv", "--fit", "corp").exception
    )


def test_show_tells_what_is_wrong(manifest: str) -> None:
    unknown = run("show", manifest, "cat-3").exception
    assert isinstance(unknown, ConfigError)
    assert str(unknown) == "m.csv has no sample 'cat-3'; near matches: cat-2, cat"
    assert "the first are: cat, cat-2, dog" in str(run("show", manifest, "zzz").exception)
    assert isinstance(run("show", manifest, "dog").exception, SampleError)
    assert isinstance(run("show", "none.csv").exception, ManifestError)
    assert "cannot be written" in str(run("show", manifest, "-o", "m.csv/a.png").exception)


def test_from_sgi2v_writes_a_manifest_and_says_what_is_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    example = tmp_path / "examples" / "9"
    example.mkdir(parents=True)
    Image.new("RGB", (64, 48), "grey").save(example / "img.png")
    np.save(example / "traj.npy", np.array([[[10, 10], [30, 20], [20, 15], [25, 15]]], np.float64))
    result = run("from-sgi2v", "examples", "-o", "out/m.parquet")
    assert result.stdout.splitlines() == [
        "wrote out/m.parquet: 1 sample",
        "next: sgi2v-batch manifest validate out/m.parquet",
    ]
    assert read_manifest("out/m.parquet").column("image").to_pylist() == ["../examples/9/img.png"]
    assert run("validate", "out/m.parquet").exit_code == 0


@pytest.mark.parametrize("command", ["validate", "show", "from-sgi2v"])
def test_help_ends_with_an_example(command: str) -> None:
    last = run(command, "--help").stdout.strip().splitlines()[-1]
    assert last.strip().startswith(f"Example: sgi2v-batch manifest {command}")


def test_loading_the_commands_loads_nothing_heavy() -> None:
    code = "import sys, pipeline.cli.manifest; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout.split()
    )
    assert not loaded & {"numpy", "pyarrow", "PIL", "fsspec", "torch", "ray"}
