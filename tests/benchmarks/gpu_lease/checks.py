"""What a device must get right on the golden checkpoint: conformance, memory tiers, out-of-memory recovery, decoding.

Each check returns its figures, with `passed`. `tests/sgi2v/test_gpu.py` runs them too.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sgi2v.config import GuidanceConfig, MemoryTier, SamplerConfig
from sgi2v.estimate import BytesAlive
from sgi2v.generate import generate
from sgi2v.memory import with_oom_fallback
from sgi2v.model import VideoModel, decode_latents, load_model
from sgi2v.trial import moving_box
from tests.benchmarks.gpu_lease.lease import Figures, RunningPart, release_memory
from tests.benchmarks.gpu_lease.units import Units, Work
from tests.conformance import run_case

GOLDEN = Path(__file__).parents[2] / "golden"
CHECKPOINT = str(GOLDEN / "checkpoint")
CASES = tuple(sorted(GOLDEN.glob("case-*")))
DTYPES = ("float32", "bfloat16", "float16")
SAMPLER = SamplerConfig(height=64, width=128, num_frames=4, steps=5)
GUIDANCE = GuidanceConfig(iterations=2)
LARGE = SamplerConfig(height=512, width=512, num_frames=8, steps=2)
"""Frames whose memory tiers differ by much more than the pieces of an allocator."""
SMALL = LARGE.replace(height=64, width=64, num_frames=2)
LARGEST_LEVELS = 2.0
"""Mean difference of frames, levels of 255, up to which two ways to make the same 16-bit video count as equal."""


def run(part: RunningPart, device: torch.device) -> None:
    """All checks, the most telling first. A CPU takes many minutes for conformance, and does it last and once."""
    is_gpu = device.type == "cuda"
    cases, dtypes = (CASES, DTYPES) if is_gpu else (CASES[-1:], DTYPES[:1])
    conform = {
        f"conformance of {case.name} in {dtype}": partial(conformance, device, dtype, case)
        for dtype in dtypes
        for case in cases
    }
    others: dict[str, Callable[[], Figures]] = {
        "out-of-memory recovery": partial(oom_recovery, device, LARGE if is_gpu else SMALL),
        **{f"memory tiers in {dtype}": partial(tiers, device, dtype) for dtype in dtypes[1:] or dtypes},
        "decode chunks": partial(decode_chunks, device),
        "compiling one block": partial(compiled_block, device),
    }
    for name, check in {**conform, **others}.items() if is_gpu else {**others, **conform}.items():
        part.figure(name, check)


def conformance(device: torch.device, dtype: str, case: Path) -> Figures:
    """Differences of every stage from the golden numbers. float32 must keep to the tolerances, others be finite."""
    model = load_model(CHECKPOINT, device=device, dtype=dtype)
    with _without_tf32():
        differences = run_case(model, case)
    conforms = all(difference.conforms for difference in differences)
    finite = all(np.isfinite(difference.largest) for difference in differences)
    stages = {d.stage: {**asdict(d), "tolerance": d.tolerance} for d in differences}
    return {"passed": conforms if dtype == "float32" else finite, "conforms": conforms, "stages": stages}


def tiers(device: torch.device, dtype: str) -> Figures:
    """Mean difference of the frames of the lower memory tiers from those of the high tier, levels of 255."""
    model = load_model(CHECKPOINT, device=device, dtype=dtype)
    frames = {tier.value: _make(model, SAMPLER, tier).astype(int) for tier in MemoryTier}
    levels = {tier: float(np.abs(other - frames["high"]).mean()) for tier, other in frames.items()}
    return {"passed": max(levels.values()) < LARGEST_LEVELS, "levels": levels}


def oom_recovery(device: torch.device, sampler: SamplerConfig) -> Figures:
    """Let memory run out in an update in the high tier: a lower one must do the same update, and leave nothing behind.

    On a CPU, whose memory torch cannot limit, the limit is on the bytes of all tensors.
    """
    work = Work(CHECKPOINT, sampler, GUIDANCE, device)
    units = Units(work.load("auto"), work)
    peaks: dict[MemoryTier, int] = {}
    for tier in (MemoryTier.LOW, MemoryTier.HIGH):
        release_memory()
        with _reserved_peak(device) as read:
            expected_TChw = units.update(tier)
        peaks[tier] = read()
    release_memory()
    held = torch.cuda.memory_allocated() if device.type == "cuda" else 0
    limit = sum(peaks.values()) // 2
    tried: list[str] = []

    def update(tier: MemoryTier) -> torch.Tensor:
        tried.append(tier.value)
        return units.update(tier)

    with _memory_limited(device, limit):
        latents_TChw = with_oom_fallback(update, MemoryTier.HIGH, "auto", GUIDANCE)
    difference = float((latents_TChw - expected_TChw).norm() / expected_TChw.norm())
    del latents_TChw
    release_memory()
    left = (torch.cuda.memory_allocated() if device.type == "cuda" else 0) - held
    return {
        "passed": len(tried) > 1 and difference < 0.05 and left == 0,
        "tried": tried,
        "peak_bytes": {tier.value: peak for tier, peak in peaks.items()},
        "limit_bytes": limit,
        "left_bytes": left,
        "relative_difference": difference,
    }


def decode_chunks(device: torch.device) -> Figures:
    """Largest difference of decoded frames from those of a CPU in float32, by the frames decoded at once."""
    generator = torch.Generator("cpu").manual_seed(0)
    latents_TChw = torch.randn(8, 4, 8, 8, generator=generator)
    exact = load_model(CHECKPOINT, device="cpu", dtype="float32")
    model = load_model(CHECKPOINT, device=device)
    differences = {}
    for chunk in (8, 4, 2, 1):
        frames = decode_latents(model, latents_TChw.to(device), chunk).cpu()
        differences[str(chunk)] = float((frames - decode_latents(exact, latents_TChw, chunk)).abs().max())
    return {"passed": max(differences.values()) < 0.1, "largest_difference_of_1": differences}


def compiled_block(device: torch.device) -> Figures:
    """Compile one block by torch's default backend, and compare its values and gradients with the ordinary ones."""
    block = load_model(CHECKPOINT, device=device, dtype="float32").unet.down_blocks[0].resnets[0].temporal_res_block
    torch.manual_seed(0)
    hidden_BCThw = torch.randn(1, block.in_channels, 4, 4, 8, device=device, requires_grad=True)
    embedding_BTD = torch.randn(1, 4, block.time_emb_proj.in_features, device=device)
    results = []
    start = time.perf_counter()
    with _without_tf32():
        for forward in (block.forward, torch.compile(block.forward, dynamic=False)):
            output = forward(hidden_BCThw, embedding_BTD)
            results.append((output.detach(), *torch.autograd.grad(output.square().sum(), hidden_BCThw)))
    names = ("values", "gradients")
    relative = {
        name: float((actual - expected).norm() / expected.norm())
        for name, expected, actual in zip(names, *results, strict=True)
    }
    return {"passed": max(relative.values()) < 1e-4, "relative": relative, "seconds": time.perf_counter() - start}


def _make(model: VideoModel, sampler: SamplerConfig, tier: MemoryTier) -> Any:
    """Frames of a small guided sample."""
    image_HWC, tracks = moving_box(sampler)
    return generate(model, image_HWC, tracks, sampler, GUIDANCE.replace(guided_steps=(0,)), seed=1, memory=tier).frames


def _without_tf32() -> Any:
    """Compute convolutions in float32; torch's default on a GPU is TF32."""
    return torch.backends.cudnn.flags(enabled=True, allow_tf32=False)


class _LimitedBytes(BytesAlive):
    """Runs out of memory when tensors hold more than a limit."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        if self.now > self.limit:
            raise torch.OutOfMemoryError(f"out of memory: {self.now} bytes of {self.limit}")
        return result


@contextmanager
def _reserved_peak(device: torch.device) -> Iterator[Callable[[], int]]:
    """Yields a function that returns the most bytes that torch reserved inside the context."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        yield lambda: torch.cuda.max_memory_reserved(device)
        return
    with BytesAlive() as alive:
        yield lambda: alive.peak


@contextmanager
def _memory_limited(device: torch.device, limit: int) -> Iterator[None]:
    """Let torch have at most `limit` bytes inside the context."""
    if device.type != "cuda":
        with _LimitedBytes(limit):
            yield
        return
    _, total = torch.cuda.mem_get_info(device)
    torch.cuda.set_per_process_memory_fraction(limit / total)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
