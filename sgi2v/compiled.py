"""Compile the U-Net's blocks with torch.compile: the same sums in fewer kernels.

The first compilation on a machine takes minutes. torch keeps the results in the folder that `TORCHINDUCTOR_CACHE_DIR`
names, so later starts on that machine take less.
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

RECOMPILE_LIMIT = 64
"""Compilations of one block class before torch runs further ones uncompiled.

SVD has 22 blocks of a class, each of which is compiled with and without gradients.
"""


def blocks_of(unet: Any) -> Iterator[nn.Module]:
    """Every residual and every transformer block of a U-Net."""
    from diffusers.models.resnet import SpatioTemporalResBlock
    from diffusers.models.transformers.transformer_temporal import TransformerSpatioTemporalModel

    for module in unet.modules():
        if isinstance(module, SpatioTemporalResBlock | TransformerSpatioTemporalModel):
            yield module


def compile_blocks(unet: Any) -> None:
    """Make each block compile when it first runs, and again for each new frame size."""
    torch.compiler.config.recompile_limit = max(torch.compiler.config.recompile_limit, RECOMPILE_LIMIT)
    for block in blocks_of(unet):
        block.forward = torch.compile(block.forward, dynamic=False)


def cannot_compile(source: str, error: Exception) -> ModelError:
    """The error to report when the first sample through compiled blocks fails."""
    reason = " ".join(str(error).partition("\n\n")[0].split())  # the rest is for torch's developers
    message = f"{source} cannot be compiled on {socket.gethostname()}: {reason}"
    return ModelError(f"{message}: install a C++ compiler there, or leave --compile out")


@contextmanager
def forward_replaced(module: nn.Module, forward: Any) -> Iterator[None]:
    """Give a module another forward, and put back on leaving what was there: its class's own, or a replacement."""
    before = vars(module).get("forward")
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward  # uncovers the class's own
        else:
            module.forward = before


@contextmanager
def uncompiled(module: nn.Module) -> Iterator[None]:
    """Run a module's own code inside the context, so that hooks and processors within it are called."""
    with forward_replaced(module, MethodType(type(module).forward, module)):
        yield
