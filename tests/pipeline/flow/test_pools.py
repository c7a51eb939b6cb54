"""How many actors a run gets on a cluster, and what they reserve; without Ray."""

from __future__ import annotations

from typing import Any

import pytest

from pipeline.config import ExecutionConfig, RunConfig, resolve
from pipeline.flow.pools import (
    PROCESS_BYTES,
    WORKERS_LEAST_SHARE,
    Needs,
    NoRoomError,
    Pool,
    Pools,
    bundles,
    plan_pools,
    worker_bytes,
)
from sgi2v.errors import ConfigError

GIB = float(2**30)
CPU_NODE = {"CPU": 8.0, "memory": 16 * GIB}
GPU_NODE = {"CPU": 8.0, "GPU": 1.0, "memory": 64 * GIB}
LUCAS_KANADE = Needs.of_tracker("lucas-kanade")
NEURAL = Needs("neural", num_cpus=1.0, num_gpus=0.25)
"""A tracker that runs on a GPU."""


def plan(
    *nodes: dict[str, float],
    rows: int = 100,
    memory: int | None = None,
    needs: Needs = LUCAS_KANADE,
    on_cluster: bool = True,
    **execution: Any,
) -> Pools:
    return plan_pools(ExecutionConfig(**execution), needs, rows, nodes, memory, on_cluster)


def here(cpus: int, **options: Any) -> Pools:
    """The pools on one machine, whose Ray is told of one more CPU for the other stages."""
    return plan({"CPU": cpus + 1.0, "memory": 16 * GIB}, on_cluster=False, **options)


def config(**run: Any) -> RunConfig:
    return resolve("m.parquet", "out", {}, {"model": {"source": "embedded"}, "run": run})[0]


def test_each_gpu_gets_a_worker() -> None:
    pools = plan(GPU_NODE, GPU_NODE, CPU_NODE)
    assert pools.generate == Pool(2, 100, num_cpus=0.5, num_gpus=1.0, initial_size=2)
    assert (pools.device, pools.note, pools.workers) == ("cuda", "1 GPU per worker", 2)
    assert plan(GPU_NODE, GPU_NODE, rows=1).workers == 1


def test_a_worker_is_never_split_over_nodes() -> None:
    with pytest.raises(NoRoomError, match="needs 2 GPU of one node, and a node of the Ray cluster has 1 at most"):
        plan(GPU_NODE, GPU_NODE, gpus_per_worker=2)
    three = {**GPU_NODE, "GPU": 3.0}
    assert plan(three, three, gpus_per_worker=2).workers == 2
    assert plan(GPU_NODE, GPU_NODE, gpus_per_worker=0.1).workers == 20


def test_a_share_of_a_gpu_is_never_split_over_cards() -> None:
    assert plan({"CPU": 64.0, "GPU": 8.0}, gpus_per_worker=0.75).workers == 8
    assert plan({"CPU": 64.0, "GPU": 2.0}, gpus_per_worker=0.4).workers == 4
    with pytest.raises(ConfigError, match=r"a worker takes a part of one GPU or whole ones, and not 1\.5"):
        plan(GPU_NODE, gpus_per_worker=1.5)


def test_a_gpu_without_a_cpu_beside_it_holds_no_worker() -> None:
    assert plan(GPU_NODE, {"GPU": 8.0}).workers == 1
    with pytest.raises(NoRoomError, match="needs 1 GPU and a CPU of one node, and no node of the Ray cluster has both"):
        plan(CPU_NODE, {"GPU": 8.0})


def test_the_note_says_that_there_are_fewer_gpus_than_workers() -> None:
    pools = plan(GPU_NODE, workers=4)
    assert (pools.workers, pools.generate.max_size) == (1, 4)
    assert pools.note == "1 GPU per worker, too few GPUs for the 4 workers asked for: more start when nodes join"
    assert plan(GPU_NODE, workers=4, rows=1).note == "1 GPU per worker"
    local = plan(GPU_NODE, workers=4, on_cluster=False)
    assert local.generate == Pool(1, 1, num_cpus=1.0, num_gpus=1.0)
    assert local.note == "1 GPU per worker, too few GPUs for the 4 workers asked for"


def test_asked_gpus_are_not_replaced_by_cpus() -> None:
    with pytest.raises(NoRoomError, match=r"^a worker needs 1 GPU, and the Ray cluster has none: add one, or give"):
        plan(CPU_NODE, gpus_per_worker=1)
    with pytest.raises(NoRoomError, match=r"^a worker needs 0\.5 GPU, and this machine has none"):
        plan(CPU_NODE, gpus_per_worker=0.5, on_cluster=False)
    assert plan(GPU_NODE, gpus_per_worker=0).device == "cpu"
    assert plan(CPU_NODE).note.endswith("(give --gpus-per-worker 1 to wait for GPUs)")


def test_a_range_of_workers_begins_with_what_is_there_and_ends_the_run_below_its_lower_end() -> None:
    pools = plan(GPU_NODE, GPU_NODE, workers="1:6")
    assert (pools.generate.min_size, pools.workers, pools.generate.max_size) == (1, 2, 6)
    assert plan(*[GPU_NODE] * 8, workers="1:6").workers == 6
    with pytest.raises(NoRoomError, match="has GPUs for 1 worker, and --workers 2:6 asks for 2 or more"):
        plan(GPU_NODE, workers="2:6")
    assert plan(GPU_NODE, workers="2:6", rows=1).workers == 1
    on_cpus = plan(CPU_NODE, workers="2:4").generate
    assert (on_cpus.min_size, on_cpus.initial_size, on_cpus.max_size) == (2, 4, 4)
    alone = here(4, workers="1:3").generate
    assert (alone.min_size, alone.max_size) == (3, 3), "no node joins on one machine"


@pytest.mark.parametrize(("workers", "problem"), [("4:2", "write 2:4"), ("many", "it is a number"), (True, "number")])
def test_a_number_of_workers_that_is_none_is_refused(workers: Any, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        ExecutionConfig(workers=workers)


def test_numbers_of_workers_as_text_and_as_numbers_are_the_same() -> None:
    assert ExecutionConfig(workers="4") == ExecutionConfig(workers=4)
    assert (ExecutionConfig(workers="2:8").min_workers, ExecutionConfig(workers="2:8").max_workers) == (2, 8)
    assert (ExecutionConfig(workers=8).min_workers, ExecutionConfig(workers=8).max_workers) == (1, 8)


def test_workers_run_on_the_asked_accelerators_only() -> None:
    t4, a100 = {**GPU_NODE, "accelerator_type:T4": 1.0}, {**GPU_NODE, "GPU": 4.0, "accelerator_type:A100": 1.0}
    pools = plan(t4, a100, accelerator_type="A100")
    assert (pools.workers, pools.generate.accelerator_type) == (4, "A100")
    assert pools.note == "1 GPU per worker of type A100"
    assert plan(t4, a100).workers == 5
    with pytest.raises(NoRoomError, match=r"of type H100, and the Ray cluster has A100, T4: give another --accel"):
        plan(t4, a100, accelerator_type="H100")
    with pytest.raises(NoRoomError, match=r"of type A100, and the Ray cluster has none"):
        plan(CPU_NODE, accelerator_type="A100")
    with pytest.raises(ConfigError, match=r"run\.accelerator_type has no effect with run\.gpus_per_worker 0"):
        ExecutionConfig(accelerator_type="A100", gpus_per_worker=0)


def test_the_autoscaler_is_asked_for_the_workers_of_a_run() -> None:
    asked = ExecutionConfig(gpus_per_worker=0.4, workers=3, accelerator_type="T4")
    assert bundles(asked, rows=100) == [{"CPU": 1.0, "GPU": 1.0, "accelerator_type:T4": 0.001}] * 2
    assert bundles(asked, rows=1) == [{"CPU": 1.0, "GPU": 1.0, "accelerator_type:T4": 0.001}]
    assert bundles(ExecutionConfig(gpus_per_worker=2, workers="2:4"), 100) == [{"CPU": 1.0, "GPU": 2.0}] * 4
    assert bundles(ExecutionConfig(gpus_per_worker=1), 100) == [{"CPU": 1.0, "GPU": 1.0}]
    assert bundles(ExecutionConfig(), 100) == [{"CPU": 1.0}]


CLUSTERS: list[tuple[dict[str, float], ...]] = [
    ({"CPU": 1.0},),
    ({"CPU": 1.0}, {"CPU": 1.0}),
    tuple({"CPU": 1.0} for _ in range(10)),
    ({"CPU": 2.0}, {"CPU": 0.0}),
    ({"CPU": 16.0}, {"CPU": 1.0}, {"CPU": 3.0}),
    ({"CPU": 2.0, "GPU": 1.0},),
    ({"CPU": 4.0, "GPU": 8.0},),
    ({"CPU": 1.0, "GPU": 8.0}, {"CPU": 1.0}),
    ({"CPU": 64.0}, {"CPU": 1.0, "GPU": 1.0}),
    ({"CPU": 64.0}, {"CPU": 2.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 1.0}),
]


@pytest.mark.parametrize("nodes", CLUSTERS)
@pytest.mark.parametrize("workers", [None, 1, 5])
def test_every_actor_finds_a_node(nodes: tuple[dict[str, float], ...], workers: int | None) -> None:
    pools = plan(*nodes, workers=workers)
    gpus = sum(node.get("GPU", 0) for node in nodes)
    assert pools.workers == (min(workers or gpus, gpus) if gpus else workers or pools.workers)
    share = pools.generate.num_cpus
    assert 0 < share <= 1
    fit = [int(min(node["CPU"] * (1 - 1e-9), max(room_of(node["CPU"], pools), 0)) / share + 1e-6) for node in nodes]
    assert sum(fit) >= pools.workers, "the workers fit beside the other stages' actors, wherever those are"
    left = sum(node["CPU"] - room_of(node["CPU"], pools) for node in nodes)
    assert left >= LUCAS_KANADE.cpus(pools.load.min_size) - 1e-9, "and the others fit beside the workers"


def room_of(cpus: float, pools: Pools) -> float:
    """CPUs of a node that are the workers'."""
    return max(cpus - LUCAS_KANADE.cpus(pools.load.min_size), WORKERS_LEAST_SHARE * cpus)


def test_there_are_two_loaders_and_two_committers_where_nodes_may_leave() -> None:
    for nodes in CLUSTERS[1:]:
        pools = plan(*nodes)
        assert (pools.load.min_size, pools.commit.min_size) == (2, 2)
    alone = here(2)
    assert (alone.load, alone.commit.min_size, alone.commit.max_size) == (Pool(1, 1, 0.25), 1, 1)
    assert alone.generate == Pool(2, 2, num_cpus=1.0)


def test_without_a_gpu_the_workers_take_the_cpus() -> None:
    pools = plan(CPU_NODE, on_cluster=False)
    assert (pools.workers, pools.device, pools.note) == (7, "cpu", "no GPU, 1 CPU thread per worker")
    assert (plan(CPU_NODE).workers, plan(CPU_NODE).generate.max_size) == (6, 6)
    many = plan(CPU_NODE, workers=20)
    assert many.workers == 20
    assert many.workers * many.generate.num_cpus + LUCAS_KANADE.cpus(2) <= 8
    with pytest.raises(NoRoomError, match=r"the Ray cluster has 0 CPU, and a run needs 1 or more"):
        plan({"CPU": 0.0, "GPU": 1.0})


def test_memory_limits_the_number_of_workers() -> None:
    pools = here(8, memory=int(5 * GIB))
    assert pools.workers == 3
    assert pools.note == "no GPU, 1 CPU thread per worker, limited by memory at 5.0 GiB each"
    assert here(8, memory=int(5 * GIB), rows=2).note == "no GPU, 1 CPU thread per worker"
    assert here(8, memory=int(50 * GIB)).workers == 1
    asked = here(50, memory=int(5 * GIB), workers=50)
    assert asked.generate.max_size == 3
    assert asked.note == (
        "no GPU, 1 CPU thread per worker, limited by memory to 3 of the 50 workers asked for, at 5.0 GiB each"
    )
    assert here(8, memory=int(5 * GIB), workers=3).note == "no GPU, 1 CPU thread per worker"


def test_a_worker_on_this_machine_needs_its_weights_and_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    size = worker_bytes(config())
    assert size is not None
    assert PROCESS_BYTES < size < 2 * PROCESS_BYTES
    assert worker_bytes(config(address="head:6379")) is None


def test_the_cpus_of_a_tracker_are_kept_free_of_workers() -> None:
    needs = Needs("heavy", num_cpus=2.0, num_gpus=0.0)
    pools = plan(CPU_NODE, needs=needs)
    assert needs.cpus(2) == pytest.approx(0.2 + 2 * (0.25 + 2))
    assert (pools.workers, pools.commit.num_cpus, pools.commit.min_size) == (3, 2.0, 2)
    assert plan(GPU_NODE, needs=needs, on_cluster=False).generate.num_cpus == 1.0
    four = plan({"CPU": 4.0, "GPU": 4.0}, needs=needs)
    assert (four.generate.num_cpus, four.commit.min_size) == (pytest.approx((4 - needs.cpus()) / 4), 1)
    with pytest.raises(NoRoomError, match=r"the Ray cluster has 2 CPU, and a run needs 3\.3 or more"):
        plan({"CPU": 2.0}, needs=needs)


@pytest.mark.parametrize(
    ("gpus", "per_worker", "workers", "committers"),
    [
        ((1.0,), 0.75, 1, 1),
        ((1.0, 1.0), 1.0, 1, 4),
        ((1.0, 1.0), 0.5, 3, 2),
        ((8.0,), 0.5, 15, 2),
        ((8.0,), 0.75, 8, 8),
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
    assert "no GPU for the tracker neural" in pools.note
    beside_cpu_workers = plan(GPU_NODE, needs=NEURAL, gpus_per_worker=0)
    assert (beside_cpu_workers.device, beside_cpu_workers.commit.num_gpus) == ("cpu", 0.25)
