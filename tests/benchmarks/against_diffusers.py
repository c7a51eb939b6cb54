"""Compare an unguided sample with diffusers' own pipeline, stage by stage, and tell amplified rounding from a fault.

    python -m tests.benchmarks.against_diffusers --model tests/golden/checkpoint --exact
    python -m tests.benchmarks.full_size FOLDER
    python -m tests.benchmarks.against_diffusers --model FOLDER --size 64 64 --frames 2 --steps 2 --dtype bfloat16

Both sides get the same weights, picture and noise. Differences are relative to the norm of the pipeline's numbers:

- `input`: what the U-Net gets at a step, each side by its own steps before; in the last row, the final latents.
- `one pass`: output of the U-Net from the pipeline's inputs. A fault of ours shows here.
- `in float64`: the same in float64, with `--exact`. What is rounding vanishes; a fault stays.
- `disturbed`: `input` of the pipeline beside its own, after half of its first noise was moved by one unit in the last
  place. This is how far rounding alone takes two right programs apart.

What was found, as the difference of the final latents on the golden checkpoint:

- float32: 2e-6, and 2e-15 for one pass in float64: the sums are the same.
- bfloat16: 4.5 %, and 4.2 % of the disturbed pipeline: rounding, which random weights amplify.
- `--picture`: percents in any type, because the sides resample a picture of another size differently. Ours does as
  the method's `inference.py`: it resizes the picture with Pillow's bicubic filter, and all parts get the result. The
  pipeline uses a Lanczos filter, and gives the image encoder the picture itself.

One model is held in memory at a time. At last our program makes a guided sample of the same size, which must be finite.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import torch
from diffusers import StableVideoDiffusionPipeline
from PIL import Image
from torch import Tensor

from sgi2v.config import GuidanceConfig, SamplerConfig
from sgi2v.generate import generate
from sgi2v.model import VideoModel, load_model
from sgi2v.sampling import Noise, draw_noise
from sgi2v.trial import moving_box, shortest
from tests.benchmarks.measures import free_memory, print_row

PIPELINE = "diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion"


@dataclass
class Run:
    """What one side computed."""

    passes: list[tuple[dict[str, Tensor], Tensor]] = field(default_factory=list)
    """Inputs and output of the U-Net at each step."""
    final: Tensor = field(default_factory=lambda: torch.empty(0))
    """Final latents [T, C, h, w]."""

    def keep(self, _: Any, positional: tuple[Tensor, ...], named: dict[str, Any], output: tuple[Tensor]) -> None:
        """Hook of the U-Net: keep the inputs and the output."""
        inputs = dict(zip(("sample", "timestep"), positional, strict=False)) | named
        inputs.pop("return_dict")
        self.passes.append((inputs, output[0]))

    @property
    def inputs(self) -> list[Tensor]:
        """Samples that the U-Net got, and the final latents."""
        return [*(inputs["sample"] for inputs, _ in self.passes), self.final]


def relative(actual: Tensor, expected: Tensor) -> str:
    """Norm of the difference, relative to the expected norm."""
    actual, expected = actual.double(), expected.double()
    return f"{float((actual - expected).norm() / expected.norm()):.1e}"


def by_pipeline(
    source: str, picture: Any, noise: Noise, sampler: SamplerConfig, dtype: torch.dtype, disturbed: bool = False
) -> Run:
    """The sample by diffusers' pipeline. disturbed: move half of its first noise by a unit in the last place."""
    pipe = StableVideoDiffusionPipeline.from_pretrained(source, dtype=dtype)
    pipe.set_progress_bar_config(disable=True)
    initial = noise.initial_TChw[None].to(dtype)
    if disturbed:
        is_moved = torch.rand(initial.shape, generator=torch.Generator().manual_seed(1)) < 0.5
        initial = torch.where(is_moved, torch.nextafter(initial, initial * 2), initial)
    run = Run()
    pipe.unet.register_forward_hook(run.keep, with_kwargs=True)
    with mock.patch(f"{PIPELINE}.randn_tensor", return_value=noise.augmentation_1CHW):
        made = pipe(
            Image.fromarray(picture),
            height=sampler.height,
            width=sampler.width,
            num_frames=sampler.num_frames,
            num_inference_steps=sampler.steps,
            min_guidance_scale=sampler.min_cfg_scale,
            max_guidance_scale=sampler.max_cfg_scale,
            fps=sampler.fps,
            motion_bucket_id=sampler.motion_bucket_id,
            noise_aug_strength=sampler.noise_aug_strength,
            latents=initial,
            output_type="latent",
        )
    run.final = made.frames[0]
    return run


def by_us(model: VideoModel, picture: Any, noise: Noise, sampler: SamplerConfig) -> Run:
    """The sample by our program, without guidance."""
    run = Run()
    handle = model.unet.register_forward_hook(run.keep, with_kwargs=True)
    run.final = generate(model, picture, None, sampler, None, noise=noise).latents
    handle.remove()
    return run


@torch.no_grad()
def one_pass(unet: Any, inputs: dict[str, Tensor], dtype: torch.dtype) -> Tensor:
    """Output of a U-Net from the inputs of a recorded pass, in a type."""
    converted = {name: value.to(dtype) for name, value in inputs.items()}
    output: Tensor = unet(**converted, return_dict=False)[0]
    return output


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder in diffusers layout")
    parser.add_argument("--size", type=int, nargs=2, default=(128, 192), help="height and width; default: 128 192")
    parser.add_argument("--frames", type=int, default=6, help="default: 6")
    parser.add_argument("--steps", type=int, default=20, help="default: 20")
    parser.add_argument("--picture", type=int, nargs=2, help="height and width of the picture; default: the video's")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of the weights")
    parser.add_argument("--exact", action="store_true", help="compute single passes in float64 too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    height, width = options.size
    sampler = SamplerConfig(height=height, width=width, num_frames=options.frames, steps=options.steps)
    picture, tracks = moving_box(sampler)
    if options.picture:
        picture, _ = moving_box(sampler.replace(height=options.picture[0], width=options.picture[1]))
    noise = draw_noise(817, sampler, 8)
    dtype = getattr(torch, options.dtype)

    theirs = by_pipeline(options.model, picture, noise, sampler, dtype)
    free_memory()
    disturbed = by_pipeline(options.model, picture, noise, sampler, dtype, disturbed=True)
    free_memory()
    exact = [""] * sampler.steps
    if options.exact:
        double = StableVideoDiffusionPipeline.from_pretrained(options.model, dtype=torch.float64).unet
        exact_outputs = [one_pass(double, inputs, torch.float64) for inputs, _ in theirs.passes]
        del double
    model = load_model(options.model, device="cpu", dtype=options.dtype)
    own = by_us(model, picture, noise, sampler)
    outputs = [relative(one_pass(model.unet, inputs, dtype), output) for inputs, output in theirs.passes]
    first, their_first = own.passes[0][0], theirs.passes[0][0]
    print(f"{options.model}, {options.dtype}, {sampler.num_frames} frames of {height} x {width} px", flush=True)
    for name in ("encoder_hidden_states", "added_time_ids"):
        print(f"{name}: {relative(first[name], their_first[name])}")
    latents = relative(first["sample"][:, :, 4:], their_first["sample"][:, :, 4:])
    print(f"image latents: {latents}")
    print_row(["step", "input", "one pass", "in float64", "disturbed"])
    print_row(["---"] * 5)
    steps = [*map(str, range(sampler.steps)), "final latents"]
    differences = [relative(*pair) for pair in zip(own.inputs, theirs.inputs, strict=True)]
    rounding = [relative(*pair) for pair in zip(disturbed.inputs, theirs.inputs, strict=True)]
    if options.exact:
        model.unet.double()
        pairs = zip(theirs.passes, exact_outputs, strict=True)
        exact = [relative(one_pass(model.unet, inputs, torch.float64), output) for (inputs, _), output in pairs]
        model.unet.to(dtype)
    for row in zip(steps, differences, [*outputs, ""], [*exact, ""], rounding, strict=True):
        print_row(list(row))
    sampler, guidance = shortest(sampler, GuidanceConfig())
    guided = generate(model, picture, tracks, sampler, guidance, noise=noise)
    finite = "finite" if np.isfinite(guided.losses).all() and guided.latents.isfinite().all() else "NOT finite"
    loss = f"loss {guided.losses[0, 0]:.3g}, latents moved by {guided.latent_drift:.2g}"
    print(f"guided, {guidance.iterations if guidance else 0} update: {finite}, {loss}")


if __name__ == "__main__":
    main()
