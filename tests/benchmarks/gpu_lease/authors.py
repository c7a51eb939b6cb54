"""The authors' code beside ours: the same weights, the same inputs, the same units of work.

Their code makes whole samples only. Three short ones, which differ in one unit, give the time of each unit.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from functools import partial
from pathlib import Path

import torch

from sgi2v.config import MemoryTier
from sgi2v.sampling import draw_noise
from sgi2v.trial import moving_box
from tests.benchmarks import original
from tests.benchmarks.gpu_lease.lease import Figures, RunningPart, release_memory
from tests.benchmarks.gpu_lease.units import Work

MORE = 4
"""Updates, and steps, that the longer samples have more than the shortest one."""


def run(part: RunningPart, work: Work, checkout: Path) -> None:
    """Ours, then theirs."""
    model = work.load("float16" if work.device.type == "cuda" else "float32")
    noise = draw_noise(817, work.sampler, model.cell_px)
    sample = original.Sample(*moving_box(work.sampler), work.sampler, work.guidance, noise)
    part.figure("ours", partial(_measure, original.ours(model, MemoryTier.HIGH), sample, work))
    del model
    release_memory()
    with tempfile.TemporaryDirectory() as copies:
        part.figure("theirs", lambda: _measure(_theirs(checkout, work, Path(copies)), sample, work))


def _theirs(checkout: Path, work: Work, copies: Path) -> original.Make:
    return original.theirs(checkout, Path(work.source), work.device.type, copies)


def _measure(make: original.Make, sample: original.Sample, work: Work) -> Figures:
    """Seconds of one update, of one step, and of the rest of a sample, whose largest part is the decode."""
    is_gpu = work.device.type == "cuda"

    def seconds(steps: int, updates: int) -> float:
        guidance = sample.guidance.replace(guided_steps=(0,), iterations=updates)
        short = dataclasses.replace(sample, sampler=sample.sampler.replace(steps=steps), guidance=guidance)
        start = time.perf_counter()
        make(short)
        return time.perf_counter() - start

    seconds(2, 1)
    if is_gpu:
        torch.cuda.reset_peak_memory_stats()
    shortest_s = seconds(2, 1)
    update_s = (seconds(2, 1 + MORE) - shortest_s) / MORE
    step_s = (seconds(2 + MORE, 1) - shortest_s) / MORE
    rest_s = shortest_s - update_s - 2 * step_s
    counts = work.counts
    return {
        "update": update_s,
        "step": step_s,
        "rest": rest_s,
        "sample_s": counts["update"] * update_s + counts["step"] * step_s + rest_s,
        "peak_gpu_bytes": torch.cuda.max_memory_allocated() if is_gpu else None,
    }
