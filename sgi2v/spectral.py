"""Merge the low frequencies of one latent with the high ones of another (SG-I2V, section 4.3).

The low-pass is a Butterworth filter of order 4. Axes: h w latent cells.
"""

from __future__ import annotations

import torch
from torch import Tensor

ORDER = 4


def butterworth_low_pass(height: int, width: int, cutoff: float) -> Tensor:
    """[h, w] gains 1 / (1 + ((u^2 + v^2) / cutoff^2)^4) at frequencies u, v in [-1, 1), with zero frequency first.

    A cut-off of 0 passes nothing.
    """
    v_h = torch.arange(height, dtype=torch.float64) * 2 / height - 1
    u_w = torch.arange(width, dtype=torch.float64) * 2 / width - 1
    radius_squared_hw = v_h[:, None] ** 2 + u_w[None, :] ** 2
    gain_hw = 1 / (1 + (radius_squared_hw / cutoff**2) ** ORDER) if cutoff else torch.zeros_like(radius_squared_hw)
    low_pass_hw: Tensor = torch.fft.ifftshift(gain_hw).float()
    return low_pass_hw


def merge_low_frequencies(low_from: Tensor, high_from: Tensor, low_pass_hw: Tensor) -> Tensor:
    """Merge the low spatial frequencies of `low_from` [..., h, w] with the high ones of `high_from`.

    The transform is linear, so only the difference is filtered: high + F^-1(gain F(low - high)).
    """
    difference = torch.fft.fft2(low_from - high_from)
    merged: Tensor = high_from + torch.fft.ifft2(difference * low_pass_hw).real
    return merged
