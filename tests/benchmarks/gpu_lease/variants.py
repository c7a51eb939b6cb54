"""The variants of speed: each changes one thing of the model as it is by default, and none changes the result.

A setting that this device does not have is written down as skipped.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sgi2v.config import DType, KernelConfig, MemoryTier
from sgi2v.kernels import use_kernels
from sgi2v.model import VideoModel

UPDATE, STEP, DECODE = UNITS = ("update", "step", "decode")
"""The units of a sample: an update of a guided step, a denoising step with both branches, the decode of all frames."""


@dataclass(frozen=True)
class Variant:
    """How a model is loaded, changed and run."""

    name: str
    units: tuple[str, ...] = UNITS
    """Units that can differ from those of the model as it is."""
    kernels: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `KernelConfig` that differ from its defaults."""
    dtype: DType = "auto"
    compiled: bool = False
    tier: MemoryTier = MemoryTier.HIGH
    decode_chunk_size: int | None = None
    """Frames decoded at once; None: the sampler's."""


BASE = Variant("as it is")
DTYPES = tuple(Variant(dtype, dtype=dtype) for dtype in ("float16", "bfloat16"))
TIERS = tuple(Variant(f"{tier} tier", (UPDATE,), tier=tier) for tier in (MemoryTier.MEDIUM, MemoryTier.LOW))
CHUNKS = tuple(Variant(f"decode {size} at once", (DECODE,), decode_chunk_size=size) for size in (14, 4, 2, 1))

_BACKENDS = ("flash", "cudnn", "efficient", "torch")
KERNELS = (
    *(Variant(f"spatial attention {name}", (UPDATE, STEP), {"spatial_attention": name}) for name in _BACKENDS),
    *(
        Variant(f"temporal attention {name}", (UPDATE, STEP), {"temporal_attention": name})
        for name in ("packed", *_BACKENDS, "math")
    ),
    *(Variant(f"frame 0 attention {name}", (UPDATE,), {"frame0_attention": name}) for name in _BACKENDS),
    *(Variant(f"temporal convolution {name}", UNITS, {"temporal_convolution": name}) for name in ("matmul", "conv2d")),
    Variant("two passes for classifier-free guidance", (STEP,), {"cfg_passes": 2}),
    Variant("channels last", UNITS, {"channels_last": True}),
)


def with_kernels(model: VideoModel, kernels: Mapping[str, Any]) -> VideoModel:
    """The model with these settings of its kernels, and the defaults of all others, whatever it had before.

    Raises ConfigError for what this device does not have.
    """
    return use_kernels(model, KernelConfig(**kernels))
