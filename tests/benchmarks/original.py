"""The authors' own code beside ours: one device, the same weights, settings, picture, boxes and noise.

    git clone https://github.com/Kmcode1/SG-I2V AUTHORS        # written for its commit 52977a2
    python -m tests.benchmarks.full_size FOLDER
    python -m tests.benchmarks.original AUTHORS --model FOLDER [--memory low] [--reference]
    python -m tests.benchmarks.original AUTHORS --model tests/golden/checkpoint --case tests/golden/case-a

Their code runs on the torch and diffusers that are installed, not on those it was written for. On a GPU it runs as it
is, with float16 weights, ours in `--dtype`; where there is none, from a copy in which device and type are replaced,
both in float32. It computes its guided passes twice; ours do so in the lower memory tiers. First each side makes a
sample of two steps, which is not timed; then the sides make theirs one after the other, alone on the device. Peak
memory is what torch held, weights included. `--reference` makes the sample in float32 as well, and tells how far both
are from it.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import numpy as np
import torch
from diffusers.utils import logging as diffusers_logging
from numpy.typing import NDArray
from PIL import Image

from sgi2v.config import DType, GuidanceConfig, MemoryTier, SamplerConfig
from sgi2v.estimate import choose_tier
from sgi2v.fetch import weight_files
from sgi2v.generate import generate
from sgi2v.model import VideoModel, load_model
from sgi2v.sampling import Noise, draw_noise
from sgi2v.trajectory import BoxTracks
from sgi2v.trial import moving_box, shortest
from tests.benchmarks.measures import free_memory, print_row
from tests.conformance import read_inputs

ON_A_CPU = {'"cuda"': '"cpu"', ".cuda()": "", "torch.float16": "torch.float32"}
"""What stands in their code for the device and the type, and what takes its place."""


@dataclass(frozen=True)
class Sample:
    """What both are given."""

    image_HWC: NDArray[np.uint8]
    tracks: BoxTracks
    sampler: SamplerConfig
    guidance: GuidanceConfig
    noise: Noise

    def __post_init__(self) -> None:
        size = self.sampler.height, self.sampler.width
        assert self.image_HWC.shape[:2] == (self.tracks.height, self.tracks.width) == size, (
            "each resizes in its own way"
        )
        assert self.sampler.uses_cfg, "theirs has no pass without classifier-free guidance"

    def shortened(self) -> Sample:
        """One that runs all there is to run, once."""
        sampler, guidance = shortest(self.sampler, self.guidance)
        assert guidance is not None
        return dataclasses.replace(self, sampler=sampler, guidance=guidance)


Make = Callable[[Sample], tuple[NDArray[np.float64], NDArray[np.float32]]]
"""Frames [T, H, W, 3], whole levels of 0 to 255, and final latents [T, C, h, w] of a sample."""


@dataclass(frozen=True)
class Made:
    """What one side made of it."""

    seconds: list[float]
    """Of each timed sample."""
    peak_bytes: int | None
    frames_THWC: NDArray[np.float64]
    latents_TChw: NDArray[np.float32]

    @property
    def median_s(self) -> float:
        return float(np.median(self.seconds))


def sample_of(model: VideoModel, case: Path | None) -> Sample:
    """Of a conformance case; or noise for a picture, and one box that crosses it."""
    if case is not None:
        given = read_inputs(case, dict(np.load(case / "golden.npz", allow_pickle=False)))
        return Sample(given["image"], given["tracks"], given["sampler"], given["guidance"], given["noise"])
    sampler, guidance = model.checkpoint.sampler(), model.checkpoint.guidance()
    image_HWC, tracks = moving_box(sampler)
    return Sample(image_HWC, tracks, sampler, guidance, draw_noise(817, sampler, model.cell_px))


def ours(model: VideoModel, tier: MemoryTier) -> Make:
    """Our side, of a loaded model."""

    def make(sample: Sample) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        given = sample.image_HWC, sample.tracks, sample.sampler, sample.guidance
        made = generate(model, *given, noise=sample.noise, memory=tier)
        return made.frames.astype(np.float64), made.latents.numpy()

    return make


def theirs(checkout: Path, weights: Path, device: str, copies: Path) -> Make:
    """Their side, loaded as their `inference.py` loads it, from weights in diffusers' layout."""
    from diffusers import AutoencoderKLTemporalDecoder, EulerDiscreteScheduler
    from transformers import CLIPImageProcessor, CLIPVisionModelWithProjection

    pipeline, model = import_theirs(checkout, device, copies)
    dtype = torch.float16 if device == "cuda" else torch.float32

    def loaded(kind: Any, part: str) -> Any:
        variant, _ = weight_files(weights, part, half=dtype is torch.float16)
        module = kind.from_pretrained(weights, subfolder=part, variant=variant, torch_dtype=dtype)
        return module.to(device).requires_grad_(False)

    unet = loaded(model.MyUNet, "unet")
    unet.inject()
    pipe = pipeline.SGI2VPipe(
        loaded(AutoencoderKLTemporalDecoder, "vae"),
        loaded(CLIPVisionModelWithProjection, "image_encoder"),
        unet,
        EulerDiscreteScheduler.from_pretrained(weights, subfolder="scheduler"),
        CLIPImageProcessor.from_pretrained(weights, subfolder="feature_extractor"),
    )
    pipe.set_progress_bar_config(disable=True)

    def make(sample: Sample) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        sampler, guidance = sample.sampler, sample.guidance
        unet.num_inference_steps = sampler.steps
        unet.optimize_latent_time = [sampler.steps - step for step in guidance.step_indices(sampler.steps)]
        unet.optimize_latent_iter = guidance.iterations
        unet.optimize_latent_lr = guidance.learning_rate
        unet.record_layer_sublayer = list(guidance.layers)
        unet.heatmap_sigma = guidance.heatmap_sigma
        unet.latent_fft_post_merge = guidance.fft_cutoff is not None
        unet.latent_fft_ratio = guidance.fft_cutoff
        pipe.heatmap.clear()
        latents: list[torch.Tensor] = []
        decode = pipe.decode_latents

        def decode_and_keep(final: torch.Tensor, *arguments: Any) -> Any:
            latents.append(final)
            return decode(final, *arguments)

        noises = iter([sample.noise.augmentation_1CHW, sample.noise.initial_TChw[None]])

        def given_noise(shape: Any, generator: Any, device: Any, dtype: torch.dtype) -> torch.Tensor:
            noise = next(noises)
            assert noise.shape == torch.Size(shape)
            return noise.to(device, dtype)

        boxes_NT4 = sample.tracks.clip_to_first_frame().boxes_NT4[..., [1, 0, 3, 2]]
        with (
            mock.patch.object(pipeline, "randn_tensor", given_noise),
            mock.patch.object(pipe, "decode_latents", decode_and_keep),
        ):
            frames = pipe(
                Image.fromarray(sample.image_HWC),
                [list(boxes_T4) for boxes_T4 in boxes_NT4],
                height=sampler.height,
                width=sampler.width,
                num_frames=sampler.num_frames,
                min_guidance_scale=sampler.min_cfg_scale,
                max_guidance_scale=sampler.max_cfg_scale,
                fps=sampler.fps,
                motion_bucket_id=sampler.motion_bucket_id,
                noise_aug_strength=sampler.noise_aug_strength,
                decode_chunk_size=sampler.decode_chunk_size,
            ).frames[0]
        return np.rint(np.asarray(frames, np.float64) * 255), latents[0][0].float().cpu().numpy()

    return make


def import_theirs(checkout: Path, device: str, copies: Path) -> tuple[Any, Any]:
    """Their modules `src.pipeline` and `src.model`, copied to an empty folder, on a CPU without what names a GPU."""
    (copies / "src").mkdir()
    for file in (checkout / "src").glob("*.py"):
        text = file.read_text()
        for there, here in ON_A_CPU.items() if device == "cpu" else ():
            text = text.replace(there, here)
        (copies / "src" / file.name).write_text(text)
    sys.path.insert(0, str(copies))
    return importlib.import_module("src.pipeline"), importlib.import_module("src.model")


def measure(make: Make, sample: Sample, samples: int) -> Made:
    """Time some samples after a short one."""
    is_gpu = torch.cuda.is_available()
    make(sample.shortened())
    if is_gpu:
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(samples):
        start = time.perf_counter()
        frames_THWC, latents_TChw = make(sample)
        seconds.append(time.perf_counter() - start)
    peak_bytes = torch.cuda.max_memory_allocated() if is_gpu else None
    return Made(seconds, peak_bytes, frames_THWC, latents_TChw)


def in_float32(source: str, sample: Sample) -> Made:
    """The sample by ours, untimed, in whole float32: not in TF32, torch's default for convolutions on a GPU."""
    model = load_model(source, dtype="float32")
    tier = choose_tier("auto", model, sample.sampler, sample.guidance)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return Made([], None, *ours(model, tier)(sample))


def difference(first: Made, second: Made) -> str:
    """Of frames, in levels of 255 and as PSNR, and of final latents, relative to the second's size."""
    frames = np.abs(first.frames_THWC - second.frames_THWC)
    psnr_db = 10 * np.log10(255**2 / max(np.square(frames).mean(), 1e-12))
    latents = np.abs(first.latents_TChw - second.latents_TChw)
    relative = np.linalg.norm(latents) / np.linalg.norm(second.latents_TChw)
    return (
        f"frames differ by {frames.mean():.2g} of 255 in the mean, {frames.max():.0f} at most, {psnr_db:.1f} dB; "
        f"final latents by {latents.max():.2e} at most, {relative:.2e} relative to their norm"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkout", type=Path)
    parser.add_argument("--model", type=Path, required=True, help="folder in diffusers layout, 8 pixels to a cell")
    parser.add_argument("--case", type=Path)
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="on a CPU")
    parser.add_argument("--dtype", choices=get_args(DType), default="auto")
    parser.add_argument("--memory", choices=("auto", *MemoryTier), default="auto")
    parser.add_argument("--reference", action="store_true")
    options = parser.parse_args()
    diffusers_logging.set_verbosity_error()  # their moves between types are many, and each would be told
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(options.threads)

    def by_us() -> tuple[Made, Sample, str]:
        model = load_model(str(options.model), dtype=options.dtype)
        sample = sample_of(model, options.case)
        tier = choose_tier(options.memory, model, sample.sampler, sample.guidance)
        told = f"ours, {str(model.dtype).removeprefix('torch.')}, {tier.value} tier"
        return measure(ours(model, tier), sample, options.samples), sample, told

    own, sample, told = by_us()
    free_memory()
    with tempfile.TemporaryDirectory() as copies:
        original = measure(theirs(options.checkout, options.model, device, Path(copies)), sample, options.samples)
    free_memory()
    print(
        f"{options.model} on {torch.cuda.get_device_name() if device == 'cuda' else 'cpu'}, {options.samples} samples"
    )
    print_row(["side", "s a sample", "least", "most", "peak GiB"])
    print_row(["---"] * 5)
    for name, made in (("theirs", original), (told, own)):
        peak = "" if made.peak_bytes is None else f"{made.peak_bytes / 2**30:.1f}"
        print_row([name, f"{made.median_s:.2f}", f"{min(made.seconds):.2f}", f"{max(made.seconds):.2f}", peak])
    print(f"ours take {own.median_s / original.median_s:.2f} of their seconds", end="")
    if own.peak_bytes and original.peak_bytes:
        print(f", {own.peak_bytes / original.peak_bytes:.2f} of their memory", end="")
    print(f"\nours and theirs: {difference(own, original)}")
    if options.reference:
        exact = in_float32(str(options.model), sample)
        print(f"ours and float32: {difference(own, exact)}\ntheirs and float32: {difference(original, exact)}")


if __name__ == "__main__":
    main()
