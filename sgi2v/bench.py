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

from sgi2v.compiled import cannot_compile, compile_blocks
from sgi2v.config import GuidanceConfig, MemoryTier, ModelConfig, SamplerConfig
from sgi2v.errors import ConfigError, SGI2VError, is_out_of_memory
from sgi2v.estimate import choose_tier, count_flops, matrix_rate, uses_tf32
from sgi2v.generate import generate
from sgi2v.memory import where_there_is_room
from sgi2v.model import VideoModel, load_model
from sgi2v.sampling import PHASES
from sgi2v.trial import moving_box


@dataclass(frozen=True)
class Phase:
    """One phase of a sample."""

    seconds: float
    """Median over the samples."""
    flops: float
    """Counted, attention included, and what a lower tier computes again; a multiply-add is two."""

    @property
    def flops_per_s(self) -> float:
        """Achieved; 0 for a phase that there was not."""
        return self.flops / self.seconds if self.seconds else 0.0


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
    """Tier that it was measured in."""
    fell_back: bool
    """Whether memory ran out in a higher tier first."""
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
    """FLOP/s of square matrix products on this device, measured just before and after."""
    matrix_dtype: str
    """Of these products: the weights' type, but `tf32` where a GPU computes float32's convolutions so."""

    @property
    def sample(self) -> Phase:
        """All phases."""
        phases = self.phases.values()
        return Phase(sum(phase.seconds for phase in phases), sum(phase.flops for phase in phases))

    @property
    def seconds(self) -> float:
        """A sample, all phases."""
        return self.sample.seconds

    @property
    def videos_per_hour(self) -> float:
        """Of one worker, on a GPU of its own where there are any."""
        return 3600 / self.seconds

    @property
    def videos_per_day(self) -> float:
        """Of the same."""
        return 24 * self.videos_per_hour

    def as_dict(self) -> dict[str, Any]:
        """All of it, for JSON."""

        def told(phase: Phase) -> dict[str, float]:
            rate = phase.flops_per_s
            return {**asdict(phase), "flops_per_s": rate, "of_matrix_rate": rate / self.matrix_flops}

        return {
            **asdict(self),
            "phases": {name: told(phase) for name, phase in self.phases.items()},
            **told(self.sample),
            "videos_per_hour": self.videos_per_hour,
            "videos_per_day": self.videos_per_day,
        }


@dataclass(frozen=True)
class _Measured:
    """What the samples took."""

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
    """Make one sample to warm up, then `samples` that count: noise for a picture, one box that crosses it.

    threads: of torch, on a CPU. memory: a tier, or `auto` by what is free, and a lower one where that runs out.
    compiled: whether the U-Net's blocks are, which the first sample waits for. Raises ConfigError as `load_model`
    does, for want of memory, or for want of a compiler.
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
        measured = where_there_is_room(partial(_measure, model, sampler, guidance, samples), chosen, memory, guidance)
    except Exception as error:
        if is_out_of_memory(error):
            raise _does_not_fit(sampler, device, tell_lower=memory not in ("auto", MemoryTier.LOW)) from error
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
) -> _Measured:
    image_HWC, tracks = moving_box(sampler)
    before = matrix_rate(model.device, model.dtype)
    start = time.perf_counter()
    generate(model, image_HWC, tracks, sampler, guidance, memory=tier)
    first_s = time.perf_counter() - start
    made = [generate(model, image_HWC, tracks, sampler, guidance, seed, memory=tier) for seed in range(samples)]
    peaks = [each.peak_gpu_bytes for each in made if each.peak_gpu_bytes is not None]
    return _Measured(
        tier=tier,
        first_s=first_s,
        phase_seconds={name: float(np.median([each.seconds[name] for each in made])) for name in PHASES},
        peak_gpu_bytes=max(peaks, default=None),
        matrix_flops=(before + matrix_rate(model.device, model.dtype)) / 2,
    )


def _does_not_fit(sampler: SamplerConfig, device: torch.device, tell_lower: bool) -> ConfigError:
    what = f"{sampler.num_frames} frames of {sampler.height} x {sampler.width} px"
    place = torch.cuda.get_device_name(device) if device.type == "cuda" else "this machine"
    lower = "take a lower --memory, or " if tell_lower else ""
    return ConfigError(f"{what} do not fit into the memory of {place}: {lower}make the frames smaller or fewer")


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
    for name, phase in {**found.phases, "sample": found.sample}.items():
        rate = phase.flops_per_s
        told.append(
            f"{name:10} {phase.seconds:9.3f} {phase.seconds / found.seconds:6.1%} {phase.flops / 1e12:9.4g} "
            f"{rate / 1e12:9.4g} {rate / found.matrix_flops:15.1%}"
        )
    told.append(f"matrix rate {found.matrix_flops / 1e12:.4g} TFLOP/s in {found.matrix_dtype}, measured here")
    if found.matrix_dtype == "tf32":
        told.append("  the model's convolutions are in tf32 too, its own matrix products in float32")
    fell_back = ", as it ran out in a higher one" if found.fell_back else ""
    told.append(
        f"peak memory {found.peak_bytes / 2**30:.2f} GiB in the {found.memory} tier{fell_back}; "
        f"model loaded in {found.load_s:.1f} s, first sample {found.first_s:.1f} s"
    )
    if found.memory != MemoryTier.HIGH.value and found.guided_steps:
        told.append(
            f"  the {found.memory} tier computes blocks of the guided passes twice; both are counted in the TFLOP"
        )
    worker = "one worker" if found.threads is not None else "one GPU"
    told.append(
        f"{found.videos_per_hour:.1f} videos an hour and {found.videos_per_day:.0f} a day, {worker}; "
        f"median of {found.samples} samples"
    )
    return told
