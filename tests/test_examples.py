"""The script of docs/examples.md: its commands run one after the other, without Ray and with a stand-in generator."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.pipeline.evaluate.videos import evaluate_without_ray
from tests.pipeline.in_process import here, without_ray

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
NOTE = '#!/bin/sh\nfor word in "$(basename "$0")" "$@"; do printf "%s\\0" "$word"; done\necho\n'
"""A program that only prints how it was called."""


def commands_of(script: Path, folder: Path, **environment: str) -> list[list[str]]:
    """The words of every command of a script, as the shell gives them to programs that do nothing."""
    for name in ("sgi2v-batch", "python"):
        (folder / name).write_text(NOTE)
        (folder / name).chmod(0o755)
    path = f"{folder}:{os.environ['PATH']}"
    done = subprocess.run(
        ["sh", script], cwd=folder, env={**environment, "PATH": path}, capture_output=True, text=True, check=True
    )
    return [line.rstrip("\0").split("\0") for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_the_script_makes_a_dataset_that_its_libraries_load(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import datasets

    (tmp_path / "bin").mkdir()
    (tmp_path / "work").mkdir()
    commands = commands_of(EXAMPLES / "chain.sh", tmp_path / "bin", SAMPLES="6")
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    with without_ray(), evaluate_without_ray():
        for program, *words in commands:
            if program == "python":
                monkeypatch.setattr(sys, "argv", words)
                runpy.run_path(words[0], run_name="__main__")
                continue
            done = here(*words)
            assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
    chosen = pq.read_table("kept.parquet")["sample_id"].to_pylist()
    assert 0 < len(chosen) <= 6
    for name in ("videofolder", "webdataset", "lance", "npz", "coco-video"):
        assert json.loads(Path("export", name, "shards.json").read_bytes())["samples"] == len(chosen)
    read = capsys.readouterr().out
    assert f"webdataset  {len(chosen)} samples" in read
    assert f"of {len(chosen)} videos" in read
    for name in ("moves-report", "evaluation-report"):
        assert Path(name, "index.html").exists()
