"""`evaluate --compare`: pairs, intervals, Holm, groups, and what is refused."""

import json

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.evaluate.compare import compare_sides
from pipeline.evaluate.compared import ASKED, Compared
from pipeline.evaluate.published import CAVEAT, PUBLISHED
from pipeline.evaluate.ranks import kendall, spearman
from pipeline.evaluate.statistics import holm, interval, p_value
from tests.pipeline.in_process import here

VERSIONS = {"metrics_version": "objmc/v2", "tracker": "lucas-kanade", "tracker_version": "2"}


def side(name, objmc, images=None, **columns):
    """A side whose samples s0, s1, ... have these ObjMC."""
    count = len(objmc)
    samples = pd.DataFrame({"objmc_px": objmc, **columns}, dtype=float, index=[f"s{n}" for n in range(count)])
    samples["image_key"] = images or [f"i{n}" for n in range(count)]
    samples["paths"] = "the same"
    samples["num_frames"] = 14
    for column in ASKED:
        if column not in samples:
            samples[column] = pd.Series([None] * count, index=samples.index, dtype=object)
    return Compared(name, f"/{name}", samples, VERSIONS, 0)


def metric(comparison, name="objmc_px", pair=0):
    return next(row for row in comparison["pairs"][pair]["metrics"] if row["metric"] == name)


def test_seeds_of_an_image_are_averaged_before_images_are():
    base = side("a", [10, 10, 10, 10], images=["x", "x", "x", "y"])
    other = side("b", [4, 4, 4, 12], images=["x", "x", "x", "y"])
    row = metric(compare_sides([base, other]))
    assert (row["samples"], row["images"]) == (4, 2)
    assert row["difference"] == pytest.approx((-6 + 2) / 2)  # not the mean over samples, -4
    assert (row["wins"], row["ties"], row["losses"]) == (1, 0, 1)
    assert (row["base_mean"], row["other_mean"]) == (10, 8)


def test_wins_follow_the_direction_of_the_metric():
    base = side("a", [2, 2, 2], control_gain=[0.5, 0.5, 0.5])
    other = side("b", [3, 2, 1], control_gain=[0.6, 0.5, 0.7])
    comparison = compare_sides([base, other])
    assert [metric(comparison)[name] for name in ("wins", "ties", "losses")] == [1, 1, 1]
    assert [metric(comparison, "control_gain")[name] for name in ("wins", "ties", "losses")] == [2, 1, 0]


def test_nulls_are_counted_and_leave_the_pair_out():
    nan = np.nan
    comparison = compare_sides([side("a", [1, nan, 3, 4]), side("b", [nan, nan, 5, 5])])
    row = metric(comparison)
    assert (row["samples"], row["base_null_rate"], row["other_null_rate"]) == (2, 0.25, 0.5)
    assert row["difference"] == pytest.approx(1.5)
    empty = metric(compare_sides([side("a", [nan, nan]), side("b", [nan, 1])]))
    assert (empty["difference"], empty["interval"], empty["p"], empty["images"]) == (None, None, None, 0)


def test_one_shared_sample_has_no_interval():
    comparison = compare_sides([side("a", [1, 2]), side("b", [3])])
    row = metric(comparison)
    assert (comparison["samples"], row["difference"], row["interval"], row["p"]) == (1, 2, None, None)
    assert "all samples are of one image" in comparison["notes"][0]


def test_the_interval_holds_the_mean_and_shrinks_with_the_number_of_images():
    differences = np.random.default_rng(0).normal(1.0, 2.0, 400)
    low, high = interval(differences)
    half = 1.96 * differences.std() / np.sqrt(400)
    assert (low, high) == pytest.approx((differences.mean() - half, differences.mean() + half), abs=0.03)
    assert interval(differences[:1]) is None


def test_p_values_by_changed_signs():
    assert p_value(np.ones(8)) == pytest.approx(2 / 2**8)  # all signs alike: 2 of 256 choices are as far off
    assert p_value(np.array([1.0, -1.0])) == 1.0
    assert p_value(np.ones(200)) < 0.001
    uniform = [p_value(np.random.default_rng(seed).normal(0, 1, 30)) for seed in range(60)]
    assert 0.3 < np.mean(uniform) < 0.7


def test_holm_multiplies_the_smallest_most():
    assert holm([0.01, 0.04, None, 0.03]) == pytest.approx([0.03, 0.06, None, 0.06], nan_ok=True)
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_groups_by_what_was_asked():
    asked = {
        "asked_displacement": [0.01, 0.1, 0.3, 0.3],
        "asked_size": [0.05, 0.15, 0.3, 0.3],
        "num_moving": [1, 2, 3, 4],
        "asks_camera": [0, 0, 1, 1],
    }
    comparison = compare_sides([side("a", [1, 1, 1, 1], **asked), side("b", [1, 2, 3, 5], **asked)])
    strata = comparison["pairs"][0]["strata"]
    found = {
        kind: {group: metric({"pairs": [{"metrics": rows}]})["difference"] for group, rows in groups.items()}
        for kind, groups in strata.items()
    }
    assert found == {
        "displacement, of the diagonal": {"under 5 %": 0, "5 to 15 %": 1, "15 % or more": 3},
        "object's side, of the frame's": {"under 10 %": 0, "10 to 20 %": 1, "20 % or more": 3},
        "objects that move": {"1": 0, "2": 1, "3 or more": 3},
        "camera": {"asked to move": 3, "still": 0.5},
    }


def test_samples_that_were_asked_for_other_paths_are_left_out():
    base, other = side("a", [1, 1]), side("b", [2, 5])
    other.samples.loc["s1", "paths"] = "another path"
    other.samples["num_frames"] = 25
    comparison = compare_sides([base, other])
    assert comparison["samples"] == 1
    assert any("1 samples were asked for other boxes or paths" in note for note in comparison["notes"])
    assert any("other numbers of frames" in note for note in comparison["notes"])


def test_rank_coefficients():
    first = np.array([1.0, 2, 3, 4, 5])
    assert spearman(first, first**3) == pytest.approx(1)
    assert kendall(first, -first) == pytest.approx(-1)
    # by hand: ranks 0 1 2 3 4 and 1 0 2 3 4: 1 - 6 * 2 / (5 * 24); one of ten pairs is turned
    turned = np.array([2.0, 1, 3, 4, 5])
    assert spearman(first, turned) == pytest.approx(0.9)
    assert kendall(first, turned) == pytest.approx(0.8)
    # by hand, with a tie: pairs 4 alike, 0 turned, 1 tied in the second: 4 / sqrt(6 * 5) with one more turned none
    tied = np.array([1.0, 1, 2, 3])
    assert kendall(np.array([1.0, 2, 3, 4]), tied) == pytest.approx(5 / np.sqrt(6 * 5))
    assert spearman(first, np.ones(5)) is None


def evaluation(folder, objmc, version="objmc/v2"):
    """A folder that looks as `evaluate` leaves it."""
    folder.mkdir()
    content = {"program": "sgi2v-batch evaluate", "deciding": {}, "summary": {}}
    (folder / "evaluation.json").write_text(json.dumps(content))
    count = len(objmc)
    columns = {
        "sample_id": [f"s{n}" for n in range(count)],
        "image_sha256": [f"i{n}" for n in range(count)],
        "num_frames": [14] * count,
        "objmc_px": pa.array(objmc, pa.float64()),
        "metrics_version": [version] * count,
        "tracker": ["lucas-kanade"] * count,
        "tracker_version": ["2"] * count,
        **{name: pa.array([1.0] * count) for name in ASKED},
    }
    pq.write_table(pa.table(columns), folder / "metadata.parquet")
    return folder


def test_the_command_writes_a_page_values_and_a_picture(tmp_path):
    first, second = evaluation(tmp_path / "a", [1.0, 2, 3]), evaluation(tmp_path / "b", [0.5, 1, None])
    third = evaluation(tmp_path / "c", [1.0, 2, 3])
    done = here("evaluate", "--compare", first, second, third, "-o", tmp_path / "out", "--published")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "out" / "comparison.md").read_text()
    assert "| `objmc_px`, px | lower | 1.500 | 0.750 | -0.750 [" in page
    assert "## c against a" in page
    assert CAVEAT in page
    ours, published = page.split("## As published")
    assert all(row[-1] not in ours for table in PUBLISHED for row in table.rows)
    assert published.count("*as published*") == sum(len(table.rows) for table in PUBLISHED)
    values = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert values["pairs"][0]["metrics"][0]["images"] == 2
    assert Image.open(tmp_path / "out" / "comparison.png").width > 800
    assert CAVEAT not in here("evaluate", "--compare", first, second, "-o", tmp_path / "out").stdout


def test_what_cannot_be_compared_is_refused(tmp_path):
    first, old = evaluation(tmp_path / "a", [1.0]), evaluation(tmp_path / "old", [1.0], "objmc/v1")
    other = evaluation(tmp_path / "other", [1.0])
    table = pq.read_table(other / "metadata.parquet").drop_columns("sample_id").append_column("sample_id", [["t9"]])
    pq.write_table(table, other / "metadata.parquet")
    (tmp_path / "nothing").mkdir()
    words = {
        (first, old): "metrics_version is objmc/v1 there and objmc/v2 here",
        (first, other): "no sample id is in all of them: a has s0; other has t9",
        (first, tmp_path / "nothing"): "is neither an output nor an evaluation",
        (first,): "needs two outputs",
        (first, first): "has one location twice",
        (first, other, "--tracker", "tapir"): "--tracker has no effect with --compare",
    }
    for given, message in words.items():
        done = here("evaluate", "--compare", *given, "-o", tmp_path / "out")
        assert (done.returncode, message in done.stderr) == (2, True), (given, done.stderr)
