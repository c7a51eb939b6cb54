"""Manifests from pictures of another shape than the video's, of which runs show a part."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from manifests.boxes.grid import Grid
from manifests.fit import VideoSize
from manifests.io import read_manifest
from manifests.make import make_manifest
from manifests.plausible import Kind
from manifests.recipe import Recipe
from manifests.validate import check

VIDEO = VideoSize(144, 256)


def made_rows(folder: Path, size: tuple[int, int], **sections: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of one picture of noise of this size (width, height); all of them can be generated."""
    noise_HWC = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    (folder / "pictures").mkdir(exist_ok=True)
    Image.fromarray(noise_HWC).save(folder / "pictures/a.png")
    manifest = str(folder / "m.parquet")
    sample = {"samples": 40, "height": VIDEO.height, "width": VIDEO.width, **sections.pop("sample", {})}
    recipe = Recipe.parse({"sample": sample, "filters": {"min_side": 8, "max_boxes": 64}, **sections})
    make_manifest(str(folder / "pictures"), manifest, recipe, Grid(columns=8, rows=8), processes=1)
    findings = check(read_manifest(manifest), manifest, video_size=VIDEO)
    assert findings.problems == []
    rows = pq.read_table(manifest).to_pylist()
    if recipe.motion.stay_inside and all(move is None for _, move in recipe.kinds):
        assert [each for each in findings.warnings if each.kind == Kind.CROPPED] == []
    return rows


@pytest.mark.parametrize("size", [(144, 256), (800, 100)], ids=["portrait", "panorama"])
def test_boxes_lie_in_the_part_that_the_video_shows(tmp_path: Path, size: tuple[int, int]) -> None:
    rows = made_rows(tmp_path, size, sample={"shares": {"objects": 1.0}, "still": "others"})
    assert len(rows) > 20
    assert any(any(row["still"]) for row in rows)
    assert len({row["boxes"][0][1] if size[0] < size[1] else row["boxes"][0][0] for row in rows}) > 4


@pytest.mark.parametrize("size", [(144, 256), (800, 100)], ids=["portrait", "panorama"])
def test_the_camera_moves_what_the_video_shows(tmp_path: Path, size: tuple[int, int]) -> None:
    rows = made_rows(tmp_path, size, sample={"shares": {"camera": 1.0}})
    corners = np.array([row["boxes"] for row in rows])
    low_2, high_2 = corners[..., :2].min((0, 1)), corners[..., 2:].max((0, 1))
    np.testing.assert_allclose((low_2 + high_2) / 2, np.array(size) / 2, atol=0.01)
    np.testing.assert_allclose((high_2 - low_2)[0] / (high_2 - low_2)[1], VIDEO.width / VIDEO.height, rtol=1e-3)


def test_boxes_that_may_leave_begin_in_what_the_video_shows(tmp_path: Path) -> None:
    shares = {"shares": {"objects": 0.5, "both": 0.5}}
    assert made_rows(tmp_path, (144, 256), sample=shares, motion={"stay_inside": False, "collisions": "any"})


def test_the_whole_of_a_padded_picture_is_used(tmp_path: Path) -> None:
    rows = made_rows(tmp_path, (144, 256), sample={"shares": {"static": 1.0}, "fit": "pad"})
    corners = np.array([row["boxes"] for row in rows])
    assert (corners[..., :2].min(), corners[..., 3].max()) == (0, 256)
