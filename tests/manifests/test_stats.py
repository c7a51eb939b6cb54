"""What is counted of a manifest, and that it is drawn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from manifests.io import write_manifest
from manifests.recipe import METADATA_KEY, Recipe
from manifests.schema import EXTENSION_SCHEMA, MANIFEST_SCHEMA
from manifests.stats import ASKED, DIRECTIONS, MADE, SHARES, Asked, draw_stats, measure
from tests.manifests.rows import row, table

BOX = [10.0, 10.0, 30.0, 30.0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (80, 60)).save(tmp_path / "cat.png")  # its diagonal is 100
    return tmp_path


def moved(sample_id: str, *paths: list[list[float]], **values: Any) -> dict[str, Any]:
    """A row whose boxes go along these paths."""
    return row(sample_id=sample_id, image="cat.png", boxes=[BOX] * len(paths), trajectories=list(paths), **values)


def test_a_manifest_without_a_recipe_is_counted(folder: Path) -> None:
    right, down = [[20.0, 20.0], [30.0, 20.0], [30.0, 20.0]], [[20.0, 20.0], [20.0, 30.0], [20.0, 40.0]]
    back = [[20.0, 20.0], [20.0, 0.0], [20.0, 20.0]]
    rows = [moved("a", right), moved("b", down, back), moved("c", [[20.0, 20.0], [20.0, 20.0]])]
    rows += [moved("gone", right) | {"image": "none.png"}, row(sample_id="bad", boxes=None)]
    write_manifest(table(*rows), str(folder / "m.csv"))
    stats = measure(str(folder / "m.csv"))
    assert (stats.rows, stats.invalid, stats.unmeasured) == (4, 1, 1)
    assert stats.boxes == {1: 3, 2: 1}
    assert stats.motions["moves"] == 4
    assert stats.motions["on the spot"] == 1
    assert {n: count for n, count in enumerate(stats.directions) if count} == {
        0: 1,
        DIRECTIONS // 4: 1,
        DIRECTIONS * 3 // 4: 1,
    }
    lengths = {round(float(SHARES[n]), 2): count for n, count in enumerate(stats.lengths) if count}
    assert lengths == {0.1: 1, 0.2: 1, 0.4: 1}
    assert stats.starts.sum() == 4
    assert stats.starts[6, 8] == 4  # (20, 20) of 80 x 60, in 32 x 18 cells
    assert stats.sizes.sum() == 4
    lines = list(stats.lines())
    assert lines[:3] == [
        "4 rows: 3 with 1 object, 1 with 2 objects",
        "1 row left out: see sgi2v-batch manifest validate",
        "1 row without a picture that can be read: only counted",
    ]
    assert draw_stats(stats, "m.csv").size == (1640, 900)


def test_still_boxes_masks_and_fit_are_counted(folder: Path) -> None:
    path = [[20.0, 20.0], [30.0, 20.0]]
    rows = [
        moved("a", path, path) | {"still": [False, True], "masks": [b"x", None], "fit": "pad"},
        moved("b", path, path) | {"trajectories": [None, path], "still": [True, False], "masks": None, "fit": None},
        moved("c", path) | {"boxes": None},
    ]
    schema = pa.schema([*MANIFEST_SCHEMA, *EXTENSION_SCHEMA])
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "m.parquet")
    stats = measure(str(folder / "m.parquet"))
    assert (stats.rows, stats.invalid, stats.still, stats.motions) == (2, 1, 2, {"moves": 2})
    assert list(stats.lines())[-3:] == ["0 background boxes, 2 still boxes", "boxes with a mask: 1", "fit: pad 1"]


def test_a_recipe_is_drawn_beside(folder: Path) -> None:
    recipe = Recipe.parse({"sample": {"shares": {"line": 0.5, "pan": 0.5}}, "motion": {"objects": [1]}})
    asked = {"name": "line", "direction": 0.0, "length": 0.1, "speed": 0.1, "easing": "linear"}
    path = [[20.0, 20.0], [30.0, 20.0]]
    rows = [
        moved("a", path, path)
        | {"recipe": json.dumps({"frame": [80, 60], "objects": [asked]}), "still": [False, True]},
        moved("b", path, path)
        | {"recipe": json.dumps({"frame": [80, 60], "camera": {"name": "pan"}}), "still": [False] * 2},
        moved("drawn", path) | {"recipe": None},
        moved("other", path) | {"recipe": '{"source":"videos"}'},
    ]
    fields = [*MANIFEST_SCHEMA, pa.field("recipe", pa.string()), pa.field("still", pa.list_(pa.bool_()))]
    schema = pa.schema({field.name: field.type for field in fields}, metadata={METADATA_KEY: recipe.json()})
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "m.parquet")
    stats = measure(str(folder / "m.parquet"))
    assert stats.recipe == recipe
    assert (stats.still, stats.background) == (1, 2)
    assert (stats.motions, stats.moves, stats.boxes) == ({"line": 1, "moves": 2}, {"pan": 1}, {1: 3, 0: 1})
    assert stats.directions.sum() == 3
    picture = np.asarray(draw_stats(stats, "m.parquet"))
    for colour in (MADE, ASKED):
        assert (picture == colour).all(2).sum() > 500


def test_what_a_recipe_asks_for_adds_up_to_one() -> None:
    recipe = Recipe.parse({"sample": {"shares": {"line": 0.4, "swap": 0.2, "pan": 0.4}}, "motion": {"objects": [1, 3]}})
    asked = Asked.of(recipe)
    assert asked.boxes == pytest.approx({1: 0.2, 3: 0.2, 2: 0.2, 0: 0.4})
    assert asked.motions == pytest.approx({"line": 0.8 / 1.2, "swap": 0.4 / 1.2})
    assert asked.moves == {"pan": 1}
    for shares in (asked.lengths, asked.speeds, asked.sizes):
        assert shares.sum() == pytest.approx(1)


def test_a_manifest_without_boxes_is_drawn(folder: Path) -> None:
    write_manifest(table(moved("a")), str(folder / "m.parquet"))
    stats = measure(str(folder / "m.parquet"))
    assert stats.boxes == {0: 1}
    assert draw_stats(stats, "m.parquet").width == 1640


def test_rows_of_another_source_and_wrong_lists_of_still_do_not_end_it(folder: Path) -> None:
    path = [[20.0, 20.0], [30.0, 20.0]]
    own = json.dumps({"frame": [80, 60], "objects": [{"name": "line"}]})
    recipes = [
        own,
        None,
        "no JSON",
        '{"source": "videos"}',
        "[]",
        '{"frame": [0, 0]}',
        '{"frame": [80, 60], "objects": 5}',
    ]
    rows = [moved(f"s{n}", path, recipe=recipe) for n, recipe in enumerate(recipes)]
    rows.append(moved("wrong", path, recipe=own, still=[False, True]))
    schema = pa.schema([*MANIFEST_SCHEMA, pa.field("recipe", pa.string()), pa.field("still", pa.list_(pa.bool_()))])
    joined = pa.Table.from_pylist(rows, schema=schema).replace_schema_metadata({METADATA_KEY: Recipe().json()})
    pq.write_table(joined, folder / "m.parquet")
    stats = measure(str(folder / "m.parquet"))
    assert (stats.rows, stats.invalid) == (7, 1)
    assert stats.motions == {"line": 1, "moves": 6}
