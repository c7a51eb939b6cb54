"""Count what samples of well-known models cost at their own sizes, so that no user has to wait for it:

    python -m tools.costs

Writes sgi2v/tiny/costs.json: the embedded checkpoint, SVD and SVD-XT, with and without guidance, in the types that a
CPU and GPUs use. It takes ten minutes. Run it again after a change of the model's memory or operations.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from sgi2v.checkpoint import Checkpoint, open_checkpoint
from sgi2v.config import ModelConfig
from sgi2v.costs import SHIPPED, Cost, cost_key
from sgi2v.estimate import count_cost, dtype_name
from tools.full_size import NUM_FRAMES, XT_FRAMES, write_configs

TYPES = (
    (torch.float32, torch.float32),
    (torch.bfloat16, torch.bfloat16),
    (torch.float16, torch.bfloat16),
    (torch.float16, torch.float32),
)
"""Types of the U-Net's and of the VAE's weights that occur together: see `resolve_vae_dtype`."""


def well_known(folder: Path) -> Iterator[tuple[Checkpoint, int | None]]:
    """Checkpoints, and the frames of their videos; None: the checkpoint's own. folder: for their configurations."""
    yield open_checkpoint(ModelConfig(source="embedded")), None
    # SVD and SVD-XT have one architecture
    svd = open_checkpoint(ModelConfig(source=str(write_configs(folder))), weights=False)
    yield svd, NUM_FRAMES
    yield svd, XT_FRAMES


def count_costs() -> dict[str, Any]:
    """The costs as JSON values, by key."""
    costs: dict[str, Any] = {}
    with TemporaryDirectory() as folder:
        for checkpoint, num_frames in well_known(Path(folder)):
            sampler, guidance = checkpoint.sampler(), checkpoint.guidance()
            if num_frames is not None:
                sampler = sampler.replace(num_frames=num_frames)
            for types in TYPES:
                names = [dtype_name(dtype) for dtype in types]
                guided = count_cost(checkpoint, sampler, guidance, *types)
                costs[cost_key(checkpoint, sampler, guidance, *names)] = guided.plain()
                costs[cost_key(checkpoint, sampler, None, *names)] = without_updates(guided).plain()
    return costs


def without_updates(cost: Cost) -> Cost:
    """The cost of the same samples without guidance."""
    flops = {part: count for part, count in cost.flops.items() if part != "update"}
    peak_bytes = {part: size for part, size in cost.peak_bytes.items() if not part.startswith("update")}
    return Cost(cost.weights_bytes, flops, peak_bytes)


if __name__ == "__main__":
    SHIPPED.write_text(json.dumps(count_costs(), indent=1, sort_keys=True) + "\n")
