"""Time, memory and results of our code and the authors' own, on one device, with the same inputs.

    git clone https://github.com/Kmcode1/SG-I2V AUTHORS        # written for its commit 52977a2
    python -m tests.benchmarks.full_size FOLDER
    python -m tests.benchmarks.original AUTHORS --model FOLDER [--memory low] [--reference]
    python -m tests.benchmarks.original AUTHORS --model tests/golden/checkpoint --case tests/golden/case-a

Both sides get the same weights, settings, picture, boxes and noise. The authors' code runs on the installed torch and
diffusers, not on the versions it was written for. On a GPU it runs unchanged, with float16 weights, and ours in
`--dtype`. Without a GPU it runs from a copy in which the device and the type are replaced, and both run in float32.
Their code computes its guided passes twice; ours does so only in the lower memory tiers. Each side first makes a sample
of two steps, which is not timed. Then one side after the other makes its samples, alone on the device. Peak memory is
what torch held, weights included. `--reference` also makes the sample in float32, and prints how far both sides are
from it.
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

CPU_REPLACEMENTS = {'"cuda"': '"cpu"', ".cuda()": "", "torch.float16": "torch.float32"}
"""Text in the authors' code that names the device and the type, and its replacement on a CPU."""


@dataclass(frozen=True)
class Sample:
    """The inputs of both sides."""

    image_HWC: NDArray[np.uint8]
    tracks: BoxTracks
    sampler: SamplerConfig
    guidance: GuidanceConfig
    noise: Noise

    def __post_init__(self) -> None:
        size = self.sampler.height, self.sampler.width
        assert self.image_HWC.shape[:2] == (self.tracks.height, self.tracks.width) == size, (
            "the picture must have the output size: the sides resize differently"
        )
        assert self.sampler.uses_cfg, "the authors' code always uses classifier-free guidance"

    def shortened(self) -> Sample:
        """The shortest sample that runs every part of the code."""
        sampler, guidance = shortest(self.sampler, self.guidance)
        assert guidance is not None
        return dataclasses.replace(self, sampler=sampler, guidance=guidance)


Make = Callable[[Sample], tuple[NDArray[np.float64], NDArray[np.float32]]]
"""Makes a sample: frames [T, H, W, 3] in whole levels of 0 to 255, and final latents [T, C, h, w]."""


@dataclass(frozen=True)
class Result:
    """What one side made, and what it took."""

    seconds: list[float]
    """Time of each timed sample."""
    peak_bytes: int | None
    frames_THWC: NDArray[np.float64]
    latents_TChw: NDArray[np.float32]

    @property
    def median_s(self) -> float:
        return float(np.median(self.seconds))


def sample_of(model: VideoModel, case: Path | None) -> Sample:
    """The sample of a conformance case, or a picture of noise and one box that crosses it."""
    if case is not None:
        given = read_inputs(case, dict(np.load(case / "golden.npz", allow_pickle=False)))
        return Sample(given["image"], given["tracks"], given["sampler"], given["guidance"], given["noise"])
    sampler, guidance = model.checkpoint.sampler(), model.checkpoint.guidance()
    image_HWC, tracks = moving_box(sampler)
    return Sample(image_HWC, tracks, sampler, guidance, draw_noise(817, sampler, model.cell_px))


def ours(model: VideoModel, tier: MemoryTier) -> Make:
    """Our side, for a loaded model."""

    def make(sample: Sample) -> tuple[NDArray[np.float64], NDArray[np.float32]]:
        given = sample.image_HWC, sample.tracks, sample.sampler, sample.guidance
        generation = generate(model, *given, noise=sample.noise, memory=tier)
        return generation.frames.astype(np.float64), generation.latents.numpy()

    return make


def theirs(checkout: Path, weights: Path, device: str, copies: Path) -> Make:
    """The authors' side, loaded as their `inference.py` does, from weights in diffusers' layout."""
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
    """The authors' modules `src.pipeline` and `src.model`, imported from a copy in an empty folder.

    On a CPU, CPU_REPLACEMENTS are applied to the copy.
    """
    (copies / "src").mkdir()
    for file in (checkout / "src").glob("*.py"):
        text = file.read_text()
        for old, new in CPU_REPLACEMENTS.items() if device == "cpu" else ():
            text = text.replace(old, new)
        (copies / "src" / file.name).write_text(text)
    sys.path.insert(0, str(copies))
    return importlib.import_module("src.pipeline"), importlib.import_module("src.model")


def measure(make: Make, sample: Sample, samples: int) -> Result:
    """Time some samples, after a short one that is not timed."""
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
    return Result(seconds, peak_bytes, frames_THWC, latents_TChw)


def in_float32(source: str, sample: Sample) -> Result:
    """The sample by our code in float32, untimed. Not in TF32, which is torch's default for convolutions on a GPU."""
    model = load_model(source, dtype="float32")
    tier = choose_tier("auto", model, sample.sampler, sample.guidance)
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        return Result([], None, *ours(model, tier)(sample))


def difference(first: Result, second: Result) -> str:
    """Text on how far frames (levels of 255, PSNR) and final latents (also relative to the second's norm) differ."""
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
    parser.add_argument("checkout", type=Path, metavar="AUTHORS", help="checkout of the authors' repository")
    parser.add_argument("--model", type=Path, required=True, help="folder in diffusers layout, 8 pixels to a cell")
    parser.add_argument("--case", type=Path, help="folder of a conformance case")
    parser.add_argument("--samples", type=int, default=3, help="timed samples of each side; default: 3")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads; default: 1")
    parser.add_argument("--dtype", choices=get_args(DType), default="auto", help="type of our weights")
    parser.add_argument("--memory", choices=("auto", *MemoryTier), default="auto", help="our memory tier")
    parser.add_argument("--reference", action="store_true", help="compare both with a sample in float32")
    options = parser.parse_args()
    diffusers_logging.set_verbosity_error()  # their code warns at each of many casts
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cpu":
        torch.set_num_threads(options.threads)

    def measure_ours() -> tuple[Result, Sample, str]:
        model = load_model(str(options.model), dtype=options.dtype)
        sample = sample_of(model, options.case)
        tier = choose_tier(options.memory, model, sample.sampler, sample.guidance)
        label = f"ours, {str(model.dtype).removeprefix('torch.')}, {tier.value} tier"
        return measure(ours(model, tier), sample, options.samples), sample, label

    own, sample, label = measure_ours()
    free_memory()
    with tempfile.TemporaryDirectory() as copies:
        original = measure(theirs(options.checkout, options.model, device, Path(copies)), sample, options.samples)
    free_memory()
    print(
        f"{options.model} on {torch.cuda.get_device_name() if device == 'cuda' else 'cpu'}, {options.samples} samples"
    )
    print_row(["side", "s per sample", "least", "most", "peak GiB"])
    print_row(["---"] * 5)
    for name, result in (("theirs", original), (label, own)):
        peak = "" if result.peak_bytes is None else f"{result.peak_bytes / 2**30:.1f}"
        print_row([name, f"{result.median_s:.2f}", f"{min(result.seconds):.2f}", f"{max(result.seconds):.2f}", peak])
    print(f"ours takes {own.median_s / original.median_s:.2f} of their time", end="")
    if own.peak_bytes and original.peak_bytes:
        print(f" and {own.peak_bytes / original.peak_bytes:.2f} of their memory", end="")
    print(f"\nours and theirs: {difference(own, original)}")
    if options.reference:
        exact = in_float32(str(options.model), sample)
        print(f"ours and float32: {difference(own, exact)}\ntheirs and float32: {difference(original, exact)}")


if __name__ == "__main__":
    main()
