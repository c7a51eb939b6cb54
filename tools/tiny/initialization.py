"""Weights that the embedded checkpoint's training starts from: networks that pass colours through unchanged.

A group normalisation with few channels per group removes the colour of an even area. A network this small would spend
most of its training on a way around that, so it starts with one. Each value has two groups of its own, one for each
sign, because silu(x) - silu(-x) = x. A group is the value and two constants beside it. Training may change all of it.

Axes: V values, I input channels, O output channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

GROUP_CHANNELS = 3
"""Channels of a normalisation group: 96 channels in 32 groups."""
REFERENCE = 1.0
"""Size of the two constants beside a value. The value should not be larger."""
LINEAR_GAIN = 1.25
"""Undoes the normalisation of a small value: (2 / 3) / sqrt(2 / 3), and a little of its curvature."""
BRANCH_GAIN = 0.2
"""Factor on the initial weights of the last layer of every residual branch."""
OTHER_GAIN = 0.2
"""Factor on the initial weights of an output layer for the channels that carry no value."""
LATENT_GAIN = 2.5
"""Latents per unit of colour. It gives the latents about unit variance."""
LOG_VARIANCE = -6.0
"""Initial log variance of the latents' posterior."""


@torch.no_grad()
def initialize_vae(vae: Any, seed: int = 0) -> None:
    """A cell's latents become its mean colour in a random basis. Decoding interpolates between cells."""
    generator = torch.Generator().manual_seed(seed)
    basis_43, _ = torch.linalg.qr(torch.randn(vae.config.latent_channels, 3, generator=generator))
    shrink_residual_branches(vae)
    encoder, decoder = vae.encoder, vae.decoder
    write_values(encoder.conv_in, torch.eye(3))
    for block in encoder.down_blocks[:-1]:
        pass_values(block.downsamplers[0].conv, values=3, kernel_33=_mean_of_four())
    read_values(encoder.conv_out, basis_43 * LATENT_GAIN, outputs=len(basis_43))
    encoder.conv_out.weight[len(basis_43) :] = 0
    encoder.conv_out.bias[len(basis_43) :] = LOG_VARIANCE
    nn.init.dirac_(vae.quant_conv.weight)
    nn.init.zeros_(vae.quant_conv.bias)
    write_values(decoder.conv_in, basis_43.T / LATENT_GAIN)
    for block in decoder.up_blocks[:-1]:
        pass_values(block.upsamplers[0].conv, values=3, kernel_33=_bilinear())
    read_values(decoder.conv_out, torch.eye(3), outputs=3)
    nn.init.dirac_(decoder.time_conv_out.weight)
    nn.init.zeros_(decoder.time_conv_out.bias)


@torch.no_grad()
def initialize_unet(unet: Any) -> None:
    """The v-prediction becomes minus the first frame's latents, in every frame and at every noise level."""
    latent_channels = unet.config.out_channels
    shrink_residual_branches(unet)
    first_frame = torch.cat([torch.zeros(latent_channels, latent_channels), torch.eye(latent_channels)], dim=1)
    write_values(unet.conv_in, first_frame)
    shortcut = unet.up_blocks[-1].resnets[-1].spatial_res_block.conv_shortcut
    pass_values(shortcut, latent_channels, torch.ones(1, 1), skipped=unet.config.block_out_channels[0])
    read_values(unet.conv_out, -torch.eye(latent_channels), outputs=latent_channels)


def shrink_residual_branches(model: nn.Module) -> None:
    """Make what residual branches add small beside what they add it to."""
    for name, module in model.named_modules():
        if name.endswith((".conv2", ".proj_out", ".to_out.0")):
            module.weight.mul_(BRANCH_GAIN)


def write_values(conv: Any, matrix_VI: Tensor) -> None:
    """Let a convolution compute V values from its inputs and write them to the first 2 V groups of its outputs."""
    _reserve_groups(conv, len(matrix_VI))
    for half, sign in enumerate((1, -1)):
        for value, row_I in enumerate(matrix_VI):
            conv.weight[GROUP_CHANNELS * (2 * value + half), :, 1, 1] = sign * row_I


def pass_values(conv: Any, values: int, kernel_33: Tensor, skipped: int = 0) -> None:
    """Let a convolution pass the first 2 V groups on, each through the kernel. skipped: input channels before them."""
    _reserve_groups(conv, values)
    for group in range(2 * values):
        conv.weight[GROUP_CHANNELS * group, skipped + GROUP_CHANNELS * group] = kernel_33


def read_values(conv: Any, matrix_OV: Tensor, outputs: int) -> None:
    """Let a convolution compute `outputs` channels from the values, and a little from all other channels."""
    conv.weight[:outputs].mul_(OTHER_GAIN)
    conv.bias[:outputs] = 0
    for value in range(matrix_OV.shape[1]):
        for half, sign in enumerate((1, -1)):
            channel = GROUP_CHANNELS * (2 * value + half)
            conv.weight[:outputs, channel : channel + GROUP_CHANNELS] = 0
            conv.weight[:outputs, channel, 1, 1] = sign * LINEAR_GAIN * matrix_OV[:, value]


def _reserve_groups(conv: Any, values: int) -> None:
    """Set the first 2 V groups of outputs to a value, still zero, and its two constants."""
    channels = slice(0, GROUP_CHANNELS * 2 * values)
    conv.weight[channels] = 0
    conv.bias[channels] = torch.tensor([0.0, REFERENCE, -REFERENCE]).repeat(2 * values)


def _mean_of_four() -> Tensor:
    """Mean of the four taps of the downsampler that never touch the padding."""
    kernel = torch.zeros(3, 3)
    kernel[:2, :2] = 0.25
    return kernel


def _bilinear() -> Tensor:
    """Kernel that turns an image enlarged by repeating pixels into a linearly interpolated one."""
    side = torch.tensor([0.25, 0.5, 0.25])
    return torch.outer(side, side)
