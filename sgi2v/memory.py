"""The guided pass in less memory: blocks keep their inputs alone, and are computed again for the backward pass."""

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

Made = TypeVar("Made")


@contextmanager
def memory_of(unet: Any, guidance: GuidanceConfig, tier: MemoryTier) -> Iterator[None]:
    """Run the guided pass made inside in a memory tier; the U-Net is as before on leaving.

    The tier's blocks are computed twice, but for the guided ones: computed again, they would record their features
    again.
    """
    guided = _guided_blocks(unet, guidance)
    with ExitStack() as stack:
        for block in _blocks_of_tier(unet, tier):
            if block not in guided:
                # not the reentrant kind: it would keep nothing of a block whose weights have no gradient
                recomputing = partial(checkpoint, block.forward, use_reentrant=False, preserve_rng_state=False)
                stack.enter_context(forward_replaced(block, recomputing))
        yield


def where_there_is_room(
    make: Callable[[MemoryTier], Made], tier: MemoryTier, named: str, guidance: GuidanceConfig | None
) -> Made:
    """What `make` gives in a memory tier; where that has no room, in the first below that has.

    named: the tier that was asked for; only `auto` is left for a lower one. Without guidance all tiers are one.
    """
    falls_back = named == "auto" and guidance is not None
    below = list(MemoryTier)[list(MemoryTier).index(tier) + 1 :] if falls_back else []
    while True:
        try:
            return make(tier)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if not below:
                torch.cuda.empty_cache()
                raise
        # only here, without the error, is the memory free that its traceback held
        torch.cuda.empty_cache()
        tier = below.pop(0)


def _blocks_of_tier(unet: Any, tier: MemoryTier) -> Iterator[nn.Module]:
    """The blocks that are computed twice in a tier."""
    if tier is MemoryTier.LOW:
        yield from blocks_of(unet)
    elif tier is MemoryTier.MEDIUM:
        for level in (*unet.down_blocks[:2], *unet.up_blocks[-2:]):
            yield from getattr(level, "attentions", ())


def _guided_blocks(unet: Any, guidance: GuidanceConfig) -> set[nn.Module]:
    guided: set[nn.Module] = set()
    for block_index, index in guidance.layers:
        block = unet.up_blocks[block_index]
        guided |= {parts[index] for name in ("resnets", "attentions") if (parts := getattr(block, name, None))}
    return guided
