"""A run over images whose colours or rows are odd: it says so in the record, and the sheet can be drawn."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image, ImageSequence

from tests.pipeline.in_process import here, run_tiny_here, without_ray
from tests.pipeline.runs import picture, row, write_rows


@pytest.mark.slow
def test_a_damaged_profile_is_noted_and_a_far_point_does_not_hinder_the_sheet(tmp_path: Path) -> None:
    picture = Image.fromarray(np.full((64, 96, 3), (40, 160, 60), np.uint8))
    picture.save(tmp_path / "good.png")
    picture.save(tmp_path / "damaged.png", icc_profile=b"nonsense" * 40)
    far = [[24.0, 24.0], [1_764_270_000.0, 24.0], [40.0, 24.0]]
    rows = [
        {"sample_id": name, "image": f"{name}.png", "boxes": [[8, 8, 40, 40]], "trajectories": [far]}
        for name in ("good", "damaged")
    ]
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with without_ray():
        ran = run_tiny_here(manifest, tmp_path / "out")
    assert ran.returncode == 0, ran.stdout + ran.stderr
    metadata = pq.read_table(tmp_path / "out" / "metadata.parquet").to_pylist()
    notes = {row["sample_id"]: row["image_note"] for row in metadata}
    assert notes["good"] is None
    assert "the colour profile is damaged and was not used" in notes["damaged"]
    drawn = here("sheet", manifest, tmp_path / "out", "-o", tmp_path / "sheet.png")
    assert drawn.returncode == 0, drawn.stderr
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height > 2 * 128


@pytest.mark.slow
def test_a_sheet_has_the_errors_of_samples_that_cannot_be_drawn(tmp_path: Path) -> None:
    picture(1).save(tmp_path / "good.png")
    rows = [row("good"), row("missing"), row("flat", image="good.png", boxes=[[8.0, 8.0, 8.0, 40.0]])]
    manifest = write_rows(tmp_path / "m.parquet", rows)
    with without_ray():
        assert run_tiny_here(manifest, tmp_path / "out").returncode == 1
    sheets = []
    for limit in ("1", "3"):
        drawn = here("sheet", manifest, tmp_path / "out", "-o", tmp_path / f"{limit}.png", "--limit", limit)
        assert drawn.returncode == 0, drawn.stderr
        sheets.append(np.asarray(Image.open(tmp_path / f"{limit}.png")))
    good, all_three = sheets
    errors = all_three[len(good) :]
    assert len(errors) == 2 * 60
    assert [half.std() > 5 for half in (errors[:60], errors[60:])] == [True, True]
    drawn = here("sheet", manifest, tmp_path / "out", tmp_path / "out", "-o", tmp_path / "sheet.webp")
    assert drawn.returncode == 0, drawn.stderr
    with Image.open(tmp_path / "sheet.webp") as moving:
        shown = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(moving)]
    num_frames = pq.read_table(tmp_path / "out" / "metadata.parquet")["num_frames"][0].as_py()
    assert len(shown) == num_frames
    assert np.abs(shown[0].astype(int) - shown[-1]).max() > 20
