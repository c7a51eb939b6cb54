"""Manifests from videos: paths of known motion, clips within shots, and what is left out and why."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
from PIL import Image

from manifests.boxes.filters import BoxFilters
from manifests.boxes.proposer import PictureError, Proposal, Proposed
from manifests.io import read_manifest, write_manifest
from manifests.sources.clips import ClipSettings
from manifests.sources.made import Made, names_of
from manifests.sources.videos import (
    OWN_COLUMNS,
    FilteredBoxes,
    Target,
    VideoFile,
    from_videos,
    list_videos,
    recipe_of,
    rows_of_video,
)
from manifests.validate import validate
from sgi2v.errors import ConfigError, StorageError
from tests.manifests.footage import (
    HEIGHT,
    WIDTH,
    Disc,
    TrueBoxes,
    arc,
    constant,
    constant_rate,
    line,
    render,
    variable_rate,
    write_video,
)

RIGHT = Disc(line(150, 180, 120, 20))
STILL = Disc(line(500, 100, 0, 0), texture=1)


def made_of(path: Path, *discs: Disc, **settings: Any) -> Made:
    video = VideoFile(str(path), path.name, path.stem)
    settings = {"clips": 1, **settings}
    return rows_of_video(video, Target(str(path.parent), "frames"), TrueBoxes(discs).propose, ClipSettings(**settings))


def filmed(path: Path, *discs: Disc, times: list[float] | None = None, **options: Any) -> Path:
    times = times or constant_rate(1.9, 15)
    return write_video(path, render(discs, times), times, **options)


def codes(made: Made) -> list[str]:
    return [one.code for one in made.skipped]


def errors_of(row: dict[str, Any], discs: tuple[Disc, ...]) -> tuple[float, float]:
    """The largest error of a row's paths, pixels, and of its scales."""
    start = row["reference"]["start_s"]
    path_error = scale_error = 0.0
    for disc, path, scales in zip(discs, row["trajectories"], row["scales"], strict=True):
        times = [start + p / 7 for p in range(14)]
        true_P2 = np.array([disc.centre(s) for s in times])
        true_P = np.array([disc.radius(s) for s in times]) / disc.radius(start)
        path_error = max(path_error, float(np.linalg.norm(np.array(path) - true_P2, axis=-1).max()))
        scale_error = max(scale_error, float(np.abs(np.array(scales) - true_P).max()))
    return path_error, scale_error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("discs", "times", "most_px"),
    [
        pytest.param((RIGHT,), constant_rate(1.9, 30), 0.5, id="line at 30 fps"),
        pytest.param((Disc(arc(320, 180, 100, 0.9)),), constant_rate(1.9, 24), 0.5, id="arc at 24 fps"),
        pytest.param((Disc(line(80, 180, 250, 10)),), variable_rate(1.95), 0.5, id="fast line at a variable rate"),
        pytest.param(
            (Disc(line(320, 180, 20, 0), radius=lambda s: 40 * (1 + 0.25 * s)),), constant_rate(1.9, 60), 0.5, id="zoom"
        ),
        pytest.param((Disc(line(250, 180, 60, 0), angle=lambda s: 0.4 * s),), constant_rate(1.9, 30), 2.0, id="turn"),
        pytest.param((RIGHT, Disc(line(480, 70, -100, 5), texture=1)), constant_rate(1.9, 30), 0.5, id="two objects"),
    ],
)
def test_paths_are_those_of_the_motion(
    tmp_path: Path, discs: tuple[Disc, ...], times: list[float], most_px: float
) -> None:
    made = made_of(filmed(tmp_path / "a.mp4", *discs, times=times), *discs)
    (row,) = made.rows
    path_error, scale_error = errors_of(row, discs)
    assert codes(made) == []
    assert path_error < most_px
    assert scale_error < 0.02


@pytest.mark.slow
def test_a_row_has_its_picture_and_its_reference(tmp_path: Path) -> None:
    times = constant_rate(1.9, 15)
    lying = np.rot90(render([RIGHT], times), -1, axes=(1, 2))
    path = write_video(tmp_path / "a b.mp4", lying, times, turn=90)
    (video,) = list_videos(str(path))
    target = Target(str(tmp_path / "out"), "m-frames")
    made = rows_of_video(video, target, TrueBoxes((RIGHT,)).propose, ClipSettings(clips=1))
    (row,) = made.rows
    assert row["sample_id"] == "a-b-00000000"
    assert row["image"] == "m-frames/a-b-00000000.png"
    assert Image.open(tmp_path / "out" / row["image"]).size == (WIDTH, HEIGHT)  # turned upright
    assert row["reference"] == {"uri": "../a b.mp4", "start_s": 0.0, "end_s": round(13 / 7, 6)}
    out = str(tmp_path / "out" / "m.parquet")
    boxes = FilteredBoxes(TrueBoxes((RIGHT,)), BoxFilters(), 576, 1024)
    write_manifest(made.manifest(OWN_COLUMNS, recipe_of(ClipSettings(clips=1), boxes), "videos"), out)
    table = read_manifest(out)
    assert validate(table, out) == []
    assert table["reference"].to_pylist() == [row["reference"] | {"frames": None}]
    assert '"clips":1' in table["recipe"].to_pylist()[0]


@pytest.mark.slow
def test_objects_that_do_not_move_are_lost_or_leave_are_left_out(tmp_path: Path) -> None:
    gone = Disc(lambda s: (150 + 60 * s, 300) if s < 1 else (-200, -200), texture=1)
    leaving = Disc(line(480, 290, 150, 0), texture=1)
    discs = (STILL, gone, leaving, RIGHT)
    made = made_of(filmed(tmp_path / "a.mp4", *discs), *discs)
    (row,) = made.rows
    assert row["boxes"] == [RIGHT.box(0)]
    assert codes(made) == ["object_static", "object_lost", "object_leaves"]
    assert made.skipped[0].box == STILL.box(0)
    assert made.skipped[0].start_s == 0
    none = made_of(tmp_path / "a.mp4", STILL)
    assert (none.rows, codes(none)) == ([], ["object_static", "clip_static"])
    assert none.skipped[0].message.startswith("it moves by 0.")
    still_counts = made_of(tmp_path / "a.mp4", STILL, RIGHT, min_path=0, objects=1)
    assert (still_counts.rows[0]["boxes"], codes(still_counts)) == ([STILL.box(0)], ["objects_many"])


@pytest.mark.slow
def test_clips_lie_within_shots(tmp_path: Path) -> None:
    # three shots: of 2.5 s, 1 s and 4 s, cut in the middle of clips
    shots = [(2.5, 0), (1.0, 1), (4.0, 2)]
    frames, begin = [], 0.0
    for seconds, ground in shots:
        frames.append(render([], np.arange(begin, begin + seconds, 0.05), ground))
        begin += seconds
    film = np.concatenate(frames)[:, ::2, ::4]
    path = write_video(tmp_path / "a.mp4", film, [t / 20 for t in range(len(film))])
    seen: list[tuple[float, int]] = []

    def propose(image_HWC: np.ndarray, key: str) -> Proposed:
        seen.append((int(key[-12:-4]) / 1000, int(image_HWC[:50].mean())))
        return Proposed([], [])

    video = VideoFile(str(path), "a.mp4", "a")
    made = rows_of_video(video, Target(str(tmp_path), "f"), propose, ClipSettings())
    assert [start for start, _ in seen] == [0.0, 3.5, 5.4]
    assert seen[1][1] == pytest.approx(seen[2][1], abs=2)
    assert codes(made) == ["no_boxes", "shot_short", "no_boxes", "no_boxes"]
    assert made.skipped[1].message == "the shot is 1.00 s long: a clip takes 1.86 s"
    seen.clear()
    rows_of_video(video, Target(str(tmp_path), "f"), propose, ClipSettings(clips=2))
    assert [start for start, _ in seen] == [3.5, 5.4]
    # the one clip would begin in the middle of the first of two short shots
    write_video(path, film[20:70], [t / 20 for t in range(50)])
    none = rows_of_video(video, Target(str(tmp_path), "f"), propose, ClipSettings(clips=1))
    assert [one.message for one in none.skipped] == ["no shot was found in it that is 1.86 s long, as a clip is"]


@pytest.mark.slow
def test_gaps_slow_videos_and_short_ones(tmp_path: Path) -> None:
    def made_at(times: list[float]) -> Made:
        return made_of(filmed(tmp_path / f"{len(times)}.mp4", RIGHT, times=times), RIGHT, clips=None)

    gap = made_at([*constant_rate(0.5, 20), *(1.5 + s for s in constant_rate(1.9, 20))])
    assert codes(gap) == ["gap"]
    assert gap.skipped[0].message == "no frame is shown for 1.00 s"
    assert [row["reference"]["start_s"] for row in gap.rows] == [1.5]
    assert [one.message for one in made_at(constant_rate(4, 2)).skipped] == [
        "it has 2.0 frames a second: give videos with 3.5 or more, or a lower --fps"
    ]
    assert [one.message for one in made_at([0.0]).skipped] == ["it has one frame: a clip takes 1.86 s"]
    assert [one.message for one in made_at(constant_rate(1, 10)).skipped] == ["it is 1.00 s long: a clip takes 1.86 s"]


def test_what_is_wrong_with_a_file_or_a_box_is_an_entry(tmp_path: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    assert codes(made_of(tmp_path / "empty.mp4")) == ["video_empty"]
    assert codes(made_of(tmp_path / "none.mp4")) == ["video_unreadable"]
    path = filmed(tmp_path / "a.mp4", RIGHT, times=constant_rate(1.9, 10))
    video, target = VideoFile(str(path), "a.mp4", "a"), Target(str(tmp_path), "f")

    def no_mask(image_HWC: np.ndarray, key: str) -> Proposed:
        raise PictureError("mask_missing", f"no mask for {key}")

    assert codes(rows_of_video(video, target, no_mask, ClipSettings(clips=1))) == ["mask_missing"]

    def plain(image_HWC: np.ndarray, key: str) -> Proposed:
        empty = Proposal((100, 100, 200, 200), mask_HW=np.zeros((HEIGHT, WIDTH), np.bool_))
        return Proposed([empty], [PictureError("box_clipped", "it reaches outside")])

    found = codes(rows_of_video(video, target, plain, ClipSettings(clips=1)))
    assert found == ["box_clipped", "object_plain", "clip_static"]
    (tmp_path / "f").write_text("a file in the place of the folder of pictures")
    with pytest.raises(StorageError, match="cannot be written"):
        rows_of_video(video, target, TrueBoxes((RIGHT,)).propose, ClipSettings(clips=1))


@pytest.mark.slow
def test_a_folder_gives_the_same_rows_in_several_processes(tmp_path: Path) -> None:
    for name in ("b/1.mp4", "a.mp4"):
        filmed(tmp_path / "in" / name, RIGHT, times=constant_rate(2, 10))
    (tmp_path / "in" / "broken.mov").write_text("no video")
    (tmp_path / "in" / "notes.txt").write_text("not a video")
    propose, settings = TrueBoxes((RIGHT,)).propose, ClipSettings(clips=1)
    made = from_videos(str(tmp_path / "in"), Target(str(tmp_path / "out"), "f"), propose, settings, processes=2)
    alone = [
        rows_of_video(video, Target(str(tmp_path / "out"), "g"), propose, settings)
        for video in list_videos(str(tmp_path / "in"))
    ]
    assert [row | {"image": row["image"].replace("g/", "f/")} for part in alone for row in part.rows] == made.rows
    assert [(one.key, one.code) for one in made.skipped] == [("broken.mov", "video_undecodable")]
    assert [row["sample_id"] for row in made.rows] == ["a-00000000", "b-1-00000000"]


def test_videos_of_a_folder_a_glob_and_a_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b.MP4", "a/x.webm", "a/x.mkv", "a/.hidden.mp4", "c.txt", "odd[1].mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"1")
    monkeypatch.chdir(tmp_path)
    found = list_videos(".")
    assert [video.key for video in found] == ["a/x.mkv", "a/x.webm", "b.MP4", "odd[1].mp4"]
    assert [video.name for video in found] == ["a-x", "a-x-2", "b", "odd-1-"]
    assert found[0].uri == str(tmp_path / "a/x.mkv")
    assert [video.key for video in list_videos("a/*.mkv")] == ["x.mkv"]
    assert [video.key for video in list_videos("odd[1].mp4")] == ["odd[1].mp4"]
    store = fsspec.filesystem("memory")
    store.pipe("/videos/one/a.mp4", (tmp_path / "b.MP4").read_bytes())
    assert list_videos("memory://videos") == [VideoFile("memory:///videos/one/a.mp4", "one/a.mp4", "one-a")]
    assert [video.key for video in list_videos("c.txt")] == ["c.txt"]  # a file that is named is what it is said to be
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "d.txt").write_bytes(b"1")
    with pytest.raises(ConfigError, match="texts has no videos: no video's ending among its 1 file"):
        list_videos("texts")
    with pytest.raises(ConfigError, match="none: there is no such folder or file"):
        list_videos("none")


@pytest.mark.slow
def test_videos_and_pictures_in_a_store(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    store.pipe("/films/a.mp4", filmed(tmp_path / "a.mp4", RIGHT, times=constant_rate(1.9, 10)).read_bytes())
    (video,) = list_videos("memory://films/*.mp4")
    target = Target("memory://out", "frames")
    (row,) = rows_of_video(video, target, TrueBoxes((RIGHT,)).propose, ClipSettings(clips=1)).rows
    assert row["reference"]["uri"] == "memory:///films/a.mp4"
    assert store.exists(f"/out/{row['image']}")


def test_names_are_valid_and_distinct() -> None:
    stems = ["cat", "Cat", "-dog", "ä/ö", "", "x" * 200]
    assert names_of(stems) == ["cat", "Cat-2", "dog", "sample", "sample-2", "x" * 100]


def test_filters_apply_to_boxes_of_things_only() -> None:
    image_HWC = render([RIGHT], [0.0])[0]
    boxes = FilteredBoxes(TrueBoxes((RIGHT, Disc(line(300, 60, 0, 0), radius=constant(5.0)))), BoxFilters(), 576, 1024)
    kept, notes = boxes.propose(image_HWC, "a-00000000.png")
    assert [each.box_xyxy for each in kept] == [tuple(RIGHT.box(0))]
    assert [note.code for note in notes] == ["area_small"]


def test_settings_that_cannot_be_used() -> None:
    with pytest.raises(ConfigError, match=r"videos\.frames must be 2 or more"):
        ClipSettings(frames=1)
    assert ClipSettings(fps=13).seconds == pytest.approx(1)
    assert math.isclose(ClipSettings().seconds, 13 / 7)
