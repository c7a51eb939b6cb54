"""`run --dry-run`: the plan, the problems, and the estimated time and memory."""

from __future__ import annotations

import statistics

import pyarrow as pa
import pyarrow.compute as pc
import torch

from manifests.io import Manifest
from manifests.plausible import describe
from manifests.validate import check
from pipeline.cli.lines import checked, print_progress
from pipeline.cli.progress import image_lines
from pipeline.cli.run import Request
from pipeline.cli.summary import duration, generation_seconds
from pipeline.config import RunConfig
from pipeline.output.catalog import failed_by_code
from pipeline.output.run_file import check_output
from pipeline.output.storage import Storage
from pipeline.output.tables import check_own_columns
from pipeline.plan import plan_of
from sgi2v.checkpoint import Checkpoint
from sgi2v.config import MemoryTier
from sgi2v.estimate import estimate_cost, matrix_rate
from sgi2v.model import resolve_dtype, resolve_vae_dtype
from sgi2v.wording import counted

MEASURED = 1000
"""Samples that the median time is taken over, at most."""


def dry_run(request: Request, manifest: Manifest) -> int:
    """Print the plan and change nothing. Returns the exit code: 0 without problems, 2 with any.

    With --strict, 2 for rows that look wrong too.
    """
    config, checkpoint = request.config, request.checkpoint
    storage = Storage(config.output)
    run = check_output(storage, config)
    check_own_columns(storage, manifest.table)
    plan = plan_of(config, manifest, storage, run, request.wanted)
    index = plan.catalog.index
    finished = index.filter(pc.invert(pc.is_in(index["sample_id"], value_set=plan.todo["sample_id"].combine_chunks())))
    sampler, guidance = config.sampler, config.guidance
    todo, access = plan.todo.drop_columns(["_attempts"]), config.execution.access
    findings = check(todo, config.manifest, access=access, video_size=config.video_size, on_image=checked())
    problems, warnings = findings.problems, describe(findings.warnings)
    guided = "no guidance" if guidance is None else f"{len(guidance.step_indices(sampler.steps))} guided"
    lines = [
        f"{counted(plan.total, 'row')} in {config.manifest}",
        f"  done before {plan.done:>6}" + ("" if run is not None else "  (the output is new)"),
        *(f"  failed      {count:>6}  {code}" for code, count in failed_by_code(finished).items()),
        f"  to do       {plan.todo.num_rows:>6}  -> {config.output}",
        *(f"  {line}" for line in image_lines(plan)),
        f"  model       {checkpoint.source} at {checkpoint.revision}",
        f"  video       {sampler.num_frames} frames of {sampler.height} x {sampler.width} px{_shapes(config)}, "
        f"{sampler.steps} steps, {guided}",
        *_cost_lines(config, checkpoint, plan.todo.num_rows, index),
        f"  problems    {len(problems):>6}",
        *(f"    {problem}" for problem in problems),
        *(f"  {warning}" for warning in warnings),
    ]
    print("\n".join(lines))  # noqa: T201
    return 2 if problems or (request.strict and warnings) else 0


def _shapes(config: RunConfig) -> str:
    """What `fit` makes of the size that is asked for."""
    if config.fit != "bucket":
        return f" ({config.fit})"
    return f" or the nearest of {counted(len(config.video_size.buckets), 'size')} to the picture's shape (bucket)"


def _say_that_it_counts() -> None:
    print_progress("counting what a sample costs with these settings, which takes up to a minute once")


def _cost_lines(config: RunConfig, checkpoint: Checkpoint, rows: int, index: pa.Table) -> list[str]:
    """Time and memory. The time is measured where samples exist; else a floor from FLOPs and this machine's rate."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    named = config.model.dtype
    dtype = resolve_dtype(named, device) if named == "auto" else getattr(torch, named)
    torch.set_num_threads(config.execution.threads_per_worker)
    vae_dtype = resolve_vae_dtype(checkpoint.configs["vae"], dtype, device)
    settings = (config.sampler, config.guidance)
    videos = config.candidates.number + (config.baseline is not None)
    made = f"{counted(config.candidates.number, 'candidate')} of each row"
    made += " and a baseline" if config.baseline is not None else ""
    generations = [f"  generations {rows * videos:>6}  at most: {made}"] if videos > 1 else []
    cost = estimate_cost(checkpoint, *settings, dtype, vae_dtype, on_count=_say_that_it_counts)
    chunk = min(config.sampler.decode_chunk_size, config.sampler.num_frames)
    gib = {tier: (cost.weights_bytes + cost.working_bytes(tier, chunk)) / 2**30 for tier in MemoryTier}
    lower = f"{gib[MemoryTier.MEDIUM]:.1f} in the medium tier, {gib[MemoryTier.LOW]:.1f} in the low one"
    memory = f"  memory      {gib[MemoryTier.HIGH]:6.1f}  GiB a worker at least; {lower}"
    finished = index.filter(pc.equal(index["status"], "committed")).slice(0, MEASURED).to_pylist()
    if finished:
        seconds = statistics.median(map(generation_seconds, finished))
        measured = f"a sample, measured on {len(finished)}; {duration(seconds * rows)} for one worker"
        return [*generations, f"  time        {seconds:6.1f}  s {measured}", memory]
    rate = matrix_rate(device, dtype)
    flops = config.candidates.number * sum(cost.phase_flops(*settings).values())
    if config.baseline is not None:
        flops += sum(cost.phase_flops(config.sampler, None).values())
    floor = flops / rate
    counted_work = f"{flops / 1e12:.2g} TFLOP at this machine's {rate / 1e12:.2g} TFLOP/s"
    one_worker = f"{duration(floor * rows)} for one worker"
    which = "with all of its videos " if videos > 1 else ""
    time = f"  time        {floor:6.1f}  s a sample {which}at least ({counted_work}); {one_worker}"
    return [*generations, time, memory]
