"""Which rows end their worker, which were only there when it ended, and how many rows are in flight.

Ray starts a row again as often as its worker dies, and does not say why it died. Therefore each stage reports every
start of a row to a ledger, one Ray actor beside the driver, before the work begins, and reports its end. A start
without an end was ended by the death of its process. If the whole node is gone, the row did not cause it. A row with
MAX_ATTEMPTS other such starts is quarantined: it fails with `worker_died` or `timed_out`.

The ledger lives as long as its run, so rows of a killed driver start from zero. If the ledger's own process dies, Ray
starts it anew, empty: a row that ends its workers is then quarantined some starts later, and up to twice as many rows
may be in flight once.
"""

from __future__ import annotations

import faulthandler
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

from pipeline.flow.actor import in_actor
from pipeline.flow.meters import RowCounts, label_output, record
from pipeline.flow.notes import Note
from pipeline.flow.session import cluster_errors
from pipeline.output.local_disk import full_disk_as_storage_error
from sgi2v.errors import ErrorCode, SampleError, StorageError

STDERR = 2
CRASH_REPORT_LIMIT = 2000
"""Characters of a crash report in a record."""
MAX_ATTEMPTS = 3
"""Starts of a row that ended with its worker, before the row is quarantined."""
IN_FLIGHT_PER_WORKER = 4
"""Rows per worker between the start of their generation and their commit."""
ADMISSION_POLL_S = 0.1
"""Seconds between two requests of a worker that waits until its row is admitted."""
NOTES_POLL_S = 1.0
"""Seconds between two requests of the driver for the workers' notes, and that it waits for each answer at most."""
DEAD_NODE_POLL_S = 1.0
"""Seconds between checks for dead nodes while as many rows are in flight as may be."""
TIMED_OUT_SHARE = 0.99
"""A start that lasted this share of its deadline timed out, unless a crash report says otherwise."""
OnNotes = Callable[[list[Note]], None]
"""Called with the last note of each worker."""
TIMEOUT, CRASH = "Timeout (", "Fatal Python error: "
"""How faulthandler's two kinds of report begin."""


@dataclass(frozen=True)
class Start:
    """One start of a row."""

    node: str
    """Ray's id of the node it ran on."""
    at: float
    """Monotonic clock of the ledger, seconds."""


class Ledger:
    """Every unfinished start of every row, by stage, and the rows between generation and commit."""

    def __init__(self, alive_nodes: Callable[[], set[str]], max_in_flight: int, output: str = "") -> None:
        """alive_nodes: returns the ids of the nodes that are alive now. output: label of the metrics.

        max_in_flight: rows that may be generated or wait for their commit at the same time. Workers that start later
        raise it: they report, and IN_FLIGHT_PER_WORKER rows are for each that has.
        """
        label_output(output)
        self._rows = RowCounts()
        self._alive_nodes = alive_nodes
        self._max_in_flight = max_in_flight
        self._in_flight: dict[str, str] = {}
        self._checked_nodes_at = -DEAD_NODE_POLL_S
        self._starts: dict[tuple[str, str], list[Start]] = {}
        self._notes: dict[str, Note] = {}

    def start(self, stage: str, sample_id: str, node: str) -> list[float]:
        """Note a start. Returns the seconds of each earlier one that ended with its worker but not with its node."""
        starts = self._starts.setdefault((stage, sample_id), [])
        starts.append(Start(node, time.monotonic()))
        self._rows.start(stage, sample_id)
        if len(starts) == 1:
            return []
        # the nodes are asked for each time: Ray may report a dead node later than a dead worker
        alive = self._alive_nodes()
        record("sgi2v_attempts", stage=stage, end="worker_died" if starts[-2].node in alive else "node_lost")
        return [later.at - start.at for start, later in pairwise(starts) if start.node in alive]

    def finish(self, stage: str, sample_id: str) -> None:
        """Forget the starts of a row that has passed a stage."""
        self._starts.pop((stage, sample_id), None)
        self._rows.finish(stage, sample_id)
        record("sgi2v_attempts", stage=stage, end="finished")

    def admit(self, sample_id: str, node: str) -> bool:
        """Whether a row may be generated now, on this node. So workers wait for a store that is slower than they are.

        A row that was admitted before is admitted again, since its outcome may have been lost with a node. Rows of
        dead nodes lose their places: they wait for a worker themselves, while every worker may wait for a place.
        """
        limit = max(self._max_in_flight, IN_FLIGHT_PER_WORKER * len(self._notes))
        if sample_id not in self._in_flight and len(self._in_flight) >= limit:
            self._drop_rows_of_dead_nodes()
            if len(self._in_flight) >= limit:
                return False
        self._in_flight[sample_id] = node
        return True

    def release(self, sample_id: str) -> None:
        """Note that a row is committed."""
        self._in_flight.pop(sample_id, None)
        self._rows.leave(sample_id)

    def note(self, note: Note) -> None:
        """Take in how far a worker is."""
        self._notes[note.worker] = note

    def notes(self) -> list[Note]:
        """The last note of each worker."""
        return list(self._notes.values())

    def _drop_rows_of_dead_nodes(self) -> None:
        if time.monotonic() - self._checked_nodes_at < DEAD_NODE_POLL_S:
            return
        self._checked_nodes_at = time.monotonic()
        alive = self._alive_nodes()
        self._in_flight = {sample_id: node for sample_id, node in self._in_flight.items() if node in alive}


class LedgerClient(Protocol):
    """The ledger as a stage sees it."""

    crash_reports: Path | None
    """How the paths of this run's crash reports begin, on each node; None writes none."""

    def start(self, stage: str, sample_id: str) -> list[float]:
        """`Ledger.start` on this node."""

    def finish(self, stage: str, sample_id: str) -> None:
        """`Ledger.finish`."""

    def admit(self, sample_id: str) -> bool:
        """`Ledger.admit` on this node."""

    def release(self, sample_id: str) -> None:
        """`Ledger.release`."""

    def note(self, note: Note) -> None:
        """`Ledger.note`."""


class LedgerActor:
    """The ledger of a run as a Ray actor on the driver's node; stages get a copy of this handle.

    Raises ClusterError if the actor is lost for good.
    """

    def __init__(self, max_in_flight: int, output: str) -> None:
        """max_in_flight, output: see `Ledger`."""
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self.crash_reports: Path | None = Path(tempfile.gettempdir()) / f"sgi2v-batch-{uuid.uuid4().hex[:12]}"
        options = {"num_cpus": 0, "scheduling_strategy": here, "max_restarts": -1, "max_task_retries": -1}
        actor, arguments = in_actor(Ledger, (_alive_nodes, max_in_flight, output))
        self._actor: Any = ray.remote(actor).options(**options).remote(*arguments)

    def start(self, stage: str, sample_id: str) -> list[float]:
        """`Ledger.start` on the node of the calling process."""
        import ray

        with cluster_errors():
            lasted: list[float] = ray.get(self._actor.call.remote("start", stage, sample_id, _this_node()))
        return lasted

    def finish(self, stage: str, sample_id: str) -> None:
        """`Ledger.finish`; does not wait for it."""
        self._actor.call.remote("finish", stage, sample_id)

    def admit(self, sample_id: str) -> bool:
        """`Ledger.admit` on the node of the calling process."""
        import ray

        with cluster_errors():
            admitted: bool = ray.get(self._actor.call.remote("admit", sample_id, _this_node()))
        return admitted

    def release(self, sample_id: str) -> None:
        """`Ledger.release`; does not wait for it."""
        self._actor.call.remote("release", sample_id)

    def note(self, note: Note) -> None:
        """`Ledger.note`; does not wait for it."""
        self._actor.call.remote("note", note)

    @contextmanager
    def followed(self, on_notes: OnNotes) -> Iterator[None]:
        """Call `on_notes` with the last note of each worker, every NOTES_POLL_S, from a thread of the driver.

        Progress is only shown: while the ledger does not answer, nothing is.
        """
        import ray
        from ray.exceptions import RayError

        end = threading.Event()

        def follow() -> None:
            while not end.wait(NOTES_POLL_S):
                with suppress(RayError, StorageError):
                    if notes := ray.get(self._actor.call.remote("notes"), timeout=NOTES_POLL_S):
                        on_notes(notes)

        thread = threading.Thread(target=follow, name="notes", daemon=True)
        thread.start()
        try:
            yield
        finally:
            end.set()
            thread.join()


def _this_node() -> str:
    import ray

    node: str = ray.get_runtime_context().get_node_id()
    return node


def _alive_nodes() -> set[str]:
    import ray

    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def wait_until_admitted(ledger: LedgerClient | None, sample_id: str) -> None:
    """Return when the row may be generated. Without a ledger that is at once."""
    while ledger is not None and not ledger.admit(sample_id):
        time.sleep(ADMISSION_POLL_S)


@contextmanager
def attempt(
    ledger: LedgerClient | None,
    stage: str,
    sample_id: str,
    timeout_s: float | None = None,
    breaks_worker: Callable[[Exception], bool] | None = None,
) -> Iterator[Callable[[], None]]:
    """Work on a row that may end this process; at its deadline it does.

    The block gets a function that sets the deadline anew, for a row of several videos.
    ledger: None counts no attempts. timeout_s: seconds; None sets no deadline. breaks_worker: whether an error leaves
    this process unable to work; then the process exits. Raises SampleError(worker_died or timed_out) for a row that
    has ended MAX_ATTEMPTS workers of this stage, and StorageError if a local disk is full.
    """
    lasted = [] if ledger is None else ledger.start(stage, sample_id)
    reports = None if ledger is None else ledger.crash_reports
    report = None if reports is None else reports.with_name(f"{reports.name}-{stage}-{sample_id}.txt")
    if len(lasted) >= MAX_ATTEMPTS:
        raise _quarantine_error(stage, lasted, timeout_s, report)
    with full_disk_as_storage_error(), _crash_report(report) as descriptor:

        def set_deadline() -> None:
            if timeout_s is not None:
                # the timer is a C thread, so code that holds the interpreter lock cannot delay it
                faulthandler.dump_traceback_later(timeout_s, exit=True, file=descriptor)

        set_deadline()
        try:
            yield set_deadline
        except Exception as error:
            if breaks_worker is not None and breaks_worker(error):
                with suppress(OSError):
                    os.write(descriptor, f"{type(error).__name__}: {error}".encode())
                os._exit(1)  # without `finish`, so the attempt counts
            raise
        finally:
            if timeout_s is not None:
                faulthandler.cancel_dump_traceback_later()
            if ledger is not None:
                ledger.finish(stage, sample_id)


@contextmanager
def _crash_report(file: Path | None) -> Iterator[int]:
    """A file descriptor to which this process writes its traceback if it crashes; else the file is removed."""
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


def _quarantine_error(stage: str, lasted: list[float], timeout_s: float | None, report: Path | None) -> SampleError:
    """The error of a row that has ended too many workers; lasted: seconds of each start. Removes the crash report."""
    crash = None
    if report is not None and report.exists():
        crash = report.read_text(errors="replace").strip()[:CRASH_REPORT_LIMIT]
        report.unlink()
    # a start lasts until the next one, so including the restart of the worker: a crash report is more reliable
    lasted_long = timeout_s is not None and all(seconds >= TIMED_OUT_SHARE * timeout_s for seconds in lasted)
    if timeout_s is not None and (lasted_long if crash is None else crash.startswith(TIMEOUT)):
        message = (
            f"`{stage}` took more than {timeout_s:g} s in {len(lasted)} attempts of {len(lasted)}: "
            "raise --sample-timeout if the sample needs longer"
        )
        return SampleError(ErrorCode.TIMED_OUT, "\n".join(filter(None, [message, crash])))
    ends = ", ".join(f"{seconds:.0f} s" for seconds in lasted)
    message = f"the worker died in `{stage}` in {len(lasted)} attempts of {len(lasted)}, after {ends}"
    if crash:
        how = "a library crashed" if crash.startswith(CRASH) else "it exited because this error made it unusable"
        return SampleError(ErrorCode.WORKER_DIED, f"{message}: {how}\n{crash}")
    advice = "killed from outside, probably because memory ran out: see the system's log"
    return SampleError(ErrorCode.WORKER_DIED, f"{message}: {advice}")
