"""How many actors each stage of a run gets on a cluster, and what each of them reserves.

An actor runs on one node, and a share of a GPU lies on one card: whether there is room is asked node by node and card
by card, never of sums over the cluster.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from pipeline.config import ExecutionConfig, RunConfig, cluster_address
from sgi2v.checkpoint import open_checkpoint, pinned
from sgi2v.errors import ConfigError
from sgi2v.fetch import COMPONENTS, prefers_half, weight_files
from sgi2v.tracking import TRACKERS
from sgi2v.wording import counted

Resources = Mapping[str, float]
"""What a node has, or what an actor reserves, in Ray's names: `CPU`, `GPU`, `memory` (bytes)."""

SPLITTER_CPUS = 0.2
"""CPUs of the task that splits the manifest. They differ from LOADER_CPUS, since Ray Data makes one stage of two that
reserve the same: a load actor would then get the whole manifest at once."""
LOADER_CPUS = 0.25
"""CPUs that a load actor reserves."""
GPU_WORKER_CPUS = 0.5
"""CPUs that a worker on a GPU of a cluster reserves at most: a node that joins may have few CPUs for its GPUs."""
WORKERS_LEAST_SHARE = 0.25
"""Part of a node's CPUs that its workers get at least, however little that leaves to the other stages."""
PROCESS_BYTES = 1 << 30
"""Memory of a worker on a CPU besides its weights, at least."""
ROUNDING = 1e-6
"""Ten tenths of a GPU make a whole one, while binary fractions make slightly less."""
ACCELERATOR_SHARE = 0.001
"""What Ray takes of a node's resource `accelerator_type:NAME` for each actor that must run there."""
SPARE_ACTORS = 2
"""Loaders and committers on a cluster, at least: one on a node that is about to leave takes no new row."""
ACCELERATOR = "accelerator_type:"
"""How Ray's name of the resource begins that says which GPUs a node has."""


class NoRoomError(ConfigError):
    """The nodes that there are cannot hold the workers; others could."""


@dataclass(frozen=True)
class Pool:
    """The actors of one stage, and what each of them reserves."""

    min_size: int
    max_size: int
    num_cpus: float
    num_gpus: float = 0.0
    initial_size: int | None = None
    """Actors at the start; None: `min_size`."""
    accelerator_type: str | None = None
    """Ray's name of the GPUs that the actors may run on; None: any."""

    @property
    def size(self) -> int:
        """Actors at the start."""
        return self.min_size if self.initial_size is None else self.initial_size


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
        """Number of generate actors at the start; each holds one model."""
        return self.generate.size

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

    def cpus(self, actors: int = 1) -> float:
        """CPUs of so many load actors and commit actors, and of Ray Data's own task."""
        return SPLITTER_CPUS + actors * (LOADER_CPUS + self.num_cpus)


def describe(resources: Resources) -> str:
    """Resources in words: `1 GPU of type A100 and 0.5 CPU`."""
    kind = ", ".join(name.removeprefix(ACCELERATOR) for name in resources if name.startswith(ACCELERATOR))
    words = []
    if gpus := resources.get("GPU"):
        words.append(f"{gpus:g} GPU" + (f" of type {kind}" if kind else ""))
    words.append(f"{round(resources.get('CPU', 0.0), 2):g} CPU")
    return " and ".join(words)


def worker_bytes(config: RunConfig) -> int | None:
    """Memory of a worker on a CPU of this machine; None on a cluster, or if the model has no weights yet."""
    if cluster_address(config.execution):
        return None
    path = open_checkpoint(pinned(config.model, config.model_revision), weights=False).path
    weights_bytes = 0
    for component in COMPONENTS:
        variant, files = weight_files(path, component, prefers_half(config.model))
        widening = 2 if variant == "fp16" and config.model.dtype == "auto" else 1  # on a CPU `auto` is float32
        weights_bytes += widening * sum(file.stat().st_size for file in files)
    return PROCESS_BYTES + 2 * weights_bytes if weights_bytes else None


def plan_pools(
    execution: ExecutionConfig,
    needs: Needs,
    rows: int,
    nodes: Sequence[Resources],
    worker_bytes: int | None,
    on_cluster: bool = True,
) -> Pools:
    """Choose the number of actors of each stage, and what each reserves.

    worker_bytes: memory of a worker on a CPU; None if unknown. on_cluster: nodes may join and leave, so the pool of
    workers may grow. Raises NoRoomError for nodes on which the run would wait for ever.
    """
    room = _Room(needs, nodes, on_cluster)
    rows = max(rows, 1)
    least, most = min(execution.min_workers, rows), min(execution.max_workers or rows, rows)
    per_worker = execution.gpus_per_worker
    if per_worker is None:
        per_worker = 1.0 if execution.demands_gpus or any(node.get("GPU") for node in nodes) else 0.0
    if per_worker:
        return _pools_on_gpus(per_worker, execution, least, most, room)
    return _pools_on_cpus(execution, least, most, room, worker_bytes)


def bundles(execution: ExecutionConfig, rows: int) -> list[dict[str, float]]:
    """What Ray's autoscaler must bring for the workers of a run: whole GPUs, of which workers may share one."""
    workers = max(1, min(execution.max_workers or 1, rows))
    if not execution.demands_gpus:
        return [{"CPU": 1.0}] * workers
    per_worker, kind = execution.gpus_per_worker or 1.0, execution.accelerator_type
    bundle = {"CPU": 1.0, "GPU": max(per_worker, 1.0)}
    if kind is not None:
        bundle[f"{ACCELERATOR}{kind}"] = ACCELERATOR_SHARE
    return [bundle] * math.ceil(workers / max(1, _fit(per_worker, [1.0])))


class _Room:
    """What the nodes have for workers, and for the other stages beside them."""

    def __init__(self, needs: Needs, nodes: Sequence[Resources], on_cluster: bool) -> None:
        """Raises NoRoomError for too few CPUs."""
        self.needs = needs
        self.nodes = nodes
        self.on_cluster = on_cluster
        self.where = "the Ray cluster" if on_cluster else "this machine"
        self.cpus_of = [node.get("CPU", 0.0) for node in nodes]
        self.others = 1
        """Loaders and committers, at least: `SPARE_ACTORS` where the CPUs suffice."""
        if on_cluster and self._left_by_workers(SPARE_ACTORS) >= needs.cpus(SPARE_ACTORS):
            self.others = SPARE_ACTORS
        if self._left_by_workers(1) < needs.cpus() - ROUNDING:
            least = needs.cpus() / (1 - WORKERS_LEAST_SHARE)
            raise NoRoomError(
                f"{self.where} has {self.cpus:g} CPU, and a run needs {math.ceil(least * 10 - ROUNDING) / 10:g} or more"
            )

    @property
    def cpus(self) -> float:
        """CPUs of all nodes."""
        return sum(self.cpus_of)

    def worker_cpus(self, cpus: float, others: int | None = None) -> float:
        """CPUs of a node that its workers may take: all actors of the other stages may come to lie beside them."""
        return max(cpus - self.needs.cpus(others or self.others), WORKERS_LEAST_SHARE * cpus)

    def _left_by_workers(self, others: int) -> float:
        return sum(cpus - self.worker_cpus(cpus, others) for cpus in self.cpus_of)

    def worker_share(self, workers: int) -> float:
        """CPUs of each of so many workers without a GPU: the largest share with which all find a node, 1 at most."""
        shares = (self.worker_cpus(cpus) / count for cpus in self.cpus_of for count in range(1, workers + 1))
        return min(1.0, heapq.nlargest(workers, shares)[-1])

    def gpus_of(self, accelerator_type: str | None = None) -> list[int]:
        """GPUs of each node; 0 for a node without a CPU, on which no actor can run, and for one with others."""
        has_type = [accelerator_type is None or f"{ACCELERATOR}{accelerator_type}" in node for node in self.nodes]
        return [
            int(node.get("GPU", 0)) if cpus and suits else 0
            for node, cpus, suits in zip(self.nodes, self.cpus_of, has_type, strict=True)
        ]


def _pools_on_cpus(execution: ExecutionConfig, least: int, most: int, room: _Room, worker_bytes: int | None) -> Pools:
    note = f"no GPU, {counted(execution.threads_per_worker, 'CPU thread')} per worker"
    fit = max(1, sum(int(cpus) for cpus in room.cpus_of) - math.ceil(room.needs.cpus(room.others)))
    asked = execution.workers if isinstance(execution.workers, int) else None
    workers = min(most, max(least, fit)) if asked is None else most
    if worker_bytes is not None:
        in_memory = max(1, sum(int(node.get("memory", 0.0) // worker_bytes) for node in room.nodes))
        if in_memory < workers:
            which = "" if asked is None else f" to {in_memory} of the {asked} workers asked for,"
            note += f", limited by memory{which} at {worker_bytes / 2**30:.1f} GiB each"
            workers = in_memory
    # without GPUs a pool grows where a range says so only: Ray counts CPUs, and each worker takes memory too
    most = most if isinstance(execution.workers, str) else workers
    others = max(room.others, workers // 4)
    commit = Pool(room.others, _growing(others, most, room), room.needs.num_cpus)
    gpus = room.gpus_of()
    if room.needs.num_gpus and any(gpus):
        commit = _commit_pool_on_gpus(room, others, [_free(count) for count in gpus], per_worker=0.0)
    elif room.needs.num_gpus:
        note += f", no GPU for the tracker {room.needs.tracker}"
    if room.on_cluster and execution.gpus_per_worker is None:
        note += " (give --gpus-per-worker 1 to wait for GPUs)"
    generate = _worker_pool(execution, least, workers, most, room, room.worker_share(workers))
    return Pools(Pool(room.others, others, LOADER_CPUS), generate, commit, note)


def _pools_on_gpus(per_worker: float, execution: ExecutionConfig, least: int, most: int, room: _Room) -> Pools:
    """As many workers as the nodes hold, each whole on one node, with a CPU share that fits beside it there."""
    needs, kind = room.needs, execution.accelerator_type
    gpus = room.gpus_of(kind)
    fit = [_fit(per_worker, _free(count)) for count in gpus]
    if not sum(fit):
        raise _no_gpus(per_worker, execution, room)
    if needs.num_gpus:
        fit = _beside_one_tracker(per_worker, fit, room)
    workers = min(most, sum(fit))
    if workers < least:
        raise NoRoomError(
            f"{room.where} has GPUs for {counted(workers, 'worker')}, and --workers {execution.workers} asks for "
            f"{least} or more"
        )
    shares = [room.worker_cpus(cpus) / count for cpus, count in zip(room.cpus_of, fit, strict=True) if count]
    spare_cpus = room.cpus - workers
    loaders = max(room.others, min(workers, int(spare_cpus / 2)))
    committers = max(room.others, min(workers, int(spare_cpus / (2 * max(1.0, needs.num_cpus)))))
    commit = Pool(room.others, _growing(committers, most, room), needs.num_cpus)
    if needs.num_gpus:
        left = [_free(gpus, count, per_worker) for gpus, count in zip(room.gpus_of(), fit, strict=True)]
        commit = _commit_pool_on_gpus(room, committers, left, per_worker)
    note = f"{per_worker:g} GPU per worker" + ("" if kind is None else f" of type {kind}")
    if execution.max_workers is not None and most > workers:
        fewer = f"too few GPUs for the {execution.max_workers} workers asked for"
        note += f", {fewer}: more start when nodes join" if room.on_cluster else f", {fewer}"
    num_cpus = min(GPU_WORKER_CPUS if room.on_cluster else 1.0, *shares)
    generate = _worker_pool(execution, least, workers, most, room, num_cpus, per_worker)
    return Pools(Pool(room.others, loaders, LOADER_CPUS), generate, commit, note)


def _worker_pool(
    execution: ExecutionConfig,
    least: int,
    workers: int,
    most: int,
    room: _Room,
    num_cpus: float,
    num_gpus: float = 0.0,
) -> Pool:
    """The workers that there is room for now; on a cluster more when nodes join, and fewer if a range allows it."""
    kind = execution.accelerator_type
    if not room.on_cluster:
        return Pool(workers, workers, num_cpus, num_gpus, accelerator_type=kind)
    # without a range the pool keeps its size: an actor that it dropped while rows were slow would load its model again
    min_size = least if isinstance(execution.workers, str) else workers
    return Pool(min_size, most, num_cpus, num_gpus, initial_size=workers, accelerator_type=kind)


def _growing(committers: int, most_workers: int, room: _Room) -> int:
    """Committers at most. On a cluster they keep up with workers that start later."""
    return max(committers, most_workers // 4) if room.on_cluster else committers


def _free(gpus: int, workers: int = 0, per_worker: float = 1.0) -> list[float]:
    """The free part of each GPU of a node with so many workers."""
    if per_worker > 1:
        return [1.0] * (gpus - workers * int(per_worker))
    on_one = _fit(per_worker, [1.0])
    return [1.0 - per_worker * min(on_one, max(0, workers - on_one * number)) for number in range(gpus)]


def _fit(share: float, free: Sequence[float]) -> int:
    """How many shares of a GPU, each on one card, fit into what is free of some; of whole GPUs, how many groups."""
    if share <= 1:
        return sum(int(part / share + ROUNDING) for part in free)
    return sum(part >= 1 - ROUNDING for part in free) // int(share)


def _no_gpus(per_worker: float, execution: ExecutionConfig, room: _Room) -> NoRoomError:
    kind = execution.accelerator_type
    wants = f"a worker needs {per_worker:g} GPU" + ("" if kind is None else f" of type {kind}")
    if most := max(room.gpus_of(kind), default=0):
        return NoRoomError(
            f"{wants} of one node, and a node of {room.where} has {most} at most: give --gpus-per-worker {most} or less"
        )
    types = sorted({name.removeprefix(ACCELERATOR) for node in room.nodes for name in node if ACCELERATOR in name})
    if kind is not None and types:
        return NoRoomError(f"{wants}, and {room.where} has {', '.join(types)}: give another --accelerator-type")
    if any(node.get("GPU") for node in room.nodes):
        return NoRoomError(f"{wants} and a CPU of one node, and no node of {room.where} has both")
    return NoRoomError(f"{wants}, and {room.where} has none: add one, or give --gpus-per-worker 0 to use CPUs")


def _beside_one_tracker(per_worker: float, fit: Sequence[int], room: _Room) -> list[int]:
    """Workers of each node once a commit actor has its GPU share on the node where that costs the fewest workers."""
    needs, choices = room.needs, []
    whole = max(1, math.ceil(needs.num_gpus - ROUNDING))
    for number, (gpus, cpus) in enumerate(zip(room.gpus_of(), room.cpus_of, strict=True)):
        if gpus >= whole and cpus - room.worker_cpus(cpus) >= needs.num_cpus:
            free = [whole - needs.num_gpus, *[1.0] * (gpus - whole)]
            beside = _fit(per_worker, free) if fit[number] else 0
            choices.append([*fit[:number], beside, *fit[number + 1 :]])
    best = max(choices, key=sum, default=[])
    if not sum(best):
        raise _no_room_for_the_tracker(room, per_worker)
    return best


def _commit_pool_on_gpus(room: _Room, most: int, free: Sequence[Sequence[float]], per_worker: float) -> Pool:
    """Commit actors with a GPU share, in what the workers leave.

    free: the free part of each GPU, by node. The pool does not grow: an actor that came later might take the share of
    a worker that restarts.
    """
    needs = room.needs
    size = min(most, sum(_fit(needs.num_gpus, parts) for parts in free))
    if not size:
        raise _no_room_for_the_tracker(room, per_worker)
    return Pool(size, size, needs.num_cpus, needs.num_gpus)


def _no_room_for_the_tracker(room: _Room, per_worker: float) -> NoRoomError:
    needs = room.needs
    wants = f"the tracker {needs.tracker} needs {needs.num_gpus:g} GPU and {needs.num_cpus:g} CPU of one node"
    left = max(room.gpus_of()) - needs.num_gpus
    if not per_worker or left <= 0:
        return NoRoomError(f"{wants}, and no node of {room.where} has them: add a node, or use another tracker")
    left = left if left < 1 else int(left)  # Ray takes fractions of one GPU only
    return NoRoomError(
        f"{wants} beside the workers, and no node of {room.where} has them beside a worker with {per_worker:g} GPU: "
        f"give --gpus-per-worker {left:g} or less"
    )
