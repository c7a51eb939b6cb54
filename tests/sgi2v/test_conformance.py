"""The method reproduces the recorded numbers of the original implementation, and a changed method does not."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sgi2v.model import VideoModel
from tests.conformance import compare, compute_case, run_case

GOLDEN = Path(__file__).parents[1] / "golden"
CASES = [GOLDEN / "case-a", GOLDEN / "case-b"]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_stage_conforms(model: VideoModel, case: Path) -> None:
    over = [difference for difference in run_case(model, case) if not difference.conforms]
    assert over == []


@pytest.mark.whole
@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "shape"),
    [
        ({"num_frames": 9, "optimize_steps_counted_down": [3]}, (1, 2)),
        ({"iterations": 0}, (0,)),
        ({"fft_cutoff": 0}, (2, 2)),
        ({"boxes": "one that leaves at once"}, (2, 2)),
    ],
    ids=lambda changes: next(iter(changes)) if isinstance(changes, dict) else "",
)
def test_cases_of_other_shapes_are_compared(
    model: VideoModel, tmp_path: Path, changes: dict[str, object], shape: tuple[int, ...]
) -> None:
    """A case of another shape conforms to its own numbers, and one changed golden array is found."""
    config = json.loads((CASES[0] / "config.json").read_text())
    config |= {"num_inference_steps": 3, "optimize_steps_counted_down": [3, 2], "iterations": 2}
    config |= {name: value for name, value in changes.items() if name != "boxes"}
    del config["fps"], config["heatmap_sigma"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    golden = dict(np.load(CASES[0] / "golden.npz"))
    frames = config["num_frames"]
    boxes_hwhw = np.repeat(golden["boxes_hwhw"][:, :1], frames, axis=1)
    if "boxes" in changes:
        boxes_hwhw = boxes_hwhw[:1]
        boxes_hwhw[:, 1:] += 4000
    inputs = {
        **{name: golden[name] for name in ("image", "noise_aug_noise")},
        "boxes_hwhw": boxes_hwhw,
        "init_noise": np.resize(golden["init_noise"], (1, frames, *golden["init_noise"].shape[2:])),
    }
    np.savez(tmp_path / "golden.npz", **inputs)
    _, computed = compute_case(model, tmp_path)
    assert computed["losses"].shape == shape or computed["losses"].size == 0 == np.prod(shape)
    np.savez(tmp_path / "golden.npz", **inputs, **{**computed, "final_latents": computed["final_latents"] + 0.01})
    golden, again = compute_case(model, tmp_path)
    assert all(compare(stage, again[stage], computed[stage]).conforms for stage in computed)
    over = [stage for stage in computed if not compare(stage, again[stage], golden[stage]).conforms]
    assert over == ["final_latents"]


@pytest.fixture(scope="module")
def short_case(model: VideoModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first case with its own inputs and three steps, of which the second is guided; its numbers are ours."""
    folder = tmp_path_factory.mktemp("short")
    config = json.loads((CASES[0] / "config.json").read_text())
    config |= {"num_inference_steps": 3, "optimize_steps_counted_down": [2]}
    (folder / "config.json").write_text(json.dumps(config))
    golden = np.load(CASES[0] / "golden.npz")
    inputs = {name: golden[name] for name in ("image", "noise_aug_noise", "boxes_hwhw", "init_noise")}
    np.savez(folder / "golden.npz", **inputs)
    _, computed = compute_case(model, folder)
    np.savez(folder / "golden.npz", **inputs, **computed)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "first"),
    [
        ({"lr": 0.22}, "latents_after_adamw"),
        pytest.param({"heatmap_sigma": 0.5}, "losses", marks=pytest.mark.whole),
        pytest.param({"fft_cutoff": 0.6}, "latents_after_fft", marks=pytest.mark.whole),
        pytest.param({"layers": [[2, 0], [2, 2]]}, "losses", marks=pytest.mark.whole),
        ({"max_guidance_scale": 2.5}, "latents_before"),
    ],
    ids=lambda value: next(iter(value), "none") if isinstance(value, dict) else "",
)
def test_a_wrong_setting_is_detected(
    model: VideoModel, short_case: Path, tmp_path: Path, changes: dict[str, object], first: str
) -> None:
    changed_copy(short_case, tmp_path, changes)
    over = [difference.stage for difference in run_case(model, tmp_path) if not difference.conforms]
    assert first in over


def changed_copy(case: Path, folder: Path, changes: dict[str, object]) -> None:
    """Write the same case with other settings into a folder."""
    config = json.loads((case / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    shutil.copy(case / "golden.npz", folder)


@pytest.mark.whole
@pytest.mark.slow
def test_the_script_prints_a_table_and_exits_with_its_verdict(
    tmp_path: Path, short_case: Path, golden_checkpoint: Path
) -> None:
    changed_copy(short_case, tmp_path, {"lr": 1.0})
    script = Path(__file__).parents[1] / "conformance.py"
    command = [sys.executable, str(script), "--checkpoint", str(golden_checkpoint), str(short_case), str(tmp_path)]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # other tests may run at the same time
    finished = subprocess.run(command, env=one_thread, capture_output=True, text=True, timeout=300, check=False)
    assert finished.returncode == 1
    good, _, bad = finished.stdout.partition(str(tmp_path))
    assert "OVER" not in good
    assert "final_latents" in good
    assert "OVER" in bad
