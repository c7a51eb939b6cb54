"""Validation finds every problem of every row, with real images in a folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from manifests.fit import VideoSize
from manifests.io import write_manifest
from manifests.masks import png_of
from manifests.schema import conform
from manifests.validate import check, validate
from sgi2v.errors import Problem
from tests.manifests.rows import row, table


def summary(problems: list[Problem]) -> list[tuple[int | None, str | None, str | None, str]]:
    """Row, sample id, column and code of each problem."""
    return [problem[:4] for problem in problems]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "cat.png")
    (tmp_path / "text.png").write_text("text")
    (tmp_path / "half.png").write_bytes((tmp_path / "cat.png").read_bytes()[:5000])
    return tmp_path


def test_a_valid_manifest_has_no_problems(folder: Path) -> None:
    good = table(row(), row(sample_id="dog"), row(sample_id="none", boxes=[], trajectories=[]))
    assert validate(good, str(folder / "m.parquet")) == []


def test_progress_counts_each_distinct_image_once(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    manifest = table(row(), row(sample_id="dog"), row(sample_id="b", image="none.png"))
    check(manifest, str(folder / "m.parquet"), on_image=lambda done, total: seen.append((done, total)))
    assert seen == [(1, 2), (2, 2)]


def test_every_problem_of_every_row_is_reported(folder: Path) -> None:
    path = [[5.0, 5.0], [6.0, 6.0]]
    bad = table(
        row(),
        row(sample_id="b", image="none.png", boxes=[[1.0, 2.0, 1.0, 4.0]]),
        row(sample_id="c", image="text.png", trajectories=None),
        row(sample_id="d", image="half.png"),
        row(sample_id="e", boxes=[[5.0, 5.0, 4.0, 9.0], [64.0, 0.0, 70.0, 9.0], [9.0, 48.0, 12.0, 50.0]]),
        row(sample_id="f", boxes=[[-5.0, -5.0, 4.0, 900.0]], trajectories=[path], scales=[[1.0, 0.0]]),
        row(sample_id="g", image=None),
        row(sample_id="h", image="zip://a.png::b.zip"),
    )
    problems = validate(bad, str(folder / "m.parquet"))
    assert summary(problems) == [
        (1, "b", "boxes", "box_outside"),
        (1, "b", "trajectories", "trajectory_invalid"),
        (1, "b", "image", "image_missing"),
        (2, "c", "trajectories", "trajectory_invalid"),
        (2, "c", "image", "image_undecodable"),
        (3, "d", "image", "image_undecodable"),
        (4, "e", "boxes", "box_outside"),
        (4, "e", "trajectories", "trajectory_invalid"),
        (4, "e", "boxes", "box_outside"),
        (4, "e", "boxes", "box_outside"),
        (5, "f", "scales", "trajectory_invalid"),
        (6, "g", "image", "image_missing"),
        (7, "h", "image", "image_missing"),
    ]
    assert [problem.message[:5] for problem in problems if problem.row == 4 and problem.column == "boxes"] == [
        *("box 0", "box 1", "box 2")
    ]
    without = validate(bad, str(folder / "m.parquet"), images=False)
    assert {problem.row for problem in without} == {1, 2, 4, 5, 6}


def test_too_large_rows_are_reported(folder: Path) -> None:
    path = [[5.0, 5.0]] * 10_001
    many = table(row(sample_id="a", boxes=[[1.0, 2.0, 3.0, 4.0]] * 300), row(sample_id="b", trajectories=[path, path]))
    assert summary(validate(many, str(folder / "m.parquet"))) == [
        (0, "a", "boxes", "trajectory_invalid"),
        (1, "b", "trajectories", "trajectory_invalid"),
        (1, "b", "trajectories", "trajectory_invalid"),
    ]


@pytest.mark.slow
def test_rows_are_numbered_across_batches(folder: Path) -> None:
    rows = [row(sample_id=f"s{n}", image="none.png" if n == 4999 else "cat.png") for n in range(5000)]
    assert summary(validate(table(*rows), str(folder / "m.csv"))) == [(4999, "s4999", "image", "image_missing")]


def test_images_beside_a_manifest_at_a_url_are_found(folder: Path) -> None:
    fsspec.filesystem("memory").pipe_file("/validate/cat.png", (folder / "cat.png").read_bytes())
    good = table(row(), row(sample_id="dog", image="dog.png"))
    write_manifest(good, "memory://validate/m.parquet")
    assert summary(validate(good, "memory://validate/m.parquet")) == [(1, "dog", "image", "image_missing")]


def test_an_unreachable_image_is_reported_as_unreadable(folder: Path) -> None:
    # nothing listens on the discard port
    unreachable = table(row(image="http://127.0.0.1:9/a.png"))
    assert summary(validate(unreachable, str(folder / "m.csv"))) == [(0, "cat", "image", "image_unreadable")]


@pytest.mark.slow
@pytest.mark.parametrize("free_mib", [160, 400], ids=["reading", "decoding"])
def test_an_image_too_large_for_the_memory_is_reported(folder: Path, free_mib: int) -> None:
    Image.new("1", (8000, 7999)).save(folder / "cat.png")
    write_manifest(table(row()), str(folder / "m.parquet"))
    script = """
import resource, sys
from manifests.io import read_manifest
from manifests.validate import validate
from PIL import Image

Image.init()
table = read_manifest(sys.argv[1])
validate(table, sys.argv[1], images=False)
pages = int(open("/proc/self/statm").read().split()[0])
limit = pages * resource.getpagesize() + (FREE_MIB << 20)  # reading takes 256 MiB, decoding 500
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
for problem in validate(table, sys.argv[1]):
    print(problem.column, problem.code, problem.message)
"""
    command = [sys.executable, "-c", script.replace("FREE_MIB", str(free_mib)), folder / "m.parquet"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("image out_of_memory not enough memory")


def test_a_box_that_the_crop_loses_is_a_problem_where_the_videos_size_is_known(folder: Path) -> None:
    boxes = [[0.0, 0.0, 10.0, 10.0], [0.0, 38.0, 10.0, 48.0]]
    paths = [[[5.0, 5.0], [6.0, 6.0]], [[5.0, 43.0], [6.0, 43.0]]]
    rows = table(row(boxes=boxes, trajectories=paths), row(sample_id="dog", boxes=boxes[:1], trajectories=paths[:1]))
    uri, wide = str(folder / "m.parquet"), VideoSize(64, 256)
    assert check(rows, uri).problems == []
    findings = check(rows, uri, video_size=wide)
    assert summary(findings.problems) == [(0, "cat", "boxes", "box_outside")] * 2
    assert [warning.kind for warning in findings.warnings] == ["cropped"]
    assert check(rows, uri, video_size=VideoSize(64, 256, "pad")).problems == []


def test_a_mask_that_the_crop_loses_is_a_problem_where_the_videos_size_is_known(folder: Path) -> None:
    mask_HW = np.zeros((48, 64), np.bool_)
    mask_HW[:4, :20] = True
    tall = row(boxes=[[0.0, 0.0, 20.0, 48.0]], trajectories=[[[10.0, 24.0], [12.0, 24.0]]], masks=[png_of(mask_HW)])
    rows, uri = conform(pa.Table.from_pylist([tall]), "m"), str(folder / "m.parquet")
    assert check(rows, uri).problems == []
    assert summary(check(rows, uri, video_size=VideoSize(64, 256)).problems) == [(0, "cat", "masks", "mask_invalid")]
