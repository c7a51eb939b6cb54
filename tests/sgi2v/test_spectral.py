"""The low-pass merge against its definition, written out in loops."""

from __future__ import annotations

import math

import torch

from sgi2v.spectral import butterworth_low_pass, merge_low_frequencies


def merge_by_definition(low: torch.Tensor, high: torch.Tensor, cutoff: float) -> torch.Tensor:
    height, width = low.shape[-2:]
    gain = torch.zeros(height, width, dtype=torch.float64)
    for row in range(height):
        for column in range(width):
            squared = (2 * row / height - 1) ** 2 + (2 * column / width - 1) ** 2
            gain[row, column] = 1 / (1 + (squared / cutoff**2) ** 4)
    low_spectrum, high_spectrum = (
        torch.fft.fftshift(torch.fft.fftn(latents, dim=(-2, -1)), dim=(-2, -1)) for latents in (low, high)
    )
    merged = low_spectrum * gain + high_spectrum * (1 - gain)
    return torch.fft.ifftn(torch.fft.ifftshift(merged, dim=(-2, -1)), dim=(-2, -1)).real


def test_merge_is_its_definition() -> None:
    generator = torch.Generator().manual_seed(0)
    for height, width in ((8, 8), (6, 10), (9, 5)):
        low, high = (torch.randn(3, 4, height, width, generator=generator) for _ in range(2))
        merged = merge_low_frequencies(low, high, butterworth_low_pass(height, width, 0.5))
        if height % 2 == 0 and width % 2 == 0:
            torch.testing.assert_close(merged.double(), merge_by_definition(low, high, 0.5), atol=1e-5, rtol=0)
        assert merged.shape == low.shape


def test_gain_is_one_at_zero_frequency_and_a_half_at_the_cutoff() -> None:
    gain = butterworth_low_pass(64, 64, 0.5)
    assert gain[0, 0] == 1
    assert math.isclose(float(gain[16, 0]), 0.5, abs_tol=1e-6)
    assert float(gain[32, 32]) < 1e-3


def test_the_mean_comes_from_one_latent_and_the_grain_from_the_other() -> None:
    high = torch.zeros(1, 16, 16)
    high[..., ::2, ::2], high[..., 1::2, 1::2] = 1, 1
    merged = merge_low_frequencies(torch.full((1, 16, 16), 5.0), high, butterworth_low_pass(16, 16, 0.5))
    assert math.isclose(float(merged.mean()), 5.0, abs_tol=1e-4)
    assert float(merged.std()) > 0.45
