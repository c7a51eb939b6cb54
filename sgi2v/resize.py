"""Antialiased resizing of images, as SVD does it before CLIP.

Axes: B batch, C channels, H W pixels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

_SIGMAS_PER_SIDE = 2
"""Reach of the blur, in standard deviations: diffusers' choice."""
_MIN_SIGMA = 0.001
"""Standard deviation, pixels, along a side that does not shrink: no blur."""


def resize_antialiased(images_BCHW: Tensor, height: int, width: int) -> Tensor:
    """Blur images by how much each side shrinks, then resize them bicubically: [B, C, height, width].

    Gives the same bits as the resizing inside diffusers' StableVideoDiffusionPipeline, which has no public name.
    The Gaussian has sigma = (old side / new side - 1) / 2; it sees the images mirrored at their borders.
    """
    for axis, side in ((3, width), (2, height)):
        images_BCHW = _blur(images_BCHW, axis, sigma=(images_BCHW.shape[axis] / side - 1) / 2)
    return F.interpolate(images_BCHW, size=(height, width), mode="bicubic", align_corners=True)


def _blur(images_BCHW: Tensor, axis: int, sigma: float) -> Tensor:
    """Gaussian blur along one axis (2: H, 3: W), over at least three pixels."""
    sigma = max(sigma, _MIN_SIGMA)
    reach = max(int(2 * _SIGMAS_PER_SIDE * sigma), 3) // 2
    offsets = torch.arange(-reach, reach + 1, dtype=images_BCHW.dtype)
    weights = torch.exp(-offsets.square() / (2 * torch.tensor(sigma, dtype=offsets.dtype).square()))
    weights /= weights.sum()
    channels = images_BCHW.shape[1]
    if axis == 2:
        padding, kernel = (0, 0, reach, reach), weights[:, None]
    else:
        padding, kernel = (reach, reach, 0, 0), weights[None, :]
    kernel_C1HW = kernel.to(images_BCHW.device).expand(channels, 1, -1, -1)
    return F.conv2d(F.pad(images_BCHW, padding, mode="reflect"), kernel_C1HW, groups=channels)
