"""Room on a GPU: what this process may allocate, and what to say where a sample does not fit."""

from __future__ import annotations

import math
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from sgi2v.costs import Cost
    from sgi2v.model import VideoModel

from sgi2v.config import MemoryTier, SamplerConfig
from sgi2v.errors import ConfigError

ALLOCATOR_SLACK = 1.15
"""Memory that a device needs, relative to its tensors: the allocator's unused pieces and kernels' workspaces on top."""
CONTEXT_BYTES = 600 << 20
"""Memory of a GPU that a process takes besides torch's tensors: its CUDA context, with the code of its kernels."""
GIB = 2**30


def use_expandable_segments() -> None:
    """Let torch's allocator grow its segments, so that it leaves fewer unusable pieces; call before CUDA is used.

    A setting of the user's own is kept.
    """
    if "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:  # torch's older name of the variable
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


def limit_process(device: torch.device, share: float) -> None:
    """Let torch allocate at most this process's share of a GPU, less what its CUDA context takes.

    share: fraction of the GPU. With all of it there is no limit.
    """
    import torch

    if share < 1:
        _, total_bytes = torch.cuda.mem_get_info(device)
        torch.cuda.set_per_process_memory_fraction(max(share - CONTEXT_BYTES / total_bytes, 0.0), _index(device))


def _index(device: torch.device) -> int:
    """The device's number, which torch asks for here: that of the current GPU for `cuda`."""
    import torch

    return torch.cuda.current_device() if device.index is None else device.index


def _share(device: torch.device) -> float:
    """The fraction of a GPU that torch may allocate in this process."""
    import torch

    return torch.cuda.get_per_process_memory_fraction(_index(device))


def free_bytes(device: torch.device) -> int:
    """Bytes that torch can allocate on a GPU now, within the limit of this process."""
    import torch

    free, total = torch.cuda.mem_get_info(device)
    held = torch.cuda.memory_allocated(device)
    free += torch.cuda.memory_reserved(device) - held  # torch reuses what it has reserved
    return min(free, int(total * _share(device)) - held)


def most_bytes(device: torch.device) -> int:
    """As `free_bytes`, but what other processes hold of a shared GPU is not missing: they may free it again."""
    import torch

    share = _share(device)
    if share == 1:
        return free_bytes(device)
    _, total = torch.cuda.mem_get_info(device)
    return int(total * share) - torch.cuda.memory_allocated(device)


def fitting_tier(cost: Cost, free: int) -> MemoryTier | None:
    """The fastest tier in which a sample fits into so many bytes, if its frames are decoded one by one."""
    fits = (tier for tier in MemoryTier if cost.working_bytes(tier, frames_at_once=1) * ALLOCATOR_SLACK <= free)
    return next(fits, None)


def fitting_chunk(cost: Cost, sampler: SamplerConfig, free: int) -> int:
    """How many frames to decode at once: as the setting says, or as many as fit into so many bytes."""
    fit = int(free / (cost.peak_bytes["frame"] * ALLOCATOR_SLACK))
    return max(1, min(sampler.decode_chunk_size, sampler.num_frames, fit))


def does_not_fit(model: VideoModel, sampler: SamplerConfig, cost: Cost, free: int) -> ConfigError:
    """The error for a sample that does not fit in the low tier, with what would fit."""
    import torch

    needed = cost.working_bytes(MemoryTier.LOW, frames_at_once=1)
    whole = cost.weights_bytes + needed * ALLOCATOR_SLACK + CONTEXT_BYTES
    advice = [f"use a GPU with {math.ceil(whole / GIB)} GiB or more"]
    if _share(model.device) < 1:
        advice.insert(0, "give each worker more of the GPU (--gpus-per-worker)")
    shrink = math.sqrt(max(free, 0) / (needed * ALLOCATOR_SLACK))  # of each side: memory grows with the pixels
    multiple = model.checkpoint.size_multiple
    height, width = (int(side * shrink) // multiple * multiple for side in (sampler.height, sampler.width))
    if height and width:
        advice.insert(0, f"make the frames {height} x {width} px (--height {height} --width {width})")
    return ConfigError(
        f"{sampler.num_frames} frames of {sampler.height} x {sampler.width} px do not fit into the memory of "
        f"{torch.cuda.get_device_name(model.device)}: a sample takes {needed / GIB:.1f} GiB in the low memory tier, "
        f"and {max(free, 0) / GIB:.1f} GiB are left beside the {cost.weights_bytes / GIB:.1f} GiB of weights: "
        f"{', or '.join(advice)}"
    )
