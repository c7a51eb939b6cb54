"""How many actors each stage of a run gets on a cluster, and what each of them reserves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.config import ExecutionConfig, RunConfig, cluster_address
from sgi2v.checkpoint import open_checkpoint
from sgi2v.errors import ConfigError
from sgi2v.fetch import COMPONENTS, prefers_half, weight_files
from sgi2v.tracking import TRACKERS
from sgi2v.wording import counted

Resources = Mapping[str, float]
"""What a node has, in Ray's names: `CPU`, `GPU`, `memory` (bytes)."""

LOADER_CPUS = 0.25
"""CPUs that a load actor reserves."""
RAY_DATA_CPUS = 1
"""CPUs for Ray Data's own tasks."""
MIN_WORKER_CPUS = 0.5
"""CPUs that must be left for the workers on a cluster without GPUs."""
PROCESS_BYTES = 1 << 30
"""Memory of a worker on a CPU besides its weights, at least."""
ROUNDING = 1e-6
"""Ten tenths of a GPU make a whole one, while binary fractions make slightly less."""


@dataclass(frozen=True)
class Pool:
    """The actors of one stage, and what each of them reserves."""

    min_size: int
    max_size: int
    num_cpus: float
    num_gpus: float = 0.0


@dataclass(frozen=True)
class Pools:
    """The actors of every stage of a run."""

    load: Pool
    generate: Pool
    commit: Pool
    note: str
    """What the workers run on, in one line."""

    @property
    def workers(self) -> int:
        """Number of generate actors; each holds one model."""
        return self.generate.max_size

    @property
    def device(self) -> str:
        """`cuda` or `cpu`: where the workers hold their model."""
        return "cuda" if self.generate.num_gpus else "cpu"


@dataclass(frozen=True)
class Needs:
    """What the stages besides `generate` reserve."""

    tracker: str
    """Name of the point tracker, which runs in the commit actors."""
    num_cpus: float
    """CPUs of a commit actor."""
    num_gpus: float
    """GPUs of a commit actor."""

    @staticmethod
    def of_tracker(name: str) -> Needs:
        """What the tracker of that name asks for."""
        tracker = TRACKERS[name]
        return Needs(name, tracker.num_cpus, tracker.num_gpus)

    @property
    def reserved_cpus(self) -> float:
        """CPUs for Ray Data, one load actor and one commit actor. With fewer left the run would wait for ever."""
        return RAY_DATA_CPUS + LOADER_CPUS + self.num_cpus

    def worker_cpus(self, node_cpus: float) -> float:
        """CPUs of a GPU node that its workers may take."""
        spare = node_cpus - self.reserved_cpus
        return spare if spare >= MIN_WORKER_CPUS else node_cpus / 2


def worker_bytes(config: RunConfig) -> int | None:
    """Memory of a worker on a CPU of this machine; None on a cluster, or if the model has no weights yet."""
    if cluster_address(config.execution):
        return None
    path = open_checkpoint(config.model, weights=False).path
    weights_bytes = 0
    for component in COMPONENTS:
        variant, files = weight_files(path, component, prefers_half(config.model))
        widening = 2 if variant == "fp16" and config.model.dtype == "auto" else 1  # on a CPU `auto` is float32
        weights_bytes += widening * sum(file.stat().st_size for file in files)
    return PROCESS_BYTES + 2 * weights_bytes if weights_bytes else None


def plan_pools(
    execution: ExecutionConfig, needs: Needs, rows: int, nodes: Sequence[Resources], worker_bytes: int | None
) -> Pools:
    """Choose the number of actors of each stage, and what each reserves.

    worker_bytes: memory of a worker on a CPU; None if unknown. Raises ConfigError for a cluster on which the run would
    wait for ever.
    """
    cpus = sum(node.get("CPU", 0.0) for node in nodes)
    needed = needs.reserved_cpus + MIN_WORKER_CPUS
    if cpus < needed:
        raise ConfigError(
            f"the Ray cluster has {cpus:g} CPU, and a run needs {needed:g} or more: add a node or raise --num-cpus"
        )
    wanted = max(rows, 1) if execution.workers is None else min(execution.workers, max(rows, 1))
    has_gpus = any(node.get("GPU") for node in nodes)
    per_worker = execution.gpus_per_worker
    if per_worker is None:
        per_worker = 1.0 if has_gpus else 0.0
    if per_worker and has_gpus:
        return _pools_on_gpus(per_worker, wanted, execution.workers, needs, nodes)
    return _pools_on_cpus(per_worker, wanted, execution, needs, nodes, worker_bytes)


def _pools_on_cpus(
    per_worker: float,
    wanted: int,
    execution: ExecutionConfig,
    needs: Needs,
    nodes: Sequence[Resources],
    worker_bytes: int | None,
) -> Pools:
    spare_cpus = sum(node.get("CPU", 0.0) for node in nodes) - needs.reserved_cpus
    threads = execution.threads_per_worker
    note = f"no GPU (--gpus-per-worker {per_worker:g} has no effect)" if per_worker else "no GPU"
    note += f", {counted(threads, 'CPU thread')} per worker"
    workers = wanted
    if execution.workers is None:
        workers = min(workers, max(1, int(spare_cpus)))
        if worker_bytes is not None:
            fit = max(1, sum(int(node.get("memory", 0.0) // worker_bytes) for node in nodes))
            if fit < workers:
                workers = fit
                note += f", limited by memory at {worker_bytes / 2**30:.1f} GiB each"
    others = max(1, workers // 4)
    commit = Pool(1, others, needs.num_cpus)
    gpus = _gpus_beside_cpus(nodes)
    if needs.num_gpus and any(gpus):
        commit = _commit_pool_on_gpus(needs, others, gpus, per_worker=0.0)
    elif needs.num_gpus:
        note += f", no GPU for the tracker {needs.tracker}"
    generate = Pool(workers, workers, min(1.0, spare_cpus / workers))
    return Pools(Pool(1, others, LOADER_CPUS), generate, commit, note)


def _pools_on_gpus(
    per_worker: float, wanted: int, asked: int | None, needs: Needs, nodes: Sequence[Resources]
) -> Pools:
    """As many workers as the nodes hold, each whole on one node, with a CPU share that fits beside it there."""
    gpus = _gpus_beside_cpus(nodes)
    fit = [_how_often(per_worker, gpu) for gpu in gpus]
    if not sum(fit):
        most = max(node.get("GPU", 0.0) for node in nodes)
        raise ConfigError(
            f"no node of the Ray cluster has {per_worker:g} GPUs and a CPU: give --gpus-per-worker {most:g} or less"
        )
    if needs.num_gpus:
        fit = _beside_one_tracker(per_worker, fit, gpus, needs, nodes)
    workers = min(wanted, sum(fit))
    # the other stages may land beside the workers of any node
    shares = [needs.worker_cpus(node["CPU"]) / count for node, count in zip(nodes, fit, strict=True) if count]
    spare_cpus = sum(node.get("CPU", 0.0) for node in nodes) - workers
    loaders = max(1, min(workers, int(spare_cpus / 2)))
    committers = max(1, min(workers, int(spare_cpus / (2 * max(1.0, needs.num_cpus)))))
    commit = Pool(1, committers, needs.num_cpus)
    if needs.num_gpus:
        left = [gpu - count * per_worker for gpu, count in zip(gpus, fit, strict=True)]
        commit = _commit_pool_on_gpus(needs, committers, left, per_worker)
    note = f"{per_worker:g} GPU per worker"
    if asked is not None and wanted > sum(fit):
        note += f", too few GPUs for the {asked} workers asked for"
    generate = Pool(workers, workers, min(1.0, *shares), per_worker)
    return Pools(Pool(1, loaders, LOADER_CPUS), generate, commit, note)


def _gpus_beside_cpus(nodes: Sequence[Resources]) -> list[float]:
    """GPUs of each node; 0 for a node without a CPU, on which no actor can run."""
    return [node.get("GPU", 0.0) if node.get("CPU") else 0.0 for node in nodes]


def _how_often(share: float, gpus: float) -> int:
    """How often a share fits into a number of GPUs."""
    return int(gpus / share + ROUNDING)


def _beside_one_tracker(
    per_worker: float, fit: Sequence[int], gpus: Sequence[float], needs: Needs, nodes: Sequence[Resources]
) -> list[int]:
    """Workers of each node once a commit actor has its GPU share on the node where that costs the fewest workers."""
    choices = []
    for number, node in enumerate(nodes):
        gpus_left, cpus_left = gpus[number] - needs.num_gpus, node.get("CPU", 0.0)
        if gpus_left >= -ROUNDING and cpus_left - needs.worker_cpus(cpus_left) >= needs.num_cpus:
            choices.append([*fit[:number], _how_often(per_worker, gpus_left), *fit[number + 1 :]])
    best = max(choices, key=sum, default=[])
    if not sum(best):
        raise _no_room_for_the_tracker(needs, per_worker, gpus)
    return best


def _commit_pool_on_gpus(needs: Needs, most: int, gpus: Sequence[float], per_worker: float) -> Pool:
    """Commit actors with a GPU share, in what the workers leave.

    The pool does not grow: an actor that came later might take the share of a worker that restarts.
    """
    size = min(most, sum(_how_often(needs.num_gpus, gpu) for gpu in gpus))
    if not size:
        raise _no_room_for_the_tracker(needs, per_worker, gpus)
    return Pool(size, size, needs.num_cpus, needs.num_gpus)


def _no_room_for_the_tracker(needs: Needs, per_worker: float, gpus: Sequence[float]) -> ConfigError:
    wants = f"the tracker {needs.tracker} needs {needs.num_gpus:g} GPU and {needs.num_cpus:g} CPU of one node"
    left = max(gpus) - needs.num_gpus
    if not per_worker or left <= 0:
        return ConfigError(f"{wants}, and no node of the Ray cluster has them: add a node, or use another tracker")
    left = left if left < 1 else int(left)  # Ray takes fractions of one GPU only
    return ConfigError(
        f"{wants} beside the workers, and no node of the Ray cluster has them beside a worker with {per_worker:g} GPU: "
        f"give --gpus-per-worker {left:g} or less"
    )
