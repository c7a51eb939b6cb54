"""The metrics of a run, which Ray exports to Prometheus as `ray_<name>`. docs/monitoring.md describes each.

Every process of a run records its own. Outside Ray nothing is recorded. No label may have a value per sample, since
Prometheus keeps every combination of labels.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from manifests.access import display_uri

if TYPE_CHECKING:
    from pipeline.output.records import SampleRecord

OUTPUT = "output"
"""Label of every metric: folder or URL of the run's results, without secrets."""


@dataclass(frozen=True)
class Meter:
    """What a metric is."""

    kind: Literal["counter", "gauge", "histogram"]
    description: str
    labels: tuple[str, ...] = ()
    """Besides OUTPUT."""


METERS: Mapping[str, Meter] = {
    "sgi2v_samples": Meter("counter", "Finished samples.", ("outcome", "error_code")),
    "sgi2v_rows_left": Meter("gauge", "Rows that this run has not finished."),
    "sgi2v_phase_seconds": Meter("histogram", "Seconds that a finished sample took, by phase.", ("phase",)),
    "sgi2v_rows": Meter("gauge", "Rows in a stage, at work or waiting for it.", ("stage", "state")),
    "sgi2v_attempts": Meter("counter", "Attempts at a row in a stage, by how they ended.", ("stage", "end")),
    "sgi2v_worker_busy_seconds": Meter("counter", "Seconds that a worker spent on samples, not waiting."),
    "sgi2v_bytes": Meter("counter", "Bytes of images read (down) and of results written (up).", ("direction",)),
    "sgi2v_lost_nodes": Meter("counter", "Nodes of the cluster that were lost during the run."),
}
"""Every metric by its name."""
SECONDS_BOUNDARIES = (0.01, 0.1, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0, 640.0, 1280.0, 3600.0)
"""Upper limits of the histogram's buckets."""
PHASES = ("load", "encode", "guide", "denoise", "decode", "commit")
"""Phases of a sample whose seconds its record has."""

_output = ""


def label_output(output: str) -> None:
    """Label what this process records from now on. output: folder or URL of the results."""
    global _output  # noqa: PLW0603 - a process belongs to one run
    _output = display_uri(output)


def record(name: str, value: float = 1.0, **labels: str) -> None:
    """Add to a counter, set a gauge, or take a value into a histogram. No-op outside Ray."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return
    kind, metric = METERS[name].kind, _metric(name)
    tags = {OUTPUT: _output, **labels}
    if kind == "counter":
        if value > 0:  # Ray refuses 0
            metric.inc(value, tags)
    elif kind == "gauge":
        metric.set(value, tags)
    else:
        metric.observe(value, tags)


def record_sample(sample: SampleRecord, rows_left: int) -> None:
    """Record a finished sample. rows_left: rows that this run has not finished now."""
    record("sgi2v_samples", outcome=sample.status, error_code=sample.error_code or "")
    record("sgi2v_rows_left", rows_left)
    for phase in PHASES:
        if (seconds := getattr(sample, f"seconds_{phase}")) is not None:
            record("sgi2v_phase_seconds", seconds, phase=phase)


@cache
def _metric(name: str) -> Any:
    from ray.util.metrics import Counter, Gauge, Histogram

    meter = METERS[name]
    if meter.kind == "histogram":
        return Histogram(name, meter.description, list(SECONDS_BOUNDARIES), (OUTPUT, *meter.labels))
    return (Counter if meter.kind == "counter" else Gauge)(name, meter.description, (OUTPUT, *meter.labels))


class BusyTime:
    """Counts the seconds that this worker spends on samples."""

    def __init__(self) -> None:
        self._since: float | None = None

    def begin(self) -> None:
        """A sample begins."""
        self._since = time.perf_counter()

    def lap(self) -> None:
        """Count the time since the last call, in the middle of a sample: one can take minutes."""
        now = time.perf_counter()
        if self._since is not None:
            record("sgi2v_worker_busy_seconds", now - self._since)
            self._since = now

    def end(self) -> None:
        """The sample is done."""
        self.lap()
        self._since = None


class RowCounts:
    """How many rows are in each stage, at work or waiting for it."""

    STAGES = ("load", "generate", "commit")

    def __init__(self) -> None:
        self._place: dict[str, tuple[str, str]] = {}
        self._counts: dict[tuple[str, str], int] = {}

    def start(self, stage: str, sample_id: str) -> None:
        """A stage has begun with a row."""
        self._move(sample_id, (stage, "working"))

    def finish(self, stage: str, sample_id: str) -> None:
        """A row waits for the next stage, if there is one: that of an evaluation has none."""
        following = dict(pairwise(self.STAGES)).get(stage)
        self._move(sample_id, None if following is None else (following, "waiting"))

    def leave(self, sample_id: str) -> None:
        """A row is committed."""
        self._move(sample_id, None)

    def _move(self, sample_id: str, to: tuple[str, str] | None) -> None:
        before = self._place.pop(sample_id, None)
        if to is not None:
            self._place[sample_id] = to
        for place, change in ((before, -1), (to, 1)):
            if place is not None:
                self._counts[place] = self._counts.get(place, 0) + change
                record("sgi2v_rows", self._counts[place], stage=place[0], state=place[1])
