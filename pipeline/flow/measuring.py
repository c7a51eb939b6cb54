"""A flow with one stage: videos that exist already go through actors that measure them."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import pyarrow as pa

from pipeline.config import ExecutionConfig
from pipeline.flow.attempts import IN_FLIGHT_PER_WORKER, LedgerActor
from pipeline.flow.dataset import one_row_blocks, stream, through
from pipeline.flow.pools import SPLITTER_CPUS, Needs, NoRoomError, Pool
from pipeline.flow.session import cluster_errors, ray_running
from sgi2v.tracking import TRACKERS

MEASURER_CPUS = 1.0
"""CPUs that an actor reserves: it decodes, tracks and compares frames one after the other."""


@contextmanager
def measuring_session(execution: ExecutionConfig, trackers: Sequence[str], rows: int) -> Iterator[tuple[Pool, str]]:
    """Start Ray or attach to it, and yield the actors that measure, and in one line what they run on.

    Raises as `ray_running`, and NoRoomError for a cluster without a free CPU.
    """
    with cluster_errors(), ray_running(execution, Needs(trackers[0], MEASURER_CPUS, 0.0)):
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        yield plan_measurers(execution, trackers, rows, nodes)


def plan_measurers(
    execution: ExecutionConfig, trackers: Sequence[str], rows: int, nodes: Sequence[Mapping[str, float]]
) -> tuple[Pool, str]:
    """How many actors measure, what each reserves, and a line about it. Each actor has every tracker."""
    needs = Needs(trackers[0], MEASURER_CPUS, 0.0)
    cpus = sum(node.get("CPU", 0.0) for node in nodes)
    if cpus < MEASURER_CPUS + SPLITTER_CPUS:
        raise NoRoomError(f"Ray has {cpus:g} CPU, and measuring needs {MEASURER_CPUS + SPLITTER_CPUS:g} or more")
    most = max(1, int(cpus - needs.cpus()))
    per_actor = max(TRACKERS[name].num_gpus for name in trackers)
    gpus = sum(int(node.get("GPU", 0)) for node in nodes)
    note = "no GPU needed"
    if per_actor and gpus:
        most = min(most, sum(int(int(node.get("GPU", 0)) / per_actor) for node in nodes))
        note = f"{per_actor:g} GPU each"
    elif per_actor:
        slow = ", ".join(name for name in trackers if TRACKERS[name].num_gpus)
        note, per_actor = f"no GPU for {slow}: on CPUs this is slow", 0.0
    size = max(1, min(rows, execution.max_workers or most, most))
    return Pool(size, size, MEASURER_CPUS, per_actor), note


def measuring_flow(
    rows: pa.Table, stage: type, arguments: tuple[Any, ...], pool: Pool, output: str
) -> Generator[dict[str, Any], None, None]:
    """Send every row through the stage, whose constructor gets the arguments and the ledger; yields what comes out.

    output: location of the results, which the cluster's metrics are labelled with.
    """
    ledger = LedgerActor(IN_FLIGHT_PER_WORKER * pool.size, output)
    with cluster_errors():
        yield from stream(through(one_row_blocks(rows), stage, (*arguments, ledger), pool))
