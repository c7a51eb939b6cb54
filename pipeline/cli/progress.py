"""What a person sees while a run goes on: a bar on a terminal, plain lines elsewhere. All of it goes to stderr."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from manifests.plausible import describe
from manifests.validate import glance
from pipeline.cli import exit_codes
from pipeline.cli.lines import QUIET_S, print_progress
from pipeline.cli.printing import LAYOUT, drawing
from pipeline.cli.summary import duration, generation_seconds
from pipeline.config import RunConfig
from pipeline.flow.notes import Note
from pipeline.flow.pools import Pools
from pipeline.output.records import SampleRecord
from pipeline.plan import Plan
from pipeline.run import Observer
from sgi2v.wording import counted, escaped

if TYPE_CHECKING:
    from rich.progress import Progress


QUIET_LATER_S = 60.0
"""As QUIET_S, once a sample is finished."""
OnStuck = Callable[[str], object]
SHOWN_DAMAGED = 5
"""Damaged records that are named at the start of a run."""


class Lines(Observer):
    """One plain line per event, for logs."""

    def __init__(self, config: RunConfig, on_stuck: OnStuck = lambda message: None) -> None:
        """on_stuck: called before this process ends because it is stuck in a call of a lost Ray."""
        self.config = config
        self.on_stuck = on_stuck
        self.todo = self.done = self.failed = 0
        self.workers = 1
        self.first_round_at = self.said_at = time.monotonic()
        self.shown_step: Note | None = None
        self.loaded: set[str] = set()

    def waiting(self, line: str) -> None:
        self.say(line)

    def noticed(self, line: str) -> None:
        self.say(line)

    def planned(self, plan: Plan) -> None:
        self.todo = plan.todo.num_rows
        rows = counted(plan.total, "row")
        self.say(f"{rows}: {plan.done} done before, {self.todo} to do -> {self.config.output}")
        damaged = plan.catalog.damaged
        for damage in damaged[:SHOWN_DAMAGED]:
            self.say(f"  {damage.key} {damage.problem}: does not count, `sgi2v-batch verify --repair` takes it away")
        if len(damaged) > SHOWN_DAMAGED:
            self.say(f"  and {counted(len(damaged) - SHOWN_DAMAGED, 'more damaged record')}")
        config = self.config
        implausible = glance(plan.todo, config.manifest, config.execution.access, config.video_size)
        for line in (*image_lines(plan), *describe(implausible)):
            self.say(line)

    def started(self, pools: Pools) -> None:
        self.workers = pools.workers
        compiling = ", and compiling it, minutes the first time" if self.config.execution.compile else ""
        workers = counted(pools.workers, "worker")
        self.say(f"{workers}, {pools.note}; loading {self.config.model.source}{compiling}")

    def noted(self, notes: list[Note]) -> None:
        for note in notes:
            if note.worker not in self.loaded:
                self.loaded.add(note.worker)
                self.workers = max(self.workers, len(self.loaded))  # more than at the start, where nodes have joined
                which = f" on worker {len(self.loaded)} of {self.workers}" if self.workers > 1 else ""
                self.say(f"model loaded{which} in {duration(note.model_seconds)}")
        if at_work := [note for note in notes if note.sample_id is not None]:
            self.stepped(max(at_work, key=lambda note: note.step))

    def stepped(self, note: Note) -> None:
        """Show the step of the worker that is farthest with its sample."""
        quiet_s = QUIET_LATER_S if self.done else QUIET_S
        if note != self.shown_step and time.monotonic() - self.said_at >= quiet_s:
            self.shown_step = note
            self.say(step_of(note))

    def stuck(self, message: str) -> None:
        print_progress(f"error: {message}")
        self.on_stuck(message)
        os._exit(exit_codes.LOST)

    def finished(self, record: SampleRecord) -> None:
        self._count(record)
        pace = self.pace()
        shown = f"  ({pace})" if pace and self.done < self.todo else ""
        self.say(f"[{self.done}/{self.todo}] {outcome(record)}{shown}")

    def _count(self, record: SampleRecord) -> None:
        self.done += 1
        self.failed += record.status == "failed"

    def pace(self) -> str:
        """Rate and remaining time. Each worker's first sample is left out, because it waited for the model."""
        now = time.monotonic()
        counted_samples = self.done - self.workers
        if counted_samples <= 0:
            self.first_round_at = now
            return ""
        per_sample = max((now - self.first_round_at) / counted_samples, 1e-9)
        left = per_sample * (self.todo - self.done)
        return f"{60 / per_sample:.1f} per min, {duration(left)} left"

    def say(self, line: str) -> None:
        self.said_at = time.monotonic()
        print_progress(line)


class Bar(Lines):
    """A progress bar on a terminal, with a line above it for each failed sample."""

    def __init__(self, config: RunConfig, progress: Progress, on_stuck: OnStuck = lambda message: None) -> None:
        super().__init__(config, on_stuck)
        self.progress = progress
        self.task = progress.add_task("planning", total=None, failed=0, pace="")

    def started(self, pools: Pools) -> None:
        super().started(pools)
        self.progress.update(self.task, description="loading", total=self.todo)

    def stepped(self, note: Note) -> None:
        self.progress.update(self.task, description=step_of(note))

    def finished(self, record: SampleRecord) -> None:
        self._count(record)
        if record.status == "failed":
            self.say(outcome(record))
        self.progress.update(self.task, description="generating", advance=1, failed=self.failed, pace=self.pace())

    def say(self, line: str) -> None:
        self.progress.console.print(escaped(line, keep=LAYOUT), markup=False, highlight=False, soft_wrap=True)


@contextmanager
def observer_for(config: RunConfig, on_stuck: OnStuck = lambda message: None) -> Iterator[Observer]:
    """A bar where stderr is a terminal, plain lines elsewhere. on_stuck: as `Lines` has it."""
    if not sys.stderr.isatty():
        yield Lines(config, on_stuck)
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
    console = Console(file=drawing(sys.stderr))
    progress = Progress(
        *columns,
        console=console,
        refresh_per_second=4,
        redirect_stdout=False,  # else rich would draw what others print, as it is
        redirect_stderr=False,
    )
    with progress:
        yield Bar(config, progress, on_stuck)


def image_lines(plan: Plan) -> list[str]:
    """What to say of images that the plan could not compare; nothing if there are none."""
    lines = []
    if plan.without_digest:
        samples = counted(plan.without_digest, "finished sample")
        lines.append(f"{samples} without a digest of the image, made by an earlier version: images not compared")
    if plan.not_compared:
        sample_id, reason = next(iter(plan.not_compared.items()))
        images, first = counted(len(plan.not_compared), "image"), f"the first is of {sample_id}: {escaped(reason)}"
        lines.append(f"{images} of finished samples could not be read and compared; {first}")
    return lines


def step_of(note: Note) -> str:
    """`car-17: step 7 of 50`, or `car-17, candidate 2 of 4: step 7 of 50`."""
    which = f", {note.video}" if note.video else ""
    return f"{note.sample_id}{which}: step {note.step + 1} of {note.steps}"


class ReplayProgress:
    """Lines about a sample that this process makes: its model, then a step every QUIET_S."""

    def __init__(self) -> None:
        self.said_at = -QUIET_S

    def __call__(self, note: Note) -> None:
        if note.sample_id is None:
            print_progress(f"model loaded in {duration(note.model_seconds)}")
        elif (now := time.monotonic()) - self.said_at >= QUIET_S:
            self.said_at = now
            print_progress(step_of(note))


def outcome(record: SampleRecord) -> str:
    """One line on a finished sample."""
    if record.status == "failed":
        first_line = (record.message or "").partition("\n")[0]
        return escaped(f"{record.sample_id} FAILED {record.error_code}: {first_line}")
    objmc, static = record.metrics.get("objmc_px"), record.metrics.get("static_objmc_px")
    if objmc is None or static is None:
        measured = f"not measured: {record.metrics.get('null_reason')}"
    else:
        measured = f"ObjMC {objmc:.2f} px (static {static:.2f})"
    return f"{record.sample_id} done in {duration(generation_seconds(vars(record)))}{_tried(record)}, {measured}"


def _tried(record: SampleRecord) -> str:
    """`, candidate 3 of 4`, and whether it passes; empty where candidates are off."""
    if record.candidates is None or record.kept_candidate is None:
        return ""
    passes = {True: " passes", False: " does not pass", None: ""}[record.passed]
    return f", candidate {record.kept_candidate + 1} of {len(record.candidates)}{passes}"
