"""Manifests from folders in VIPSeg's layout: which objects become boxes, their paths, and what is left out and why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from manifests.io import read_manifest, write_manifest
from manifests.schema import parse_row
from manifests.sources.made import Made
from manifests.sources.vipseg import (
    OWN_COLUMNS,
    VideoFolders,
    VipsegSettings,
    class_of,
    from_vipseg,
    read_mask,
    recipe_of,
    row_of_video,
)
from manifests.validate import validate
from sgi2v.errors import ConfigError, ManifestError

H, W = 144, 256  # a quarter of the videos to be made: 32 px there are 8 here
Draw = Callable[[np.ndarray, int], None]


def write_video(root: Path, name: str, draw: Draw, frames: int = 14, images: str = "imgs") -> Path:
    """A video whose masks `draw(mask_HW, t)` fills; its frame names have gaps and are not in the order of text."""
    for folder in (images, "panomasks"):
        (root / folder / name).mkdir(parents=True)
    for t in range(frames):
        mask = np.zeros((H, W), np.uint16)
        draw(mask, t)
        number = 3 + 6 * t
        Image.fromarray(mask).save(root / "panomasks" / name / f"{number}.png")
        Image.new("RGB", (W, H), (t, 0, 0)).save(root / images / name / f"{number}.jpg")
    return root


def square(value: int, x: float, y: float, side: int = 30, vx: float = 0, vy: float = 0) -> Draw:
    def draw(mask: np.ndarray, t: int) -> None:
        left, top = round(x + vx * t), round(y + vy * t)
        mask[max(top, 0) : top + side, max(left, 0) : left + side] = value

    return draw


def all_of(*draws: Draw) -> Draw:
    def draw(mask: np.ndarray, t: int) -> None:
        for each in draws:
            each(mask, t)

    return draw


def made_of(root: Path, **settings: Any) -> Made:
    name = next((root / "panomasks").iterdir()).name
    video = VideoFolders(name, name, str(root / "imgs" / name), str(root / "panomasks" / name))
    return row_of_video(video, str(root), VipsegSettings(**settings))


def codes(made: Made) -> list[str]:
    return [one.code for one in made.skipped]


def test_values_of_16_bits_are_read_whole(tmp_path: Path) -> None:
    values = np.array([[0, 7, 6100, 12402]], np.uint16)
    Image.fromarray(values).save(tmp_path / "16.png")
    Image.fromarray(values.astype(np.uint8)).save(tmp_path / "8.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "16.png"), values)
    np.testing.assert_array_equal(read_mask(tmp_path / "8.png"), values.astype(np.uint8))
    assert [class_of(value) for value in (7, 61, 6100, 6101, 12402)] == [7, 61, 61, 61, 124]


def test_a_moving_square_becomes_a_box_with_its_path(tmp_path: Path) -> None:
    draw = all_of(square(5, 0, 0, side=144), square(6101, 40, 50, vx=5, vy=-2))
    made = made_of(write_video(tmp_path, "12_abc", draw))
    (row,) = made.rows
    assert codes(made) == []
    assert row["boxes"] == [[40, 50, 70, 80]]
    t = np.arange(14)
    np.testing.assert_allclose(row["trajectories"][0], np.stack([55 + 5 * t, 65 - 2 * t], axis=-1))
    assert (row["mask_values"], row["classes"], row["still"]) == ([6101], [61], [False])
    assert (row["group"], row["path_source"], row["touches_border"]) == ("moving", "centroid", [False])
    assert row["image"] == "imgs/12_abc/3.jpg"
    assert row["reference"] == {"uri": "imgs/12_abc", "frames": [f"{3 + 6 * t}.jpg" for t in range(14)]}


def test_an_object_that_vanishes_is_left_out(tmp_path: Path) -> None:
    def draw(mask: np.ndarray, t: int) -> None:
        square(6100, 20, 20, side=40, vx=2)(mask, t)
        if t != 6:
            square(6101, 150, 60, vx=2)(mask, t)

    made = made_of(write_video(tmp_path, "a", draw))
    assert made.rows[0]["mask_values"] == [6100]
    (skipped,) = made.skipped
    assert (skipped.code, skipped.box) == ("vanishes", [150, 60, 180, 90])
    assert skipped.message == "object 6101: it has 0% of its first area in frame 6"


def test_an_object_that_leaves_the_picture_vanishes(tmp_path: Path) -> None:
    root = write_video(tmp_path, "a", all_of(square(6100, 200, 20, vx=4), square(6200, 20, 60, vx=8)))
    made = made_of(root)
    assert (made.rows[0]["mask_values"], codes(made)) == ([6200], ["vanishes"])
    kept = made_of(root, min_left=0.05)
    assert kept.rows[0]["mask_values"] == [6100, 6200]
    assert kept.rows[0]["touches_border"] == [True, False]


def test_an_object_in_two_pieces_is_left_out(tmp_path: Path) -> None:
    halves = all_of(square(6100, 20, 20, vx=3), square(6100, 120, 20, side=28, vx=3))
    root = write_video(tmp_path, "a", all_of(halves, square(6200, 60, 90, vx=3)))
    assert (codes(made_of(root)), made_of(root).rows[0]["mask_values"]) == (["split"], [6200])
    whole = made_of(root, min_part=0.5).rows[0]
    assert whole["boxes"][0] == [20, 20, 148, 50]
    assert whole["trajectories"][0][0] == [84, 35]  # the box's centre, not that of the mask


def test_an_object_at_the_border_is_left_out_or_kept(tmp_path: Path) -> None:
    root = write_video(tmp_path, "a", all_of(square(6100, 0, 20, vx=3), square(6200, 60, 90, vx=-4)))
    made = made_of(root)
    assert (codes(made), made.rows[0]["mask_values"], made.rows[0]["touches_border"]) == (["border"], [6200], [False])
    assert made_of(root, border="keep").rows[0]["mask_values"] == [6100, 6200]


def test_small_objects_are_left_out(tmp_path: Path) -> None:
    def draw(mask: np.ndarray, t: int) -> None:
        mask[10:140, 20 + 3 * t : 25 + 3 * t] = 6100  # 5 px wide: 20 px in the video
        square(6200, 100, 60, side=12, vx=3)(mask, t)  # 0.4 % of the frame

    root = write_video(tmp_path, "a", draw)
    assert codes(made_of(root)) == ["small", "small", "no_objects"]
    assert made_of(root, min_side=20).rows[0]["mask_values"] == [6100]
    assert made_of(root, min_area=0.002).rows[0]["mask_values"] == [6200]


def test_the_largest_objects_are_kept_and_ties_go_by_value(tmp_path: Path) -> None:
    places = [(6103, 10, 10, 30), (6101, 60, 10, 30), (6102, 110, 10, 30), (7000, 60, 60, 36), (6104, 160, 10, 30)]
    draw = all_of(*(square(value, x, y, side, vx=1.5) for value, x, y, side in places))
    made = made_of(write_video(tmp_path, "a", draw))
    assert made.rows[0]["mask_values"] == [7000, 6101, 6102, 6103]
    assert codes(made) == ["objects_many"]


def test_static_objects_are_told_to_stay(tmp_path: Path) -> None:
    jitter = all_of(square(6100, 20, 20, side=40, vx=0.1), square(6200, 120, 60, vx=4))
    root = write_video(tmp_path, "a", jitter)
    row = made_of(root).rows[0]
    assert (row["still"], row["group"]) == ([True, False], "moving")
    assert row["trajectories"][0] == [[40, 40]] * 14
    kept = made_of(root, static="keep").rows[0]
    assert (kept["still"], kept["trajectories"][0][-1]) == ([False, False], [41, 40])
    assert codes(made_of(root, static="drop")) == ["static"]
    only = made_of(write_video(tmp_path / "b", "b", square(6100, 20, 20))).rows[0]
    assert (only["still"], only["group"]) == ([False], "static")  # no run takes a row in which all is still


def test_the_path_can_be_that_of_the_boxes(tmp_path: Path) -> None:
    def draw(mask: np.ndarray, t: int) -> None:
        square(6100, 40, 50, vx=5)(mask, t)
        if t == 1:
            mask[60:64, 75:85] = 6100  # an arm

    root = write_video(tmp_path, "a", draw)
    assert made_of(root, path="box").rows[0]["trajectories"][0][1] == [65, 65]
    x, y = made_of(root).rows[0]["trajectories"][0][1]
    assert 60 < x < 61
    assert 64 < y < 65


def test_videos_that_give_no_row(tmp_path: Path) -> None:
    moving = square(6100, 40, 50, vx=3)
    write_video(tmp_path, "short", moving, frames=13)
    write_video(tmp_path, "void", lambda mask, t: None)
    write_video(tmp_path, "stuff", square(61, 20, 20, side=60))
    write_video(tmp_path, "good", moving)
    write_video(tmp_path, "sizes", moving)
    Image.new("RGB", (W // 2, H // 2)).save(tmp_path / "imgs/sizes/3.jpg")
    write_video(tmp_path, "rgb", moving)
    Image.new("RGB", (W, H)).save(tmp_path / "panomasks/rgb/9.png")
    write_video(tmp_path, "cut", moving)
    (tmp_path / "panomasks/cut/9.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    write_video(tmp_path, "names", moving)
    (tmp_path / "panomasks/names/3.png").rename(tmp_path / "panomasks/names/first.png")
    write_video(tmp_path, "no-image", moving)
    (tmp_path / "imgs/no-image/3.jpg").unlink()
    (tmp_path / "panomasks/no-masks").mkdir()
    made, listed_by = from_vipseg(str(tmp_path), str(tmp_path), VipsegSettings(), processes=2)
    assert (listed_by, [row["sample_id"] for row in made.rows]) == ("panomasks", ["good"])
    assert {one.key: one.code for one in made.skipped} == {
        "short": "short_video",
        "void": "no_objects",
        "stuff": "no_objects",
        "sizes": "mask_size",
        "rgb": "mask_format",
        "cut": "mask_unreadable",
        "names": "frame_name",
        "no-image": "image_missing",
        "no-masks": "masks_missing",
    }
    assert made.skipped_by_code["no_objects"] == 2


def test_stuff_becomes_boxes_where_it_is_asked_for(tmp_path: Path) -> None:
    row = made_of(write_video(tmp_path, "a", square(61, 20, 20, vx=4)), regions="all").rows[0]
    assert (row["mask_values"], row["classes"]) == ([61], [61])


def test_the_list_says_which_videos_are_taken_and_the_manifest_how(tmp_path: Path) -> None:
    for name in ("b", "a", "c"):
        write_video(tmp_path / "VIPSeg_720P", name, square(6100, 40, 50, vx=3), images="images")
    (tmp_path / "val.txt").write_text("c\nb\nnone\n\n")
    settings = VipsegSettings(min_area=0.02)
    out = str(tmp_path / "out" / "m.parquet")
    made, listed_by = from_vipseg(str(tmp_path / "VIPSeg_720P"), str(tmp_path / "out"), settings)
    assert listed_by == "val.txt"
    assert [(one.key, one.code) for one in made.skipped] == [("none", "masks_missing")]
    write_manifest(made.manifest(OWN_COLUMNS, recipe_of(settings, listed_by), "VIPSeg"), out)
    table = read_manifest(out)
    assert table["sample_id"].to_pylist() == ["c", "b"]
    assert validate(table, out) == []
    assert parse_row(table.to_pylist()[0]).boxes_N4.tolist() == [[40, 50, 70, 80]]
    recipe = table["recipe"].to_pylist()[0]
    assert '"list":"val.txt"' in recipe
    assert '"min_area":0.02' in recipe
    other = tmp_path / "mine.txt"
    other.write_text("a")
    made, listed_by = from_vipseg(str(tmp_path / "VIPSeg_720P"), str(tmp_path), settings, str(other))
    assert ([row["sample_id"] for row in made.rows], listed_by) == (["a"], "mine.txt")


def test_folders_and_settings_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such folder: give the folder of VIPSeg"):
        from_vipseg(str(tmp_path / "none"), str(tmp_path), VipsegSettings())
    with pytest.raises(ManifestError, match="it needs imgs or images, and panomasks"):
        from_vipseg(str(tmp_path), str(tmp_path), VipsegSettings())
    write_video(tmp_path, "a", square(6100, 40, 50))
    with pytest.raises(ManifestError, match="no such file: give a list of ids"):
        from_vipseg(str(tmp_path), str(tmp_path), VipsegSettings(), list_file=str(tmp_path / "none.txt"))
    with pytest.raises(ConfigError, match=r"vipseg\.path must be one of centroid, box"):
        VipsegSettings(path="middle")
