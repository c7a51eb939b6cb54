"""Outputs of `run`: measured again, and compared as they are."""

import json

import pyarrow.parquet as pq
import pytest

from sgi2v.metrics.objmc import METRICS_VERSION
from tests.pipeline.in_process import here, run_tiny_here
from tests.pipeline.in_process import without_ray as runs_without_ray
from tests.pipeline.runs import write_good

pytestmark = pytest.mark.usefixtures("without_ray")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory):
    """The same three rows, with black bars beside their pictures and without."""
    folder = tmp_path_factory.mktemp("outputs")
    manifest = write_good(folder, 3)
    with runs_without_ray():
        for name, words in (("plain", ()), ("wide", ("--width", "128", "--fit", "pad"))):
            done = run_tiny_here(manifest, folder / name, *words)
            assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "wide"])
def test_an_output_that_is_measured_again_has_the_same_values(outputs, tmp_path, name):
    done = here("evaluate", outputs / name, "-o", tmp_path / "again")
    assert done.returncode == 0, done.stderr
    recorded = pq.read_table(outputs / name / "metadata.parquet").to_pylist()
    again = {each["sample_id"]: each for each in pq.read_table(tmp_path / "again" / "metadata.parquet").to_pylist()}
    for each in recorded:
        same = ("objmc_px", "null_reason", "background_change", "first_frame_psnr_db", "flicker", "video_sha256")
        same += ("source_box", "picture_box", "image_sha256", "tracker_version", "objmc_px_per_box", "fps")
        assert {key: again[each["sample_id"]][key] for key in same} == {key: each[key] for key in same}
    asked = again["s00"]["asked_displacement"]
    assert asked == pytest.approx(16 / (64**2 + 64**2) ** 0.5)  # of the part that shows the picture


@pytest.mark.slow
def test_outputs_are_compared_as_they_are(outputs, tmp_path):
    done = here("evaluate", "--compare", outputs / "plain", outputs / "wide", "-o", tmp_path / "comparison")
    assert done.returncode == 0, done.stderr
    values = json.loads((tmp_path / "comparison" / "comparison.json").read_text())
    assert (values["samples"], values["images"]) == (3, 3)
    assert values["versions"]["metrics_version"] == METRICS_VERSION
    assert list(values["pairs"][0]["strata"]["objects that move"]) == ["1"]
    assert list(values["pairs"][0]["strata"]["displacement, of the diagonal"]) == ["15 % or more"]
