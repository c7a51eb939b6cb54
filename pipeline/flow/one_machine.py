"""What Ray and Ray Data start for clusters and for those who look at them, left out where there is one machine.

Beside its scheduler and its store a node of Ray 2.60 starts a server for a dashboard, for which its start waits, one
that adds nodes, and one that carries logs. Beside every flow Ray Data starts three actors: one gathers figures for the
dashboard, one divides a cluster that grows among flows, one knows on which node every actor is. On one machine nobody
reads the figures, and all other questions have one answer. Yet each is a process, which imports Ray before the first
row, keeps its memory, and wakes up to a hundred times a second for as long as the run lasts, at the cost of the
workers' cores.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import ray
from ray._private import ray_constants
from ray._private.node import Node
from ray.data._internal import stats
from ray.data._internal.cluster_autoscaler import AutoscalingCoordinator, rate_based_cluster_autoscaler
from ray.data._internal.execution.operators import actor_pool_map_operator

NOBODY = b"127.0.0.1:9"
"""The discard port, at which nothing answers."""


class OneMachine(AutoscalingCoordinator):  # type: ignore[misc]
    """All of a machine, for the one flow on it: made by Ray Data in its flow's driver."""

    def __init__(self, *requester: Any, **selector: Any) -> None:
        """requester, selector: who asks, which makes no difference here."""
        self._nodes = {node["NodeID"]: node["Resources"] for node in ray.nodes() if node["Alive"]}

    def request_resources(self, *request: Any, **named: Any) -> None:
        """Nothing: the machine does not grow."""

    def cancel_request(self) -> None:
        """Nothing was asked of anybody."""

    def get_reserved_resources(self) -> Mapping[str, Mapping[str, float]]:
        """Node -> its resources, in Ray's names."""
        return self._nodes


class Unheard:
    """What an actor of a flow is handed to tell on which node it is. Goes with it to its process."""

    @property
    def update_actor_location(self) -> Unheard:
        """As of a Ray actor's handle."""
        return self

    def remote(self, actor: str, node: str) -> None:
        """Nothing: there is one node."""


@contextmanager
def bare_node() -> Iterator[None]:
    """Have a node that is started inside be its scheduler and its store, with the agents that these start."""

    def nothing(node: Node) -> None:
        """Nobody is served."""

    def no_dashboard(node: Node, **named: Any) -> None:
        """Where an agent would send events to: it looks for the place every second until there is one."""
        place = ray_constants.DASHBOARD_ADDRESS.encode(), NOBODY, True, ray_constants.KV_NAMESPACE_DASHBOARD
        node.get_gcs_client().internal_kv_put(*place)

    with ExitStack() as stack:
        stack.enter_context(_replaced(Node, "start_api_server", no_dashboard))
        for name in ("start_monitor", "start_log_monitor"):
            stack.enter_context(_replaced(Node, name, nothing))
        yield


@contextmanager
def answered_here() -> Iterator[None]:
    """Have the flows that are made inside start no actor but their own."""

    def nothing(*told: Any, **named: Any) -> None:
        """Nobody reads a dashboard of this run."""

    figures = ("update_execution_metrics", "update_iteration_metrics", "register_dataset_to_stats_actor")
    with ExitStack() as stack:
        for name in figures:
            stack.enter_context(_replaced(stats._StatsManager, name, staticmethod(nothing)))
        stack.enter_context(_replaced(rate_based_cluster_autoscaler, "DefaultAutoscalingCoordinator", OneMachine))
        stack.enter_context(_replaced(actor_pool_map_operator, "get_or_create_actor_location_tracker", Unheard))
        # an actor that is not in the answer is where it was
        stack.enter_context(_replaced(actor_pool_map_operator, "get_actor_locations", lambda actors: {}))
        yield


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Another attribute of a module or class inside. Raises KeyError where there is none of that name."""
    before = vars(owner)[name]
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)
