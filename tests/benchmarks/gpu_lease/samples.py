"""Whole samples: as the program makes them by default, and by the fastest variant that was measured."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from sgi2v.generate import generate
from sgi2v.trial import moving_box
from tests.benchmarks.gpu_lease.lease import Figures, RunningPart
from tests.benchmarks.gpu_lease.units import Bench, compiled, fastest
from tests.benchmarks.gpu_lease.variants import BASE, Variant


def run(part: RunningPart, bench: Bench) -> None:
    """The fastest one first: its model may still be loaded and compiled."""
    measured = part.lease.report["parts"].get("units", {}).get("figures", {})
    together = fastest(measured)
    candidates = [
        variant for variant in (BASE, together, *compiled(together)) if "sample_s" in measured.get(variant.name, {})
    ]
    best = min(candidates, key=lambda variant: measured[variant.name]["sample_s"], default=BASE)
    latents: list[torch.Tensor] = []
    for variant in (BASE,) if best == BASE else (best, BASE):
        needs_s = measured.get(variant.name, {}).get("sample_s", 0.0) + bench.needs_s(variant)
        part.figure(f"sample, {variant.name}", partial(_sample, bench, variant, latents), needs_s)


def _sample(bench: Bench, variant: Variant, latents: list[torch.Tensor]) -> Figures:
    """One sample's seconds and peak memory. latents: those of the earlier samples, to which this one's are added."""
    model, work = bench.model(variant), bench.work
    image_HWC, tracks = moving_box(work.sampler)
    made = generate(model, image_HWC, tracks, work.sampler, work.guidance, seed=1, memory=variant.tier)
    latents.append(made.latents)
    figures: dict[str, Any] = {
        "seconds": sum(made.seconds.values()),
        "phases": made.seconds,
        "peak_gpu_bytes": made.peak_gpu_bytes,
        "skipped_updates": made.skipped_updates,
        "kernels": getattr(model, "kernels", None),
        "dtype": str(model.dtype).removeprefix("torch."),
    }
    if len(latents) > 1:
        figures["latents_relative_difference"] = float((made.latents - latents[0]).norm() / latents[0].norm())
    return figures
