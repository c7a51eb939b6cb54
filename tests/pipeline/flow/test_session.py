"""How wide a run goes on a cluster, where its address comes from, and what becomes of Ray's errors; without Ray up."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from pipeline.cli.main import EXIT_LOST, _reporting
from pipeline.config import ExecutionConfig, RunConfig, resolve
from pipeline.flow.session import RAY_DATA, cluster_errors, ray_session
from pipeline.flow.width import PROCESS_BYTES, RESERVED_CPUS, Width, width, worker_bytes
from sgi2v.errors import ClusterError, ConfigError

GIB = float(2**30)
CPU_NODE = {"CPU": 8.0, "memory": 16 * GIB}
GPU_NODE = {"CPU": 8.0, "GPU": 1.0, "memory": 64 * GIB}


def wide(*nodes: dict[str, float], rows: int = 100, memory: int | None = None, **execution: Any) -> Width:
    return width(ExecutionConfig(**execution), rows, nodes, memory)


def config(**run: Any) -> RunConfig:
    return resolve("m.parquet", "out", {}, {"model": {"source": "embedded"}, "run": run})[0]


def test_a_gpu_is_a_worker() -> None:
    found = wide(GPU_NODE, GPU_NODE, CPU_NODE)
    assert (found.workers, found.gpus_per_worker, found.cpus_per_worker) == (2, 1.0, 1.0)
    assert found.note == "1 GPU per worker"
    assert wide(GPU_NODE, GPU_NODE, rows=1).workers == 1


def test_a_worker_is_whole_on_one_node() -> None:
    with pytest.raises(ConfigError, match=r"no node .* has 2 GPUs and a CPU: --gpus-per-worker may be 1 at most"):
        wide(GPU_NODE, GPU_NODE, gpus_per_worker=2)
    three = {**GPU_NODE, "GPU": 3.0}
    assert wide(three, three, gpus_per_worker=2).workers == 2
    assert wide(GPU_NODE, GPU_NODE, gpus_per_worker=0.1).workers == 20


def test_workers_beyond_the_gpus_are_cut_and_told() -> None:
    found = wide(GPU_NODE, workers=4)
    assert (found.workers, found.note) == (1, "1 GPU per worker, as many as the GPUs hold of the 4 asked for")
    assert wide(GPU_NODE, workers=4, rows=1).note == "1 GPU per worker"


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
    found = wide(*nodes)
    assert found.workers == sum(node.get("GPU", 0) for node in nodes)
    for node in nodes:
        spare = node["CPU"] - node.get("GPU", 0) * found.cpus_per_worker
        assert spare >= (RESERVED_CPUS if node["CPU"] >= 2 else node["CPU"] / 2) - 1e-9
    assert 0 < found.cpus_per_worker <= 1


def test_without_a_gpu_the_workers_take_the_cpus() -> None:
    found = wide(CPU_NODE)
    assert (found.workers, found.gpus_per_worker, found.note) == (6, 0.0, "no GPU, 1 CPU thread per worker")
    assert wide(CPU_NODE, gpus_per_worker=1).note.startswith("there is no GPU to give 1 of to a worker: no GPU")
    assert wide(GPU_NODE, gpus_per_worker=0).gpus_per_worker == 0
    many = wide(CPU_NODE, workers=20)
    assert many.workers == 20
    assert many.workers * many.cpus_per_worker + RESERVED_CPUS <= 8
    with pytest.raises(ConfigError, match="the Ray cluster has 1 CPU, and a run needs 2 at least"):
        wide({"CPU": 1.0})


def test_memory_caps_the_workers_that_nobody_asked_for() -> None:
    found = wide(CPU_NODE, memory=int(5 * GIB))
    assert found.workers == 3
    assert found.note == "no GPU, 1 CPU thread per worker, as many as memory holds at 5.0 GiB each"
    assert wide(CPU_NODE, memory=int(5 * GIB), rows=2).note == "no GPU, 1 CPU thread per worker"
    assert wide(CPU_NODE, memory=int(50 * GIB)).workers == 1
    assert wide(CPU_NODE, memory=int(5 * GIB), workers=6).workers == 6


def test_a_worker_on_this_machine_takes_its_weights_and_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    found = worker_bytes(config())
    assert found is not None
    assert PROCESS_BYTES < found < 2 * PROCESS_BYTES
    assert worker_bytes(config(address="head:6379")) is None


def test_an_address_from_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    with (
        pytest.raises(ConfigError, match=r"^RAY_ADDRESS=http://head:8265 is not a cluster's own address"),
        ray_session(ExecutionConfig(), 1, None),
    ):
        pass
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with (
        pytest.raises(ConfigError, match=r"^no Ray cluster answers at RAY_ADDRESS=127\.0\.0\.1:1: "),
        ray_session(ExecutionConfig(), 1, None),
    ):
        pass
    with (
        pytest.raises(ConfigError, match=r"^no Ray cluster answers at localhost:1: "),
        ray_session(ExecutionConfig(address="localhost:1"), 1, None),
    ):
        pass


def test_ray_data_knows_the_settings_of_a_run() -> None:
    from ray.data import DataContext

    assert set(RAY_DATA) <= {field.name for field in dataclasses.fields(DataContext)}


def test_a_lost_cluster_is_told_in_one_line_with_the_way_on() -> None:
    from ray.data.exceptions import SystemException
    from ray.exceptions import ActorDiedError, NodeDiedError, RayTaskError

    trace = "Traceback (most recent call last):\n  File x\nRuntimeError: no room"
    failed = RayTaskError("Generate.__init__", trace, RuntimeError("no room"), "ray::Generate", 1, "127.0.0.1")
    for error, told in {
        ActorDiedError(): "ActorDiedError: The actor died unexpectedly before finishing this task",
        NodeDiedError("gone:\n  for good."): "NodeDiedError: gone: for good",
        ActorDiedError(failed): "ActorDiedError: RuntimeError: no room",
    }.items():
        with pytest.raises(ClusterError) as raised, cluster_errors():
            raise error
        assert str(raised.value) == (
            f"the Ray cluster failed: {told}. What is committed is safe: "
            "the same command goes on from where it stopped."
        )
    with pytest.raises(ClusterError, match="ValueError: inside Ray Data"), cluster_errors():
        raise ValueError("inside Ray Data") from SystemException()


def test_a_lost_cluster_has_the_exit_code_of_a_lost_store(capsys: pytest.CaptureFixture[str]) -> None:
    @_reporting
    def lose() -> None:
        raise ClusterError("the Ray cluster failed: gone.")

    with pytest.raises(SystemExit) as ended:
        lose()
    assert ended.value.code == EXIT_LOST == 3
    assert capsys.readouterr().err == "error: the Ray cluster failed: gone.\n"


def test_a_bug_in_a_stage_stays_a_traceback_with_its_cause() -> None:
    from ray.exceptions import RayTaskError, UserCodeException

    trace = "Traceback (most recent call last):\n  File stages.py\nKeyError: 'boxes'"
    error = RayTaskError("map", trace, UserCodeException("bug"), "ray::Generate", 1, "127.0.0.1").as_instanceof_cause()
    with pytest.raises(UserCodeException, match="KeyError: 'boxes'"), cluster_errors():
        raise error
    for other in (ConfigError("ours"), ValueError("ours")):
        with pytest.raises(type(other), match="ours"), cluster_errors():
            raise other
