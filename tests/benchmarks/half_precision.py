"""What bfloat16 and float16 do to guidance on the embedded checkpoint, with a GPU's arithmetic emulated on a CPU.

    python -m tests.benchmarks.half_precision [--samples 6] [--preset fast]

A GPU's kernels take 16-bit numbers, add them up in float32 and round the result. On a CPU the same is computed: the
weights and all numbers between operations have 16 bits; matrix products, convolutions, norms and attention are computed
in float32 from 16-bit inputs and their results rounded, forward and backward. The VAE stays in float32.

The first table compares the gradient at the first guided step, for the same latents and noise, with that of float32:
its relative error, and the share of elements whose sign differs, by which AdamW's first updates go. The second table
has the finished videos: how far the final latents are from those of float32, and ObjMC.
"""

from __future__ import annotations

import argparse
import dataclasses
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode  # no public name; torch's manual names this one

from sgi2v.config import GuidanceConfig, Preset, SamplerConfig, apply_preset
from sgi2v.generate import generate
from sgi2v.guidance import INITIAL_LOSS_SCALE, guided_features, plan_loss, trajectory_loss
from sgi2v.metrics.objmc import motion_fidelity
from sgi2v.model import VideoModel, encode_image, load_model
from sgi2v.sampling import CONDITIONAL, Schedule, draw_noise, unet_inputs
from sgi2v.tracking.lucas_kanade import LucasKanade
from tests.benchmarks.held_out import HeldOut, Split, draw_held_out
from tests.benchmarks.measured import markdown, noise_seed
from tests.benchmarks.measures import print_row

ATTENTION = "scaled_dot_product"
"""Part of the names of fused attention's operations."""
IN_FLOAT32 = {
    *("convolution", "convolution_backward", "mm", "addmm", "bmm", "baddbmm"),
    *("native_group_norm", "native_group_norm_backward", "native_layer_norm", "native_layer_norm_backward"),
}
"""Operations, beside attention, that add up many numbers, which a GPU does in float32."""
HALVES = (torch.bfloat16, torch.float16)


class SumsInFloat32(TorchDispatchMode):
    """Computes the operations of 16-bit tensors inside the context as a GPU does."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.name().removeprefix("aten::").partition(".")[0]
        halves = [each.dtype for each in args if isinstance(each, Tensor) and each.dtype.itemsize == 2]
        if not halves or (name not in IN_FLOAT32 and ATTENTION not in name):
            return func(*args, **kwargs)
        half = halves[0]
        wide = [each.float() if isinstance(each, Tensor) and each.dtype is half else each for each in args]
        result = func(*wide, **kwargs)
        if isinstance(result, Tensor):
            return result.to(half)
        # what these two keep for the backward pass beside their output stays in float32 on a GPU too
        keeps_float32 = name == "native_layer_norm" or (ATTENTION in name and not name.endswith("backward"))
        narrow = 1 if keeps_float32 else len(result)
        halved = [each.to(half) if isinstance(each, Tensor) else each for each in result[:narrow]]
        return (*halved, *result[narrow:])


@dataclass(frozen=True)
class Gradient:
    """The first guidance gradient of a sample."""

    loss: float
    gradient_TChw: Tensor


def in_type(dtype: torch.dtype) -> VideoModel:
    """The embedded model with the weights of its U-Net and image encoder in a type."""
    model = load_model("embedded", device="cpu", dtype="float32")
    model.unet.to(dtype)
    model.image_encoder.to(dtype)
    return dataclasses.replace(model, dtype=dtype)


def first_gradient(
    model: VideoModel,
    sample: HeldOut,
    noise: int,
    latents_TChw: Tensor,
    sampler: SamplerConfig,
    guidance: GuidanceConfig,
) -> Gradient:
    """The gradient of the guidance loss at the first guided step, by loss scaling where the type is float16."""
    schedule = Schedule(model, sampler.steps)
    drawn = draw_noise(noise, sampler, model.cell_px)
    conditioning = encode_image(model, sample.image, drawn.augmentation_1CHW, sampler)
    plan = plan_loss(sample.tracks, *latents_TChw.shape[-2:], model.cell_px, guidance, model.device)
    scale = INITIAL_LOSS_SCALE if model.dtype is torch.float16 else 1.0
    step = guidance.step_indices(sampler.steps)[0]
    latents = latents_TChw.clone().requires_grad_(True)
    while True:
        inputs = unet_inputs(schedule, step, latents, conditioning, CONDITIONAL, model.dtype)
        loss = trajectory_loss(guided_features(model.unet, inputs, guidance), plan)
        (scaled,) = torch.autograd.grad(loss * scale, latents)
        if torch.isfinite(scaled).all():
            return Gradient(float(loss.detach()), scaled / scale)
        scale /= 2


def first_guided_latents(
    model: VideoModel, sample: HeldOut, noise: int, sampler: SamplerConfig, guidance: GuidanceConfig
) -> Tensor:
    """The latents that enter the first guided step."""
    seen: list[Tensor] = []
    first = guidance.replace(guided_steps=guidance.step_indices(sampler.steps)[:1], iterations=0)

    def keep(_stage: str, _step: int, _iteration: int, latents_TChw: Tensor) -> None:
        seen.append(latents_TChw.clone())

    generate(model, sample.image, sample.tracks, sampler, first, noise, on_stage=keep)
    return seen[0]


def name_of(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=6, help="held-out samples; default: 6")
    parser.add_argument("--preset", choices=get_args(Preset), default="fast", help="settings; default: fast")
    options = parser.parse_args()
    torch.set_num_threads(1)
    models = {dtype: in_type(dtype) for dtype in (torch.float32, *HALVES)}
    exact_model = models[torch.float32]
    checkpoint = exact_model.checkpoint
    sampler, guidance = apply_preset(options.preset, checkpoint.sampler(), checkpoint.guidance())
    samples = [draw_held_out(Split.DEV, index) for index in range(options.samples)]
    noises = [noise_seed(Split.DEV, index, 0) for index in range(options.samples)]

    rows = []
    for index, (sample, noise) in enumerate(zip(samples, noises, strict=True)):
        latents = first_guided_latents(exact_model, sample, noise, sampler, guidance)
        with SumsInFloat32():
            found = {
                dtype: first_gradient(model, sample, noise, latents, sampler, guidance)
                for dtype, model in models.items()
            }
        exact = found[torch.float32]
        for dtype in HALVES:
            own = found[dtype]
            error = (own.gradient_TChw - exact.gradient_TChw).norm() / exact.gradient_TChw.norm()
            flips = (own.gradient_TChw.sign() != exact.gradient_TChw.sign()).double().mean()
            figures = [f"{own.loss / exact.loss - 1:.1e}", f"{float(error):.2%}", f"{float(flips):.2%}"]
            rows.append([str(index), name_of(dtype), *figures])
    print(*markdown(["sample", "type", "error of the loss", "error of the gradient", "signs flipped"], rows), sep="\n")
    print()
    print_row(["sample", "type", "error of the final latents", "skipped updates", "ObjMC px"])
    print_row(["---"] * 5)
    totals: dict[torch.dtype, list[float]] = {dtype: [] for dtype in models}
    for index, (sample, noise) in enumerate(zip(samples, noises, strict=True)):
        for dtype, model in models.items():
            with SumsInFloat32():
                made = generate(model, sample.image, sample.tracks, sampler, guidance, noise)
            if dtype is torch.float32:
                exact_latents = made.latents
            error = (made.latents - exact_latents).norm() / exact_latents.norm()
            objmc_px = motion_fidelity(made.frames, sample.tracks, LucasKanade()).objmc_px
            totals[dtype].append(np.nan if objmc_px is None else objmc_px)
            shown = [f"{float(error):.1%}", str(made.skipped_updates), f"{totals[dtype][-1]:.2f}"]
            print_row([str(index), name_of(dtype), *shown])
    for dtype, values in totals.items():
        print_row(["mean", name_of(dtype), "", "", f"{np.nanmean(values):.2f}"])


if __name__ == "__main__":
    main()
