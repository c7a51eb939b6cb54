"""What a run is doing, as its lease and its log tell it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from enum import StrEnum
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output.lease import HEARTBEAT_S, MISSED_HEARTBEATS, Claim, is_alive
from pipeline.output.log import Line


class Phase(StrEnum):
    """What a run is doing; the values are what `status` shows."""

    PLANNING = "planning"
    """The driver compares the manifest with what is finished."""
    STARTING_RAY = "starting Ray"
    LOADING = "loading the model"
    RUNNING = "running"
    SILENT = "silent"
    """The driver missed its heartbeats: a new run waits for its lease to expire."""
    FINISHED = "finished"
    INTERRUPTED = "interrupted"
    FAILED = "failed"
    """An error ended the run."""
    DEAD = "dead"
    """The driver was killed: the same command goes on."""

    @property
    def is_over(self) -> bool:
        """Whether nothing more comes from this run."""
        return self in {Phase.FINISHED, Phase.INTERRUPTED, Phase.FAILED, Phase.DEAD}


ENDS = {"run_finished": Phase.FINISHED, "run_interrupted": Phase.INTERRUPTED, "run_failed": Phase.FAILED}
"""Phase of a run after its last event."""
REACHED = {
    "run_started": Phase.PLANNING,
    "planned": Phase.STARTING_RAY,
    "workers_started": Phase.LOADING,
    "model_loaded": Phase.RUNNING,
    "sample_committed": Phase.RUNNING,
    "sample_failed": Phase.RUNNING,
}
"""Phase that a run which goes on has reached with an event."""


def phase_of(claim: Claim | None, events: Sequence[Line], left: int) -> Phase:
    """The phase of the last run.

    claim: of the driver that had the output last; events: of the run's log, in their order; left: rows to do.
    """
    if claim is None or claim.released:
        ends = [ENDS[line["event"]] for line in events if line["event"] in ENDS]
        return ends[-1] if ends else Phase.INTERRUPTED if left else Phase.FINISHED
    if not is_alive(claim):
        return Phase.DEAD
    if time.time() - claim.renewed_at >= MISSED_HEARTBEATS * HEARTBEAT_S:
        return Phase.SILENT
    reached = [REACHED[line["event"]] for line in events if line["event"] in REACHED]
    return max(reached, key=list(Phase).index, default=Phase.PLANNING)


def value_of(events: Sequence[Line], event: str, name: str) -> Any:
    """A value of the first event of a kind; None without one."""
    return next((line.get(name) for line in events if line["event"] == event), None)


def samples_per_second(index: pa.Table, events: Sequence[Line], now: float) -> float | None:
    """The rate of the run whose log this is; None until each worker has finished more than its first sample.

    Each worker's first sample is left out, because it waited for the model. now: seconds since 1970.
    """
    started_at, workers = value_of(events, "run_started", "at"), value_of(events, "workers_started", "workers")
    if started_at is None or workers is None:
        return None
    # times are ISO 8601 in UTC with equal digits, so they sort as text
    finished = pc.drop_null(index["finished_at"])
    times = sorted(finished.filter(pc.greater(finished, started_at)).to_pylist())
    later = len(times) - workers
    if later < 1:
        return None
    seconds = now - datetime.fromisoformat(times[workers - 1]).timestamp()
    return float(later / max(seconds, 1e-3))
