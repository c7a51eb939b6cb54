"""Choose the kernels of a loaded model: how its sums are computed, and not what they are."""

from __future__ import annotations

import dataclasses
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from sgi2v.attention import TORCH, SelfAttention, attend, self_attentions
from sgi2v.config import KernelConfig
from sgi2v.convolution import ConvolutionForm, replace_temporal_convolutions
from sgi2v.errors import ConfigError

if TYPE_CHECKING:
    from sgi2v.model import VideoModel

SPATIAL_ORDER = ("flash", "efficient", "cudnn", "math")
"""Kernels that `auto` tries for attention over places. Flash wants 16 bits and a GPU from 2020 on; efficient runs
everywhere; cuDNN has failed on some shapes in some versions; math needs memory for all scores."""
TEMPORAL_ORDER = ("efficient", "flash", "cudnn", "math")
"""Kernels that `auto` tries for attention over frames. Efficient pads the few frames to 64, flash to 128."""
MEMORY_FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}
"""Dimensions of a convolution's weights -> their channels-last format."""


def use_kernels(model: VideoModel, config: KernelConfig) -> VideoModel:
    """The model with its kernels chosen by the settings. Its modules are changed in place, and may be changed again.

    Raises ConfigError for a kernel of attention that does not run on the model's device with its weights.
    """
    spatial = _choose(model, config, "spatial_attention", SPATIAL_ORDER)
    frame0 = _choose(model, config, "frame0_attention", SPATIAL_ORDER)
    temporal = _choose(model, config, "temporal_attention", TEMPORAL_ORDER)
    for attention in self_attentions(model.unet, temporal=False):
        attention.set_processor(SelfAttention(spatial, frame0))
    for attention in self_attentions(model.unet, temporal=True):
        attention.set_processor(SelfAttention(temporal))
    form = config.temporal_convolution
    if form == "auto":
        form = "conv2d" if model.device.type == "cpu" else "conv3d"
    for part in (model.unet, model.vae):
        replace_temporal_convolutions(part, ConvolutionForm(form))
        _set_memory_format(part, config.channels_last)
    words = [f"spatial {spatial}", f"frame0 {frame0}", f"temporal {temporal}", form]
    if config.channels_last:
        words.append("channels-last")
    if config.cfg_passes == 2:
        words.append("cfg in 2 passes")
    return dataclasses.replace(model, kernels=", ".join(words), cfg_passes=config.cfg_passes)


def _choose(model: VideoModel, config: KernelConfig, setting: str, order: tuple[str, ...]) -> str:
    """The kernel of attention for a setting of KernelConfig."""
    kernel: str = getattr(config, setting)
    if kernel == "auto":
        if model.device.type != "cuda":
            return TORCH
        return first_that_runs(order, _head_widths(model.unet), model.device, model.dtype) or TORCH
    if first_that_runs((kernel,), _head_widths(model.unet), model.device, model.dtype) is None:
        dtype = str(model.dtype).removeprefix("torch.")
        raise ConfigError(
            f"model.kernels.{setting} = {kernel} does not run on {model.device} in {dtype}: choose another, or auto"
        )
    return kernel


def first_that_runs(order: tuple[str, ...], widths: set[int], device: torch.device, dtype: torch.dtype) -> str | None:
    """The first kernel of attention that computes values and gradients for heads of each of these widths."""
    for kernel in order:
        if all(_runs(kernel, width, device, dtype) for width in widths):
            return kernel
    return None


def _head_widths(unet: Any) -> set[int]:
    """Channels of an attention head in the U-Net's blocks."""
    attentions = [*self_attentions(unet, temporal=False), *self_attentions(unet, temporal=True)]
    return {attention.inner_dim // attention.heads for attention in attentions}


def _runs(kernel: str, width: int, device: torch.device, dtype: torch.dtype) -> bool:
    query = torch.zeros(1, 1, 16, width, device=device, dtype=dtype, requires_grad=True)
    try:
        # torch warns why a kernel cannot run
        with warnings.catch_warnings(action="ignore"), torch.enable_grad():
            torch.autograd.grad(attend(query, query, query, kernel).sum(), query)
    except RuntimeError:
        return False
    return True


def _set_memory_format(module: nn.Module, channels_last: bool) -> None:
    """Hold the weights of convolutions channels-last, or as torch makes them."""
    for weight in module.parameters():
        if weight.ndim in MEMORY_FORMATS:
            memory_format = MEMORY_FORMATS[weight.ndim] if channels_last else torch.contiguous_format
            weight.data = weight.data.contiguous(memory_format=memory_format)
