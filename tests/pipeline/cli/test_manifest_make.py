"""`manifest make` and `manifest stats`, as a user types them."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.manifests.squares import write_squares
from tests.pipeline.in_process import here


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    import manifests.boxes

    monkeypatch.setitem(manifests.boxes.PROPOSERS, "squares", "tests.manifests.squares:Squares")  # type: ignore[arg-type]
    monkeypatch.chdir(tmp_path)
    return write_squares(tmp_path / "pictures", 4)


def test_make_then_validate_then_stats(place: Path) -> None:
    (place / "bad.png").write_bytes(b"nothing")
    made = here("manifest", "make", place, "-o", "m.parquet", "--samples", "40", "--boxes", "squares", "--seed", "5")
    assert made.returncode == 0, made.stderr
    lines = made.stdout.splitlines()
    assert lines[0].startswith("wrote m.parquet: ")
    assert lines[0].endswith(" samples of 4 pictures")
    assert lines[1] == "left out, see skipped.parquet: image_undecodable 1"
    assert lines[-1] == "next: sgi2v-batch manifest validate m.parquet, sgi2v-batch manifest stats m.parquet"
    assert here("manifest", "validate", "m.parquet", "--strict").returncode == 0
    stats = here("manifest", "stats", "m.parquet", "-o", "out/s.png")
    assert stats.returncode == 0, stats.stderr
    assert "motions: " in stats.stdout
    assert stats.stdout.splitlines()[-1] == "wrote out/s.png"
    assert Image.open("out/s.png").size == (1640, 900)


def test_the_recipe_is_printed_and_options_win_over_it(place: Path) -> None:
    words: tuple[str, ...] = (
        "--samples",
        "8",
        "--motions",
        "line=0.5,pan=0.5",
        "--boxes",
        "squares",
        "--boxes-option",
        "unused=x.png",
    )
    words += ("--height", "432", "--width", "768", "--frames", "7")
    printed = here("manifest", "make", "--print-recipe", *words, "--still", "others", "--fit", "pad")
    Path("r.toml").write_text(printed.stdout)
    recipe = tomllib.loads(printed.stdout)
    assert recipe["sample"]["shares"] == {"line": 0.5, "pan": 0.5}
    assert [recipe["sample"][name] for name in ("height", "width", "frames")] == [432, 768, 7]
    assert recipe["boxes"] == {"name": "squares", "options": {"unused": "x.png"}}
    again = here("manifest", "make", "--recipe", "r.toml", "--print-recipe")
    assert again.stdout == printed.stdout
    made = here(
        "manifest",
        "make",
        place,
        "-o",
        "m.parquet",
        "--recipe",
        "r.toml",
        "--samples",
        "4",
        "--fit",
        "crop",
        "--width",
        "1024",
    )
    assert made.returncode == 0, made.stderr
    limited = here("manifest", "make", place, "-o", "n.parquet", "--recipe", "r.toml", "--per-image", "1")
    assert limited.stdout.splitlines()[1] == "8 samples were asked for, and --per-image allows 4"
    table = pq.read_table("m.parquet")
    assert table.num_rows == 4
    assert table.column("fit").unique().to_pylist() == ["crop"]
    assert {"still"} <= set(table.column_names)
    assert pq.read_table("skipped.parquet").column("code").to_pylist() == ["annotation_unused"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("pictures",), "give a PLACE of pictures or videos, and the manifest to write with --output"),
        (("-o", "m.parquet"), "give a PLACE of pictures"),
        (("pictures", "-o", "m.csv", "--boxes", "squares"), "m.csv must end with .parquet"),
        (("nowhere", "-o", "m.parquet"), "nowhere: there is no such folder or file"),
        (("pictures", "-o", "m.parquet", "--motions", "objects=0.7"), "the shares must add up to 1, not 0.7"),
        (("pictures", "-o", "m.parquet", "--motions", "lin=1"), "there is no motion 'lin' (did you mean line?)"),
        (("pictures", "-o", "m.parquet", "--boxes", "squars"), "there is no box proposer 'squars'"),
        (("pictures", "-o", "m.parquet", "--boxes-option", "x"), "--boxes-option x is not NAME=VALUE"),
        (("pictures", "-o", "m.parquet", "--recipe", "r.toml"), "the recipe r.toml cannot be read"),
        (("pictures", "-o", "m.parquet", "--samples", "0"), "--samples must be 1 or more, not 0"),
        (("pictures", "-o", "m.parquet", "--processes", "0"), "Invalid value for '--processes'"),
        (("pictures", "-o", "m.parquet", "--boxes", "masks"), "--boxes-option place is missing: give it"),
        (("pictures", "-o", "m.parquet", "--boxes", "whole"), "use it with --motions camera=1"),
        (
            ("pictures", "-o", "m.parquet", "--from-videos"),
            "no video's ending among its 4 files",
        ),
        (
            ("pictures", "-o", "m.parquet", "--from-videos", "--per-image", "2"),
            "--per-image has no effect on --from-videos: leave it out",
        ),
    ],
)
def test_make_refuses(place: Path, words: tuple[str, ...], message: str) -> None:
    refused = here("manifest", "make", *words)
    assert refused.returncode == 2
    assert message in refused.stderr
    assert not Path("m.parquet").exists()
