"""How many actors measure, what they reserve, and the flow with Ray."""

import pyarrow.parquet as pq
import pytest

from pipeline.config import ExecutionConfig
from pipeline.flow.measuring import plan_measurers
from pipeline.flow.pools import NoRoomError
from tests.pipeline.evaluate.videos import folder_of
from tests.pipeline.runs import cli

LK, BOTH = ("lucas-kanade",), ("lucas-kanade", "tapir")


@pytest.mark.parametrize(
    ("execution", "trackers", "rows", "nodes", "size", "gpus", "words"),
    [
        ({}, LK, 1000, [{"CPU": 8}], 6, 0.0, "no GPU needed"),
        ({}, LK, 3, [{"CPU": 8}], 3, 0.0, "no GPU needed"),
        ({"workers": 2}, LK, 1000, [{"CPU": 8}], 2, 0.0, "no GPU needed"),
        ({"workers": 50}, LK, 1000, [{"CPU": 8}], 6, 0.0, "no GPU needed"),
        ({}, BOTH, 1000, [{"CPU": 8, "GPU": 1}, {"CPU": 8, "GPU": 1}], 4, 0.5, "0.5 GPU each"),
        ({}, BOTH, 1000, [{"CPU": 4}], 2, 0.0, "no GPU for tapir: on CPUs this is slow"),
    ],
)
def test_as_many_actors_as_the_nodes_hold(execution, trackers, rows, nodes, size, gpus, words):
    pool, note = plan_measurers(ExecutionConfig(**execution), trackers, rows, nodes)
    assert (pool.min_size, pool.max_size, pool.num_gpus, note) == (size, size, gpus, words)


def test_a_cluster_without_a_free_cpu_is_refused():
    with pytest.raises(NoRoomError, match=r"Ray has 1 CPU, and measuring needs 1\.2 or more"):
        plan_measurers(ExecutionConfig(), LK, 5, [{"CPU": 1}])


@pytest.mark.slow
@pytest.mark.whole
def test_videos_are_measured_with_ray(tmp_path):
    folder = folder_of(tmp_path / "videos", [3, 0, 1])
    done = cli("evaluate", folder, "-o", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    table = pq.read_table(tmp_path / "out" / "metadata.parquet")
    assert table["sample_id"].to_pylist() == ["s0", "s1", "s2"]
    assert table["objmc_px"].null_count == 0
