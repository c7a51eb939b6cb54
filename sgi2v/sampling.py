"""Noise, schedule and the denoising loop (Euler steps of Karras et al. 2022, arXiv 2206.00364, algorithm 2).

Axes: T frames, C channels, H W pixels, h w latent cells. Latents are float32 for every type of weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sgi2v.config import SamplerConfig
from sgi2v.model import Conditioning, VideoModel

PHASES = ("encode", "guide", "denoise", "decode")
"""The phases of a generation whose time is measured, in this order."""
Guide = Callable[[int, Tensor], Tensor]
"""(step, latents) -> latents; called before each denoising step."""


@dataclass(frozen=True)
class Noise:
    """All randomness of one video: float32, unit Gaussian."""

    augmentation_1CHW: Tensor
    """Noise for the first frame, in pixels; the sampler's noise_aug_strength scales it."""
    initial_TChw: Tensor
    """Initial latents, before they are scaled to the first sigma."""


def draw_noise(seed: int, sampler: SamplerConfig, cell_px: int, latent_channels: int = 4) -> Noise:
    """Draw the noise of a seed on the CPU, so that it is the same on every device and worker and in every batch."""
    generator = torch.Generator("cpu").manual_seed(seed)
    height, width = sampler.height, sampler.width
    augmentation = torch.randn(1, 3, height, width, generator=generator)
    initial = torch.randn(sampler.num_frames, latent_channels, height // cell_px, width // cell_px, generator=generator)
    return Noise(augmentation, initial)


class Schedule:
    """The checkpoint's Euler schedule for a number of steps."""

    def __init__(self, model: VideoModel, steps: int) -> None:
        from diffusers import EulerDiscreteScheduler

        self._scheduler = EulerDiscreteScheduler.from_config(model.scheduler_config)
        self._scheduler.set_timesteps(steps, device=model.device)
        self.timesteps: Tensor = self._scheduler.timesteps
        """[steps]: timesteps that the U-Net is fed."""
        self.sigmas: Tensor = self._scheduler.sigmas
        """[steps + 1]: noise levels; the last one is zero."""
        self.init_noise_sigma = float(self._scheduler.init_noise_sigma)

    def scale_input(self, latents: Tensor, step: int) -> Tensor:
        """Latents scaled to unit variance."""
        scaled: Tensor = self._scheduler.scale_model_input(latents, self.timesteps[step])
        return scaled

    def step(self, model_output: Tensor, step: int, latents: Tensor) -> Tensor:
        """Latents at the next noise level."""
        stepped: Tensor = self._scheduler.step(model_output, self.timesteps[step], latents).prev_sample
        return stepped


def unet_inputs(
    schedule: Schedule, step: int, latents_TChw: Tensor, conditioning: Conditioning, batch: slice, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Arguments of the U-Net, differentiable in the latents.

    batch: the branches of classifier-free guidance, UNCONDITIONAL_AND_CONDITIONAL, or one of them. dtype: the weights'.
    """
    image_latents = conditioning.image_latents_2Chw[batch]
    branches, num_frames = len(image_latents), len(latents_TChw)
    scaled = schedule.scale_input(latents_TChw, step).to(dtype)
    sample = torch.cat(
        [
            scaled[None].expand(branches, -1, -1, -1, -1),
            image_latents[:, None].expand(-1, num_frames, -1, -1, -1),
        ],
        dim=2,
    )
    return {
        "sample": sample,
        "timestep": schedule.timesteps[step],
        "encoder_hidden_states": conditioning.image_embeddings_21D[batch],
        "added_time_ids": conditioning.time_ids_23[batch],
    }


UNCONDITIONAL_AND_CONDITIONAL = slice(0, 2)
UNCONDITIONAL = slice(0, 1)
CONDITIONAL = slice(1, 2)


@torch.no_grad()
def denoise(
    model: VideoModel,
    schedule: Schedule,
    conditioning: Conditioning,
    latents_TChw: Tensor,
    sampler: SamplerConfig,
    guide: Guide | None = None,
) -> Tensor:
    """Denoise latents; each step guides, predicts both branches, mixes them, and goes to the next noise level.

    latents: float32 [T, C, h, w] at the first sigma. Returns float32 [T, C, h, w].
    """
    cfg_scale = torch.linspace(sampler.min_cfg_scale, sampler.max_cfg_scale, sampler.num_frames)
    cfg_scale_T111 = cfg_scale.view(-1, 1, 1, 1).to(latents_TChw.device)
    passes = [CONDITIONAL]
    if sampler.uses_cfg:
        passes = [UNCONDITIONAL_AND_CONDITIONAL] if model.cfg_passes == 1 else [UNCONDITIONAL, CONDITIONAL]
    for step in range(sampler.steps):
        if guide is not None:
            latents_TChw = guide(step, latents_TChw)
        inputs = [unet_inputs(schedule, step, latents_TChw, conditioning, batch, model.dtype) for batch in passes]
        prediction = torch.cat([model.unet(**each, return_dict=False)[0] for each in inputs]).float()
        if sampler.uses_cfg:
            unconditional, conditional = prediction
            velocity = unconditional + cfg_scale_T111 * (conditional - unconditional)
        else:
            velocity = prediction[0]
        latents_TChw = schedule.step(velocity, step, latents_TChw)
    return latents_TChw
