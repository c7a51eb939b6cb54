"""What a sample costs, kept in files: counting takes half a minute and always has the same result.

This module imports no torch; `sgi2v.estimate` counts.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from sgi2v.canonical import canonical_json
from sgi2v.checkpoint import Checkpoint
from sgi2v.config import GuidanceConfig, MemoryTier, SamplerConfig
from sgi2v.fetch import cache_root

SHIPPED = Path(__file__).parent / "tiny" / "costs.json"
"""Costs of the embedded checkpoint's own settings, by key; `python -m tools.tiny costs` writes them."""


@dataclass(frozen=True)
class Cost:
    """What one sample costs."""

    phase_flops: dict[str, float]
    """Phase -> floating-point operations in the high tier; a multiply-add is two."""
    weights_bytes: int
    """Bytes of all weights of the model."""
    working_bytes: Mapping[MemoryTier, int]
    """Tier -> peak bytes beside the weights; a device needs some more for its kernels and its allocator."""

    @property
    def flops(self) -> float:
        """Floating-point operations of all phases."""
        return sum(self.phase_flops.values())

    def plain(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Cost:
        """The cost that `plain` returned. Raises KeyError, TypeError or ValueError for anything else."""
        working = {MemoryTier(tier): int(size) for tier, size in values["working_bytes"].items()}
        phases = {phase: float(flops) for phase, flops in values["phase_flops"].items()}
        return cls(phases, int(values["weights_bytes"]), working)


def cost_key(checkpoint: Checkpoint, sampler: SamplerConfig, guidance: GuidanceConfig | None, dtype: str) -> str:
    """Digest of everything that a cost depends on. dtype: of the weights, such as `float32`."""
    settings = [sampler.plain(), guidance.plain() if guidance is not None else None, dtype]
    return sha256(canonical_json([checkpoint.configs, *settings]).encode()).hexdigest()[:32]


def known_cost(key: str) -> Cost | None:
    """The cost that is shipped or was kept for this key. A file that cannot be read counts as none."""
    with suppress(OSError, KeyError, TypeError, ValueError, AttributeError):
        return Cost.parse(_shipped().get(key) or json.loads(_file(key).read_text()))
    return None


def keep_cost(key: str, cost: Cost) -> None:
    """Keep a cost in the user's cache folder. Where that cannot be written, the cost is counted again next time."""
    file = _file(key)
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps(cost.plain()))
        partial.replace(file)


@cache
def _shipped() -> dict[str, Any]:
    costs: dict[str, Any] = json.loads(SHIPPED.read_text()) if SHIPPED.exists() else {}
    return costs


def _file(key: str) -> Path:
    from sgi2v import __version__

    return cache_root() / "costs" / __version__ / f"{key}.json"
