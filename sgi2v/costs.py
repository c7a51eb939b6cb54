"""What the parts of a sample cost, kept in files: counting takes half a minute and always has the same result.

This module imports no torch; `sgi2v.estimate` counts.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import cache
from hashlib import sha256
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from sgi2v.canonical import canonical_json
from sgi2v.checkpoint import Checkpoint
from sgi2v.config import GuidanceConfig, MemoryTier, SamplerConfig
from sgi2v.fetch import cache_root

SHIPPED = Path(__file__).parent / "tiny" / "costs.json"
"""Costs of the embedded checkpoint, SVD and SVD-XT at their own sizes, by key; `python -m tools.costs` writes them."""
ARCHITECTURE: Mapping[str, tuple[str, ...]] = {
    "unet": (
        *("in_channels", "out_channels", "down_block_types", "up_block_types", "block_out_channels"),
        *("addition_time_embed_dim", "projection_class_embeddings_input_dim", "layers_per_block"),
        *("cross_attention_dim", "transformer_layers_per_block", "num_attention_heads"),
    ),
    "vae": (
        *("in_channels", "out_channels", "down_block_types", "block_out_channels", "layers_per_block"),
        "latent_channels",
    ),
    "image_encoder": (
        *("hidden_size", "intermediate_size", "projection_dim", "num_hidden_layers", "num_attention_heads"),
        *("image_size", "patch_size"),
    ),
}
"""Component -> the values of its configuration that a cost depends on. The others, such as the version of the library
that saved it, differ between checkpoints of one architecture."""
LONGEST_COUNT_S = 180.0
"""Seconds that a process waits for another one to count the same, before it counts itself."""
_kept: dict[str, Cost] = {}
"""Costs that this process has counted, for a machine whose cache folder cannot be written."""


@dataclass(frozen=True)
class Cost:
    """What the parts of a sample cost, whatever its numbers of steps and updates are."""

    weights_bytes: int
    """Bytes of all weights of the model."""
    flops: Mapping[str, float]
    """Floating-point operations of `encode`, an `update` in the high tier, a `step`, and a decoded `frame`; a
    multiply-add is two."""
    peak_bytes: Mapping[str, int]
    """Peak bytes beside the weights of `encode`, a `step`, a decoded `frame`, and an update in each tier, such as
    `update_high`; a device needs some more for its kernels and its allocator."""

    def phase_flops(self, sampler: SamplerConfig, guidance: GuidanceConfig | None) -> dict[str, float]:
        """Phase -> floating-point operations of a sample in the high tier."""
        updates = 0 if guidance is None else len(guidance.step_indices(sampler.steps)) * guidance.iterations
        return {
            "encode": self.flops["encode"],
            "guide": updates * self.flops.get("update", 0.0),
            "denoise": sampler.steps * self.flops["step"],
            "decode": sampler.num_frames * self.flops["frame"],
        }

    def working_bytes(self, tier: MemoryTier, frames_at_once: int) -> int:
        """Peak bytes beside the weights. frames_at_once: frames that are decoded at once."""
        update_bytes = self.peak_bytes.get(f"update_{tier}", 0)
        decode_bytes = frames_at_once * self.peak_bytes["frame"]
        return max(self.peak_bytes["encode"], self.peak_bytes["step"], update_bytes, decode_bytes)

    def plain(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> Cost:
        """The cost that `plain` returned. Raises KeyError, TypeError, ValueError or AttributeError for other values."""
        flops = {part: float(count) for part, count in values["flops"].items()}
        peak_bytes = {part: int(size) for part, size in values["peak_bytes"].items()}
        cost = cls(int(values["weights_bytes"]), flops, peak_bytes)
        cost.phase_flops(SamplerConfig(), None), cost.working_bytes(MemoryTier.HIGH, 1)  # raises KeyError
        return cost


def cost_key(
    checkpoint: Checkpoint, sampler: SamplerConfig, guidance: GuidanceConfig | None, dtype: str, vae_dtype: str
) -> str:
    """Digest of everything that a cost depends on. dtype, vae_dtype: of the weights, such as `float32`."""
    architecture = {
        component: {name: checkpoint.configs[component].get(name) for name in names}
        for component, names in ARCHITECTURE.items()
    }
    size = [sampler.height, sampler.width, sampler.num_frames, sampler.uses_cfg]
    guided = None if guidance is None else [guidance.feature, sorted(set(guidance.layers))]
    return sha256(canonical_json([architecture, size, guided, dtype, vae_dtype]).encode()).hexdigest()[:32]


def known_cost(key: str) -> Cost | None:
    """The cost that is shipped or was kept for this key. A file that cannot be read counts as none."""
    with suppress(OSError, KeyError, TypeError, ValueError, AttributeError):
        return _kept.get(key) or Cost.parse(_shipped().get(key) or json.loads(_file(key).read_text()))
    return None


def keep_cost(key: str, cost: Cost) -> None:
    """Keep a cost in the user's cache folder; where that cannot be written, for this process."""
    _kept[key] = cost
    file = _file(key)
    with suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        # a name of its own, since other workers of this machine may write the same file now
        with NamedTemporaryFile("w", dir=file.parent, suffix=".partial", delete=False) as partial:
            json.dump(cost.plain(), partial)
        Path(partial.name).replace(file)


@contextmanager
def counting_alone(key: str) -> Iterator[None]:
    """Let one process of this machine count at a time; the others find its result when they enter the context."""
    from filelock import FileLock

    file = _file(key)
    lock = FileLock(f"{file}.lock")
    with suppress(OSError):  # a folder that cannot be written, and a wait that is too long
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=LONGEST_COUNT_S)
    try:
        yield
    finally:
        lock.release()


@cache
def _shipped() -> dict[str, Any]:
    costs: dict[str, Any] = json.loads(SHIPPED.read_text()) if SHIPPED.exists() else {}
    return costs


def _file(key: str) -> Path:
    from importlib.metadata import PackageNotFoundError

    try:
        from sgi2v import __version__ as version
    except PackageNotFoundError:
        version = "not-installed"  # a checkout on the path, as in a lease of a GPU
    return cache_root() / "costs" / version / f"{key}.json"
