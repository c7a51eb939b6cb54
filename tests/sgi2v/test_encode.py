"""The first frame's latents, which steer every step, are encoded in float32 where the VAE asks for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sgi2v.config import SamplerConfig
from sgi2v.model import Conditioning, VideoModel, decode_latents, encode_image, load_model
from sgi2v.sampling import draw_noise


@pytest.fixture(scope="module")
def upcasting(golden_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose VAE says that it overflows in 16 bits, as Stable Video Diffusion's does."""
    folder = tmp_path_factory.mktemp("upcasting") / "checkpoint"
    shutil.copytree(golden_checkpoint, folder)
    config = folder / "vae" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "force_upcast": True}))
    return folder


def conditioned(model: VideoModel, image_HWC: NDArray[np.uint8]) -> Conditioning:
    sampler = SamplerConfig(height=64, width=64, num_frames=2)
    return encode_image(model, image_HWC[:, :64], draw_noise(0, sampler, model.cell_px).augmentation_1CHW, sampler)


def test_image_latents_of_a_16_bit_model_are_those_of_float32(
    upcasting: Path, model: VideoModel, photograph: NDArray[np.uint8]
) -> None:
    half = load_model(str(upcasting), device="cpu", dtype="bfloat16")
    exact = conditioned(model, photograph).image_latents_2Chw
    assert torch.equal(conditioned(half, photograph).image_latents_2Chw, exact.to(torch.bfloat16))
    assert half.decoder_dtype is torch.bfloat16
    latents_TChw = torch.randn(2, 4, 8, 16, generator=torch.Generator().manual_seed(0))
    frames = decode_latents(half, latents_TChw, 2)
    torch.testing.assert_close(frames, decode_latents(model, latents_TChw, 2), rtol=0, atol=0.05)


def test_a_vae_that_does_not_ask_for_it_encodes_in_its_own_type(
    golden_checkpoint: Path, model: VideoModel, photograph: NDArray[np.uint8]
) -> None:
    half = load_model(str(golden_checkpoint), device="cpu", dtype="bfloat16")
    exact = conditioned(model, photograph).image_latents_2Chw
    latents = conditioned(half, photograph).image_latents_2Chw.float()
    assert 0.002 < float((latents - exact).norm() / exact.norm()) < 0.05


def test_the_encoder_of_a_float16_model_is_in_float32_and_its_decoder_is_not_in_float16(upcasting: Path) -> None:
    """float16 is for GPUs, but loads anywhere; the decoder has float32's range in bfloat16."""
    half = load_model(str(upcasting), device="meta", dtype="float16")
    assert half.vae.dtype is torch.float32
    assert half.decoder_dtype is torch.bfloat16
