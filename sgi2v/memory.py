"""Run the guided pass in less memory: blocks keep only their inputs, and are computed again in the backward pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from sgi2v.compiled import blocks_of, forward_replaced
from sgi2v.config import GuidanceConfig, MemoryTier
from sgi2v.errors import is_out_of_memory

Result = TypeVar("Result")


@contextmanager
def in_memory_tier(unet: Any, guidance: GuidanceConfig, tier: MemoryTier) -> Iterator[None]:
    """Run the guided pass inside the context in a memory tier. The U-Net is restored on leaving.

    The tier's blocks are computed twice, except the guided ones, which would record their features twice.
    """
    guided = _guided_blocks(unet, guidance)
    with ExitStack() as stack:
        for block in _blocks_of_tier(unet, tier):
            if block not in guided:
                # the reentrant kind does not work with torch.autograd.grad
                recomputing = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
                stack.enter_context(forward_replaced(block, recomputing))
        yield


def with_oom_fallback(
    make: Callable[[MemoryTier], Result], tier: MemoryTier, memory: str, guidance: GuidanceConfig | None
) -> Result:
    """Call `make` with a tier; if that runs out of memory and `memory` is `auto`, call it with the next lower tiers.

    memory: the setting, a tier's name or `auto`. Without guidance all tiers are the same, so there is no fallback.
    Raises the out-of-memory error of the last tier.
    """
    falls_back = memory == "auto" and guidance is not None
    lower_tiers = list(MemoryTier)[list(MemoryTier).index(tier) + 1 :] if falls_back else []
    while True:
        try:
            return make(tier)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if not lower_tiers:
                torch.cuda.empty_cache()
                raise
        # outside the except block: the error's traceback holds memory until it is dropped
        torch.cuda.empty_cache()
        tier = lower_tiers.pop(0)


def _blocks_of_tier(unet: Any, tier: MemoryTier) -> Iterator[nn.Module]:
    """The blocks that a tier computes twice."""
    if tier is MemoryTier.LOW:
        yield from blocks_of(unet)
    elif tier is MemoryTier.MEDIUM:
        for level in (*unet.down_blocks[:2], *unet.up_blocks[-2:]):
            yield from getattr(level, "attentions", ())


def _guided_blocks(unet: Any, guidance: GuidanceConfig) -> set[nn.Module]:
    """The residual and transformer blocks of the guided layers."""
    guided: set[nn.Module] = set()
    for block_index, index in guidance.layers:
        block = unet.up_blocks[block_index]
        guided |= {blocks[index] for name in ("resnets", "attentions") if (blocks := getattr(block, name, None))}
    return guided
