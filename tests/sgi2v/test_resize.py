"""The antialiased resize against the one inside diffusers' SVD pipeline."""

from __future__ import annotations

import pytest
import torch
from diffusers.pipelines.stable_video_diffusion.pipeline_stable_video_diffusion import _resize_with_antialiasing

from sgi2v.resize import resize_antialiased


@pytest.mark.parametrize(
    ("old_size", "new_size"),
    [
        ((576, 1024), (224, 224)),
        ((64, 64), (224, 224)),
        ((64, 128), (224, 224)),
        ((320, 200), (224, 224)),
        ((512, 512), (64, 96)),
        ((50, 70), (50, 70)),
    ],
    ids=["SVD's frames", "up", "up, not square", "down and up", "far down", "the same size"],
)
def test_gives_the_bits_of_diffusers(old_size: tuple[int, int], new_size: tuple[int, int]) -> None:
    images_BCHW = torch.rand(2, 3, *old_size, generator=torch.Generator().manual_seed(0)) * 2 - 1
    expected = _resize_with_antialiasing(images_BCHW, new_size)
    assert torch.equal(resize_antialiased(images_BCHW, *new_size), expected)


def test_a_fine_pattern_becomes_its_mean() -> None:
    """Without the blur, a chequered image would keep black and white pixels."""
    chequered_1CHW = torch.arange(256).add(torch.arange(256)[:, None]).remainder(2).float().expand(1, 3, -1, -1)
    resized = resize_antialiased(chequered_1CHW, 64, 64)
    assert resized.shape == (1, 3, 64, 64)
    torch.testing.assert_close(resized, torch.full_like(resized, 0.5), rtol=0, atol=0.02)
