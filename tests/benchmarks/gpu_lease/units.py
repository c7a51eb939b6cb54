"""Time and memory of a sample's units, for every variant of speed.

A sample is linear in its units: at the paper's settings 80 updates, 50 steps and one decode. So it is enough to time
one of each. Weights are random: time and memory do not depend on their values.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import get_context
from typing import Any

import torch

from sgi2v.checkpoint import Checkpoint
from sgi2v.compiled import compile_blocks
from sgi2v.config import DType, GuidanceConfig, MemoryTier, SamplerConfig
from sgi2v.costs import Cost
from sgi2v.estimate import BytesAlive, count_cost, matrix_rate
from sgi2v.guidance import guided_features, optimize_latents, plan_loss
from sgi2v.model import (
    VideoModel,
    decode_latents,
    encode_image,
    load_model,
    resolve_dtype,
    resolve_vae_dtype,
)
from sgi2v.sampling import CONDITIONAL, Schedule, denoise, draw_noise, unet_inputs
from sgi2v.trial import moving_box
from tests.benchmarks.gpu_lease.lease import Figures, RunningPart, release_memory
from tests.benchmarks.gpu_lease.variants import (
    BASE,
    CHUNKS,
    DECODE,
    DTYPES,
    KERNELS,
    STEP,
    TIERS,
    UNITS,
    UPDATE,
    Variant,
    with_kernels,
)

REPEATS = 3
COMPILE_S = 60.0
"""Seconds without which no variant is compiled on a GPU."""


@dataclass(frozen=True)
class Work:
    """The model and the settings whose units are timed."""

    source: str
    """Folder of a checkpoint."""
    sampler: SamplerConfig
    guidance: GuidanceConfig
    device: torch.device

    @property
    def counts(self) -> dict[str, int]:
        """Unit -> how many of it a sample has."""
        updates = len(self.guidance.step_indices(self.sampler.steps)) * self.guidance.iterations
        return {UPDATE: updates, STEP: self.sampler.steps, DECODE: 1}

    def load(self, dtype: DType) -> VideoModel:
        """The model in a type of weights, without any variant."""
        return load_model(self.source, device=self.device, dtype=dtype)


class Units:
    """Runs single units of a sample on a model."""

    def __init__(self, model: VideoModel, work: Work) -> None:
        self.model, self.work = model, work
        image_HWC, tracks = moving_box(work.sampler)
        noise = draw_noise(1, work.sampler, model.cell_px)
        self.conditioning = encode_image(model, image_HWC, noise.augmentation_1CHW, work.sampler)
        self.latents_TChw = noise.initial_TChw.to(model.device) * self._schedule().init_noise_sigma
        cells = self.latents_TChw.shape[-2:]
        self.plan = plan_loss(tracks, *cells, model.cell_px, work.guidance, model.device)

    def update(self, tier: MemoryTier) -> torch.Tensor:
        """One update of the first guided step, and its low-pass merge: the new latents."""
        step = self.work.guidance.step_indices(self.work.sampler.steps)[0]
        schedule, guidance = self._schedule(), self.work.guidance.replace(iterations=1)

        def features(latents_TChw: torch.Tensor) -> torch.Tensor:
            inputs = unet_inputs(schedule, step, latents_TChw, self.conditioning, CONDITIONAL, self.model.dtype)
            return guided_features(self.model.unet, inputs, guidance, tier)

        return optimize_latents(features, self.latents_TChw, self.plan, guidance).latents_TChw

    def step(self) -> None:
        """One denoising step, with both branches of classifier-free guidance."""
        sampler = self.work.sampler.replace(steps=1)
        denoise(self.model, self._schedule(), self.conditioning, self.latents_TChw, sampler)

    def decode(self, chunk_size: int) -> None:
        """All frames of a video."""
        decode_latents(self.model, self.latents_TChw, chunk_size).cpu()

    def _schedule(self) -> Schedule:
        """A schedule counts its steps, so each unit has its own."""
        return Schedule(self.model, self.work.sampler.steps)


def run(part: RunningPart, bench: Bench) -> None:
    """The model as it is, then its variants, then the fastest of each together, eager and compiled."""
    counting = _start_counting(bench.work)
    part.figure("matrix products", partial(_matrix_rates, bench.work.device))
    base = bench.measure(part, BASE)
    # a CPU without bfloat16 arithmetic takes minutes for one unit in it
    known = {base.get("dtype"), "bfloat16" if bench.work.device.type == "cpu" else None}
    dtypes = [variant for variant in DTYPES if variant.dtype not in known]
    for variant in (*dtypes, *KERNELS, *TIERS, *CHUNKS):
        bench.measure(part, variant)
    if base:
        frames_at_once = min(bench.work.sampler.decode_chunk_size, bench.work.sampler.num_frames)
        part.figure("counted", lambda: _counted(counting, base, frames_at_once, part.left_s / 3))
    together = fastest(part.figures)
    if together.kernels or together.dtype != BASE.dtype:
        bench.measure(part, together)
    for variant in compiled(together):
        bench.measure(part, variant)


class Bench:
    """Measures variants, and keeps the model that is loaded as long as the next one can use it."""

    def __init__(self, work: Work) -> None:
        self.work = work
        self.base: Figures = {}
        self._loaded: Variant | None = None
        self._model: VideoModel | None = None

    def measure(self, part: RunningPart, variant: Variant) -> Figures:
        """Measure a variant. Units that it does not change count with the time of the model as it is."""
        values = part.figure(variant.name, partial(self._measure, variant), self.needs_s(variant))
        if variant is BASE:
            self.base = values
        if "error" in part.figures[variant.name]:
            self._model = None  # it may be half changed
        return values

    def needs_s(self, variant: Variant) -> float:
        """Seconds that a variant takes at least before its first unit runs."""
        return COMPILE_S if variant.compiled and self._loaded != variant and self.work.device.type == "cuda" else 0.0

    def model(self, variant: Variant) -> VideoModel:
        """The variant's model. It is loaded only if the one that is there has another type or is compiled."""
        before = self._loaded
        if self._model is not None and before == variant:
            return self._model
        if before is None or before.dtype != variant.dtype or variant.compiled or before.compiled:
            self._model = None
        if self._model is None:
            if before is not None and before.compiled:
                torch.compiler.reset()  # it holds the model's blocks
            release_memory()
            self._model, self._loaded = self.work.load(variant.dtype), replace(BASE, dtype=variant.dtype)
        self._model = with_kernels(self._model, variant.kernels)
        self._loaded = variant
        if variant.compiled:
            compile_blocks(self._model.unet)
        return self._model

    def _measure(self, variant: Variant) -> Figures:
        start = time.perf_counter()
        model = self.model(variant)
        loaded_s = time.perf_counter() - start
        values = measure_units(Units(model, self.work), variant)
        if self.base or set(variant.units) == set(UNITS):
            values["sample_s"] = sum(
                count * {**self.base, **values}[unit]["seconds"] for unit, count in self.work.counts.items()
            )
        return {
            **values,
            "dtype": str(model.dtype).removeprefix("torch."),
            "kernels": getattr(model, "kernels", None),
            "weights_bytes": model.weights_bytes,
            "loaded_s": loaded_s,
        }


def measure_units(units: Units, variant: Variant) -> Figures:
    """Seconds and peak bytes of a variant's units."""
    chunk_size = variant.decode_chunk_size or units.work.sampler.decode_chunk_size
    work: dict[str, Callable[[], object]] = {
        UPDATE: lambda: units.update(variant.tier),
        STEP: units.step,
        DECODE: lambda: units.decode(chunk_size),
    }
    # on a CPU the peak is counted by a mode of torch, under which nothing compiles
    with_peak = units.model.device.type == "cuda" or not variant.compiled
    return {unit: _timed(work[unit], units.model, with_peak) for unit in variant.units}


def _timed(work: Callable[[], object], model: VideoModel, with_peak: bool) -> Figures:
    """Median seconds of a unit after its first run, which is the slow one, and its peak bytes beside the weights."""
    device, is_gpu = model.device, model.device.type == "cuda"

    def seconds() -> float:
        start = time.perf_counter()
        work()
        if is_gpu:
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    peak_bytes = None
    if is_gpu:
        torch.cuda.reset_peak_memory_stats(device)
        first_s = seconds()
        peak_bytes = torch.cuda.max_memory_allocated(device) - model.weights_bytes
    elif with_peak:
        with BytesAlive(model.unet, model.vae) as alive:
            first_s = seconds()
        peak_bytes = alive.peak
    else:
        first_s = seconds()
    repeated_s = statistics.median(seconds() for _ in range(REPEATS if is_gpu else 1))
    return {"seconds": repeated_s, "first_s": first_s, "peak_bytes": peak_bytes}


def fastest(figures: Figures) -> Variant:
    """For each setting of the kernels the value with the fastest sample, and the faster type of the weights.

    A setting none of whose values is faster than the model as it is keeps its default.
    """

    def sample_s(variant: Variant) -> float:
        return float(figures.get(variant.name, {}).get("sample_s", math.inf))

    kernels: dict[str, Any] = {}
    for variant in sorted(KERNELS, key=sample_s, reverse=True):
        if sample_s(variant) < sample_s(BASE):
            kernels |= variant.kernels  # a faster one comes later, and wins
    dtype = min((BASE, *DTYPES), key=sample_s).dtype
    return Variant("the fastest of each", kernels=kernels, dtype=dtype)


def compiled(variant: Variant) -> tuple[Variant, Variant]:
    """The variant with compiled blocks, without and with weights in channels-last."""
    kernels = {name: value for name, value in variant.kernels.items() if name != "channels_last"}
    return (
        replace(variant, name="compiled", kernels=kernels, compiled=True),
        replace(variant, name="compiled, channels last", kernels={**kernels, "channels_last": True}, compiled=True),
    )


def _matrix_rates(device: torch.device) -> Figures:
    """TFLOP/s of square matrix products, by type: what no model exceeds."""
    dtypes = (torch.float16, torch.bfloat16, torch.float32) if device.type == "cuda" else (torch.float32,)
    return {str(dtype).removeprefix("torch."): matrix_rate(device, dtype) / 1e12 for dtype in dtypes}


def _start_counting(work: Work) -> Future[Cost]:
    """Count a sample's operations and memory in another process, meanwhile: it takes half a minute of one core."""
    pool = ProcessPoolExecutor(1, get_context("spawn"))
    counting = pool.submit(_count, work)
    pool.shutdown(wait=False)
    return counting


def _count(work: Work) -> Cost:
    from sgi2v.checkpoint import open_checkpoint
    from sgi2v.config import ModelConfig

    torch.set_num_threads(1)
    checkpoint: Checkpoint = open_checkpoint(ModelConfig(source=work.source), weights=False)
    dtype = resolve_dtype("auto", work.device)
    vae_dtype = resolve_vae_dtype(checkpoint.configs["vae"], dtype, work.device)
    return count_cost(checkpoint, work.sampler, work.guidance, dtype, vae_dtype)


def _counted(counting: Future[Cost], base: Figures, frames_at_once: int, timeout_s: float) -> Figures:
    """What was counted, beside what was measured for the model as it is."""
    cost = counting.result(timeout_s)
    measured = max(base[unit]["peak_bytes"] for unit in UNITS)
    working = cost.working_bytes(MemoryTier.HIGH, frames_at_once)
    return {**cost.plain(), "measured_bytes": measured, "of_counted": measured / working}
