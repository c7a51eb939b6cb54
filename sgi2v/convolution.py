"""Temporal convolutions in the form that is fastest on a device.

Axes: B batch, C channels, T frames, h w cells, S = h w, K frames of the kernel.
"""

from __future__ import annotations

from enum import StrEnum

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ConvolutionForm(StrEnum):
    """How a convolution over frames is computed. The sums are the same."""

    CONV3D = "conv3d"
    """As torch's three-dimensional convolution."""
    CONV2D = "conv2d"
    """As a two-dimensional convolution over frames and cells. On a CPU in float32 it is faster than CONV3D."""
    MATMUL = "matmul"
    """As one matrix product, of the input beside itself shifted by a frame. Its input takes K times the memory."""


class TemporalConvolution(nn.Module):
    """A Conv3d with a k x 1 x 1 kernel, computed in one of several forms."""

    def __init__(self, conv: nn.Conv3d, form: ConvolutionForm) -> None:
        super().__init__()
        self.padding = int(conv.padding[0])
        self.weight = nn.Parameter(conv.weight.squeeze(-1), requires_grad=conv.weight.requires_grad)
        self.bias = conv.bias
        self.form = form

    def forward(self, hidden_BCThw: Tensor) -> Tensor:
        """[B, C, T, h, w] -> [B, C', T, h, w]."""
        if self.form is ConvolutionForm.CONV3D:
            return F.conv3d(hidden_BCThw, self.weight.unsqueeze(-1), self.bias, padding=(self.padding, 0, 0))
        hidden_BCTS = hidden_BCThw.flatten(3)
        if self.form is ConvolutionForm.CONV2D:
            summed_BCTS = F.conv2d(hidden_BCTS, self.weight, self.bias, padding=(self.padding, 0))
        else:
            summed_BCTS = self._multiply(hidden_BCTS)
        return summed_BCTS.view(*summed_BCTS.shape[:3], *hidden_BCThw.shape[3:])

    def _multiply(self, hidden_BCTS: Tensor) -> Tensor:
        kernel_frames = self.weight.shape[2]
        padded_BCTS = F.pad(hidden_BCTS, (0, 0, self.padding, self.padding))
        frames = padded_BCTS.shape[2] - kernel_frames + 1
        shifted = [padded_BCTS[:, :, first : first + frames] for first in range(kernel_frames)]
        inputs_BXY = torch.cat(shifted, dim=1).flatten(2)  # X = K C, Y = T S
        weights_BCX = self.weight.squeeze(-1).transpose(1, 2).flatten(1).expand(len(hidden_BCTS), -1, -1)
        if self.bias is None:
            summed_BCY = torch.bmm(weights_BCX, inputs_BXY)
        else:
            summed_BCY = torch.baddbmm(self.bias[:, None], weights_BCX, inputs_BXY)
        return summed_BCY.view(*summed_BCY.shape[:2], frames, -1)


def is_temporal(conv: nn.Conv3d) -> bool:
    """Whether the kernel spans frames only, with zero padding and no stride, dilation or groups."""
    return (
        conv.kernel_size[1:] == (1, 1)
        and conv.padding[1:] == (0, 0)
        and isinstance(conv.padding[0], int)
        and conv.padding_mode == "zeros"
        and (conv.stride, conv.dilation, conv.groups) == ((1, 1, 1), (1, 1, 1), 1)
    )


def replace_temporal_convolutions(module: nn.Module, form: ConvolutionForm) -> None:
    """Compute every temporal convolution in the module in this form, in place."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, TemporalConvolution):
                child.form = form
            elif isinstance(child, nn.Conv3d) and is_temporal(child):
                setattr(parent, name, TemporalConvolution(child, form))
