"""Warnings of rows that are legal but look wrong: each mistake is named, and good rows are not."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

import manifests.demo
from manifests.fit import VideoSize
from manifests.io import read_manifest
from manifests.plausible import Kind, describe, row_warnings
from manifests.schema import Sample, parse_row
from manifests.validate import check, glance
from tests.manifests.rows import row, table
from tests.manifests.web_server import web_server

DEMO = str(Path(manifests.demo.__file__).parent / "demo.parquet")
SIZE = (576, 1024)
XY = np.array(SIZE[::-1])
YX = [1, 0, 3, 2]
PUBLISHED = [
    parse_row({"image": "a.png", **json.loads(line)})
    for line in (Path(__file__).parent / "published_rows.jsonl").read_text().splitlines()
]
"""The rows that SG-I2V was published with, on pictures of 1024 x 576 px."""

Floats = NDArray[np.float64]


def kinds(sample: Sample, size: tuple[int, int] | None = SIZE, video: tuple[int, int] | None = None) -> set[Kind]:
    """The doubts about a row whose picture is stretched. size, video: (height, width) of picture and video."""
    return {warning.kind for warning in row_warnings(sample, size, video and VideoSize(*video, "stretch"))}


def one(box: list[float], path: list[list[float]]) -> Sample:
    return parse_row(row(boxes=[box], trajectories=[path]))


def same(numbers: Floats) -> Floats:
    return numbers


def changed(sample: Sample, box: Callable[[Floats], Floats] = same, path: Callable[[Floats], Floats] = same) -> Sample:
    boxes = np.array([box(each) for each in sample.boxes_N4])
    return replace(sample, boxes_N4=boxes, trajectories=tuple(path(each) for each in sample.trajectories))


def test_the_published_rows_and_the_demo_raise_no_doubt() -> None:
    assert len(PUBLISHED) == 12
    for sample in PUBLISHED:
        for video in (None, SIZE, (288, 512)):
            assert not kinds(sample, SIZE, video), sample.sample_id
        assert not kinds(sample, None)
    assert check(read_manifest(DEMO), DEMO, video_size=VideoSize(128, 128)).warnings == []


MISTAKES: dict[str, tuple[Kind, int, Callable[[Sample], Sample]]] = {
    "all in shares": (Kind.NORMALISED, 12, lambda s: changed(s, lambda b: b / [*XY, *XY], lambda p: p / XY)),
    "boxes in shares": (Kind.NORMALISED, 12, lambda s: changed(s, lambda b: b / [*XY, *XY])),
    "paths in shares": (Kind.NORMALISED, 12, lambda s: changed(s, path=lambda p: p / XY)),
    "all [y, x]": (Kind.SWAPPED, 10, lambda s: changed(s, lambda b: b[YX], lambda p: p[:, ::-1])),
    "boxes [y, x]": (Kind.SWAPPED, 12, lambda s: changed(s, lambda b: b[YX])),
    "paths [y, x]": (Kind.SWAPPED, 12, lambda s: changed(s, path=lambda p: p[:, ::-1])),
    "[frame, x]": (Kind.TIMES, 12, lambda s: changed(s, path=lambda p: np.c_[np.arange(len(p)), p[:, 0]])),
    "[y, seconds]": (Kind.TIMES, 12, lambda s: changed(s, path=lambda p: np.c_[p[:, 1], np.arange(len(p)) / 7])),
    "[ms, x]": (Kind.TIMES, 12, lambda s: changed(s, path=lambda p: np.c_[np.arange(len(p)) * 1000 // 7, p[:, 0]])),
    "[timestamp, x]": (Kind.TIMES, 12, lambda s: changed(s, path=lambda p: np.c_[np.arange(len(p)) + 17e8, p[:, 0]])),
    "too far": (Kind.FAR, 12, lambda s: changed(s, path=lambda p: p[0] + (p - p[0]) * 30)),
    "paths twice as large": (Kind.OFF_BOX, 9, lambda s: changed(s, path=lambda p: p * 2)),
}
"""What is mistaken in the published rows: the kind, in how many of the twelve rows it shows, and the change."""


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_in_published_rows_are_named(mistake: str) -> None:
    kind, at_least, change = MISTAKES[mistake]
    found = [kinds(change(sample)) for sample in PUBLISHED]
    assert sum(each == {kind} for each in found) >= at_least
    assert all(each <= {kind} for each in found)


def test_paths_in_another_order_than_their_boxes_are_named() -> None:
    many = [sample for sample in PUBLISHED if len(sample.trajectories) > 1]
    for sample in many:
        rolled = replace(sample, trajectories=(*sample.trajectories[1:], sample.trajectories[0]))
        assert kinds(rolled) == kinds(rolled, None) == {Kind.ORDER}
    nested = parse_row(row(boxes=[[0, 0, 100, 100], [40, 40, 60, 60]], trajectories=[[[50, 50], [60, 60]]] * 2))
    assert not kinds(nested)


def test_width_and_height_in_place_of_the_far_corner_are_named() -> None:
    for x, y, width, height in ((100, 100, 200, 150), (10, 10, 100, 80), (0, 0, 30, 30), (300, 20, 700, 500)):
        path = [[x + width / 2, y + height / 2], [400.0, 300.0]]
        expected = {Kind.XYWH} if (x, y) != (0, 0) else set()  # there both readings are the same
        assert kinds(one([x, y, width, height], path)) == kinds(one([x, y, width, height], path), None) == expected
        assert not kinds(one([x, y, x + width, y + height], path), (1080, 1920))


BOX = [100.0, 100.0, 200.0, 180.0]
LEGAL = {
    "offsets": one(BOX, [[0, 0], [40, 20], [90, 30]]),
    "steady offsets": one(BOX, [[0, 0], [1, 0], [2, 0], [3, 0]]),
    "standing offsets": one(BOX, [[0, 0], [0, 0]]),
    "standing shares": one(BOX, [[0.5, 0.5], [0.5, 0.5]]),
    "one corner's path": one(BOX, [[100, 100], [300, 100]]),
    "the far corner's path": one(BOX, [[200, 180], [300, 180]]),
    "slow and even": one(BOX, [[150, 140], [151, 140], [152, 140]]),
    "from the left edge": one([-40, 100, 40, 180], [[0, 140], [1, 140], [2, 140]]),
    "a tracked path that starts beside the centre": one(BOX, [[158, 131], [300, 200]]),
    "leaves by its own size": one(BOX, [[150, 140], [150, -90]]),
    "leaves to the right": one([900, 300, 1000, 400], [[950, 350], [1120, 350]]),
    "partly outside": one([980, 500, 1100, 640], [[1040, 570], [700, 300]]),
    "as large as the picture": one([0, 0, 1024, 576], [[512, 288], [600, 288]]),
    "larger than the picture": one([-50, -50, 1100, 600], [[525, 275], [600, 288]]),
    "one cell": one([100, 100, 108, 108], [[104, 104], [300, 104]]),
    "in the corner": one([0, 0, 40, 40], [[20, 20], [21, 20], [22, 20]]),
    "no boxes": parse_row(row(boxes=[], trajectories=[])),
}


@pytest.mark.parametrize("name", LEGAL)
def test_what_is_unusual_and_sensible_raises_no_doubt(name: str) -> None:
    assert not kinds(LEGAL[name])
    assert not kinds(LEGAL[name], None)
    assert not kinds(LEGAL[name], SIZE, SIZE)


def test_boxes_under_one_latent_cell_are_named_where_the_video_is_smaller() -> None:
    sample = one([100, 100, 120, 130], [[110, 115], [200, 115]])
    assert not kinds(sample)
    assert not kinds(sample, SIZE, (288, 512))
    assert kinds(sample, SIZE, (192, 384)) == {Kind.SMALL_BOX, Kind.STRETCHED}
    assert kinds(one([100, 100, 107, 180], [[103, 140], [200, 115]])) == {Kind.SMALL_BOX}


def test_a_stretched_picture_is_named_with_its_factor() -> None:
    sample = PUBLISHED[0]
    assert not kinds(sample, (720, 1280), SIZE)
    assert not kinds(sample, (576, 1024), (576, 950))
    (warning,) = row_warnings(sample, (576, 1024), VideoSize(576, 576, "stretch"))
    assert warning == (Kind.STRETCHED, sample.sample_id, "1.78")
    (upright,) = row_warnings(sample, (1280, 720), VideoSize(576, 1024, "stretch"))
    assert upright.detail == "3.16"
    (line,) = describe([warning])
    assert line.startswith(f"warning: 1 row ({sample.sample_id} x1.78): a picture that is stretched")


def test_extreme_numbers_are_compared_without_an_error() -> None:
    for value in (1e15, -1e15, 1764270000.0, 5e-324):
        sample = one(BOX, [[150, 140], [value, 140], [value, 140]])
        assert kinds(sample) <= {Kind.TIMES}


def test_a_few_ids_and_the_number_of_rows_are_told_for_each_kind() -> None:
    far = one(BOX, [[150, 140], [9e3, 0]])
    rows = [replace(far, sample_id=f"r{number}") for number in range(7)]
    (line,) = describe([warning for each in rows for warning in row_warnings(each, SIZE)])
    assert line.startswith("warning: 7 rows (r0, r1, r2, r3, r4, ...): a path that leaves the picture")
    assert line.endswith("[far]")
    assert describe([]) == []


def far_row(number: int, image: str = "cat.png") -> dict[str, Any]:
    return row(sample_id=f"r{number}", image=image, boxes=[[8, 8, 24, 24]], trajectories=[[[16, 16], [900, 16]]])


def test_a_check_reads_every_image_and_a_glance_the_first_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / "cat.png")
    Image.new("RGB", (64, 64)).save(tmp_path / "last.png")
    uri = str(tmp_path / "m.parquet")
    rows = table(far_row(0), row(sample_id="bad", boxes=None), far_row(1, "none.png"), far_row(2, "last.png"))
    assert [each.sample_id for each in check(rows, uri).warnings] == ["r0", "r2"]
    assert [each.sample_id for each in glance(rows, uri, None, VideoSize(64, 64))] == ["r0", "r2"]
    monkeypatch.setattr("manifests.validate.GLANCED_IMAGES", 2)
    assert [each.sample_id for each in glance(rows, uri, None, VideoSize(64, 64))] == ["r0"]
    share = {"boxes": [[0, 0, 0.5, 0.5]], "trajectories": [[[0.1, 0.1], [1, 1]]]}
    shares = table(row(sample_id="s0", **share), row(sample_id="s1", **share))
    assert len(glance(shares, uri, None, VideoSize(64, 64))) == 2
    monkeypatch.setattr("manifests.validate.GLANCED_ROWS", 1)
    assert len(glance(shares, uri, None, VideoSize(64, 64))) == 1


def test_a_glance_does_not_wait_for_a_slow_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = Event()
    monkeypatch.setattr("manifests.validate.GLANCE_S", 0.1)
    with web_server(lambda request: (done.wait(20), (200, {}, b""))[1]) as server:
        rows = table(far_row(0, f"{server.url}/a.png"))
        assert glance(rows, str(tmp_path / "m.parquet"), None, VideoSize(64, 64)) == []
        done.set()
