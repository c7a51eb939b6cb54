"""What can be set: the model, the sampler, the guidance; and the presets.

Every dataclass is frozen and checks itself: a value that cannot work raises ConfigError at construction.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal, TypeVar

from sgi2v.errors import ConfigError

DType = Literal["auto", "float32", "float16", "bfloat16"]
ConfigT = TypeVar("ConfigT")


class Feature(StrEnum):
    """Which features of a guided layer the loss compares (SG-I2V, section 4 and figure 5)."""

    MODIFIED_SELF_ATTENTION = "modified_self_attention"
    """Spatial self-attention against frame 0's keys and values: the method's own."""
    SELF_ATTENTION = "self_attention"
    """Spatial self-attention as the U-Net computes it."""
    TEMPORAL_ATTENTION = "temporal_attention"
    """Temporal self-attention."""
    UPSAMPLE_BLOCK = "upsample_block"
    """The hidden states that the layer hands on, after its resnet and its attention."""


class MemoryTier(StrEnum):
    """How much memory a sample takes, for how much time, from the fastest on: the same video; on a CPU to the bit."""

    HIGH = "high"
    """All that the backward pass of a guided step needs is kept."""
    MEDIUM = "medium"
    """The transformer blocks of the two largest resolutions run again: they keep the most bytes for their work."""
    LOW = "low"
    """All residual and transformer blocks run again, but for the guided ones."""


def auto_dtype(on_gpu: bool, has_bfloat16: bool = True) -> DType:
    """What `auto` stands for: bfloat16 has float32's range, and a CPU gains nothing by 16 bits.

    has_bfloat16: whether the GPU has it; before compute capability 8.0 none has, nor a fused attention for it.
    """
    if not on_gpu:
        return "float32"
    return "bfloat16" if has_bfloat16 else "float16"


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ConfigError(message)


@dataclass(frozen=True)
class ModelConfig:
    """Where the checkpoint comes from and how it is held."""

    source: str = "stabilityai/stable-video-diffusion-img2vid"
    """Hugging Face id, local directory, fsspec URL of a directory, or `embedded`."""
    revision: str | None = None
    """Branch, tag or commit of a Hugging Face id; None is its default branch."""
    dtype: DType = "auto"
    """Type of the weights for the model's life; auto: see `auto_dtype`."""

    def __post_init__(self) -> None:
        _require(bool(self.source), "model.source must not be empty")
        known = DType.__args__  # type: ignore[attr-defined]
        _require(self.dtype in known, f"model.dtype must be one of {', '.join(known)}, not {self.dtype!r}")


@dataclass(frozen=True)
class SamplerConfig:
    """Stable Video Diffusion's own sampling settings."""

    height: int = 576
    """Output height, pixels; SVD: a multiple of 64."""
    width: int = 1024
    """Output width, pixels; SVD: a multiple of 64."""
    num_frames: int = 14
    """Frames per video."""
    steps: int = 50
    """Denoising steps."""
    fps: int = 7
    """Frames per second: a condition of the model and the rate of the video file."""
    motion_bucket_id: int = 127
    """SVD's amount of motion, 0 to 255."""
    noise_aug_strength: float = 0.02
    """Standard deviation of the noise added to the first frame, whose pixels are in [-1, 1]."""
    min_cfg_scale: float = 1.0
    """Classifier-free guidance scale at the first frame."""
    max_cfg_scale: float = 3.0
    """Classifier-free guidance scale at the last frame; linear in between."""
    decode_chunk_size: int = 8
    """Frames the VAE decodes at once; the temporal decoder does not see across chunks."""

    @property
    def uses_cfg(self) -> bool:
        """Whether any frame is guided by the image beyond the conditional prediction itself."""
        return max(self.min_cfg_scale, self.max_cfg_scale) > 1

    def __post_init__(self) -> None:
        for name in ("height", "width", "steps", "decode_chunk_size"):
            _require(getattr(self, name) >= 1, f"sampler.{name} must be 1 or more, not {getattr(self, name)}")
        _require(self.num_frames >= 2, f"sampler.num_frames must be 2 or more, not {self.num_frames}")
        _require(self.fps >= 2, f"sampler.fps must be 2 or more, not {self.fps}")
        _require(self.noise_aug_strength >= 0, "sampler.noise_aug_strength must not be negative")


@dataclass(frozen=True)
class GuidanceConfig:
    """SG-I2V's self-guided trajectory optimisation; the defaults are the paper's."""

    layers: tuple[tuple[int, int], ...] = ((2, 1), (2, 2))
    """Guided layers as (up block, index in it), 0-based."""
    feature: Feature = Feature.MODIFIED_SELF_ATTENTION
    """Which features of the guided layers are compared."""
    guided_range: tuple[float, float] = (0.9, 0.6)
    """Fractions of the steps that remain at the first and at the last guided step."""
    guided_steps: tuple[int, ...] | None = None
    """0-based loop indices of the guided steps; takes the place of `guided_range` if given."""
    iterations: int = 5
    """Optimiser updates within a guided step."""
    learning_rate: float = 0.21
    """AdamW's, in units of the latents."""
    heatmap_sigma: float = 0.4
    """Standard deviation of the loss's Gaussian weight, in half sides of the box."""
    fft_cutoff: float | None = 0.5
    """Normalised cut-off of the Butterworth low-pass merge; None (`false` in TOML) keeps the optimised latents."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "feature", _feature(self.feature))
        object.__setattr__(self, "layers", tuple((int(block), int(index)) for block, index in self.layers))
        object.__setattr__(self, "guided_range", tuple(float(end) for end in self.guided_range))
        if self.guided_steps is not None:
            object.__setattr__(self, "guided_steps", tuple(int(step) for step in self.guided_steps))
            _require(min(self.guided_steps, default=0) >= 0, "guidance.guided_steps must not be negative")
        _require(len(self.layers) > 0, "guidance.layers must name at least one layer, such as [[2, 1]]")
        _require(len(self.guided_range) == 2, "guidance.guided_range must be two fractions")
        first, last = self.guided_range
        _require(1 >= first >= last >= 0, f"guidance.guided_range must fall within 1 to 0, not {self.guided_range}")
        _require(self.iterations >= 0, f"guidance.iterations must not be negative, not {self.iterations}")
        _require(self.learning_rate > 0, f"guidance.learning_rate must be positive, not {self.learning_rate}")
        _require(self.heatmap_sigma > 0, f"guidance.heatmap_sigma must be positive, not {self.heatmap_sigma}")
        _require(self.fft_cutoff is None or self.fft_cutoff >= 0, "guidance.fft_cutoff must not be negative, or false")

    def step_indices(self, steps: int) -> tuple[int, ...]:
        """The guided steps of a schedule of `steps` steps, as 0-based loop indices (5 .. 20 of 50)."""
        if self.guided_steps is not None:
            beyond = sorted(step for step in self.guided_steps if step >= steps)
            _require(not beyond, f"guidance.guided_steps {beyond} are beyond the last of {steps} steps, {steps - 1}")
            return tuple(sorted(set(self.guided_steps)))
        most, least = (round(fraction * steps) for fraction in self.guided_range)
        return tuple(step for step in range(steps) if least <= steps - step <= most)


def _feature(value: str) -> Feature:
    try:
        return Feature(value)
    except ValueError:
        raise ConfigError(f"guidance.feature must be one of {', '.join(Feature)}, not {value!r}") from None


PRESETS = ("paper", "fast")
FAST_STEPS, FAST_ITERATIONS, FAST_LEARNING_RATE = 0.4, 0.4, 4.0
"""What `fast` makes of the checkpoint's own settings: fewer steps and updates, each of which goes further."""


def apply_preset(preset: str, sampler: SamplerConfig, guidance: GuidanceConfig) -> tuple[SamplerConfig, GuidanceConfig]:
    """The checkpoint's own settings (`paper`), or less than half the steps with larger and fewer updates (`fast`).

    `fast` takes less than a third of the work; `tests/benchmarks/presets.py` measures what is kept of the control.
    """
    if preset not in PRESETS:
        raise ConfigError(f"unknown preset {preset!r}: known are {', '.join(PRESETS)}")
    if preset == "paper":
        return sampler, guidance
    return scale_work(sampler, guidance, FAST_STEPS, FAST_ITERATIONS, FAST_LEARNING_RATE)


def scale_work(
    sampler: SamplerConfig, guidance: GuidanceConfig, steps: float, iterations: float, learning_rate: float
) -> tuple[SamplerConfig, GuidanceConfig]:
    """The settings with these multiples of their steps, iterations and learning rate, rounded up."""
    guided_steps = guidance.guided_steps
    if guided_steps is not None:
        guided_steps = tuple(sorted({int(step * steps) for step in guided_steps}))
    return (
        dataclasses.replace(sampler, steps=math.ceil(sampler.steps * steps)),
        dataclasses.replace(
            guidance,
            iterations=math.ceil(guidance.iterations * iterations),
            learning_rate=guidance.learning_rate * learning_rate,
            guided_steps=guided_steps,
        ),
    )


def from_dict(config_class: type[ConfigT], values: Mapping[str, Any], section: str) -> ConfigT:
    """Build a config dataclass from plain values; an unknown key or a wrong type raises ConfigError.

    `false` stands for None, which TOML cannot write, where a setting may be None.
    """
    fields = {field.name: field for field in dataclasses.fields(config_class)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise ConfigError(f"unknown setting {section}.{key}: known are {', '.join(fields)}")
    coerced = {key: _coerce(value, str(fields[key].type)) for key, value in values.items()}
    for key, value in coerced.items():
        _check_type(f"{section}.{key}", value, str(fields[key].type))
    try:
        return config_class(**coerced)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"[{section}] cannot be read: {error}") from error


def _check_type(name: str, value: object, annotation: str) -> None:
    """Refuse a scalar of the wrong kind; sequences are checked by their dataclass."""
    wanted = annotation.split("|", maxsplit=1)[0].strip()
    accepted: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,), "bool": (bool,)}
    if wanted not in accepted or (value is None and "None" in annotation):
        return
    if not isinstance(value, accepted[wanted]) or (isinstance(value, bool) and wanted != "bool"):
        raise ConfigError(f"{name} must be {wanted}, not {value!r}")


def _coerce(value: Any, annotation: str) -> Any:
    """Floats may be written as integers, and None as false."""
    if value is False and "None" in annotation:
        return None
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    return float(value) if annotation.startswith("float") and is_integer else value
