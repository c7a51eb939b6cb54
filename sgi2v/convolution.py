"""Convolutions over time alone, as torch computes them fastest on a CPU."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class TemporalConvolution(nn.Module):
    """A Conv3d that sees one cell through time, as a two-dimensional one over frames and cells: the same sums.

    In 32 bits on a CPU torch's three-dimensional convolution is slow, and its two-dimensional one is not.
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
    """Whether it sees one cell through time, and every frame of it."""
    return (
        conv.kernel_size[1:] == (1, 1)
        and conv.padding[1:] == (0, 0)
        and isinstance(conv.padding[0], int)
        and conv.padding_mode == "zeros"
        and (conv.stride, conv.dilation, conv.groups) == ((1, 1, 1), (1, 1, 1), 1)
    )


def replace_temporal_convolutions(module: nn.Module) -> None:
    """Every temporal Conv3d inside, in place."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv3d) and is_temporal(child):
                setattr(parent, name, TemporalConvolution(child))
