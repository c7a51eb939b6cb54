"""The autoencoder's recipe and loss: reconstruct pictures of the world.

Axes: M pictures, C colours or latent channels, H W pixels or latent cells, T times.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from tools.tiny.architecture import new_vae
from tools.tiny.training import Recipe
from tools.tiny.world import SpriteSet, draw_scene

VAE_RECIPE = Recipe(samples=24_000, batch=16, learning_rate=3e-4, ema_half_life=0.02)
WORLD_SEED = 100
"""Seed of the autoencoder's scenes. The U-Net's scenes and the held-out ones have other seeds."""
KL_WEIGHT = 1e-5
"""Small: it only keeps the latents near zero mean and unit variance."""
CLIP_SHARE = 0.25
"""Share of batches made of short clips. The others are single pictures, which is what the encoder gets in use."""
CLIP_FRAMES = 4


class VaeTask:
    """Squared and absolute error of the pictures, plus the KL divergence of the latents from a unit Gaussian.

    mixed_precision: compute in bfloat16, as the training does. Slow on a CPU that has no bfloat16 arithmetic.
    """

    def __init__(self, device: torch.device, mixed_precision: bool = True) -> None:
        self.module: Any = new_vae().to(device)
        self.device = device
        self.mixed_precision = mixed_precision

    def loss(self, batch: int, seed: tuple[int, ...]) -> tuple[Tensor, dict[str, float]]:
        """The loss of a batch of single pictures, or of short clips, which train the decoder's temporal layers."""
        rng = np.random.default_rng(seed)
        frames = CLIP_FRAMES if rng.random() < CLIP_SHARE else 1
        pixels_MCHW = _pictures(rng, batch // frames, frames).to(self.device)
        noise = torch.Generator().manual_seed(int(rng.integers(2**62)))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.mixed_precision):
            posterior = self.module.encode(pixels_MCHW).latent_dist
            drawn = torch.randn(posterior.mean.shape, generator=noise).to(self.device)
            latents_MCHW = posterior.mean + posterior.std * drawn
            decoded_MCHW = self.module.decode(latents_MCHW, num_frames=frames).sample
        error_MCHW = decoded_MCHW.float() - pixels_MCHW
        squared = (error_MCHW**2).mean()
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = squared + 0.1 * F.smooth_l1_loss(error_MCHW, torch.zeros_like(error_MCHW), beta=0.02) + KL_WEIGHT * kl
        psnr = -10 * torch.log10(squared.detach() / 4)
        return loss, {"psnr_db": float(psnr), "kl": float(kl.detach()), "std": float(posterior.mean.detach().std())}


@torch.no_grad()
def latent_std(vae: Any, count: int = 64) -> float:
    """Standard deviation of the latents of `count` pictures, over all axes."""
    latents = vae.encode(_pictures(np.random.default_rng(0), count, 1)).latent_dist.mode()
    return float(latents.std())


def _pictures(rng: np.random.Generator, count: int, frames: int) -> Tensor:
    """Frames of `count` random scenes, [count x frames, 3, H, W] in [-1, 1]."""
    pictures = []
    for index in rng.integers(2**31, size=count):
        scene = draw_scene(WORLD_SEED, int(index), sprite_set=SpriteSet.ANY)
        times_T = np.sort(rng.random(frames)) if frames == 1 else np.linspace(0, rng.random(), frames)
        pictures.append(scene.render(times_T))
    pixels_MHWC = np.concatenate(pictures).astype(np.float32) / 127.5 - 1
    return torch.from_numpy(pixels_MHWC).permute(0, 3, 1, 2).contiguous()
