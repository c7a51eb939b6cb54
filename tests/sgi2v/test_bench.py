"""The bench: every phase is measured and counted, and its table and its JSON say the same."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import sgi2v.bench
from sgi2v.bench import benchmark, lines
from sgi2v.checkpoint import open_checkpoint
from sgi2v.config import ModelConfig
from sgi2v.generate import PHASES
from sgi2v.trial import shortest
from tests.pipeline.runs import cli

SMALL = ("--model", "embedded", "--frames", "4", "--steps", "2", "--samples", "1")


@pytest.mark.slow
def test_every_phase_is_measured_and_counted(tmp_path: Path) -> None:
    done = cli("bench", *SMALL, "--json", tmp_path / "bench.json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    found = json.loads((tmp_path / "bench.json").read_text())
    assert set(found["phases"]) == set(PHASES)
    for name, phase in found["phases"].items():
        assert phase["seconds"] > 0.0001, name
        assert phase["flops"] > 1e6, name
    assert found["seconds"] == pytest.approx(sum(phase["seconds"] for phase in found["phases"].values()))
    assert found["videos_per_hour"] == pytest.approx(3600 / found["seconds"])
    assert (found["num_frames"], found["steps"], found["dtype"], found["guided_steps"]) == (4, 2, "float32", 2)
    assert found["memory"] == "high"
    assert found["peak_bytes"] > 100 << 20
    rates = [phase["flops"] / phase["seconds"] for phase in found["phases"].values() if phase["seconds"]]
    assert 0 < max(rates) < 3 * found["matrix_flops"]
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[3:8]] == [*PHASES, "sample"]
    assert f"{found['videos_per_hour']:.1f} videos an hour" in lines[-1]


def test_a_compiled_model_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    units: list[object] = []
    monkeypatch.setattr(sgi2v.bench, "compile_blocks", units.append)
    checkpoint = open_checkpoint(ModelConfig("embedded"))
    sampler, guidance = shortest(checkpoint.sampler(), checkpoint.guidance())
    sampler = dataclasses.replace(sampler, num_frames=2)
    found = benchmark(ModelConfig("embedded"), sampler, guidance, samples=1, threads=1, compiled=True)
    assert found.compiled
    assert len(units) == 1
    assert lines(found)[0] == "embedded on cpu, float32, 1 thread, compiled"


def test_a_compiler_that_is_not_there_is_told(tmp_path: Path) -> None:
    command = [Path(sys.executable).with_name("sgi2v-batch"), "bench", *SMALL, "--compile"]
    environment = {**os.environ, "PATH": str(tmp_path), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("error: embedded cannot be compiled on ")
    assert done.stderr.endswith("install a C++ compiler there, or leave --compile out\n")


def test_a_model_that_is_not_there_is_told() -> None:
    done = cli("bench", "--model", "/nowhere")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
