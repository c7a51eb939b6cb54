"""Recipes: what they refuse, and that what is printed can be read again."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest

from manifests.recipe import Recipe, bin_range, parse_shares, read_recipe
from sgi2v.errors import ConfigError
from tests.manifests.squares import Squares


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"sample": {"shares": {"objets": 1.0}}}, "there is no motion 'objets' (did you mean objects?)"),
        ({"sample": {"shares": {"objects": 0.7, "camera": 0.2}}}, "must add up to 1, not 0.9: objects 0.7, camera 0.2"),
        ({"sample": {"shares": {"objects": 1.5, "camera": -0.5}}}, "the share of objects must be from 0 to 1, not 1.5"),
        ({"sample": {"shares": {}}}, "must add up to 1, not 0"),
        ({"sample": {"samples": 0}}, "sample.samples must be 1 or more, not 0"),
        ({"sample": {"fit": "squeeze"}}, "sample.fit must be one of crop, pad, stretch, bucket, not 'squeeze'"),
        ({"motion": {"motions": ["lines"]}}, "there is no motion 'lines' (did you mean line?)"),
        ({"motion": {"motions": ["replay"]}}, "motion.tracks is missing"),
        ({"motion": {"lengths": [0.3, 0.1]}}, "motion.lengths must rise, such as [0.1, 0.3], not [0.3, 0.1]"),
        ({"motion": {"easings": ["bounce"]}}, "there is no easing 'bounce'"),
        (
            {"motion": {"speeds": [0.01, 0.02]}},
            "no speed of motion.speeds is enough for motion.lengths in a clip of 1.86 s",
        ),
        ({"camera": {"moves": ["zoom"]}}, "there is no camera move 'zoom'"),
        ({"camera": {"rows": 20, "columns": 20}}, "is 400: make the grid at most 128 boxes"),
        ({"camera": {"turns": [20.0, 5.0]}}, "camera.turns must rise"),
        ({"camra": {}}, "unknown section [camra] (did you mean camera?)"),
        ({"motion": 3}, "motion must be a section of settings, not 3"),
        ({"motion": {"sizes": [0.1, 0.05]}}, "they must rise, not [0.1, 0.05]"),
    ],
)
def test_what_a_recipe_refuses(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Recipe.parse(sections)
    assert message in str(caught.value)


def test_a_printed_recipe_is_the_same_recipe(tmp_path: Path) -> None:
    recipe = Recipe.parse(
        {
            "sample": {"seed": 3, "shares": {"line": 0.5, "dolly-in": 0.5}, "fit": "pad", "samples": 10},
            "boxes": {"name": "masks", "options": {"place": 'é "x" \\ 🙂', "background": [0, 1], "crowd": False}},
            "motion": {"stay_inside": False, "tracks": "t.parquet", "motions": ["replay", "swap"]},
        }
    )
    (tmp_path / "r.toml").write_text(recipe.toml())
    again = Recipe.parse(read_recipe(str(tmp_path / "r.toml")))
    assert again == recipe
    assert again.json() == recipe.json()
    assert Recipe.parse(tomllib.loads(Recipe().toml())) == Recipe()


def test_a_recipe_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text("[sample\n")
    for path in (tmp_path / "r.toml", tmp_path / "none.toml"):
        with pytest.raises(ConfigError, match=f"the recipe {path} cannot be read"):
            read_recipe(str(path))


def test_shares_of_the_command_line() -> None:
    assert parse_shares("objects=0.7, camera=0.3") == {"objects": 0.7, "camera": 0.3}
    for text in ("objects", "objects=", "objects=0.7,", "objects=x"):
        with pytest.raises(ConfigError, match=r"must be like objects=0\.7,camera=0\.3"):
            parse_shares(text)


def test_strata_that_the_clip_has_no_time_for_are_left_out() -> None:
    lengths, speeds = [0.1, 0.5], [0.1, 0.3]
    recipe = Recipe.parse({"motion": {"lengths": lengths, "length_bins": 2, "speeds": speeds, "speed_bins": 2}})
    assert recipe.cells["motion"] == [(0, 0), (0, 1), (1, 1)]
    assert bin_range((0.1, 0.5), 2, 1) == pytest.approx((0.3, 0.5))


def test_shares_go_to_every_motion_of_a_group() -> None:
    motion, camera = {"motions": ["line", "swap"]}, {"moves": ["pan", "roll"]}
    shares = {"objects": 0.4, "camera": 0.2, "both": 0.2, "line": 0.1, "static": 0.1}
    recipe = Recipe.parse({"sample": {"shares": shares}, "motion": motion, "camera": camera})
    assert recipe.kinds == pytest.approx(
        {
            ("line", None): 0.3,
            ("swap", None): 0.2,
            (None, "pan"): 0.1,
            (None, "roll"): 0.1,
            **{(motion, move): 0.05 for motion in ("line", "swap") for move in ("pan", "roll")},
            (None, "static"): 0.1,
        }
    )
    assert recipe.single_motions == ["line"]


def test_the_options_of_the_proposer_are_written_down() -> None:
    assert Recipe().with_boxes(Squares(unused="a.png")).boxes.options == {"unused": "a.png"}


def test_shares_and_zooms_that_say_something_else_than_they_seem_to() -> None:
    with pytest.raises(ConfigError, match="--motions names line twice"):
        parse_shares("line=0.5,pan=0.5,line=0.5")
    with pytest.raises(ConfigError, match=r"motion\.zoom.* must be 1.0 or more"):  # `towards` would go away
        Recipe.parse({"motion": {"zoom": [0.5, 0.9]}})
