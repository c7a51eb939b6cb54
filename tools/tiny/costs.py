"""Count what a sample of the embedded checkpoint's own settings costs, for `sgi2v-batch run --dry-run`:

    python -m tools.tiny.costs

Writes sgi2v/tiny/costs.json, with and without guidance, for the types that a CPU and a GPU use.
"""

from __future__ import annotations

import json
from typing import Any

import torch

from sgi2v.checkpoint import open_checkpoint
from sgi2v.config import ModelConfig
from sgi2v.costs import SHIPPED, cost_key
from sgi2v.estimate import count_cost


def count_costs() -> dict[str, Any]:
    """The costs as JSON values, by key."""
    checkpoint = open_checkpoint(ModelConfig(source="embedded"))
    sampler, costs = checkpoint.sampler(), {}
    for guidance in (checkpoint.guidance(), None):
        for dtype in (torch.float32, torch.bfloat16):
            key = cost_key(checkpoint, sampler, guidance, str(dtype).removeprefix("torch."))
            costs[key] = count_cost(checkpoint, sampler, guidance, dtype).plain()
    return costs


if __name__ == "__main__":
    SHIPPED.write_text(json.dumps(count_costs(), indent=1, sort_keys=True) + "\n")
