"""Addresses of clusters, settings of Ray Data, and Ray's errors; Ray itself is not started."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from pipeline.cli import exit_codes
from pipeline.cli.main import exit_code_of
from pipeline.config import ExecutionConfig, waiting_seconds
from pipeline.flow import session
from pipeline.flow.pools import Needs, Pools
from pipeline.flow.session import RAY_DATA, cluster_errors, ray_session
from sgi2v.errors import ClusterError, ConfigError
from tests.pipeline.flow.test_pools import config


def test_an_address_from_the_environment_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://head:8265")
    with (
        pytest.raises(ConfigError, match=r"^RAY_ADDRESS=http://head:8265 is not a cluster's own address"),
        ray_session(config(), 1),
    ):
        pass
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    with (
        pytest.raises(ConfigError, match=r"^no Ray cluster answers at RAY_ADDRESS=127\.0\.0\.1:1: "),
        ray_session(config(), 1),
    ):
        pass
    with (
        pytest.raises(ConfigError, match=r"^no Ray cluster answers at localhost:1: "),
        ray_session(config(address="localhost:1"), 1),
    ):
        pass


@pytest.mark.parametrize(
    ("problem", "advice"),
    [
        ("AF_UNIX path length cannot exceed 107 bytes: /scratch/x", "Set RAY_TMPDIR to a folder with a shorter name"),
        ("no port is free", "with less other work on the machine if it is busy"),
    ],
)
def test_a_ray_that_does_not_start_says_what_to_do(monkeypatch: pytest.MonkeyPatch, problem: str, advice: str) -> None:
    import ray

    def init(**options: object) -> None:
        raise OSError(problem)

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(ClusterError, match=advice), ray_session(config(), 1):
        pass


def test_ray_data_has_the_settings_that_a_run_sets() -> None:
    from ray.data import DataContext

    assert set(RAY_DATA) <= {field.name for field in dataclasses.fields(DataContext)}


def test_a_lost_cluster_is_reported_in_one_line() -> None:
    from ray.data.exceptions import SystemException
    from ray.exceptions import ActorDiedError, NodeDiedError, RayTaskError

    trace = "Traceback (most recent call last):\n  File x\nRuntimeError: no room"
    failed = RayTaskError("Generate.__init__", trace, RuntimeError("no room"), "ray::Generate", 1, "127.0.0.1")
    for error, text in {
        ActorDiedError(): "ActorDiedError: The actor died unexpectedly before finishing this task",
        NodeDiedError("gone:\n  for good."): "NodeDiedError: gone: for good",
        ActorDiedError(failed): "ActorDiedError: RuntimeError: no room",
    }.items():
        with pytest.raises(ClusterError) as raised, cluster_errors():
            raise error
        assert str(raised.value) == (
            f"the Ray cluster failed: {text}. Committed samples are safe. Run the same command again to continue."
        )
    with pytest.raises(ClusterError, match="ValueError: inside Ray Data"), cluster_errors():
        raise ValueError("inside Ray Data") from SystemException()


def test_a_package_that_a_node_lacks_is_named_with_the_node() -> None:
    from ray.exceptions import ActorDiedError, RayTaskError

    trace = "Traceback (most recent call last):\n  File x\nModuleNotFoundError: No module named 'av.video'"
    failed = RayTaskError("Load.__init__", trace, ModuleNotFoundError("no"), "ray::Load", 1, "10.0.0.7")
    with (
        pytest.raises(ClusterError, match=r"^the Python package av is missing on 10\.0\.0\.7: install"),
        cluster_errors(),
    ):
        raise ActorDiedError(failed)


def test_a_lost_cluster_has_the_exit_code_of_a_lost_store(capsys: pytest.CaptureFixture[str]) -> None:
    def lose() -> None:
        raise ClusterError("the Ray cluster failed: gone.")

    assert exit_code_of(lose) == exit_codes.LOST == 3
    assert capsys.readouterr().err == "error: the Ray cluster failed: gone.\n"


@pytest.mark.parametrize("error", [Exception("The current node timed out during startup."), OSError("no port")])
def test_a_ray_that_does_not_start_is_reported_in_one_message(
    error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    def fail(**_: object) -> None:
        raise error

    monkeypatch.setattr(ray, "init", fail)
    with (
        pytest.raises(ClusterError, match=r"^Ray did not start on this machine: .*(timed out during startup|no port)"),
        ray_session(config(), 1),
    ):
        pass


def test_a_bug_in_a_stage_stays_a_traceback_with_its_cause() -> None:
    from ray.exceptions import RayTaskError, UserCodeException

    trace = "Traceback (most recent call last):\n  File stages.py\nKeyError: 'boxes'"
    error = RayTaskError("map", trace, UserCodeException("bug"), "ray::Generate", 1, "127.0.0.1").as_instanceof_cause()
    with pytest.raises(UserCodeException, match="KeyError: 'boxes'"), cluster_errors():
        raise error
    for other in (ConfigError("ours"), ValueError("ours")):
        with pytest.raises(type(other), match="ours"), cluster_errors():
            raise other


class Cluster:
    """What a session sees of a cluster, in place of Ray: its nodes at each look, and what its autoscaler is asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *looks: list[dict[str, float]]) -> None:
        import ray
        import ray.autoscaler.sdk

        self.looks = list(looks)
        self.asked: list[list[dict[str, float]]] = []
        self.said: list[str] = []
        monkeypatch.setattr(session, "ROOM_POLL_S", 0.01)
        monkeypatch.setattr(ray, "nodes", self.nodes)
        monkeypatch.setattr(ray.autoscaler.sdk, "request_resources", self.request_resources)

    def request_resources(self, bundles: list[dict[str, float]]) -> None:
        self.asked.append(bundles)

    def nodes(self) -> list[dict[str, Any]]:
        now = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        return [{"Alive": True, "Resources": node} for node in now] + [{"Alive": False, "Resources": {"GPU": 9.0}}]

    def pools(self, **execution: Any) -> Pools:
        settings = config(address="head:6379", **execution)
        return session.pools_when_there_is_room(settings, Needs.of_tracker("lucas-kanade"), 100, self.said.append)


HEAD, GPU_NODE = {"CPU": 4.0}, {"CPU": 4.0, "GPU": 1.0}


def test_a_run_waits_for_the_gpus_that_it_was_asked_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, [HEAD], [HEAD], [HEAD, GPU_NODE])
    pools = cluster.pools(gpus_per_worker=1.0, workers=3)
    assert (pools.device, pools.workers, pools.generate.max_size) == ("cuda", 1, 3)
    assert cluster.said == [
        "a worker needs 1 GPU, and the Ray cluster has none: add one, or give --gpus-per-worker 0 to use CPUs. "
        "Asked Ray for 3 x (1 GPU and 1 CPU). The run begins when there is room for 1 worker, and waits 900 s at most "
        "(--wait-for-gpus)"
    ]
    assert cluster.asked == [[{"CPU": 1.0, "GPU": 1.0}] * 3, []], "the request is taken back at the end"


def test_a_run_waits_for_as_many_workers_as_it_was_asked_to_begin_with(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, [GPU_NODE], [GPU_NODE, GPU_NODE])
    assert cluster.pools(gpus_per_worker=1.0, workers="2:5").workers == 2
    assert "has GPUs for 1 worker, and --workers 2:5 asks for 2 or more. Asked Ray for 5 x" in cluster.said[0]


def test_a_cluster_that_is_scaled_to_zero_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, [{}], [{}, GPU_NODE])
    assert cluster.pools().device == "cuda"
    assert cluster.asked == [[{"CPU": 1.0}], []]


def test_a_run_whose_gpus_do_not_come_ends(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(session, "SAY_EVERY_S", 0.0)
    cluster = Cluster(monkeypatch, [HEAD])
    assert exit_code_of(lambda: cluster.pools(gpus_per_worker=1.0, wait_for_gpus_s=0.05)) == exit_codes.BAD_INPUT == 2
    assert capsys.readouterr().err == (
        "error: a worker needs 1 GPU, and the Ray cluster has none: add one, or give --gpus-per-worker 0 to use CPUs. "
        "Waited 0.05 s (--wait-for-gpus)\n"
    )
    assert cluster.said[1].startswith("still waiting for room for 1 worker, 0 s more at most")
    assert cluster.asked[-1] == []


def test_a_run_that_is_not_to_wait_asks_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = Cluster(monkeypatch, [HEAD])
    with pytest.raises(ConfigError, match=r"has none: add one, or give --gpus-per-worker 0 to use CPUs$"):
        cluster.pools(gpus_per_worker=1.0, wait_for_gpus_s=0.0)
    assert (cluster.asked, cluster.said) == ([], [])


def test_one_machine_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert waiting_seconds(ExecutionConfig(gpus_per_worker=1.0)) == 0
    assert waiting_seconds(ExecutionConfig(gpus_per_worker=1.0, wait_for_gpus_s=5.0)) == 5
    assert waiting_seconds(ExecutionConfig(address="head:6379")) == 900
