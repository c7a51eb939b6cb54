"""See what guidance saw and did while one video was made (SG-I2V, figure 2). It only reads: the video stays the same.

Axes: S guided steps, I iterations, T frames, h w latent cells, C channels.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgi2v.config import Feature, GuidanceConfig, SamplerConfig
from sgi2v.generate import Generation
from sgi2v.guidance import guided_features
from sgi2v.model import VideoModel, encode_image
from sgi2v.sampling import CONDITIONAL, Schedule, draw_noise, unet_inputs
from sgi2v.video import resize_image

COMPONENTS = 3
"""Principal components that are kept: red, green and blue of a picture."""


class Inspector:
    """Keeps the latents before and after each guided step of a generation, on the CPU, and what came out."""

    def __init__(self) -> None:
        self.before: dict[int, Tensor] = {}
        """Step -> latents [T, C, h, w] before its first update."""
        self.after: dict[int, Tensor] = {}
        """Step -> latents after its low-pass merge."""
        self.generation: Generation | None = None
        """The finished generation; None before that."""

    def on_stage(self, stage: str, step: int, iteration: int, latents_TChw: Tensor) -> None:
        """An OnStage of `generate`. A generation that begins again, since memory ran out, replaces what was kept."""
        if stage == "before":
            self.before[step] = latents_TChw.detach().cpu().clone()
        elif stage == "merged":
            self.after[step] = latents_TChw.detach().cpu().clone()

    def finished(self, generation: Generation) -> None:
        self.generation = generation

    @property
    def steps(self) -> tuple[int, ...]:
        """The guided steps, as 0-based loop indices."""
        return tuple(sorted(self.after))

    def changes_SThw(self) -> Tensor:
        """How far each guided step moved each cell: root mean square over channels, in units of the latents."""
        moved = [self.after[step] - self.before[step] for step in self.steps]
        return torch.stack(moved).square().mean(dim=2).sqrt()


def attention_features(
    model: VideoModel,
    image_HWC: NDArray[np.uint8],
    sampler: SamplerConfig,
    guidance: GuidanceConfig,
    seed: int,
    step: int,
    latents_TChw: Tensor,
    feature: Feature,
) -> Tensor:
    """Features of the guided layers at one step, float32 [T, h, w, C]: a forward pass of its own, without gradients.

    image, sampler, guidance, seed: as `generate` got them. latents: before the step.
    """
    noise = draw_noise(seed, sampler, model.cell_px, model.vae.config.latent_channels)
    image_HWC = resize_image(image_HWC, sampler.height, sampler.width)
    with torch.no_grad():
        conditioning = encode_image(model, image_HWC, noise.augmentation_1CHW, sampler)
        schedule = Schedule(model, sampler.steps)
        inputs = unet_inputs(schedule, step, latents_TChw.to(model.device), conditioning, CONDITIONAL, model.dtype)
        return guided_features(model.unet, inputs, guidance.replace(feature=feature)).cpu()


def principal_components(features_ThwC: Tensor) -> tuple[Tensor, list[float]]:
    """The first components over all cells of all frames, float64 [T, h, w, 3], and each one's share of the variance.

    Their signs are fixed: the channel that counts most in a component counts positively.
    """
    cells_MC = features_ThwC.reshape(-1, features_ThwC.shape[-1]).double()
    cells_MC = cells_MC - cells_MC.mean(dim=0)
    variances_C, axes_CC = torch.linalg.eigh(cells_MC.T @ cells_MC)
    axes_CK = axes_CC[:, -COMPONENTS:].flip(1)
    largest = axes_CK.gather(0, axes_CK.abs().argmax(dim=0, keepdim=True))
    axes_CK = axes_CK * largest.sign()
    total = float(variances_C.clamp(min=0).sum()) or 1.0
    shares = [float(value) / total for value in variances_C[-COMPONENTS:].flip(0)]
    return (cells_MC @ axes_CK).reshape(*features_ThwC.shape[:3], -1), shares
