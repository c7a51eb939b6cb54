"""A watch over the nodes of a cluster: which are lost in the middle of a run, are about to leave, or have joined."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Literal

from pipeline.flow.pools import describe
from sgi2v.wording import counted

POLL_S = 5.0
"""Seconds between two looks."""
REASON_LIMIT = 200
"""Characters of what Ray says of a lost node."""

Change = Literal["joined", "draining", "lost"]


@dataclass(frozen=True)
class Node:
    """A node as Ray has it."""

    name: str
    """Address and resources in words."""
    is_alive: bool
    is_draining: bool = False
    """Whether it is about to leave: it finishes its rows, and gets no new ones."""
    reason: str = ""
    """What Ray says of its end."""


@dataclass(frozen=True)
class NodeChange:
    """What has happened to a node."""

    kind: Change
    node: str
    """Address and resources in words."""
    line: str
    """The same as a sentence for a person."""
    alive: int
    """Nodes that are there now."""


class NodeWatch:
    """Reports the changes of a cluster's nodes in a `with` block, from a thread."""

    def __init__(self, on_change: Callable[[NodeChange], object], on_cluster: bool = True) -> None:
        """on_cluster: False watches nothing, since this machine is the only node."""
        self._on_change = on_change
        self._is_needed = on_cluster
        self._known: dict[str, Node] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="node-watch", daemon=True)

    def __enter__(self) -> NodeWatch:
        if self._is_needed:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._is_needed:
            self._thread.join()
            if error is None:  # a lost cluster may not answer
                self._look()

    def _watch(self) -> None:
        self._look()
        while not self._stop.wait(POLL_S):
            self._look()

    def _look(self) -> None:
        with suppress(Exception):  # of many kinds; a lost cluster is reported by the watch over its processes
            nodes = nodes_of_ray()
            changes = changes_between(self._known, nodes) if self._known else []
            self._known = dict(nodes)
            for change in changes:
                self._on_change(change)


def nodes_of_ray() -> Mapping[str, Node]:
    """Every node that the cluster has or had, by id. Raises errors of Ray."""
    import ray
    from ray.autoscaler.v2.sdk import get_cluster_status

    status = get_cluster_status(ray.get_runtime_context().gcs_address)
    draining = {node.node_id for node in (*status.active_nodes, *status.idle_nodes) if node.node_status == "DRAINING"}
    nodes = {}
    for node in ray.nodes():
        reason = " ".join(str(node.get("DeathReasonMessage") or "").split())[:REASON_LIMIT]
        name = f"{node['NodeManagerAddress']} ({describe(node['Resources'])})"  # a lost node has no resources
        nodes[node["NodeID"]] = Node(name, node["Alive"], node["NodeID"] in draining, reason)
    return nodes


def changes_between(before: Mapping[str, Node], after: Mapping[str, Node]) -> list[NodeChange]:
    """What has happened to each node between two looks."""
    alive = sum(node.is_alive for node in after.values())
    changes = []
    for node_id, node in after.items():
        old = before.get(node_id)
        if old is None and node.is_alive:
            line = f"node {node.name} has joined: {counted(alive, 'node')} now"
            changes.append(NodeChange("joined", node.name, line, alive))
        if node.is_draining and not (old is not None and old.is_draining):
            line = f"node {node.name} is about to leave: it finishes its rows, and gets no new ones"
            changes.append(NodeChange("draining", node.name, line, alive))
        if old is not None and old.is_alive and not node.is_alive:
            reason = f" ({node.reason.rstrip('.')})" if node.reason else ""
            rest = f"{counted(alive, 'node')} left. Other nodes make its rows again, which costs none of their attempts"
            changes.append(NodeChange("lost", old.name, f"node {old.name} is lost{reason}: {rest}", alive))
    return changes
