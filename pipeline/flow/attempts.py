"""What happens to the rows that are started: which of them end their worker, which were only there when it ended, and
how many are on their way at once.

Ray starts a row again for as long as its worker dies under it, and does not say why it died. So every start is told
to a ledger, in the driver or in an actor beside it, before the work begins; a start that is neither finished nor still
running was ended by the death of its process. Where the whole node is gone too, the row had no part in that. A row that
was started MAX_ATTEMPTS times otherwise is given up. The ledger lives as long as its run: rows of a driver that was
killed have a clean slate. So they have if an actor's process dies: Ray starts it anew, and it knows of nothing. A row
that ends its workers is then given up some starts later, and for once twice as many rows may be on their way.
"""

from __future__ import annotations

import faulthandler
import os
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from pipeline.flow.session import cluster_errors
from pipeline.output.local_disk import full_disk_as_storage_error
from sgi2v.errors import ErrorCode, SampleError

STDERR = 2
LAST_WORDS = 2000
"""Characters that are kept of where a process died."""
MAX_ATTEMPTS = 3
"""Starts of a row that end with its worker, before it is given up."""
ROOM_PER_WORKER = 4
"""Rows of a worker between their generation and their commit, the one in its hands included."""
ROOM_POLL_S = 0.1
LOST_POLL_S = 1.0
"""Between two looks of the ledger for nodes that are gone with what waited there, while there is no room."""
TIMED_OUT_SHARE = 0.99
"""A start that lasted this part of its deadline ended by it, where its last words do not say how it ended."""
TIMEOUT, CRASH = "Timeout (", "Fatal Python error: "
"""How faulthandler begins."""


@dataclass(frozen=True)
class Start:
    """One start of a row."""

    node: str
    """Name of the node it ran on."""
    at: float
    """Monotonic clock of the ledger, seconds."""


class Ledger:
    """Every unfinished start of every row, by stage, and the rows between generation and commit.

    Held by the driver, or by one actor.
    """

    def __init__(self, alive_nodes: Callable[[], set[str]], room: int) -> None:
        """alive_nodes: asked for the nodes that are alive now, where a row has been started before.

        room: rows that may be generated or wait for their commit at once.
        """
        self._alive_nodes = alive_nodes
        self._room = room
        self._held: dict[str, str] = {}
        self._looked_at = -LOST_POLL_S
        self._starts: dict[tuple[str, str], list[Start]] = {}

    def start(self, stage: str, sample_id: str, node: str) -> list[float]:
        """Note a start. Returns how long each earlier one lasted that ended with its worker and not with its node."""
        starts = self._starts.setdefault((stage, sample_id), [])
        starts.append(Start(node, time.monotonic()))
        if len(starts) == 1:
            return []
        # asked anew of every start: that a node is gone may be known later than that a worker is
        alive = self._alive_nodes()
        return [later.at - each.at for each, later in pairwise(starts) if each.node in alive]

    def finish(self, stage: str, sample_id: str) -> None:
        """Forget the starts of a row that has come through."""
        self._starts.pop((stage, sample_id), None)

    def admit(self, sample_id: str, node: str) -> bool:
        """Whether a row may be generated now, on this node: a store that is slower than the workers keeps them waiting.

        A row that was admitted before is again: what came of it may have been lost with a node. Such rows give up
        their place: they wait for a worker, and every worker may wait for a place.
        """
        if sample_id not in self._held and len(self._held) >= self._room:
            self._drop_lost()
            if len(self._held) >= self._room:
                return False
        self._held[sample_id] = node
        return True

    def leave(self, sample_id: str) -> None:
        """Note that a row is committed."""
        self._held.pop(sample_id, None)

    def _drop_lost(self) -> None:
        if time.monotonic() - self._looked_at < LOST_POLL_S:
            return
        self._looked_at = time.monotonic()
        alive = self._alive_nodes()
        self._held = {sample_id: node for sample_id, node in self._held.items() if node in alive}


class Attempts(Protocol):
    """How a stage tells of its starts."""

    traces: Path | None
    """What the files begin with, on each node, to which a dying process says its last; None keeps nothing."""

    def start(self, stage: str, sample_id: str) -> list[float]:
        """As the ledger's, on this node."""

    def finish(self, stage: str, sample_id: str) -> None:
        """As the ledger's."""

    def admit(self, sample_id: str) -> bool:
        """As the ledger's, on this node."""

    def leave(self, sample_id: str) -> None:
        """As the ledger's."""


class LedgerActor:
    """The ledger of a run, as a Ray actor on the driver's node; to be handed to the stages of its flow.

    Raises ClusterError where it cannot be had again.
    """

    def __init__(self, room: int) -> None:
        """room: as the ledger's."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.traces: Path | None = traces_of_a_run()
        options = {"num_cpus": 0, "scheduling_strategy": here, "max_restarts": -1, "max_task_retries": -1}
        self._actor: Any = ray.remote(Ledger).options(**options).remote(_alive_nodes, room)

    def start(self, stage: str, sample_id: str) -> list[float]:
        """As the ledger's, on the node of the process that calls."""
        import ray

        with cluster_errors():
            lasted: list[float] = ray.get(self._actor.start.remote(stage, sample_id, _this_node()))
        return lasted

    def finish(self, stage: str, sample_id: str) -> None:
        """As the ledger's; does not wait."""
        self._actor.finish.remote(stage, sample_id)

    def admit(self, sample_id: str) -> bool:
        """As the ledger's, on the node of the process that calls."""
        import ray

        with cluster_errors():
            admitted: bool = ray.get(self._actor.admit.remote(sample_id, _this_node()))
        return admitted

    def leave(self, sample_id: str) -> None:
        """As the ledger's; does not wait."""
        self._actor.leave.remote(sample_id)


def traces_of_a_run() -> Path:
    """What the files of its dying processes begin with."""
    return Path(tempfile.gettempdir()) / f"sgi2v-batch-{uuid.uuid4().hex[:12]}"


def wait_for_room(attempts: Attempts | None, sample_id: str) -> None:
    """Return when the row may be generated. attempts: None has room for all."""
    while attempts is not None and not attempts.admit(sample_id):
        time.sleep(ROOM_POLL_S)


def _this_node() -> str:
    import ray

    node: str = ray.get_runtime_context().get_node_id()
    return node


def _alive_nodes() -> set[str]:
    import ray

    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


@contextmanager
def attempt(
    attempts: Attempts | None,
    stage: str,
    sample_id: str,
    timeout_s: float | None = None,
    breaks_worker: Callable[[Exception], bool] | None = None,
) -> Iterator[None]:
    """Work on a row that may end this process, within a deadline at which it does.

    attempts: None keeps no count. timeout_s: None is no deadline. breaks_worker: tells the errors after which this
    process is of no use: it ends. Raises SampleError(worker_died or timed_out) for a row that has ended MAX_ATTEMPTS
    workers of this stage, and StorageError where this machine has no room for the stage's own files.
    """
    lasted = [] if attempts is None else attempts.start(stage, sample_id)
    traces = None if attempts is None else attempts.traces
    file = None if traces is None else traces.with_name(f"{traces.name}-{stage}-{sample_id}.txt")
    if len(lasted) >= MAX_ATTEMPTS:
        raise _given_up(stage, lasted, timeout_s, file)
    with full_disk_as_storage_error(), _last_words(file) as descriptor:
        if timeout_s is not None:
            # a thread of C, which no interpreter lock can keep waiting
            faulthandler.dump_traceback_later(timeout_s, exit=True, file=descriptor)
        try:
            yield
        except Exception as error:
            if breaks_worker is not None and breaks_worker(error):
                with suppress(OSError):
                    os.write(descriptor, f"{type(error).__name__}: {error}".encode())
                os._exit(1)  # before the ledger is told that the row has come through
            raise
        finally:
            if timeout_s is not None:
                faulthandler.cancel_dump_traceback_later()
            if attempts is not None:
                attempts.finish(stage, sample_id)


@contextmanager
def _last_words(file: Path | None) -> Iterator[int]:
    """A descriptor to which this process writes where it was, should it end; if it does not, nothing stays of it."""
    if file is None:
        yield STDERR
        return
    was_enabled = faulthandler.is_enabled()
    try:
        with file.open("wb") as stream:
            faulthandler.enable(stream)
            try:
                yield stream.fileno()
            finally:
                faulthandler.disable()
                if was_enabled:
                    faulthandler.enable(STDERR)
    finally:
        file.unlink(missing_ok=True)


def _given_up(stage: str, lasted: list[float], timeout_s: float | None, file: Path | None) -> SampleError:
    words = None
    if file is not None and file.exists():
        words = file.read_text(errors="replace").strip()[:LAST_WORDS]
        file.unlink()
    # a start lasts until the next one, with all that a worker takes to come back: what it said itself goes before that
    lasted_long = timeout_s is not None and all(seconds >= TIMED_OUT_SHARE * timeout_s for seconds in lasted)
    if timeout_s is not None and (lasted_long if words is None else words.startswith(TIMEOUT)):
        message = f"did not come out of `{stage}` within {timeout_s:g} s in {len(lasted)} attempts"
        message = f"{message}: raise --sample-timeout if that is too little for it"
        return SampleError(ErrorCode.TIMED_OUT, "\n".join(filter(None, [message, words])))
    ends = ", ".join(f"{seconds:.0f} s" for seconds in lasted)
    message = f"its worker died in `{stage}` in {len(lasted)} attempts of {len(lasted)}, after {ends}"
    if words:
        how = "it crashed a library" if words.startswith(CRASH) else "it ended itself, of no use any more after this"
        return SampleError(ErrorCode.WORKER_DIED, f"{message}: {how}\n{words}")
    advice = "killed from outside, which is what a system does that runs out of memory: see its own log"
    return SampleError(ErrorCode.WORKER_DIED, f"{message}: {advice}")
