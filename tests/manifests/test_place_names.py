"""Names of files that no manifest can hold, since Linux takes any bytes, and links to folders."""

from __future__ import annotations

import os
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from manifests.make import make_manifest
from manifests.place import PICTURES, find_files
from manifests.recipe import Recipe
from manifests.sources.clips import ClipSettings
from manifests.sources.videos import Target, VideoFile, rows_of_video
from tests.manifests.footage import TrueBoxes
from tests.manifests.squares import Squares, draw_squares, write_squares

BAD_NAME = os.fsdecode(b"caf\xe9.png")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures, one of which has a name in Latin-1."""
    write_squares(tmp_path / "pictures", 3)
    try:
        draw_squares(3).save(tmp_path / "pictures" / "x.png")
        (tmp_path / "pictures" / "x.png").rename(tmp_path / "pictures" / BAD_NAME)
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    return tmp_path


def test_a_picture_whose_name_is_not_text_is_left_out(folder: Path) -> None:
    output = folder / "m.parquet"
    made = make_manifest(str(folder / "pictures"), str(output), Recipe.parse({}), Squares(), processes=1)
    assert (made.pictures, made.used) == (4, 3)
    skipped = pq.read_table(folder / "skipped.parquet").to_pylist()
    assert [(each["key"], each["code"]) for each in skipped] == [("caf\\udce9.png", "name_invalid")]


def test_a_video_whose_name_is_not_text_is_left_out(folder: Path) -> None:
    video = VideoFile(str(folder / "pictures" / BAD_NAME), BAD_NAME, "caf")
    made = rows_of_video(video, Target(str(folder), "frames"), TrueBoxes(()).propose, ClipSettings())
    assert [(each.key, each.code) for each in made.skipped] == [("caf\\udce9.png", "name_invalid")]


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    write_squares(tmp_path / "elsewhere" / "sub", 2)
    place = tmp_path / "place"
    write_squares(place, 1)
    (place / "link").symlink_to(tmp_path / "elsewhere")
    (place / "link again").symlink_to(tmp_path / "elsewhere")
    (place / "link" / "circle").symlink_to(place)
    assert find_files(str(place), PICTURES, "picture").keys == ("00.png", "link/sub/00.png", "link/sub/01.png")
