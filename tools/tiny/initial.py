"""What the embedded checkpoint's parts do before training: pass colours on.

A normalisation with few channels a group takes an even area's colour away, and to learn a way around that is most of
the training of a network this small. So it starts with one: each value travels in a group of its own with two
constants beside it, once with either sign, for silu(x) - silu(-x) = x. All of it is free to change.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

GROUP = 3
"""Channels of a group: 96 in 32."""
REFERENCE = 1.0
"""The constants beside a value; it should be no greater than they are."""
LINEAR_GAIN = 1.25
"""Undoes what the normalisation makes of a small value: (2 / 3) / sqrt(2 / 3), and a little of its bend."""
BRANCH_GAIN = 0.2
"""The last layer of every residual branch starts this much smaller."""
OTHER_GAIN = 0.2
"""What else is handed out starts this much smaller."""
LATENT_GAIN = 2.5
"""Latents per unit of colour: about unit variance."""
LOG_VARIANCE = -6.0
"""Of the latents' posterior."""


@torch.no_grad()
def start_vae(vae: Any, seed: int = 0) -> None:
    """A cell's latents are its mean colour in a random basis; decoding interpolates between cells."""
    generator = torch.Generator().manual_seed(seed)
    basis_43, _ = torch.linalg.qr(torch.randn(vae.config.latent_channels, 3, generator=generator))
    quiet_branches(vae)
    encoder, decoder = vae.encoder, vae.decoder
    carry(encoder.conv_in, torch.eye(3))
    for block in encoder.down_blocks[:-1]:
        carry_on(block.downsamplers[0].conv, values=3, kernel_33=_mean_of_four())
    hand_out(encoder.conv_out, basis_43 * LATENT_GAIN, outputs=len(basis_43))
    encoder.conv_out.weight[len(basis_43) :] = 0
    encoder.conv_out.bias[len(basis_43) :] = LOG_VARIANCE
    nn.init.dirac_(vae.quant_conv.weight)
    nn.init.zeros_(vae.quant_conv.bias)
    carry(decoder.conv_in, basis_43.T / LATENT_GAIN)
    for block in decoder.up_blocks[:-1]:
        carry_on(block.upsamplers[0].conv, values=3, kernel_33=_bilinear())
    hand_out(decoder.conv_out, torch.eye(3), outputs=3)
    nn.init.dirac_(decoder.time_conv_out.weight)
    nn.init.zeros_(decoder.time_conv_out.bias)


@torch.no_grad()
def start_unet(unet: Any) -> None:
    """Its v-prediction is minus the first frame's latents, in every frame and at every noise level."""
    latent_channels = unet.config.out_channels
    quiet_branches(unet)
    first_frame = torch.cat([torch.zeros(latent_channels, latent_channels), torch.eye(latent_channels)], dim=1)
    carry(unet.conv_in, first_frame)
    shortcut = unet.up_blocks[-1].resnets[-1].spatial_res_block.conv_shortcut
    carry_on(shortcut, latent_channels, torch.ones(1, 1), skipped=unet.config.block_out_channels[0])
    hand_out(unet.conv_out, -torch.eye(latent_channels), outputs=latent_channels)


def quiet_branches(model: nn.Module) -> None:
    """Let what is added along the way start small beside what it is added to."""
    for name, module in model.named_modules():
        if name.endswith((".conv2", ".proj_out", ".to_out.0")):
            module.weight.mul_(BRANCH_GAIN)


def carry(conv: Any, matrix_VI: Tensor) -> None:
    """Put V values, made of the inputs by `matrix`, into the first 2 V groups of the outputs."""
    _reserve(conv, len(matrix_VI))
    for at, sign in enumerate((1, -1)):
        for value, row_I in enumerate(matrix_VI):
            conv.weight[GROUP * (2 * value + at), :, 1, 1] = sign * row_I


def carry_on(conv: Any, values: int, kernel_33: Tensor, skipped: int = 0) -> None:
    """Hand the first 2 V groups on, each through `kernel`. skipped: inputs that lie before them."""
    _reserve(conv, values)
    for group in range(2 * values):
        conv.weight[GROUP * group, skipped + GROUP * group] = kernel_33


def hand_out(conv: Any, matrix_OV: Tensor, outputs: int) -> None:
    """Make `outputs` channels of what the first groups hold, and a little of everything else."""
    conv.weight[:outputs].mul_(OTHER_GAIN)
    conv.bias[:outputs] = 0
    for value in range(matrix_OV.shape[1]):
        for at, sign in enumerate((1, -1)):
            channel = GROUP * (2 * value + at)
            conv.weight[:outputs, channel : channel + GROUP] = 0
            conv.weight[:outputs, channel, 1, 1] = sign * LINEAR_GAIN * matrix_OV[:, value]


def _reserve(conv: Any, values: int) -> None:
    """Each group: a value, still zero, and its constants."""
    channels = slice(0, GROUP * 2 * values)
    conv.weight[channels] = 0
    conv.bias[channels] = torch.tensor([0.0, REFERENCE, -REFERENCE]).repeat(2 * values)


def _mean_of_four() -> Tensor:
    """Of the downsampler's taps, those that never touch the padding."""
    kernel = torch.zeros(3, 3)
    kernel[:2, :2] = 0.25
    return kernel


def _bilinear() -> Tensor:
    """After doubling by repetition, this makes it linear interpolation."""
    side = torch.tensor([0.25, 0.5, 0.25])
    return torch.outer(side, side)
