"""What a person sees: progress while a run goes on, a summary at its end, and its status from storage."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.catalog import Catalog, count, counts_of, mean_of
from pipeline.cluster import Width
from pipeline.config import RunConfig
from pipeline.lease import read_claim
from pipeline.plan import Plan, require_run
from pipeline.records import VIDEOS, SampleRecord
from pipeline.run import Observer, RunResult
from pipeline.storage import Storage
from pipeline.tables import FAILURES, METADATA

if TYPE_CHECKING:
    from rich.progress import Progress


def duration(seconds: float) -> str:
    """`8.1 s`, `3 min 12 s`, `5 h 03 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


class Lines(Observer):
    """One plain line per event, for logs."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.todo = self.done = self.failed = 0
        self.workers = 1
        self.first_round_at = time.monotonic()

    def waiting(self, line: str) -> None:
        self.say(line)

    def planned(self, plan: Plan) -> None:
        self.todo = plan.todo.num_rows
        self.say(f"{plan.total} rows: {plan.done} done before, {self.todo} to do -> {self.config.output}")

    def started(self, width: Width) -> None:
        self.workers = width.workers
        plural = "s" if width.workers > 1 else ""
        compiling = ", and compiling it, minutes where it is the first time" if self.config.execution.compile else ""
        self.say(f"{width.workers} worker{plural}, {width.note}; loading {self.config.model.source}{compiling}")

    def finished(self, record: SampleRecord) -> None:
        self.done += 1
        self.failed += record.status == "failed"
        pace = self.pace()
        shown = f"  ({pace})" if pace and self.done < self.todo else ""
        self.say(f"[{self.done}/{self.todo}] {outcome(record)}{shown}")

    def pace(self) -> str:
        """Rate and remaining time, from the samples behind each worker's first, which waited for the model."""
        now = time.monotonic()
        counted = self.done - self.workers
        if counted <= 0:
            self.first_round_at = now
            return ""
        per_sample = max((now - self.first_round_at) / counted, 1e-9)
        left = per_sample * (self.todo - self.done)
        return f"{60 / per_sample:.1f} per min, {duration(left)} left"

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)  # noqa: T201


class Bar(Lines):
    """A progress bar on a terminal; failures are told above it."""

    def __init__(self, config: RunConfig, progress: Progress) -> None:
        super().__init__(config)
        self.progress = progress
        self.task = progress.add_task("planning", total=None, failed=0, pace="")

    def started(self, width: Width) -> None:
        super().started(width)
        self.progress.update(self.task, description="loading", total=self.todo)

    def finished(self, record: SampleRecord) -> None:
        self.done += 1
        self.failed += record.status == "failed"
        if record.status == "failed":
            self.say(outcome(record))
        self.progress.update(self.task, description="generating", advance=1, failed=self.failed, pace=self.pace())

    def say(self, line: str) -> None:
        self.progress.console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def observer_for(config: RunConfig) -> Iterator[Observer]:
    """A bar where standard error is a terminal, plain lines elsewhere."""
    if not sys.stderr.isatty():
        yield Lines(config)
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("done, {task.fields[failed]} failed"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[pace]}"),
    )
    with Progress(*columns, console=Console(stderr=True), refresh_per_second=4) as progress:
        yield Bar(config, progress)


def seconds_generating(phases: Mapping[str, float | None]) -> float:
    """What a committed sample took a worker. phases: the record's, or its row's of an index."""
    return sum(phases[f"seconds_{phase}"] or 0.0 for phase in ("encode", "guide", "denoise", "decode"))


def outcome(record: SampleRecord) -> str:
    """One line on a finished sample."""
    if record.status == "failed":
        first_line = (record.message or "").partition("\n")[0]
        return f"{record.sample_id} FAILED {record.error_code}: {first_line}"
    objmc, static = record.metrics.get("objmc_px"), record.metrics.get("static_objmc_px")
    if objmc is None or static is None:
        measured = f"not measured: {record.metrics.get('null_reason')}"
    else:
        measured = f"ObjMC {objmc:.2f} px (static {static:.2f})"
    return f"{record.sample_id} done in {duration(seconds_generating(vars(record)))}, {measured}"


def failed_by_code(index: pa.Table) -> Mapping[str, int]:
    """Failed samples per error code, most first."""
    return counts_of(index.filter(pc.equal(index["status"], "failed")), "error_code")


def counts_lines(index: pa.Table) -> list[str]:
    """Failures by code, and motion fidelity over the committed samples."""
    lines = [f"  failed     {number:>6}  {code}" for code, number in failed_by_code(index).items()]
    committed = index.filter(pc.equal(index["status"], "committed"))
    measured = committed.filter(pc.is_valid(committed["objmc_px"]))
    objmc, static = mean_of(measured, "objmc_px"), mean_of(measured, "static_objmc_px")
    if objmc is not None and static is not None:
        gain = mean_of(measured, "control_gain")
        told = f"  ObjMC      {objmc:6.2f}  px (static {static:.2f})"
        lines.append(
            told + (f", control gain {gain:.2f}" if gain is not None else "") + f", over {measured.num_rows} samples"
        )
    if measured.num_rows < committed.num_rows:
        unmeasured = committed.filter(pc.is_null(committed["objmc_px"]))
        told = ", ".join(f"{number} {reason}" for reason, number in counts_of(unmeasured, "null_reason").items())
        lines.append(f"  unmeasured {unmeasured.num_rows:>6}  {told}")
    return lines


def print_summary(result: RunResult) -> None:
    """What a run came to, and where things are."""
    output = result.config.output
    finished = result.finished
    added, failed = finished.num_rows, count(finished, "failed")
    lines = [
        f"{added - failed} made, {failed} failed, {result.plan.done} done before, "
        f"of {result.plan.total} rows, in {duration(result.seconds)}",
        *counts_lines(result.index),
        f"  videos     {output}/{VIDEOS}/",
        f"  metrics    {output}/{METADATA}",
    ]
    if count(result.index, "failed"):
        lines.append(f"  failures   {output}/{FAILURES}   (again with --retry-failed)")
    if result.interrupted:
        left = result.plan.todo.num_rows - added
        lines.append(f"Interrupted with {left} rows left. Nothing is lost: the same command goes on from here.")
    print("\n".join(lines))  # noqa: T201


def print_status(output: str) -> None:
    """How a run stands, from its output alone. Raises ConfigError where there is none.

    `left` counts rows of the manifest that was run last; samples of others are told apart.
    """
    storage = Storage(output)
    run = require_run(storage)
    rows, others = run["rows"], run["other_samples"]
    index = Catalog(storage).index
    left = max(rows - max(index.num_rows - others, 0), 0)
    told = f" (and {others} samples of other manifests)" if others else ""
    failed = count(index, "failed")
    newest = pc.max(index["finished_at"]).as_py()
    lines = [
        f"{index.num_rows - failed} made, {failed} failed, {left} left, of {rows} rows{told}",
        *counts_lines(index),
        f"  manifest   {run['manifest']}",
        f"  model      {run['model'].get('source')} at {run['model_revision']}",
    ]
    if newest:
        lines.append(f"  last       {newest} UTC")
    holder = read_claim(storage)
    if holder is not None and not holder.released:
        silent = time.time() - holder.renewed_at
        lines.append(f"  running    {holder.told()}, last heard of {duration(max(silent, 0.0))} ago")
    print("\n".join(lines))  # noqa: T201
