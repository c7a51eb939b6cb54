"""How many actors a run gets on a cluster, and what they reserve; without Ray."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.config import ExecutionConfig, RunConfig, resolve
from pipeline.flow.pools import LOADER_CPUS, PROCESS_BYTES, RAY_DATA_CPUS, Needs, Pool, Pools, plan_pools, worker_bytes
from sgi2v.errors import ConfigError

GIB = float(2**30)
CPU_NODE = {"CPU": 8.0, "memory": 16 * GIB}
GPU_NODE = {"CPU": 8.0, "GPU": 1.0, "memory": 64 * GIB}
LUCAS_KANADE = Needs.of_tracker("lucas-kanade")
NEURAL = Needs("neural", num_cpus=1.0, num_gpus=0.25)
"""A tracker that runs on a GPU."""


def plan(
    *nodes: dict[str, float], rows: int = 100, memory: int | None = None, needs: Needs = LUCAS_KANADE, **execution: Any
) -> Pools:
    return plan_pools(ExecutionConfig(**execution), needs, rows, nodes, memory)


def config(**run: Any) -> RunConfig:
    return resolve("m.parquet", "out", {}, {"model": {"source": "embedded"}, "run": run})[0]


def test_each_gpu_gets_a_worker() -> None:
    pools = plan(GPU_NODE, GPU_NODE, CPU_NODE)
    assert pools.generate == Pool(2, 2, num_cpus=1.0, num_gpus=1.0)
    assert (pools.device, pools.note) == ("cuda", "1 GPU per worker")
    assert plan(GPU_NODE, GPU_NODE, rows=1).workers == 1


def test_a_worker_is_never_split_over_nodes() -> None:
    with pytest.raises(ConfigError, match=r"no node .* has 2 GPUs and a CPU: give --gpus-per-worker 1 or less"):
        plan(GPU_NODE, GPU_NODE, gpus_per_worker=2)
    three = {**GPU_NODE, "GPU": 3.0}
    assert plan(three, three, gpus_per_worker=2).workers == 2
    assert plan(GPU_NODE, GPU_NODE, gpus_per_worker=0.1).workers == 20


def test_the_note_says_that_there_are_fewer_gpus_than_workers() -> None:
    pools = plan(GPU_NODE, workers=4)
    assert (pools.workers, pools.note) == (1, "1 GPU per worker, too few GPUs for the 4 workers asked for")
    assert plan(GPU_NODE, workers=4, rows=1).note == "1 GPU per worker"


@pytest.mark.parametrize(
    "nodes",
    [
        ({"CPU": 2.0, "GPU": 1.0},),
        ({"CPU": 4.0, "GPU": 8.0},),
        ({"CPU": 64.0}, {"CPU": 1.0, "GPU": 1.0}),
        ({"CPU": 64.0}, {"CPU": 2.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 1.0}),
    ],
)
def test_the_cpu_share_of_a_gpu_worker_fits_on_each_node(nodes: tuple[dict[str, float], ...]) -> None:
    pools = plan(*nodes)
    assert pools.workers == sum(node.get("GPU", 0) for node in nodes)
    for node in nodes:
        spare = node["CPU"] - node.get("GPU", 0) * pools.generate.num_cpus
        assert spare >= (LUCAS_KANADE.reserved_cpus if node["CPU"] >= 2 else node["CPU"] / 2) - 1e-9
    assert 0 < pools.generate.num_cpus <= 1


def test_without_a_gpu_the_workers_take_the_cpus() -> None:
    pools = plan(CPU_NODE)
    assert (pools.workers, pools.device, pools.note) == (6, "cpu", "no GPU, 1 CPU thread per worker")
    assert plan(CPU_NODE, gpus_per_worker=1).note == (
        "no GPU (--gpus-per-worker 1 has no effect), 1 CPU thread per worker"
    )
    assert plan(GPU_NODE, gpus_per_worker=0).device == "cpu"
    many = plan(CPU_NODE, workers=20)
    assert many.workers == 20
    assert many.workers * many.generate.num_cpus + LUCAS_KANADE.reserved_cpus <= 8
    with pytest.raises(ConfigError, match="the Ray cluster has 1 CPU, and a run needs 2 or more"):
        plan({"CPU": 1.0})


def test_memory_limits_the_default_number_of_workers() -> None:
    pools = plan(CPU_NODE, memory=int(5 * GIB))
    assert pools.workers == 3
    assert pools.note == "no GPU, 1 CPU thread per worker, limited by memory at 5.0 GiB each"
    assert plan(CPU_NODE, memory=int(5 * GIB), rows=2).note == "no GPU, 1 CPU thread per worker"
    assert plan(CPU_NODE, memory=int(50 * GIB)).workers == 1
    assert plan(CPU_NODE, memory=int(5 * GIB), workers=6).workers == 6


def test_a_worker_on_this_machine_needs_its_weights_and_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    size = worker_bytes(config())
    assert size is not None
    assert PROCESS_BYTES < size < 2 * PROCESS_BYTES
    assert worker_bytes(config(address="head:6379")) is None


def test_the_cpus_of_a_tracker_are_kept_free_of_workers() -> None:
    needs = Needs("heavy", num_cpus=2.0, num_gpus=0.0)
    pools = plan(CPU_NODE, needs=needs)
    assert needs.reserved_cpus == RAY_DATA_CPUS + LOADER_CPUS + 2
    assert (pools.workers, pools.commit.num_cpus) == (4, 2.0)
    assert plan(GPU_NODE, needs=needs).generate.num_cpus == 1.0
    assert plan({"CPU": 4.0, "GPU": 2.0}, needs=needs).generate.num_cpus == (4 - needs.reserved_cpus) / 2
    with pytest.raises(ConfigError, match=r"the Ray cluster has 2 CPU, and a run needs 3\.75 or more"):
        plan({"CPU": 2.0}, needs=needs)


@pytest.mark.parametrize(
    ("gpus", "per_worker", "workers", "committers"),
    [
        ((1.0,), 0.75, 1, 1),
        ((1.0, 1.0), 1.0, 1, 4),
        ((1.0, 1.0), 0.5, 3, 2),
        ((8.0,), 0.5, 15, 2),
        ((8.0,), 0.75, 10, 2),
        ((1.0, 4.0), 1.0, 4, 4),
    ],
)
def test_a_tracker_with_a_gpu_share_gets_what_the_workers_leave(
    gpus: tuple[float, ...], per_worker: float, workers: int, committers: int
) -> None:
    nodes = [{"CPU": 64.0, "GPU": count} for count in gpus]
    pools = plan(*nodes, needs=NEURAL, gpus_per_worker=per_worker)
    assert pools.workers == workers
    assert pools.commit.num_gpus == NEURAL.num_gpus
    assert 1 <= pools.commit.min_size == pools.commit.max_size <= committers
    used = pools.workers * per_worker + pools.commit.max_size * NEURAL.num_gpus
    assert used <= sum(gpus)


def test_a_tracker_that_does_not_fit_beside_a_worker_is_refused() -> None:
    with pytest.raises(ConfigError) as refused:
        plan(GPU_NODE, needs=NEURAL)
    assert str(refused.value) == (
        "the tracker neural needs 0.25 GPU and 1 CPU of one node beside the workers, and no node of the Ray cluster "
        "has them beside a worker with 1 GPU: give --gpus-per-worker 0.75 or less"
    )
    assert plan(GPU_NODE, needs=NEURAL, gpus_per_worker=0.75).workers == 1
    with pytest.raises(ConfigError, match=r"beside a worker with 4 GPU: give --gpus-per-worker 3 or less$"):
        plan({"CPU": 64.0, "GPU": 4.0}, needs=NEURAL, gpus_per_worker=4)
    with pytest.raises(ConfigError, match=r"needs 2 GPU and 1 CPU .* add a node, or use another tracker$"):
        plan(GPU_NODE, needs=Needs("huge", 1.0, 2.0))


def test_a_tracker_without_a_gpu_to_run_on_gets_cpus() -> None:
    pools = plan(CPU_NODE, needs=NEURAL)
    assert pools.commit.num_gpus == 0
    assert pools.note == "no GPU, 1 CPU thread per worker, no GPU for the tracker neural"
    beside_cpu_workers = plan(GPU_NODE, needs=NEURAL, gpus_per_worker=0)
    assert (beside_cpu_workers.device, beside_cpu_workers.commit.num_gpus) == ("cpu", 0.25)
