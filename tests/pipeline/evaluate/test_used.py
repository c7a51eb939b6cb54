"""What `evaluate` made of other people's videos: `select`, `export` and `report` take it as they take an output."""

import json
import re

import pyarrow.parquet as pq
import pytest

from pipeline.output.metrics import metric
from tests.pipeline.evaluate.videos import STEP, evaluate_without_ray, folder_of
from tests.pipeline.in_process import here


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A folder with `videos`, of which the first follows its path best, and their `evaluation`."""
    folder = tmp_path_factory.mktemp("used")
    folder_of(folder / "videos", [STEP, STEP - 1, 0])
    words = ("--protocol", "objmc/v2", "--protocol", "mc-bench/md-vid")
    with evaluate_without_ray():
        done = here("evaluate", folder / "videos", "-o", folder / "evaluation", *words)
    assert done.returncode == 0, done.stderr
    return folder


def test_its_best_videos_are_exported(world, tmp_path):
    chosen = tmp_path / "chosen.parquet"
    done = here("select", world / "evaluation", "--top", "2", "--by", "md_vid_px", "-o", chosen)
    assert done.returncode == 0, done.stderr
    assert pq.read_table(chosen)["sample_id"].to_pylist() == ["s0", "s1"]  # a distance: the lowest are the best
    for words in (("--link",), ()):
        target = tmp_path / f"export{len(words)}"
        done = here("export", chosen, "--format", "videofolder", "-o", target, *words)
        assert done.returncode == 0, done.stdout + done.stderr
        for name in ("s0", "s1"):
            (file,) = target.rglob(f"{name}.mp4")
            assert not file.is_symlink()
            assert file.read_bytes() == (world / "videos" / f"{name}.mp4").read_bytes()
        assert here("verify", target).returncode == 0
        assert "Videos that exist, measured by `sgi2v-batch evaluate`" in (target / "README.md").read_text()


def test_a_video_elsewhere_is_not_read(world, tmp_path):
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    table = pq.read_table(world / "evaluation" / "metadata.parquet")
    names = ["s3://bucket/s0.mp4", "videos/s0.mp4", "../videos/s2.mp4"]
    position = table.column_names.index("file_name")
    pq.write_table(table.set_column(position, "file_name", [names]), evaluation / "metadata.parquet")
    done = here("export", evaluation, "--format", "videofolder", "-o", tmp_path / "export")
    assert done.returncode == 1
    assert "s0: its video is at s3://bucket/s0.mp4, and an export reads only what is below" in done.stdout
    assert "3 samples could not be exported" in done.stdout


@pytest.mark.slow
def test_its_report_tells_metrics_from_the_manifests_columns(world):
    done = here("report", world / "evaluation")
    assert done.returncode == 0, done.stderr
    (script,) = (world / "evaluation-report").glob("data/*/index.js")
    index = json.loads(re.fullmatch(r"sgi2vIndex\((.*)\);", script.read_text(), re.DOTALL)[1])
    columns = {column["name"]: column for column in index["columns"]}
    assert (columns["md_vid_px"]["group"], columns["md_vid_px"]["better"]) == ("Metrics", "lower")
    assert columns["objmc_px"]["group"] == "Metrics"
    assert all(index["thumbs"])
    page = (world / "evaluation-report" / "index.html").read_text()
    assert "videos measured" in page
    assert "mean over 3 samples" in page


def test_metrics_of_other_trackers_are_metrics():
    assert metric("md_vid_px__tapir")[:2] == ("px of the picture", "lower")
    assert "measured with tapir" in metric("objmc_px__tapir")[2]
    assert metric("baseline_objmc_px")[1] == ""
    assert metric("category") is None
