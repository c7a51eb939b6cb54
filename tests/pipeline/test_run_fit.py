"""A run whose pictures have other shapes than its videos: every mode, from its records to verify, replay and sheet."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

import pipeline.inspect.replay
from sgi2v.video import decode_mp4
from tests.pipeline.in_process import here, run_tiny_here, without_ray
from tests.pipeline.runs import records, row, write_rows
from tests.stand_in import StandIn

SIZE = ("--height", "192", "--width", "256")
PICTURES = {"wide": (600, 200), "tall": (200, 600), "same": (256, 192)}
"""(width, height)"""


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    rows = []
    fine = np.random.default_rng(0).integers(0, 256, (75, 75, 3), np.uint8)
    texture = Image.fromarray(fine).resize((600, 600), Image.Resampling.BICUBIC)
    for name, (width, height) in PICTURES.items():
        texture.crop((0, 0, width, height)).save(tmp_path / f"{name}.png")
        box = [10.0, 10.0, 70.0, 70.0]
        rows.append(row(name, boxes=[box], trajectories=[[[40.0, 40.0], [46.0, 40.0]]]))
    return write_rows(tmp_path / "m.parquet", rows)


def shapes(output: Path) -> dict[str, tuple[object, ...]]:
    """By sample: fit, height, width, and the corners of the part that is shown, of picture and video."""
    return {
        name: (each["fit"], each["height"], each["width"], np.round(each["source_box"]).tolist(), each["picture_box"])
        for name, each in records(output).items()
    }


SAME = [0, 0, 256, 192]
SHAPES = {
    "crop": {
        "wide": ("crop", 192, 256, [10, 0, 277, 200], SAME),
        "tall": ("crop", 192, 256, [0, 10, 200, 160], SAME),
        "same": ("crop", 192, 256, SAME, SAME),
    },
    "pad": {
        "wide": ("pad", 192, 256, [0, 0, 600, 200], [0, 53, 256, 138]),
        "tall": ("pad", 192, 256, [0, 0, 200, 600], [96, 0, 160, 192]),
        "same": ("pad", 192, 256, SAME, SAME),
    },
    "stretch": {
        "wide": ("stretch", 192, 256, [0, 0, 600, 200], SAME),
        "tall": ("stretch", 192, 256, [0, 0, 200, 600], SAME),
        "same": ("stretch", 192, 256, SAME, SAME),
    },
    "bucket": {
        "wide": ("bucket", 128, 384, [0, 0, 600, 200], [0, 0, 384, 128]),
        "tall": ("bucket", 384, 128, [0, 0, 200, 600], [0, 0, 128, 384]),
        "same": ("bucket", 192, 256, SAME, SAME),
    },
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "fit", [pytest.param(fit, marks=pytest.mark.whole if fit in {"pad", "stretch"} else ()) for fit in SHAPES]
)
def test_every_mode_is_made_continued_verified_replayed_and_drawn(
    manifest: Path, fit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = manifest.parent / "out"
    with without_ray():
        done = run_tiny_here(manifest, output, *SIZE, "--fit", fit, "--limit", "1")
        assert done.returncode == 0, done.stderr
        again = run_tiny_here(manifest, output, *SIZE, "--fit", fit)
        assert "3 rows: 1 done before, 2 to do" in again.stderr
        other = run_tiny_here(manifest, output, *SIZE, "--fit", "pad" if fit == "crop" else "crop")
    assert other.returncode == 2
    assert f"fit: {fit} before, {'pad' if fit == 'crop' else 'crop'} now" in other.stderr
    assert shapes(output) == SHAPES[fit]
    for record in records(output).values():
        frames_THWC = decode_mp4((output / record["file_name"]).read_bytes())
        assert frames_THWC.shape[1:3] == (record["height"], record["width"])
        # the box moves by 6 px of the picture over the four frames
        x0, _, x1, _ = record["source_box"]
        left, _, right, _ = record["picture_box"]
        mean_px = 6 * (right - left) / (x1 - x0) * 2 / 3
        assert record["static_objmc_px"] == pytest.approx(mean_px, rel=1e-6)
    if fit == "bucket":  # which has videos of several sizes; starting the decoders takes long
        assert here("verify", output).returncode == 0
    assert here("sheet", manifest, output, "-o", manifest.parent / "sheet.png").returncode == 0
    monkeypatch.setattr(pipeline.inspect.replay, "Generate", lambda config, device, send_note: StandIn(config, device))
    replayed = here("replay", output, "wide")
    assert replayed.returncode == 0, replayed.stderr + replayed.stdout


@pytest.mark.slow
def test_bars_are_not_measured(manifest: Path) -> None:
    output = manifest.parent / "out"
    with without_ray():
        run_tiny_here(manifest, output, *SIZE, "--fit", "pad")
    record = records(output)["tall"]
    left, top, right, bottom = record["picture_box"]
    frames_THWC = decode_mp4((output / record["file_name"]).read_bytes()).astype(float)
    shown = np.abs(np.diff(frames_THWC[:, top:bottom, left:right], n=2, axis=0)).mean()
    assert record["flicker"] == pytest.approx(shown, rel=1e-9)
    assert record["objmc_norm"] == pytest.approx(record["objmc_px"] / np.hypot(right - left, bottom - top))


@pytest.mark.slow
def test_an_output_of_a_version_without_fit_goes_on_as_stretch(manifest: Path) -> None:
    output = manifest.parent / "out"
    with without_ray():
        run_tiny_here(manifest, output, *SIZE, "--fit", "stretch", "--limit", "1")
        run = json.loads((output / "run.json").read_bytes())
        del run["deciding"]["fit"], run["size_multiple"]
        (output / "run.json").write_text(json.dumps(run))
        refused = run_tiny_here(manifest, output, *SIZE)
        assert refused.returncode == 2
        assert "fit: stretch before, crop now" in refused.stderr
        done = run_tiny_here(manifest, output, *SIZE, "--fit", "stretch")
    assert done.returncode == 0, done.stderr
    assert {record["fingerprint"] for record in records(output).values()} == {run["fingerprint"]}


@pytest.mark.slow
def test_rows_have_their_own_fit_and_a_lost_box_is_an_error_of_its_row(tmp_path: Path) -> None:
    Image.new("RGB", (600, 200)).save(tmp_path / "a.png")
    boxes, paths = [[0.0, 10.0, 60.0, 70.0], [540.0, 10.0, 600.0, 70.0]], 2 * [[[0.0, 0.0], [2.0, 0.0]]]
    rows = [row(name, image="a.png", boxes=boxes, trajectories=paths) for name in ("lost", "padded", "own")]
    fits = pa.array([None, "pad", "bucket"])
    manifest, output = write_rows(tmp_path / "m.parquet", rows, fit=fits), tmp_path / "out"
    with without_ray():
        done = run_tiny_here(manifest, output, *SIZE)
    assert done.returncode == 1
    assert "1 row (lost): boxes or paths that are too far apart" in done.stderr
    lost = records(output)["lost"]
    assert (lost["error_code"], lost["source_box"]) == ("box_outside", None)
    assert "fit = crop keeps" in lost["message"]
    assert records(output)["padded"]["fit"] == "pad"
    assert [records(output)["own"][name] for name in ("fit", "height", "width")] == ["bucket", 128, 384]
