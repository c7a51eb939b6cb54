"""How wide a run can be on a cluster: actors of each stage, and what each takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.config import ExecutionConfig, RunConfig, cluster_address
from sgi2v.checkpoint import open_checkpoint
from sgi2v.errors import ConfigError
from sgi2v.fetch import COMPONENTS, weight_files

STAGE_CPUS = 0.25
"""CPU share that a load or a commit actor reserves."""
RESERVED_CPUS = 1 + 2 * STAGE_CPUS
"""Beside the workers: Ray Data's own tasks, a loader and a committer. With less the flow waits for ever."""
PROCESS_BYTES = 1 << 30
"""What a worker on a CPU takes beside its weights, at least."""


@dataclass(frozen=True)
class Width:
    """How many actors of each stage run."""

    workers: int
    gpus_per_worker: float
    cpus_per_worker: float
    helpers: int
    """Load actors, and commit actors."""
    note: str
    """One line on what the workers run on."""


def worker_bytes(config: RunConfig) -> int | None:
    """Memory of a worker on a CPU of this machine; None where it attaches to a cluster or has no weights."""
    if cluster_address(config.execution):
        return None
    path = open_checkpoint(config.model, weights=False).path
    half = config.model.dtype not in {"auto", "float32"}
    files = [file for component in COMPONENTS for file in weight_files(path, component, half)[1]]
    return PROCESS_BYTES + 2 * sum(file.stat().st_size for file in files) if files else None


def width(
    execution: ExecutionConfig, rows: int, nodes: Sequence[Mapping[str, float]], worker_bytes: int | None
) -> Width:
    """How many workers a run gets from a cluster, and what each takes.

    nodes: the resources of each node, in Ray's names. worker_bytes: memory of a worker on a CPU; None: not known.
    Raises ConfigError for a cluster on which the run would wait for ever.
    """
    cpus = sum(node.get("CPU", 0.0) for node in nodes)
    if cpus < RESERVED_CPUS + 0.5:
        raise ConfigError(
            f"the Ray cluster has {cpus:g} CPU, and a run needs 2 at least: add a node or raise --num-cpus"
        )
    wanted = max(rows, 1) if execution.workers is None else min(execution.workers, max(rows, 1))
    most_gpus = max(node.get("GPU", 0.0) for node in nodes)
    per_worker = execution.gpus_per_worker
    if per_worker is None:
        per_worker = 1.0 if most_gpus else 0.0
    if per_worker and most_gpus:
        return _width_on_gpus(per_worker, wanted, execution.workers, nodes, cpus)
    threads = execution.threads_per_worker
    note = f"there is no GPU to give {per_worker:g} of to a worker: " if per_worker else ""
    note += f"no GPU, {threads} CPU thread{'s' if threads > 1 else ''} per worker"
    workers = wanted
    if execution.workers is None:
        workers = min(workers, max(1, int(cpus - RESERVED_CPUS)))
        if worker_bytes is not None:
            held = max(1, sum(int(node.get("memory", 0.0) // worker_bytes) for node in nodes))
            if held < workers:
                workers = held
                note += f", as many as memory holds at {worker_bytes / 2**30:.1f} GiB each"
    share = min(1.0, (cpus - RESERVED_CPUS) / workers)
    return Width(workers, 0.0, share, max(1, workers // 4), note)


def _width_on_gpus(
    per_worker: float, wanted: int, asked: int | None, nodes: Sequence[Mapping[str, float]], cpus: float
) -> Width:
    """As many workers as the nodes hold, each whole on one node, with a CPU share that fits beside it there."""
    # a tenth goes ten times into a GPU, and binary fractions say nine
    held = [int(node.get("GPU", 0.0) / per_worker + 1e-6) if node.get("CPU") else 0 for node in nodes]
    most = sum(held)
    if not most:
        gpus = max(node.get("GPU", 0.0) for node in nodes)
        raise ConfigError(
            f"no node of the Ray cluster has {per_worker:g} GPUs and a CPU: --gpus-per-worker may be {gpus:g} at most"
        )
    workers = min(wanted, most)
    # the rest of the flow may land beside the workers of any node
    shares = [_spare_cpus(node["CPU"]) / count for node, count in zip(nodes, held, strict=True) if count]
    share = min(1.0, *shares)
    helpers = max(1, min(workers, int(cpus - workers) // 2))
    note = f"{per_worker:g} GPU per worker"
    if asked is not None and wanted > most:
        note += f", as many as the GPUs hold of the {asked} asked for"
    return Width(workers, per_worker, share, helpers, note)


def _spare_cpus(cpus: float) -> float:
    """CPUs of a node that its workers may take."""
    return cpus - RESERVED_CPUS if cpus >= RESERVED_CPUS + 0.5 else cpus / 2
