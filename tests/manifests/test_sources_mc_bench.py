"""Manifests from folders in MC-Bench's layout: boxes, paths, which samples enter, and why the others do not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.interpolate import PchipInterpolator

from manifests.io import read_manifest, write_manifest
from manifests.schema import row_problems
from manifests.sources.made import Made
from manifests.sources.mc_bench import OWN_COLUMNS, McBenchSettings, entered, from_mc_bench, pchip, recipe_of
from manifests.validate import validate
from sgi2v.errors import ManifestError

W, H = 128, 80
OBJECT, FINE = "object_control", "Fine_grained_control"


def write_sample(
    root: Path,
    name: str,
    drags: Any,
    boxes: tuple[tuple[int, int, int, int], ...] = ((20, 10, 50, 40),),
    group: str = OBJECT,
    file: str = "meta_data_new.json",
) -> Path:
    folder = root / "MC-Bench" / group / name
    folder.mkdir(parents=True, exist_ok=True)
    mask = np.zeros((H, W, 3), np.uint8)
    for x0, y0, x1, y1 in boxes:
        mask[y0:y1, x0:x1] = 7
    Image.new("RGB", (W, H), "grey").save(folder / "first_frame.png")
    Image.fromarray(mask).save(folder / "first_frame_mask.png")
    Image.new("RGB", (9, 9)).save(folder / "user_drag.png")
    (folder / file).write_text(json.dumps({"traj_key_points": drags}))
    return folder


def made_of(root: Path, **settings: Any) -> Made:
    return from_mc_bench(str(root), str(root), McBenchSettings(**settings))


def codes(made: Made) -> dict[str, str]:
    return {one.key: one.code for one in made.skipped}


@pytest.mark.parametrize("points", [2, 3, 4, 9])
def test_pchip_is_that_of_scipy(points: int) -> None:
    key_points = np.random.default_rng(points).integers(0, 100, (points, 2)).astype(float)
    if points == 9:
        key_points[3:6, 0] = 40
    expected = PchipInterpolator(np.linspace(0, 1, points), key_points)(np.linspace(0, 1, 16))
    np.testing.assert_allclose(pchip(key_points, 16), expected, atol=1e-9)


def test_a_sample_becomes_a_row(tmp_path: Path) -> None:
    write_sample(tmp_path, "0001", [[[25, 15], [40, 15], [85, 45]]])
    (row,) = made_of(tmp_path).rows
    assert row["boxes"] == [[20, 10, 50, 40]]
    path = np.array(row["trajectories"][0])
    assert path.shape == (16, 2)
    assert path[0].tolist() == [35, 25]  # the box's centre, not the drag's start
    np.testing.assert_allclose(path[-1] - path[0], [60, 30])
    key_points = np.array([[25, 15], [40, 15], [85, 45]])
    curve = PchipInterpolator(np.linspace(0, 1, 3), key_points)(np.linspace(0, 1, 16))
    np.testing.assert_allclose(path - path[0], curve - curve[0], atol=1e-4)
    assert (row["group"], row["drag_starts"], row["still"]) == (OBJECT, [[25, 15]], [False])
    assert row["image"] == f"MC-Bench/{OBJECT}/0001/first_frame.png"
    assert row["sample_id"] == f"{OBJECT}-0001"


def test_a_drag_of_one_point_means_stay(tmp_path: Path) -> None:
    write_sample(tmp_path, "stay", [[[30, 20]]])
    published = made_of(tmp_path).rows[0]
    assert published["trajectories"][0][-1] == [36, 26]  # (x + 1, y + 1), as MotionPro makes it
    assert published["still"] == [False]
    still = made_of(tmp_path, one_point="still").rows[0]
    assert (still["trajectories"][0], still["still"]) == ([[35, 25]] * 16, [False])  # alone: a row must not only hold
    assert list(row_problems(still)) == []
    assert (still["trajectories"][0], still["still"]) == ([[35, 25]] * 16, [False])  # no run takes a row of still boxes
    parts = ((20, 10, 50, 40), (80, 20, 100, 60))
    write_sample(tmp_path, "stay", [[[30, 20]], [[90, 30], [90, 50]]], parts)
    assert made_of(tmp_path, one_point="still", drags="parts").rows[0]["still"] == [True, False]


def test_both_metadata_files_and_which_counts(tmp_path: Path) -> None:
    write_sample(tmp_path, "both", [[[25, 15], [45, 15]]])
    write_sample(tmp_path, "both", [[[25, 15], [35, 15]]], file="meta_data.json")
    write_sample(tmp_path, "old", [[[25, 15], [45, 15]]], file="meta_data.json", group=FINE)
    write_sample(tmp_path, "none", [[[25, 15], [45, 15]]], group=FINE).joinpath("meta_data_new.json").unlink()
    made = made_of(tmp_path)
    by_id = {row["sample_id"]: row for row in made.rows}
    assert by_id[f"{OBJECT}-both"]["trajectories"][0][-1] == [55, 25]
    assert {row["metadata_file"] for row in made.rows} == {"meta_data_new.json", "meta_data.json"}
    assert codes(made) == {f"{FINE}/none": "metadata_missing"}
    assert list(entered(made)) == [
        f"{FINE}: 1 of 2 samples entered (0 by meta_data_new.json, 1 by meta_data.json)",
        f"{OBJECT}: 1 of 1 sample entered (1 by meta_data_new.json, 0 by meta_data.json)",
    ]
    old_first = made_of(tmp_path, metadata="old-first")
    assert {row["sample_id"]: row for row in old_first.rows}[f"{OBJECT}-both"]["trajectories"][0][-1] == [45, 25]


def test_several_drags_are_left_out_or_move_their_parts(tmp_path: Path) -> None:
    parts = ((20, 10, 50, 40), (80, 20, 100, 60))
    write_sample(tmp_path, "two", [[[25, 15], [45, 15]], [[90, 30], [90, 50]]], parts)
    write_sample(tmp_path, "off", [[[25, 15], [45, 15]], [[70, 30], [90, 50]]], parts)
    assert set(codes(made_of(tmp_path)).values()) == {"drags_many"}
    made = made_of(tmp_path, drags="parts", frames=14)
    (row,) = made.rows
    assert row["boxes"] == [[20, 10, 50, 40], [80, 20, 100, 60]]
    assert [path[-1] for path in row["trajectories"]] == [[55, 25], [90, 60]]
    assert [len(path) for path in row["trajectories"]] == [14, 14]
    assert codes(made) == {f"{OBJECT}/off": "drag_off_mask"}


def test_a_part_that_stays_beside_one_that_moves_is_told_to_stay(tmp_path: Path) -> None:
    write_sample(tmp_path, "two", [[[25, 15], [45, 15]], [[90, 30]]], ((20, 10, 50, 40), (80, 20, 100, 60)))
    (row,) = made_of(tmp_path, drags="parts", one_point="still").rows
    assert row["still"] == [False, True]


def test_samples_that_do_not_enter(tmp_path: Path) -> None:
    drag = [[[25, 15], [45, 15]]]
    write_sample(tmp_path, "good", drag)
    write_sample(tmp_path, "border", drag, ((0, 0, 50, 40),))
    write_sample(tmp_path, "empty-mask", drag, ())
    write_sample(tmp_path, "outside", [[[-5, 15], [45, 15]]])
    write_sample(tmp_path, "no-drag", [])
    write_sample(tmp_path, "flat", [[25, 15], [45, 15]])
    write_sample(tmp_path, "words", [[["a", "b"]]])
    write_sample(tmp_path, "no-picture", drag).joinpath("first_frame.png").unlink()
    Image.new("RGB", (9, 9)).save(write_sample(tmp_path, "size", drag) / "first_frame_mask.png")
    (write_sample(tmp_path, "cut", drag) / "first_frame_mask.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    (write_sample(tmp_path, "json", drag) / "meta_data_new.json").write_text("{")
    made = made_of(tmp_path)
    assert [row["sample_id"] for row in made.rows] == [f"{OBJECT}-border", f"{OBJECT}-good"]
    assert made.rows[0]["boxes"] == [[0, 0, 50, 40]]
    assert {key.partition("/")[2]: code for key, code in codes(made).items()} == {
        "empty-mask": "mask_empty",
        "outside": "drag_outside",
        "no-drag": "metadata_invalid",
        "flat": "metadata_invalid",
        "words": "metadata_invalid",
        "no-picture": "file_missing",
        "size": "mask_size",
        "cut": "file_unreadable",
        "json": "metadata_invalid",
    }


def test_the_manifest_is_valid_and_says_how_it_was_made(tmp_path: Path) -> None:
    write_sample(tmp_path, "0001", [[[25, 15], [45, 15]]])
    made, out = made_of(tmp_path), str(tmp_path / "m.parquet")
    write_manifest(made.manifest(OWN_COLUMNS, recipe_of(McBenchSettings()), "MC-Bench"), out)
    table = read_manifest(out)
    assert validate(table, out) == []
    assert '"one_point":"published"' in table["recipe"].to_pylist()[0]


def test_folders_that_are_no_benchmark(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such folder: give the folder MC-Bench"):
        made_of(tmp_path / "none")
    with pytest.raises(ManifestError, match="it has no samples in Fine_grained_control or object_control"):
        made_of(tmp_path)
