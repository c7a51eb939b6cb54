"""What a sample takes on this device with this model, phase by phase, beside what the device could do."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch._dynamo.exc import TorchDynamoException

from sgi2v.compiled import cannot_compile, compile_blocks
from sgi2v.config import GuidanceConfig, ModelConfig, SamplerConfig
from sgi2v.estimate import choose_tier, estimate_cost, matrix_rate
from sgi2v.generate import PHASES, generate
from sgi2v.model import load_model
from sgi2v.trial import moving_box


@dataclass(frozen=True)
class Phase:
    """One phase of a sample."""

    seconds: float
    """Median over the samples."""
    flops: float
    """Counted, attention included; a multiply-add is two."""


@dataclass(frozen=True)
class Benchmark:
    """What was measured."""

    source: str
    device: str
    dtype: str
    threads: int | None
    """Of a CPU; None on a GPU."""
    height: int
    width: int
    num_frames: int
    steps: int
    guided_steps: int
    iterations: int
    memory: str
    """Tier, `high` or `low`."""
    compiled: bool
    samples: int
    """Measured, after one that was not."""
    load_s: float
    """Until the model was on the device."""
    first_s: float
    """The first sample: with what is only done once."""
    phases: dict[str, Phase]
    peak_bytes: int
    """Most memory: torch's on a GPU, the process's on a CPU."""
    matrix_flops: float
    """FLOP/s of square matrix products on this device in this type, measured just before and after."""

    @property
    def seconds(self) -> float:
        """A sample, all phases."""
        return sum(phase.seconds for phase in self.phases.values())

    @property
    def flops(self) -> float:
        return sum(phase.flops for phase in self.phases.values())

    @property
    def videos_per_hour(self) -> float:
        """Of one worker."""
        return 3600 / self.seconds

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""
        return {**asdict(self), "seconds": self.seconds, "videos_per_hour": self.videos_per_hour}


def benchmark(
    config: ModelConfig,
    sampler: SamplerConfig,
    guidance: GuidanceConfig | None,
    samples: int,
    threads: int,
    memory: str = "auto",
    compiled: bool = False,
) -> Benchmark:
    """Make one sample to warm up, then `samples` that count: noise for a picture, one box that crosses it.

    threads: of torch, on a CPU. memory: a tier, or `auto` by what is free. compiled: whether the U-Net's
    blocks are, which the first sample waits for. Raises ConfigError as `load_model` does, or for want of a compiler.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(threads)
    start = time.perf_counter()
    model = load_model(config, device=device)
    load_s = time.perf_counter() - start
    if compiled:
        compile_blocks(model.unet)
    tier = choose_tier(memory, model, sampler, guidance)
    make = partial(generate, model, memory=tier)
    image_HWC, tracks = moving_box(sampler)
    before = matrix_rate(device, model.dtype)
    start = time.perf_counter()
    try:
        make(image_HWC, tracks, sampler, guidance)
    except TorchDynamoException as error:
        raise cannot_compile(config.source, error) from error
    first_s = time.perf_counter() - start
    made = [make(image_HWC, tracks, sampler, guidance, seed=seed).seconds for seed in range(samples)]
    rate = (before + matrix_rate(device, model.dtype)) / 2
    cost = estimate_cost(model.checkpoint, sampler, guidance, model.dtype)
    seconds = {name: float(np.median([each[name] for each in made])) for name in PHASES}
    is_gpu = device.type == "cuda"
    return Benchmark(
        source=config.source,
        device=torch.cuda.get_device_name() if is_gpu else "cpu",
        dtype=str(model.dtype).removeprefix("torch."),
        threads=None if is_gpu else threads,
        height=sampler.height,
        width=sampler.width,
        num_frames=sampler.num_frames,
        steps=sampler.steps,
        guided_steps=0 if guidance is None else len(guidance.step_indices(sampler.steps)),
        iterations=0 if guidance is None else guidance.iterations,
        memory=tier.value,
        compiled=compiled,
        samples=samples,
        load_s=load_s,
        first_s=first_s,
        phases={name: Phase(seconds[name], cost.phase_flops[name]) for name in PHASES},
        peak_bytes=torch.cuda.max_memory_allocated() if is_gpu else _peak_of_process(),
        matrix_flops=rate,
    )


def _peak_of_process() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def lines(found: Benchmark) -> list[str]:
    """A table for people."""
    threads = "" if found.threads is None else f", {found.threads} thread{'s' if found.threads > 1 else ''}"
    guided = f"{found.guided_steps} of them guided, {found.iterations} iterations" if found.guided_steps else "unguided"
    compiled = ", compiled" if found.compiled else ""
    told = [
        f"{found.source} on {found.device}, {found.dtype}{threads}{compiled}",
        f"{found.num_frames} frames of {found.height} x {found.width} px, {found.steps} steps, {guided}",
        f"{'phase':10} {'seconds':>9} {'share':>6} {'TFLOP':>9} {'TFLOP/s':>9} {'of matrix rate':>15}",
    ]
    total = Phase(found.seconds, found.flops)
    for name, phase in {**found.phases, "sample": total}.items():
        rate = phase.flops / phase.seconds if phase.seconds else 0.0
        share = phase.seconds / found.seconds
        told.append(
            f"{name:10} {phase.seconds:9.3f} {share:6.1%} {phase.flops / 1e12:9.4g} {rate / 1e12:9.4g} "
            f"{rate / found.matrix_flops:15.1%}"
        )
    return [
        *told,
        f"matrix rate {found.matrix_flops / 1e12:.4g} TFLOP/s, measured here",
        f"peak memory {found.peak_bytes / 2**30:.2f} GiB in the {found.memory} tier; "
        f"model loaded in {found.load_s:.1f} s, first sample {found.first_s:.1f} s",
        f"{found.videos_per_hour:.1f} videos an hour and {24 * found.videos_per_hour:.0f} a day, one worker; "
        f"median of {found.samples} samples",
    ]
