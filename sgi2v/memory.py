"""Make a sample in less memory.

In the guided pass blocks keep only their inputs, and are computed again in the backward pass. The decoder gets fewer
frames at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sgi2v.compiled import blocks_of, forward_replaced
from sgi2v.config import GuidanceConfig, MemoryTier
from sgi2v.errors import ErrorCode, SampleError, is_out_of_memory
from sgi2v.model import VideoModel, decode_latents

SAMPLES_BEFORE_RETRY = 8
"""Samples made in a lower memory tier before the higher one is tried again."""

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


class TierKeeper:
    """The memory tier of a worker, from sample to sample.

    After a sample that ran out of memory, the lower tier is kept for some samples. Then the best one is tried again,
    because on a shared GPU it may have been a neighbour's peak. Each time that fails, the next try is twice as far off.
    """

    def __init__(self, best: MemoryTier) -> None:
        """best: the tier that was chosen at the start."""
        self.best = self.tier = best
        self.wait = SAMPLES_BEFORE_RETRY
        self.left = 0
        """Samples until the best tier is tried again."""

    def next(self) -> MemoryTier:
        """The tier to try first for the next sample."""
        return self.tier if self.left else self.best

    def finished(self, tried: MemoryTier, used: MemoryTier) -> None:
        """Take in the tier that was tried first for a sample, and the one that it was made in."""
        self.tier = used
        if used is self.best:
            self.wait, self.left = SAMPLES_BEFORE_RETRY, 0
        elif tried is self.best:
            self.wait, self.left = 2 * self.wait, self.wait
        else:
            self.left -= 1


def decode_in_memory(model: VideoModel, latents_TChw: Tensor, chunk: int) -> tuple[Tensor, int]:
    """Decode one video's latents, and if memory runs out, again with half as many frames at once.

    chunk: frames at once for the first try. Returns the frames as `decode_latents` does, and the frames at once.
    Raises SampleError (`out_of_memory`) if a single frame does not fit: a lower memory tier would not help.
    """
    while True:
        try:
            return decode_latents(model, latents_TChw, chunk), chunk
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            if chunk == 1:
                message = f"one frame cannot be decoded: {error}: make the frames smaller"
                raise SampleError(ErrorCode.OUT_OF_MEMORY, message) from None
        # outside the except block: the error's traceback holds memory until it is dropped
        torch.cuda.empty_cache()
        chunk = (chunk + 1) // 2


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
