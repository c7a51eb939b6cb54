"""Says what a run waits for when no row moves on.

Ray waits without a word for resources that no node has. The watch asks Ray which resources are asked for and what each
node has left of its own, whatever keeps the rows.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from pipeline.flow.notes import Note
from pipeline.flow.pools import ACCELERATOR, Pools, Resources, describe
from sgi2v.wording import counted

POLL_S = 1.0
"""Seconds between two looks at the clock."""
STALLED_S = 60.0
"""Seconds without progress after which the watch says why."""
SAY_AGAIN_S = 600.0
"""Seconds after which it says the same again; another cause is said after STALLED_S."""
SHOWN_NODES = 8
"""Nodes that a message names."""


@dataclass(frozen=True)
class Demand:
    """Resources that an actor or a task waits for."""

    resources: Resources
    count: int
    """How many actors and tasks wait for as much."""


@dataclass(frozen=True)
class Node:
    """What a node has."""

    address: str
    total: Resources
    free: Resources


class StallWatch:
    """Watches the rows in a `with` block, and says after a minute without progress what Ray waits for."""

    def __init__(self, pools: Pools, say: Callable[[str], object]) -> None:
        """say: called with one line, from a thread."""
        self._pools = pools
        self._say = say
        self._notes: list[Note] = []
        self._moved_at: float = time.monotonic()
        self._is_driver_busy = False
        self._looked_at = self._moved_at
        self._said, self._said_at = "", -math.inf
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="stall-watch", daemon=True)

    def __enter__(self) -> StallWatch:
        self._moved_at = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def noted(self, notes: list[Note]) -> None:
        """Take in how far the workers are; a step is progress too."""
        if notes != self._notes:
            self._notes = notes
            self._moved_at = time.monotonic()

    def followed(self, rows: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """The rows, each of which is progress. The time that the driver takes for one is no stall."""
        for row in rows:
            self._is_driver_busy = True
            yield row
            self._moved_at = time.monotonic()
            self._is_driver_busy = False

    def _watch(self) -> None:
        while not self._stop.wait(POLL_S):
            now = time.monotonic()
            if self._is_driver_busy or now - max(self._moved_at, self._looked_at) < STALLED_S:
                continue
            line = self._describe()
            if line != self._said or self._moved_at > self._said_at or now - self._said_at >= SAY_AGAIN_S:
                self._say(f"no row has moved on for {now - self._moved_at:.0f} s: {line}")
                self._said, self._said_at = line, now
            self._looked_at = now

    def _describe(self) -> str:
        import ray

        try:
            demands, nodes = waiting_in_ray(ray.get_runtime_context().gcs_address)
        except Exception as error:  # of many kinds; a lost cluster is reported by the watch over its processes
            return f"Ray does not say what it waits for ({type(error).__name__})"
        return describe_stall(demands, nodes, self._pools, self._notes)


def waiting_in_ray(gcs_address: str) -> tuple[list[Demand], list[Node]]:
    """What actors and tasks wait for, and what the nodes have. Raises errors of Ray."""
    from ray.autoscaler.v2.sdk import get_cluster_status

    status = get_cluster_status(gcs_address)
    demands = [
        Demand(bundle.bundle, bundle.count)
        for demand in status.resource_demands.ray_task_actor_demand
        for bundle in demand.bundles_by_count
    ]
    nodes = []
    for node in (*status.active_nodes, *status.idle_nodes):
        usage = node.resource_usage.usage if node.resource_usage else []
        total = {each.resource_name: each.total for each in usage}
        nodes.append(Node(node.ip_address, total, {each.resource_name: each.total - each.used for each in usage}))
    return demands, nodes


def describe_stall(demands: Sequence[Demand], nodes: Sequence[Node], pools: Pools, notes: Sequence[Note]) -> str:
    """Why no row moves on, in one line."""
    if not demands:
        at_work = [f"{note.sample_id} at step {note.step + 1} of {note.steps}" for note in notes if note.sample_id]
        working = f"; the last steps are {', '.join(at_work[:SHOWN_NODES])}" if at_work else ""
        return (
            "every process has the CPUs and GPUs that it reserves; "
            f"workers that have loaded their model: {len(notes)} of {max(pools.workers, len(notes))}{working}"
        )
    asked = ", ".join(_in_words(demand, pools) for demand in sorted(demands, key=lambda each: -each.count))
    have = ", ".join(_has(node) for node in nodes[:SHOWN_NODES])
    more = f" and {counted(len(nodes) - SHOWN_NODES, 'more node')}" if len(nodes) > SHOWN_NODES else ""
    return f"Ray waits for a node with room for {asked}. Free now: {have or 'no node'}{more}"


def _in_words(demand: Demand, pools: Pools) -> str:
    """`2 workers (1 GPU and 0.5 CPU each)`; what is no actor of ours is a task."""
    stages = {"worker": pools.generate, "load actor": pools.load, "commit actor": pools.commit}
    asked = (demand.resources.get("CPU", 0.0), demand.resources.get("GPU", 0.0))
    same = [name for name, pool in stages.items() if _nearly((pool.num_cpus, pool.num_gpus), asked)]
    noun = " or ".join(same) if same else "task"
    number = counted(demand.count, noun) if len(same) < 2 else f"{demand.count} x {noun}"
    return f"{number} ({describe(demand.resources)}{' each' if demand.count > 1 else ''})"


def _nearly(one: tuple[float, float], other: tuple[float, float]) -> bool:
    """Whether two reservations are the same; Ray rounds to ten thousandths."""
    return all(abs(a - b) < 2e-4 for a, b in zip(one, other, strict=True))


def _has(node: Node) -> str:
    """`10.0.0.1 0 of 1 GPU, 0.25 of 4 CPU`."""
    kinds = [name for name in ("GPU", "CPU") if node.total.get(name)]
    parts = [f"{round(node.free.get(kind, 0.0), 2):g} of {node.total[kind]:g} {kind}" for kind in kinds]
    types = [name.removeprefix(ACCELERATOR) for name in node.total if name.startswith(ACCELERATOR)]
    return f"{node.address} {', '.join(parts) or '0 CPU'}" + (f" ({', '.join(types)})" if types else "")
