"""The U-Net's recipe and loss: denoise videos of the world, given their first frame (as SVD; Karras et al. 2022).

Axes: B videos, T frames, C latent channels, h w latent cells, D embedding.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from tools.tiny.architecture import NUM_FRAMES, new_unet
from tools.tiny.latents import LINE_FRAMES, Lines
from tools.tiny.training import Recipe, has_bfloat16

UNET_RECIPE = Recipe(samples=120_000, batch=16, learning_rate=3e-3, warm_up=60, optimizer="muon")
FURTHER_SAMPLES = 1_200_000
FURTHER_GPU_BATCH = 192
"""A GPU takes about the same time for an update with fewer samples. With 256, attention over frames would have 65 536
sequences, one more than CUDA's grids."""
LOG_SIGMA_MEAN, LOG_SIGMA_STD = 1.3, 1.5
"""Natural logarithm of the noise levels. Half of the samples fall between sigma 3 and 40, where motion is decided."""
LOG_SIGMA_RANGE = (-4.0, 4.5)
FAST_SHARE = 0.6
"""Share of videos that take every second frame of their line."""
STILL_SHARE = 0.03
"""Share of videos that repeat one frame."""
UNCONDITIONAL_SHARE = 0.05
"""Share of videos without the first frame as a condition, for classifier-free guidance."""
ANY_MOTION_BUCKET = 127
"""The pipelines' default bucket stands for any amount of motion. Every other bucket states the amount."""
ANY_MOTION_SHARE = 0.5
"""Share of videos trained with that bucket."""
BUCKETS_PER_PX = 8
"""motion_bucket_id per pixel of displacement from the first frame to the last."""
FPS = 7
NOISE_AUGMENTATION = 0.02


def further_recipe(on_gpu: bool) -> Recipe:
    """The recipe of a trained U-Net's further training."""
    batch = FURTHER_GPU_BATCH if on_gpu else UNET_RECIPE.batch
    return replace(UNET_RECIPE, samples=FURTHER_SAMPLES, batch=batch, seed=UNET_RECIPE.seed + 1)


def unet_task(lines: Path, checkpoint: Path) -> partial[UnetTask]:
    """What makes the task in each process. lines: folder of encoded lines. checkpoint: the one that encoded them."""
    config = json.loads((checkpoint / "vae" / "config.json").read_text())
    return partial(UnetTask, lines, config["scaling_factor"])


class UnetTask:
    """Squared error of the v-prediction.

    mixed_precision: compute in bfloat16, as for the shipped weights; None: where the device has its arithmetic.
    """

    def __init__(
        self, folder: Path, scaling_factor: float, device: torch.device, mixed_precision: bool | None = None
    ) -> None:
        from diffusers.models.attention import BasicTransformerBlock, TemporalBasicTransformerBlock
        from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0

        self.module: Any = new_unet().to(device)
        if device.type == "cpu":
            # over eight frames, two products and a softmax are faster than fused attention on a CPU
            names = self.module.attn_processors
            self.module.set_attn_processor(
                {name: AttnProcessor() if "temporal" in name else AttnProcessor2_0() for name in names}
            )
        if device.type == "cpu" and shutil.which("g++"):  # torch needs it; on a GPU compiling outlasts what it gains
            for block in self.module.modules():
                if isinstance(block, BasicTransformerBlock | TemporalBasicTransformerBlock):
                    block.compile(dynamic=False)
        self.lines = Lines(folder)
        self.scaling_factor = scaling_factor
        self.device = device
        self.mixed_precision = has_bfloat16(device) if mixed_precision is None else mixed_precision

    def loss(self, batch: int, seed: tuple[int, ...]) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch of videos at random noise levels."""
        rng = np.random.default_rng(seed)
        videos = [_video(rng, self.lines) for _ in range(batch)]
        latents_BTChw, embeddings_B1D, buckets_B = (np.stack(part) for part in zip(*videos, strict=True))
        frame_BChw = latents_BTChw[:, 0] + NOISE_AUGMENTATION * rng.standard_normal(latents_BTChw[:, 0].shape)
        is_conditional_B = rng.random(batch) >= UNCONDITIONAL_SHARE
        log_sigma_B = rng.normal(LOG_SIGMA_MEAN, LOG_SIGMA_STD, batch).clip(*LOG_SIGMA_RANGE)
        noise_BTChw = self._noise(rng, latents_BTChw.shape)

        def tensor(values: Any) -> Tensor:
            return torch.from_numpy(np.asarray(values, np.float32)).to(self.device)

        clean = tensor(latents_BTChw) * self.scaling_factor
        keep = tensor(is_conditional_B)
        frame = tensor(frame_BChw) * keep[:, None, None, None]
        time_ids = torch.stack(
            [torch.full_like(keep, FPS - 1), tensor(buckets_B), torch.full_like(keep, NOISE_AUGMENTATION)], dim=1
        )
        sigma = tensor(log_sigma_B).exp()[:, None, None, None, None]
        noisy = clean + sigma * noise_BTChw
        sample = torch.cat([noisy / (sigma**2 + 1).sqrt(), frame[:, None].expand_as(clean)], dim=2)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed_precision):
            velocity = self.module(
                sample,
                0.25 * tensor(log_sigma_B),
                tensor(embeddings_B1D) * keep[:, None, None],
                time_ids,
                return_dict=False,
            )[0]
        target = (noisy / (sigma**2 + 1) - clean) * (sigma**2 + 1).sqrt() / sigma
        error_B = ((velocity.float() - target) ** 2).mean(dim=(1, 2, 3, 4))
        return error_B.mean(), _loss_by_noise(error_B.detach().cpu().numpy(), log_sigma_B)

    def _noise(self, rng: np.random.Generator, shape: tuple[int, ...]) -> Tensor:
        """Unit Gaussian noise. A GPU draws its own: a CPU takes longer for it than the GPU for the whole update."""
        if self.device.type == "cpu":
            return torch.from_numpy(rng.standard_normal(shape)).float()
        generator = torch.Generator(self.device).manual_seed(int(rng.integers(2**62)))
        return torch.randn(shape, generator=generator, device=self.device)


def draw_frames(rng: np.random.Generator) -> NDArray[np.int64]:
    """Indices [T] of a video's frames in its line."""
    stride = 0 if rng.random() < STILL_SHARE else 2 if rng.random() < FAST_SHARE else 1
    start = rng.integers(LINE_FRAMES - stride * (NUM_FRAMES - 1))
    frames_T = start + stride * np.arange(NUM_FRAMES)
    return LINE_FRAMES - 1 - frames_T if rng.random() < 0.5 else frames_T


def _video(rng: np.random.Generator, lines: Lines) -> tuple[NDArray[Any], NDArray[Any], float]:
    """A random video: unscaled latents [T, C, h, w], embedding of the first frame [1, D], motion bucket."""
    m = rng.integers(len(lines.latents))
    frames = draw_frames(rng)
    displacement = lines.displacements[m] * abs(frames[-1] - frames[0]) / (LINE_FRAMES - 1)
    bucket = min(255, round(float(displacement) * BUCKETS_PER_PX))
    if rng.random() < ANY_MOTION_SHARE or bucket == ANY_MOTION_BUCKET:
        bucket = ANY_MOTION_BUCKET
    return lines.latents[m][frames].astype(np.float32), lines.embeddings[m][frames[:1]].astype(np.float32), bucket


def _loss_by_noise(error_B: NDArray[Any], log_sigma_B: NDArray[Any]) -> dict[str, float]:
    """Mean loss in four ranges of sigma, for the log."""
    ranges = {"below 1": (0, 1), "1 to 5": (1, 5), "5 to 20": (5, 20), "above 20": (20, np.inf)}
    sigma_B = np.exp(log_sigma_B)
    within = {name: (low <= sigma_B) & (sigma_B < high) for name, (low, high) in ranges.items()}
    return {f"v {name}": float(error_B[mask].mean()) for name, mask in within.items() if mask.any()}
