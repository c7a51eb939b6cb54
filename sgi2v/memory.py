"""The guided pass in less memory: blocks keep their inputs alone, and are computed again for the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sgi2v.compiled import blocks_of, forward_replaced
from sgi2v.config import GuidanceConfig, MemoryTier
from sgi2v.errors import is_out_of_memory

Made = TypeVar("Made")


@contextmanager
def memory_of(unet: Any, guidance: GuidanceConfig, tier: MemoryTier) -> Iterator[None]:
    """Run the guided pass made inside in a memory tier; the U-Net is as before on leaving.

    In the low tier every residual and transformer block is computed twice, but for the guided ones: computed again,
    they would record their features again.
    """
    with _recomputed_blocks(unet, guidance) if tier is MemoryTier.LOW else nullcontext():
        yield


def where_there_is_room(make: Callable[[MemoryTier], Made], tier: MemoryTier, falls_back: bool) -> Made:
    """What `make` gives in a memory tier; where that has no room and it falls back, what it gives in the low one."""
    try:
        return make(tier)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        torch.cuda.empty_cache()
        if tier is MemoryTier.LOW or not falls_back:
            raise
    # only here, without the error, is the memory free that its traceback held
    torch.cuda.empty_cache()
    return make(MemoryTier.LOW)


@contextmanager
def _recomputed_blocks(unet: Any, guidance: GuidanceConfig) -> Iterator[None]:
    guided: set[nn.Module] = set()
    for block_index, index in guidance.layers:
        block = unet.up_blocks[block_index]
        guided |= {parts[index] for name in ("resnets", "attentions") if (parts := getattr(block, name, None))}
    with ExitStack() as stack:
        for block in blocks_of(unet):
            if block not in guided:
                # not the reentrant kind: it would keep nothing of a block whose weights have no gradient
                recomputing = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
                stack.enter_context(forward_replaced(block, recomputing))
        yield
