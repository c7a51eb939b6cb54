"""The U-Net's blocks compiled: the same sums in fewer kernels, after minutes at a machine's first start.

torch keeps what it has compiled in a folder of its own (`TORCHINDUCTOR_CACHE_DIR` names it), so that later starts on
the machine take less.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any

import torch
import torch.compiler.config
from torch import nn

from sgi2v.errors import ModelError

BLOCKS_OF_A_KIND = 64
"""What torch compiles of one kind before it leaves the rest as they are: SVD has 22, with and without gradients."""


def blocks_of(unet: Any) -> Iterator[nn.Module]:
    """Every residual and every transformer block."""
    from diffusers.models.resnet import SpatioTemporalResBlock
    from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel

    for module in unet.modules():
        if isinstance(module, SpatioTemporalResBlock | TransformerSpatioTemporalModel):
            yield module


def compile_blocks(unet: Any) -> None:
    """Have each block compiled when it first runs, and anew for another size of the frames."""
    torch.compiler.config.recompile_limit = max(torch.compiler.config.recompile_limit, BLOCKS_OF_A_KIND)
    for block in blocks_of(unet):
        block.forward = torch.compile(block.forward, dynamic=False)


def cannot_compile(source: str, error: Exception) -> ModelError:
    """What to tell where the first sample of compiled blocks fails; the later lines are torch's to its developers."""
    told = " ".join(str(error).partition("\n\n")[0].split())
    message = f"{source} cannot be compiled on {socket.gethostname()}: {told}"
    return ModelError(f"{message}: install a C++ compiler there, or leave --compile out")


@contextmanager
def forward_replaced(module: nn.Module, forward: Any) -> Iterator[None]:
    """The module with another forward; its own, or the one that was put in its place before, is back on leaving."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward  # the class's own is seen again
        else:
            module.forward = before


@contextmanager
def as_written(module: nn.Module) -> Iterator[None]:
    """The module as if it had never been compiled: what goes on inside can be watched."""
    with forward_replaced(module, MethodType(type(module).forward, module)):
        yield
