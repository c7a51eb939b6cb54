"""What a person sees at the end of a run, and of its status."""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.inspect.phase import Phase
from pipeline.inspect.status import RunStatus
from pipeline.output.candidates import yield_of
from pipeline.output.catalog import count, counts_of, failed_by_code, mean_fidelity, mean_of
from pipeline.output.records import VIDEOS, Status
from pipeline.output.tables import FAILURES, METADATA
from pipeline.run import RunResult
from sgi2v.wording import counted, escaped


def duration(seconds: float) -> str:
    """`8.1 s`, `3 min 12 s`, `5 h 03 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def generation_seconds(phases: Mapping[str, float | None]) -> float:
    """Seconds that a worker spent on a committed sample. phases: a record's fields, or a row of the index."""
    own = sum(phases[f"seconds_{phase}"] or 0.0 for phase in ("encode", "guide", "denoise", "decode"))
    return (phases["seconds_candidates"] or own) + (phases["seconds_baseline"] or 0.0)


def counts_lines(index: pa.Table) -> list[str]:
    """Lines with the failures by code, and the mean motion fidelity of the committed samples."""
    lines = [f"  failed     {number:>6}  {code}" for code, number in failed_by_code(index).items()]
    means = mean_fidelity(index)
    if means.objmc_px is not None and means.static_objmc_px is not None:
        samples = counted(means.measured, "sample")
        lines.append(
            f"  ObjMC      {means.objmc_px:6.2f}  px (static {means.static_objmc_px:.2f})"
            f"{_gain(means.control_gain)}, over {samples}"
        )
    if means.objmc_nulls_frozen_px is not None:
        lines.append(
            f"  with nulls {means.objmc_nulls_frozen_px:6.2f}  px{_gain(means.control_gain_nulls_frozen)}, "
            f"over {counted(means.with_paths, 'sample')}: what is not measured counts as frozen"
        )
    committed = index.filter(pc.equal(index["status"], "committed"))
    unmeasured = committed.filter(pc.is_null(committed["objmc_px"]))
    if unmeasured.num_rows:
        reasons = ", ".join(f"{number} {reason}" for reason, number in counts_of(unmeasured, "null_reason").items())
        lines.append(f"  unmeasured {unmeasured.num_rows:>6}  {reasons}")
    if (line := _background_line(committed)) is not None:
        lines.append(line)
    compared = committed.filter(pc.is_valid(committed["gain_over_baseline"]))
    if compared.num_rows:
        gain, samples = mean_of(compared, "gain_over_baseline"), counted(compared.num_rows, "sample")
        lines.append(f"  baseline   {gain:6.2f}  gain over unguided videos, over {samples}")
    return lines


def _gain(gain: float | None) -> str:
    return "" if gain is None else f", control gain {gain:.2f}"


def _background_line(committed: pa.Table) -> str | None:
    """How much the backgrounds changed, and how far they moved. None where neither is known."""
    parts = []
    for name, unit in (("background_change", "levels of change"), ("background_motion_px", "px of motion")):
        known = committed.filter(pc.is_valid(committed[name]))
        if known.num_rows:
            parts.append(f"{mean_of(known, name):.2f} {unit}, over {counted(known.num_rows, 'sample')}")
    return f"  background   {'; '.join(parts)}" if parts else None


def print_summary(result: RunResult) -> None:
    """Print what a run made, and where its results are."""
    output = result.config.output
    finished = result.finished
    added, failed = finished.num_rows, count(finished, "failed")
    lines = [
        f"{added - failed} made, {failed} failed, {result.plan.done} done before, "
        f"of {counted(result.plan.total, 'row')}, in {duration(result.seconds)}",
        *counts_lines(result.index),
        *_yield_lines(result),
        f"  videos     {output}/{VIDEOS}/",
        f"  metrics    {output}/{METADATA}",
    ]
    if result.lost_nodes:
        lines.append(f"  lost nodes {result.lost_nodes:>6}")
    if count(result.index, "failed"):
        lines.append(f"  failures   {output}/{FAILURES}   (run them again with --retry-failed)")
    if result.interrupted:
        left = result.plan.todo.num_rows - added
        rows = counted(left, "row")
        lines.append(f"Interrupted with {rows} left. Nothing is lost: the same command goes on from here.")
    print("\n".join(lines))  # noqa: T201


def _yield_lines(result: RunResult) -> list[str]:
    """What the candidates of the output gained, and what they cost. Nothing where candidates are off."""
    config = result.config
    if not config.candidates.are_measured:
        return []
    tables = (table for status in get_args(Status) for table in result.plan.catalog.tables(status))
    found = yield_of(tables)
    if found is None:
        return []
    gains = "" if found.gain is None else f": control gain {found.gain:.2f} of the kept"
    first = "" if found.first_gain is None or not gains else f", {found.first_gain:.2f} of the first of each row"
    lines = [f"  candidates {found.candidates:>6}  for {counted(found.rows, 'row')}{gains}{first}"]
    if config.candidates.keep is not None:
        share = (config.execution.gpus_per_worker or 1.0) if found.on_gpu else 1.0
        rate, first_rate = (
            3600 * passed / (seconds * share) if seconds else 0.0
            for passed, seconds in ((found.passed, found.seconds), (found.first_passed, found.first_seconds))
        )
        per = "GPU hour" if found.on_gpu else "worker hour"
        lines += [
            f"  pass       {found.passed:>6}  of {counted(found.rows, 'row')}; with one seed {found.first_passed}",
            f"  yield      {rate:6.1f}  passing rows per {per}; with one seed {first_rate:.1f}",
        ]
    return lines


ADVICE = {
    Phase.SILENT: "its driver misses its heartbeats: the next run waits until the lease expires",
    Phase.INTERRUPTED: "the same command goes on from here",
    Phase.DEAD: "its driver was killed: the same command goes on from here",
}
"""What to know, or to do, in some phases."""


def pace_of(status: RunStatus) -> str:
    """`12.3 per min, 4 min 10 s left`; empty without a rate."""
    if status.samples_per_minute is None or status.seconds_left is None:
        return ""
    return f"{status.samples_per_minute:.1f} per min, {duration(status.seconds_left)} left"


def status_line(status: RunStatus) -> str:
    """The status in one line, for logs."""
    counts = f"{status.committed} made, {status.failed} failed, {status.left} left"
    return ", ".join(filter(None, [status.phase.value, counts, pace_of(status)]))


def status_text(status: RunStatus) -> str:
    """The status in full."""
    others = f" (and {counted(status.other_samples, 'sample')} of other rows)" if status.other_samples else ""
    limited = "" if status.limit_of is None else f" (--limit; the manifest has {status.limit_of})"
    counts = f"{status.committed} made, {status.failed} failed, {status.left} left"
    about = status.error or ADVICE.get(status.phase) or pace_of(status)
    phase = f"{status.phase.value} ({about})" if about else status.phase.value
    lines = [
        f"{counts}, of {counted(status.rows, 'row')}{limited}{others}",
        f"  phase      {phase}",
        *counts_lines(status.index),
        *([f"  damaged    {status.damaged:>6}  records: `sgi2v-batch verify` names them"] if status.damaged else []),
        f"  manifest   {escaped(status.manifest)}",
        f"  model      {status.model} at {status.model_revision}",
    ]
    if status.last_finished_at:
        lines.append(f"  last       {status.last_finished_at} UTC")
    if status.holder is not None and status.holder_silent_s is not None:
        heartbeat = f"last heartbeat {duration(status.holder_silent_s)} ago"
        lines.append(f"  driver     {status.holder.describe()}, {heartbeat}")
    if status.lost_nodes:
        lines.append(f"  lost nodes {status.lost_nodes:>6}  in this run: its log names them")
    if status.workers is not None and not status.phase.is_over:
        lines.append(f"  workers    {status.workers:>6}")
    return "\n".join(lines)
