"""Temporal convolutions in the form that torch computes fastest on a CPU.

Axes: B batch, C channels, T frames, h w cells, S = h w.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class TemporalConvolution(nn.Module):
    """A Conv3d with a k x 1 x 1 kernel, computed as a two-dimensional convolution over frames and cells.

    The sums are the same. On a CPU in float32, torch's three-dimensional convolution is the slower of the two.
    """

    def __init__(self, conv: nn.Conv3d) -> None:
        super().__init__()
        self.padding = int(conv.padding[0])
        self.weight = nn.Parameter(conv.weight.squeeze(-1), requires_grad=conv.weight.requires_grad)
        self.bias = conv.bias

    def forward(self, hidden_BCThw: Tensor) -> Tensor:
        """[B, C, T, h, w] -> [B, C', T, h, w]."""
        summed_BCTS = F.conv2d(hidden_BCThw.flatten(3), self.weight, self.bias, padding=(self.padding, 0))
        return summed_BCTS.view(*summed_BCTS.shape[:3], *hidden_BCThw.shape[3:])


def is_temporal(conv: nn.Conv3d) -> bool:
    """Whether the kernel spans frames only, with zero padding and no stride, dilation or groups."""
    return (
        conv.kernel_size[1:] == (1, 1)
        and conv.padding[1:] == (0, 0)
        and isinstance(conv.padding[0], int)
        and conv.padding_mode == "zeros"
        and (conv.stride, conv.dilation, conv.groups) == ((1, 1, 1), (1, 1, 1), 1)
    )


def replace_temporal_convolutions(module: nn.Module) -> None:
    """Replace every temporal Conv3d in the module, in place."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv3d) and is_temporal(child):
                setattr(parent, name, TemporalConvolution(child))
