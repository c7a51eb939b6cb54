"""What a run says when no row moves on; Ray itself is not started."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest

from pipeline.flow import stalls
from pipeline.flow.notes import Note
from pipeline.flow.pools import Pool, Pools
from pipeline.flow.stalls import Demand, Node, StallWatch, describe_stall

POOLS = Pools(
    load=Pool(2, 2, num_cpus=0.25),
    generate=Pool(1, 4, num_cpus=0.5, num_gpus=1.0),
    commit=Pool(2, 2, num_cpus=0.25),
    note="1 GPU per worker",
)
HEAD = Node("10.0.0.1", {"CPU": 4.0, "memory": 1e9}, {"CPU": 0.25, "memory": 1e9})
T4 = {"CPU": 1.0, "GPU": 1.0, "accelerator_type:T4": 1.0}


def test_it_says_what_is_asked_for_and_what_each_node_has() -> None:
    demands = [Demand({"CPU": 0.5, "GPU": 1.0}, 2), Demand({"CPU": 0.25}, 3), Demand({"CPU": 1.0}, 1)]
    assert describe_stall(demands, [HEAD, Node("10.0.0.2", T4, {"CPU": 0.3})], POOLS, []) == (
        "Ray waits for a node with room for 3 x load actor or commit actor (0.25 CPU each), "
        "2 workers (1 GPU and 0.5 CPU each), 1 task (1 CPU). "
        "Free now: 10.0.0.1 0.25 of 4 CPU, 10.0.0.2 0 of 1 GPU, 0.3 of 1 CPU (T4)"
    )


def test_it_says_the_type_of_gpu_that_is_asked_for() -> None:
    demand = Demand({"CPU": 0.5, "GPU": 1.0, "accelerator_type:A100": 0.001}, 1)
    line = describe_stall([demand], [Node("10.0.0.2", T4, T4)], POOLS, [])
    assert line.startswith("Ray waits for a node with room for 1 worker (1 GPU of type A100 and 0.5 CPU). Free now: ")
    assert line.endswith("10.0.0.2 1 of 1 GPU, 1 of 1 CPU (T4)")


def test_it_names_some_of_many_nodes() -> None:
    nodes = [Node(f"10.0.0.{number}", {"CPU": 1.0}, {}) for number in range(stalls.SHOWN_NODES + 2)]
    assert describe_stall([Demand({"CPU": 0.5, "GPU": 1.0}, 1)], nodes, POOLS, []).endswith(" and 2 more nodes")
    assert describe_stall([Demand({"CPU": 0.5, "GPU": 1.0}, 1)], [], POOLS, []).endswith("Free now: no node")


def test_it_says_how_far_the_workers_are_where_ray_waits_for_nothing() -> None:
    assert describe_stall([], [HEAD], POOLS, []) == (
        "every process has the CPUs and GPUs that it reserves; workers that have loaded their model: 0 of 1"
    )
    note = Note("host/1", model_seconds=9.0, sample_id="car", step=6, steps=50)
    assert describe_stall([], [HEAD], POOLS, [note]).endswith(
        "workers that have loaded their model: 1 of 1; the last steps are car at step 7 of 50"
    )


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="head:6379"))
    for name in ("POLL_S", "STALLED_S"):
        monkeypatch.setattr(stalls, name, 0.02)


@pytest.mark.usefixtures("_impatient")
def test_it_speaks_once_for_each_cause_and_anew_after_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    causes: list[list[Demand]] = [[Demand({"CPU": 1.0}, 1)], [Demand({"CPU": 1.0}, 1)], []]
    looks = threading.Event()

    def waiting(_: str) -> tuple[list[Demand], list[Node]]:
        if len(causes) == 1:
            looks.set()
        return (causes.pop(0) if len(causes) > 1 else causes[0]), [HEAD]

    monkeypatch.setattr(stalls, "waiting_in_ray", waiting)
    said: list[str] = []
    spoke = threading.Event()

    def say(line: str) -> None:
        said.append(line)
        spoke.set()

    with StallWatch(POOLS, say) as watch:
        assert looks.wait(10)
        assert spoke.wait(10)
        watch.noted([Note("host/1", model_seconds=1.0)])
        spoke.clear()
        assert spoke.wait(10), "the same cause after progress is said again"
    kinds = ["waits" if "Ray waits" in line else "runs" for line in said]
    assert kinds[:2] == ["waits", "runs"]
    assert all(line.startswith("no row has moved on for 0 s: ") for line in said)


@pytest.mark.usefixtures("_impatient")
def test_the_time_of_the_driver_is_no_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = threading.Event()
    monkeypatch.setattr(stalls, "waiting_in_ray", lambda _: (asked.set(), ([], []))[1])

    def rows() -> Iterator[dict[str, int]]:
        yield {"row": 1}
        assert asked.wait(10), "between two rows it looks"
        yield {"row": 2}

    with StallWatch(POOLS, lambda line: None) as watch:
        for row in watch.followed(rows()):
            if row["row"] == 1:
                asked.clear()
                assert not asked.wait(0.3)


@pytest.mark.usefixtures("_impatient")
def test_a_ray_that_does_not_answer_is_said_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(_: str) -> tuple[list[Demand], list[Node]]:
        raise TimeoutError

    monkeypatch.setattr(stalls, "waiting_in_ray", lost)
    said: list[str] = []
    spoke = threading.Event()
    with StallWatch(POOLS, lambda line: (said.append(line), spoke.set())):
        assert spoke.wait(10)
    assert said[0].endswith("Ray does not say what it waits for (TimeoutError)")
