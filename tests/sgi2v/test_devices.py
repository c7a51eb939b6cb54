"""No tensor of a sample stays on the CPU, and types agree, where the model is on another device.

torch's meta device takes a GPU's place: its tensors have a type and a shape, and no contents. Fake tensors refuse to
compute with tensors of two devices, as a GPU does.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode  # no public name

from sgi2v.config import DType, KernelConfig, MemoryTier
from sgi2v.guidance import guided_features, plan_loss, trajectory_loss
from sgi2v.kernels import use_kernels
from sgi2v.model import decode_latents, encode_image, load_model
from sgi2v.sampling import CONDITIONAL, denoise, draw_noise, unet_inputs
from sgi2v.spectral import merge_low_frequencies
from sgi2v.trial import moving_box

ELSEWHERE = torch.device("meta")
PACKED = KernelConfig(temporal_attention="packed", temporal_convolution="matmul", cfg_passes=2)
CHANNELS_LAST = KernelConfig(spatial_attention="math", temporal_convolution="conv2d", channels_last=True)


class FixedSchedule:
    """A schedule at one noise level. diffusers' own reads the timesteps, which have no contents here."""

    def __init__(self) -> None:
        self.timesteps = torch.zeros(1, device=ELSEWHERE)

    def scale_input(self, latents: Tensor, _step: int) -> Tensor:
        return latents / 700

    def step(self, model_output: Tensor, _step: int, latents: Tensor) -> Tensor:
        return latents - model_output


@pytest.mark.whole
@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "vae_dtype", "kernels"),
    [
        ("float16", torch.bfloat16, KernelConfig()),
        ("float16", torch.float32, PACKED),
        ("bfloat16", torch.bfloat16, CHANNELS_LAST),
    ],
)
def test_every_part_of_a_sample_runs_on_another_device(
    dtype: DType, vae_dtype: torch.dtype, kernels: KernelConfig
) -> None:
    model = use_kernels(load_model("embedded", device=ELSEWHERE, dtype=dtype), kernels)
    model.vae.float()  # as a VAE that asks for it: it encodes in float32
    model.vae.decoder.to(vae_dtype)
    sampler, guidance = model.checkpoint.sampler(steps=1), model.checkpoint.guidance(iterations=1)
    image_HWC, tracks = moving_box(sampler)
    tracks = replace(tracks, masks_NHW=np.full((1, sampler.height, sampler.width), 255, np.uint8))
    noise = draw_noise(0, sampler, model.cell_px)
    plan = plan_loss(tracks, *noise.initial_TChw.shape[-2:], model.cell_px, guidance, ELSEWHERE)
    schedule: Any = FixedSchedule()
    latents_TChw = noise.initial_TChw.to(ELSEWHERE)
    with FakeTensorMode(allow_non_fake_inputs=True):
        conditioning = encode_image(model, image_HWC, noise.augmentation_1CHW, sampler)
        leaf_TChw = latents_TChw.clone().requires_grad_(True)
        inputs = unet_inputs(schedule, 0, leaf_TChw, conditioning, CONDITIONAL, model.dtype)
        loss = trajectory_loss(guided_features(model.unet, inputs, guidance, MemoryTier.MEDIUM), plan)
        (gradient_TChw,) = torch.autograd.grad(loss, leaf_TChw)
        assert (gradient_TChw.device, gradient_TChw.dtype) == (ELSEWHERE, torch.float32)
        assert plan.low_pass_hw is not None
        merged_TChw = merge_low_frequencies(leaf_TChw.detach() - gradient_TChw, latents_TChw, plan.low_pass_hw)
        denoised_TChw = denoise(model, schedule, conditioning, merged_TChw, sampler)
        assert (denoised_TChw.device, denoised_TChw.dtype) == (ELSEWHERE, torch.float32)
        frames_THWC = decode_latents(model, denoised_TChw, 4)
    assert (frames_THWC.device, frames_THWC.dtype) == (ELSEWHERE, torch.float32)
    assert frames_THWC.shape == (sampler.num_frames, sampler.height, sampler.width, 3)
