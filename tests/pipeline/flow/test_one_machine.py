"""Ray Data's own actors are done without on one machine, and only there and only meanwhile."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import pytest
import ray
from ray._private.node import Node
from ray.data._internal import stats
from ray.data._internal.cluster_autoscaler import rate_based_cluster_autoscaler
from ray.data._internal.execution.operators import actor_pool_map_operator

import pipeline.flow.session
from pipeline.config import ExecutionConfig
from pipeline.flow import one_machine
from pipeline.flow.one_machine import OneMachine, answered_here, bare_node
from pipeline.flow.session import ray_session

PLACES = (stats._StatsManager, rate_based_cluster_autoscaler, actor_pool_map_operator)


def as_it_is() -> list[dict[str, Any]]:
    return [dict(vars(place)) for place in PLACES]


def test_ray_data_is_as_before_on_leaving() -> None:
    before = as_it_is()
    with suppress(ValueError), answered_here():
        inside = as_it_is()
        raise ValueError("a run that fails")
    changed = [
        [name for name in each if each[name] is not others[name]] for each, others in zip(before, inside, strict=True)
    ]
    assert [len(names) for names in changed] == [3, 1, 2]
    assert as_it_is() == before


def test_further_nodes_are_started_whole() -> None:
    before = dict(vars(Node))
    with suppress(ValueError), bare_node():
        changed = [name for name in before if vars(Node)[name] is not before[name]]
        raise ValueError("a node that does not start")
    assert sorted(changed) == ["start_api_server", "start_log_monitor", "start_monitor"]
    assert dict(vars(Node)) == before


def test_the_one_flow_has_all_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        {"NodeID": "gone", "Alive": False, "Resources": {"CPU": 8.0}},
        {"NodeID": "here", "Alive": True, "Resources": {"CPU": 2.0, "GPU": 1.0}},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    machine = OneMachine(requester_id="flow", subcluster_selector=None)
    machine.request_resources(resources=[{"CPU": 64.0}], expire_after_s=60.0)
    assert machine.get_reserved_resources() == {"here": {"CPU": 2.0, "GPU": 1.0}}
    machine.cancel_request()


@pytest.mark.parametrize(("address", "answered"), [(None, True), ("10.0.0.1:6379", False)])
def test_a_cluster_keeps_them(monkeypatch: pytest.MonkeyPatch, address: str | None, answered: bool) -> None:
    inside: list[bool] = []

    @contextmanager
    def noted() -> Iterator[None]:
        inside.append(True)
        yield
        inside.clear()

    nodes: list[Mapping[str, Any]] = [{"Alive": True, "Resources": {"CPU": 4.0}}]
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(one_machine, "answered_here", noted)
    monkeypatch.setattr(pipeline.flow.session, "_begin", lambda execution: None)
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    with ray_session(ExecutionConfig(address=address), rows=1, worker_bytes=None):
        assert bool(inside) is answered
    assert not inside
