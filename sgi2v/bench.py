"""Measure what a sample takes on this device, phase by phase, beside what the device could do."""

from __future__ import annotations

import resource
import sys
import time
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from sgi2v.compiled import cannot_compile, compile_blocks
from sgi2v.config import GuidanceConfig, MemoryTier, ModelConfig, SamplerConfig
from sgi2v.errors import ConfigError, SGI2VError, is_out_of_memory
from sgi2v.estimate import choose_tier, count_flops, matrix_rate, uses_tf32
from sgi2v.generate import generate
from sgi2v.memory import with_oom_fallback
from sgi2v.model import VideoModel, load_model
from sgi2v.sampling import PHASES
from sgi2v.trial import moving_box
from sgi2v.wording import counted


@dataclass(frozen=True)
class Phase:
    """One phase of a sample."""

    seconds: float
    """Median over the samples."""
    flops: float
    """Operations counted, with attention and what a lower tier computes again; a multiply-add is two."""

    @property
    def flops_per_s(self) -> float:
        """Achieved rate; 0 for a phase that did not run."""
        return self.flops / self.seconds if self.seconds else 0.0


@dataclass(frozen=True)
class Benchmark:
    """The figures of one benchmark, and the settings that they hold for."""

    source: str
    device: str
    dtype: str
    threads: int | None
    """Threads of torch on a CPU; None on a GPU."""
    height: int
    width: int
    num_frames: int
    steps: int
    guided_steps: int
    iterations: int
    memory: str
    """Memory tier of the measured samples."""
    fell_back: bool
    """Whether memory ran out in a higher tier first."""
    compiled: bool
    samples: int
    """Measured samples, without the first one, which warms up."""
    load_s: float
    """Seconds to load the model onto the device."""
    first_s: float
    """Seconds of the first sample, which includes one-time work."""
    phases: dict[str, Phase]
    peak_bytes: int
    """Most memory in use: torch's on a GPU, the process's on a CPU."""
    matrix_flops: float
    """FLOP/s of square matrix products on this device, measured just before and after the samples."""
    matrix_dtype: str
    """Type of these products: the weights', or `tf32` where a GPU computes float32 convolutions in TF32."""

    @property
    def sample(self) -> Phase:
        """All phases together."""
        phases = self.phases.values()
        return Phase(sum(phase.seconds for phase in phases), sum(phase.flops for phase in phases))

    @property
    def seconds(self) -> float:
        """Seconds of a sample, all phases."""
        return self.sample.seconds

    @property
    def videos_per_hour(self) -> float:
        """Videos of one worker in an hour."""
        return 3600 / self.seconds

    @property
    def videos_per_day(self) -> float:
        """Videos of one worker in a day."""
        return 24 * self.videos_per_hour

    def as_dict(self) -> dict[str, Any]:
        """All figures as plain values, for JSON."""

        def plain(phase: Phase) -> dict[str, float]:
            rate = phase.flops_per_s
            return {**asdict(phase), "flops_per_s": rate, "of_matrix_rate": rate / self.matrix_flops}

        return {
            **asdict(self),
            "phases": {name: plain(phase) for name, phase in self.phases.items()},
            **plain(self.sample),
            "videos_per_hour": self.videos_per_hour,
            "videos_per_day": self.videos_per_day,
        }


@dataclass(frozen=True)
class _Measurement:
    """What the samples took in one memory tier."""

    tier: MemoryTier
    first_s: float
    phase_seconds: dict[str, float]
    peak_gpu_bytes: int | None
    matrix_flops: float


def benchmark(
    config: ModelConfig,
    sampler: SamplerConfig,
    guidance: GuidanceConfig | None,
    samples: int,
    threads: int,
    memory: str = "auto",
    compiled: bool = False,
) -> Benchmark:
    """Generate one sample to warm up, then `samples` that are measured: a noise image, crossed by one box.

    threads: torch's, on a CPU. memory: a tier, or `auto`, which takes the tier that fits and falls back to a lower one
    when memory runs out. compiled: compile the U-Net's blocks first; the first sample includes that. Raises
    ConfigError where `load_model` does, if the samples do not fit into memory, or if the blocks cannot be compiled.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(threads)
    start = time.perf_counter()
    model = load_model(config, device=device)
    load_s = time.perf_counter() - start
    if compiled:
        compile_blocks(model.unet)
    chosen = choose_tier(memory, model, sampler, guidance)
    try:
        measured = with_oom_fallback(partial(_measure, model, sampler, guidance, samples), chosen, memory, guidance)
    except Exception as error:
        if is_out_of_memory(error):
            raise _does_not_fit(sampler, device, has_lower_tier=memory not in ("auto", MemoryTier.LOW)) from error
        if compiled and not isinstance(error, SGI2VError):
            raise cannot_compile(config.source, error) from error
        raise
    flops = count_flops(model.checkpoint, sampler, guidance, model.dtype, measured.tier)
    is_gpu = device.type == "cuda"
    dtype = str(model.dtype).removeprefix("torch.")
    return Benchmark(
        source=config.source,
        device=torch.cuda.get_device_name() if is_gpu else "cpu",
        dtype=dtype,
        threads=None if is_gpu else threads,
        height=sampler.height,
        width=sampler.width,
        num_frames=sampler.num_frames,
        steps=sampler.steps,
        guided_steps=0 if guidance is None else len(guidance.step_indices(sampler.steps)),
        iterations=0 if guidance is None else guidance.iterations,
        memory=measured.tier.value,
        fell_back=measured.tier is not chosen,
        compiled=compiled,
        samples=samples,
        load_s=load_s,
        first_s=measured.first_s,
        phases={name: Phase(measured.phase_seconds[name], flops[name]) for name in PHASES},
        peak_bytes=_peak_of_process() if measured.peak_gpu_bytes is None else measured.peak_gpu_bytes,
        matrix_flops=measured.matrix_flops,
        matrix_dtype="tf32" if uses_tf32(device, model.dtype) else dtype,
    )


def _measure(
    model: VideoModel, sampler: SamplerConfig, guidance: GuidanceConfig | None, samples: int, tier: MemoryTier
) -> _Measurement:
    image_HWC, tracks = moving_box(sampler)
    before = matrix_rate(model.device, model.dtype)
    start = time.perf_counter()
    generate(model, image_HWC, tracks, sampler, guidance, memory=tier)
    first_s = time.perf_counter() - start
    generations = [generate(model, image_HWC, tracks, sampler, guidance, seed, memory=tier) for seed in range(samples)]
    peaks = [generation.peak_gpu_bytes for generation in generations if generation.peak_gpu_bytes is not None]
    return _Measurement(
        tier=tier,
        first_s=first_s,
        phase_seconds={
            name: float(np.median([generation.seconds[name] for generation in generations])) for name in PHASES
        },
        peak_gpu_bytes=max(peaks, default=None),
        matrix_flops=(before + matrix_rate(model.device, model.dtype)) / 2,
    )


def _does_not_fit(sampler: SamplerConfig, device: torch.device, has_lower_tier: bool) -> ConfigError:
    """The error to report when memory ran out and no lower tier may be tried."""
    frames = f"{sampler.num_frames} frames of {sampler.height} x {sampler.width} px"
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else "this machine"
    lower_tier = "choose a lower --memory, or " if has_lower_tier else ""
    return ConfigError(f"{frames} do not fit into the memory of {place}: {lower_tier}make the frames smaller or fewer")


def _peak_of_process() -> int:
    """Most memory that this process has held, bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts KiB


def lines(result: Benchmark) -> list[str]:
    """The figures as a table, line by line."""
    threads = "" if result.threads is None else f", {counted(result.threads, 'thread')}"
    steps, guided = counted(result.steps, "step"), "unguided"
    if result.guided_steps:
        guided = f"{result.guided_steps} of them guided, {counted(result.iterations, 'iteration')}"
    compiled = ", compiled" if result.compiled else ""
    table = [
        f"{result.source} on {result.device}, {result.dtype}{threads}{compiled}",
        f"{result.num_frames} frames of {result.height} x {result.width} px, {steps}, {guided}",
        f"{'phase':10} {'seconds':>9} {'share':>6} {'TFLOP':>9} {'TFLOP/s':>9} {'of matrix rate':>15}",
    ]
    for name, phase in {**result.phases, "sample": result.sample}.items():
        rate = phase.flops_per_s
        table.append(
            f"{name:10} {phase.seconds:9.3f} {phase.seconds / result.seconds:6.1%} {phase.flops / 1e12:9.4g} "
            f"{rate / 1e12:9.4g} {rate / result.matrix_flops:15.1%}"
        )
    table.append(f"matrix rate {result.matrix_flops / 1e12:.4g} TFLOP/s in {result.matrix_dtype}, measured here")
    if result.matrix_dtype == "tf32":
        table.append("  the model's convolutions use tf32 too; its matrix products use float32")
    fell_back = ", after memory ran out in a higher tier" if result.fell_back else ""
    table.append(
        f"peak memory {result.peak_bytes / 2**30:.2f} GiB in the {result.memory} tier{fell_back}; "
        f"model loaded in {result.load_s:.1f} s, first sample {result.first_s:.1f} s"
    )
    if result.memory != MemoryTier.HIGH.value and result.guided_steps:
        table.append(
            f"  the {result.memory} tier computes blocks of the guided passes twice; both are counted in the TFLOP"
        )
    worker = "one worker" if result.threads is not None else "one GPU"
    table.append(
        f"{result.videos_per_hour:.1f} videos an hour and {result.videos_per_day:.0f} a day, {worker}; "
        f"median of {counted(result.samples, 'sample')}"
    )
    return table
