"""The recorded numbers of the original implementation are reproduced, and would not be by another method."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sgi2v.model import VideoModel
from tests.conformance import run_case

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = [GOLDEN / "case-a", GOLDEN / "case-b"]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_stage_conforms(model: VideoModel, case: Path) -> None:
    over = [difference for difference in run_case(model, case) if not difference.conforms]
    assert over == []


@pytest.mark.parametrize(
    ("setting", "value", "stage"),
    [
        ("lr", 0.22, "latents_after_adamw"),
        ("heatmap_sigma", 0.5, "losses"),
        ("fft_cutoff", 0.6, "latents_after_fft"),
        ("layers", [[2, 0], [2, 2]], "losses"),
        ("max_guidance_scale", 2.5, "final_latents"),
    ],
)
def test_a_wrong_setting_is_noticed(model: VideoModel, tmp_path: Path, setting: str, value: object, stage: str) -> None:
    config = json.loads((CASES[0] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, setting: value}))
    shutil.copy(CASES[0] / "golden.npz", tmp_path)
    assert stage in {difference.stage for difference in run_case(model, tmp_path) if not difference.conforms}


def test_the_script_prints_a_table_and_exits_with_its_verdict(tmp_path: Path, golden_checkpoint: Path) -> None:
    config = json.loads((CASES[1] / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "lr": 1.0}))
    shutil.copy(CASES[1] / "golden.npz", tmp_path)
    script = Path(__file__).parents[1] / "conformance.py"
    command = [sys.executable, str(script), "--checkpoint", str(golden_checkpoint), str(CASES[1]), str(tmp_path)]
    finished = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 1
    good, _, bad = finished.stdout.partition(str(tmp_path))
    assert "OVER" not in good
    assert "final_latents" in good
    assert "OVER" in bad
