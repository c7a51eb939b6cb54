"""Runs on clusters whose nodes have few CPUs, no GPU yet, or join and leave; the GPUs are pretended."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil
import pytest

from pipeline.flow.meters import METERS
from pipeline.flow.stalls import waiting_in_ray
from pipeline.inspect.status import read_status
from tests.pipeline.conftest import free_ports
from tests.pipeline.runs import STAND_IN, TINY, Driver, started, until, write_good
from tests.stand_in import SECONDS

pytestmark = pytest.mark.whole

STORE_BYTES = 80 << 20
"""Object store of a node: the least that Ray takes, since the nodes share the memory of one machine."""
RUN_S = 240.0
ROOT = Path(__file__).parents[2]


@pytest.fixture
def start_cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    """Starts a cluster whose head has so many CPUs; a busy machine is given time to answer Ray's health checks."""
    from ray.cluster_utils import Cluster

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)  # Ray refuses a pretended GPU that is hidden
    for name in ("initial_delay", "timeout"):
        monkeypatch.setenv(f"RAY_health_check_{name}_ms", "60000")
    clusters = []

    def start(cpus: int, **more: Any) -> Cluster:
        node = {"num_cpus": cpus, "num_gpus": 0, "include_dashboard": False, "object_store_memory": STORE_BYTES, **more}
        clusters.append(Cluster(initialize_head=True, head_node_args=node))
        return clusters[0]

    yield start
    for cluster in clusters:
        cluster.shutdown()
    for raylet in raylets():
        raylet.kill()


def raylets() -> set[psutil.Process]:
    """The processes of this test's nodes."""
    children = psutil.Process().children(recursive=True)
    return {each for each in children if each.name() == "raylet" and each.status() != psutil.STATUS_ZOMBIE}


def join(cluster: Any, cpus: int, gpus: int) -> psutil.Process:
    """Start a node, and return its process. Ray gives it 30 s, which on a busy machine may take several attempts."""
    before = raylets()
    for _ in range(3):
        with suppress(Exception):
            cluster.add_node(num_cpus=cpus, num_gpus=gpus, object_store_memory=STORE_BYTES)
            break
    (raylet,) = raylets() - before
    return raylet


@contextmanager
def logged_run(cluster: Any, folder: Path, rows: int, *words: str) -> Iterator[tuple[Driver, Path]]:
    """A run on the cluster in the background, and the file that it writes its lines to."""
    manifest, log = write_good(folder, rows), folder / "log"
    line = ("run", manifest, "--output", folder / "out", *TINY, "--address", cluster.address, *words)
    with log.open("wb") as stream, started(*line, module=STAND_IN, stdout=stream, stderr=stream) as driver:
        yield driver, log


def workers_of(cluster: Any) -> dict[float, float]:
    """GPUs of each node -> those that workers have taken."""
    _, nodes = waiting_in_ray(cluster.address)
    return {node.total.get("GPU", 0.0): node.total.get("GPU", 0.0) - node.free.get("GPU", 0.0) for node in nodes}


FLOW = """
import json, sys
import pyarrow as pa
from pipeline.config import ExecutionConfig
from pipeline.flow.session import configure_ray_data, quiet_ray
quiet_ray()
import ray
from pipeline.flow import dataset
from pipeline.flow.dataset import one_row_blocks, stream, through
from pipeline.flow.pools import Needs, plan_pools

class Pass:
    def __init__(self):
        pass

    def __call__(self, table):
        return table

ray.init(address=sys.argv[1], log_to_driver=False)
configure_ray_data()
nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
pools = plan_pools(ExecutionConfig(), Needs.of_tracker("lucas-kanade"), 12, nodes, None)
dataset.ROWS_AT_ONCE = 5
rows = one_row_blocks(pa.table({"sample_id": [f"s{number}" for number in range(12)]}))
for pool in (pools.load, pools.generate, pools.commit):
    rows = through(rows, Pass, (), pool)
print(json.dumps([[node.get("CPU") for node in nodes], len(list(stream(rows)))]))
"""


def test_the_dataflow_ends_on_two_nodes_of_one_cpu(start_cluster: Callable[..., Any]) -> None:
    cluster = start_cluster(1)
    join(cluster, cpus=1, gpus=0)
    until("both nodes are there", lambda: len(waiting_in_ray(cluster.address)[1]) == 2)
    words = [sys.executable, "-c", FLOW, cluster.address]
    ended = subprocess.run(words, capture_output=True, text=True, check=False, timeout=RUN_S, cwd=ROOT)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1]) == [[1.0, 1.0], 12]


def test_a_run_takes_gpus_that_join_and_gives_up_those_that_leave(
    start_cluster: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECONDS, "2")
    cluster, rows = start_cluster(2), 60
    with logged_run(cluster, tmp_path, rows, "--gpus-per-worker", "1", "--workers", "1:4") as (driver, log):
        until("the run waits", lambda: "Asked Ray for 4 x (1 GPU and 1 CPU)" in log.read_text(), RUN_S)
        first = join(cluster, cpus=2, gpus=1)
        until("one worker has its GPU", lambda: workers_of(cluster) == {0.0: 0.0, 1.0: 1.0}, RUN_S)
        join(cluster, cpus=6, gpus=8)
        until("the others have theirs", lambda: workers_of(cluster) == {0.0: 0.0, 1.0: 1.0, 8.0: 3.0}, RUN_S)
        first.kill()
        assert driver.process.wait(RUN_S) == 0, log.read_text()
    assert f"{rows} made, 0 failed" in log.read_text()
    assert "(1 GPU and 2 CPU) is lost" in log.read_text()
    assert read_status(str(tmp_path / "out")).lost_nodes == 1


def test_the_agent_of_a_node_exports_the_metrics_of_a_run(
    start_cluster: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SECONDS, "4")
    (port,) = free_ports(("metrics",)).values()
    cluster = start_cluster(2, metrics_export_port=port)
    suffix = {"counter": "_total", "gauge": "", "histogram": "_count"}
    expected = {f"ray_{name}{suffix[meter.kind]}" for name, meter in METERS.items()} - {"ray_sgi2v_lost_nodes_total"}

    def has_all() -> bool:
        with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            lines = answer.read().decode().splitlines()
            return expected <= {line.partition("{")[0] for line in lines if f'output="{tmp_path / "out"}"' in line}
        return False

    with logged_run(cluster, tmp_path, 30, "--workers", "1") as (_, log):
        until("the agent has them all", has_all, RUN_S)
    assert "error" not in log.read_text()
