"""What can be set: the model, the sampler, the guidance; and the presets.

Every class is frozen and checks itself: a value that cannot work raises ConfigError at construction.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from sgi2v.errors import ConfigError
from sgi2v.settings import Settings

DType = Literal["auto", "float32", "float16", "bfloat16"]


class Feature(StrEnum):
    """Which features of a guided layer the loss compares (SG-I2V, section 4 and figure 5)."""

    MODIFIED_SELF_ATTENTION = "modified_self_attention"
    """Spatial self-attention against frame 0's keys and values: the method's own."""
    SELF_ATTENTION = "self_attention"
    """Spatial self-attention as the U-Net computes it."""
    TEMPORAL_ATTENTION = "temporal_attention"
    """Temporal self-attention."""
    UPSAMPLE_BLOCK = "upsample_block"
    """The hidden states after the layer's resnet and its attention."""


class MemoryTier(StrEnum):
    """How a sample trades memory for time. Every tier makes the same video: on a CPU to the bit."""

    HIGH = "high"
    """Keeps every activation that the backward pass of a guided step needs. The fastest."""
    MEDIUM = "medium"
    """Computes the transformer blocks of the two largest resolutions again in the backward pass."""
    LOW = "low"
    """Computes all residual and transformer blocks again, except the guided ones. The slowest."""


def auto_dtype(on_gpu: bool) -> DType:
    """The dtype that `auto` stands for: float32 on a CPU, where 16 bits gain nothing, and float16 on a GPU.

    float16 has eight times the precision of bfloat16, and Stable Video Diffusion's weights are published in it. The
    first gradient of the guidance differs from float32's by 0.1 % in float16 and by 0.9 % in bfloat16, and 0.03 % and
    0.4 % of its signs; the final latents by 0.2 % and 0.5 %. ObjMC is the same to 0.01 px in float16. This was emulated
    on a CPU, on the embedded checkpoint (`tests/benchmarks/half_precision.py`). Loss scaling keeps float16 gradients in
    range. Every GPU has float16, so the workers of an output have one type.
    """
    return "float16" if on_gpu else "float32"


AttentionKernel = Literal["auto", "torch", "flash", "efficient", "cudnn", "math"]
TemporalAttentionKernel = Literal[AttentionKernel, "packed"]
TemporalConvolutionForm = Literal["auto", "conv3d", "conv2d", "matmul"]


class KernelConfig(Settings):
    """How the model's sums are computed. It decides the speed, and of the results at most the last bits.

    `auto` is what is fastest or most certain as far as is known; nothing has been measured on a GPU yet.
    """

    section: ClassVar[str] = "model.kernels"

    spatial_attention: AttentionKernel = "auto"
    """Kernel of the U-Net's self-attention over places; auto: the first of flash, efficient, cudnn and math that runs
    with the model on its GPU; torch: torch chooses at each call, as always on a CPU with auto."""
    frame0_attention: AttentionKernel = "auto"
    """Kernel of the guided layers' attention to frame 0; auto: as for `spatial_attention`."""
    temporal_attention: TemporalAttentionKernel = "auto"
    """Kernel of the U-Net's self-attention over frames; auto: the first of efficient, flash, cudnn and math that runs;
    packed: several cells' frames in one sequence, because fused kernels pad 14 frames to 64 or 128."""
    temporal_convolution: TemporalConvolutionForm = "auto"
    """Form of the convolutions over frames; auto: conv2d on a CPU, conv3d on a GPU; matmul: one matrix product."""
    channels_last: bool = False
    """Hold the convolutions' weights channels-last; without compiled blocks, group norms undo it."""
    cfg_passes: Literal[1, 2] = 1
    """U-Net passes of a step with classifier-free guidance: 1 for both branches together, or 1 for each branch."""


class ModelConfig(Settings):
    """Where the checkpoint comes from and how it is held."""

    section: ClassVar[str] = "model"

    source: Annotated[str, Field(min_length=1)] = "stabilityai/stable-video-diffusion-img2vid"
    """Hugging Face id, local folder, fsspec URL of a folder, or `embedded`."""
    revision: str | None = None
    """Branch, tag or commit of a Hugging Face id; None: its default branch."""
    dtype: DType = "auto"
    """Type of the weights; auto: float32 on a CPU, float16 on a GPU, which is closer to float32 than bfloat16 is."""
    kernels: Annotated[KernelConfig, Field(strict=False)] = KernelConfig()
    """How the sums are computed."""


MAX_SIDE, MAX_FRAMES, MAX_STEPS = 16_384, 4096, 10_000
"""Bounds of a sample, far beyond what a model can make: a slip of the keyboard must not fill the memory."""


class SamplerConfig(Settings):
    """Stable Video Diffusion's own sampling settings."""

    section: ClassVar[str] = "sampler"

    height: Annotated[int, Field(ge=1, le=MAX_SIDE)] = 576
    """Frame height, pixels; SVD: a multiple of 64."""
    width: Annotated[int, Field(ge=1, le=MAX_SIDE)] = 1024
    """Frame width, pixels; SVD: a multiple of 64."""
    num_frames: Annotated[int, Field(ge=2, le=MAX_FRAMES)] = 14
    """Frames per video."""
    steps: Annotated[int, Field(ge=1, le=MAX_STEPS)] = 50
    """Denoising steps."""
    fps: Annotated[int, Field(ge=2)] = 7
    """Frames per second: a condition of the model and the rate of the video file."""
    motion_bucket_id: Annotated[int, Field(ge=0, le=255)] = 127
    """SVD's amount of motion, 0 to 255."""
    noise_aug_strength: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.02
    """Standard deviation of the noise added to the first frame, whose pixels are in [-1, 1]."""
    min_cfg_scale: Annotated[float, Field(allow_inf_nan=False)] = 1.0
    """Classifier-free guidance scale at the first frame."""
    max_cfg_scale: Annotated[float, Field(allow_inf_nan=False)] = 3.0
    """Classifier-free guidance scale at the last frame; linear in between."""
    decode_chunk_size: Annotated[int, Field(ge=1)] = 8
    """Frames that the VAE decodes at once; the temporal decoder does not see across chunks."""

    @property
    def uses_cfg(self) -> bool:
        """Whether any frame has a scale above 1, so that the unconditional branch is needed."""
        return max(self.min_cfg_scale, self.max_cfg_scale) > 1


Index = Annotated[int, Field(ge=0)]
"""A 0-based index."""
Fraction = Annotated[float, Field(ge=0, le=1)]
Layer = Annotated[tuple[Index, Index], Field(strict=False)]
"""(up block, index in it); a list in TOML and JSON."""


LATER_FIELDS = ("hold_rest", "hold_weight", "gradient_floor", "mask_update")
"""Settings of the guidance that the first version did not have."""


class GuidanceConfig(Settings):
    """SG-I2V's self-guided trajectory optimisation; the defaults are the paper's."""

    section: ClassVar[str] = "guidance"

    layers: Annotated[tuple[Layer, ...], Field(strict=False, min_length=1)] = ((2, 1), (2, 2))
    """Guided layers as (up block, index in it), 0-based."""
    feature: Annotated[Feature, Field(strict=False)] = Feature.MODIFIED_SELF_ATTENTION
    """Features of the guided layers that the loss compares."""
    guided_range: Annotated[tuple[Fraction, Fraction], Field(strict=False)] = (0.9, 0.6)
    """Fractions of the steps that remain at the first and at the last guided step."""
    guided_steps: Annotated[tuple[Index, ...], Field(strict=False)] | None = None
    """0-based loop indices of the guided steps; if given, `guided_range` has no effect."""
    iterations: Annotated[int, Field(ge=0)] = 5
    """Optimiser updates within a guided step."""
    learning_rate: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.21
    """AdamW's learning rate, in units of the latents."""
    heatmap_sigma: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.4
    """Standard deviation of the loss's Gaussian weight, in half sides of the box."""
    fft_cutoff: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = 0.5
    """Normalised cut-off of the Butterworth low-pass merge; None (`false` in TOML) keeps the optimised latents."""
    hold_rest: bool = False
    """Also hold every latent cell to itself in frame 0 that no asked box comes near on its way. Off where the camera is
    asked to move, and where the boxes cover the scene (`sgi2v/scene.py`)."""
    hold_weight: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    """Weight of a cell that `hold_rest` holds, of which the centre of a box has 1."""
    gradient_floor: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """AdamW divides each element of the gradient by its own size, so that all move by the learning rate. This share of
    the root mean square of the step's first gradient is added to that size: elements with less gradient move less.
    0: plain AdamW."""
    mask_update: bool = False
    """Change the latents only where `hold_rest` would hold nothing."""

    def plain(self) -> dict[str, Any]:
        """The fields as JSON values. A field of LATER_FIELDS is left out at its default, which does as versions before
        it did: the fingerprints of their outputs stay."""
        later = {name for name in LATER_FIELDS if getattr(self, name) == type(self).model_fields[name].default}
        return {name: value for name, value in super().plain().items() if name not in later}

    @model_validator(mode="after")
    def _range_falls(self) -> Self:
        first, last = self.guided_range
        if first < last:
            raise ValueError(f"guidance.guided_range must fall, such as [0.9, 0.6], not {[first, last]}")
        return self

    def step_indices(self, steps: int) -> tuple[int, ...]:
        """The guided steps of a schedule of `steps` steps, as 0-based loop indices (5 .. 20 of 50).

        Raises ConfigError for a guided step beyond the schedule.
        """
        if self.guided_steps is not None:
            beyond = sorted(step for step in self.guided_steps if step >= steps)
            if beyond:
                last = f"the last of {steps} steps is {steps - 1}"
                raise ConfigError(f"guidance.guided_steps {beyond} do not exist: {last}")
            return tuple(sorted(set(self.guided_steps)))
        most, least = (round(fraction * steps) for fraction in self.guided_range)
        return tuple(step for step in range(steps) if least <= steps - step <= most)


Preset = Literal["paper", "fast", "scene"]
FAST_STEPS, FAST_ITERATIONS, FAST_LEARNING_RATE = 0.4, 0.4, 4.0
"""`fast` as multiples of the checkpoint's own settings: fewer steps and fewer, larger updates."""

SCENE_LEARNING_RATE, SCENE_GRADIENT_FLOOR = 1.5, 0.3
"""`scene`'s learning rate as a multiple of the checkpoint's own, and its gradient floor. Both, and the default of
`hold_weight`, were chosen on the dev split of the embedded checkpoint."""


def apply_preset(
    preset: Preset, sampler: SamplerConfig, guidance: GuidanceConfig
) -> tuple[SamplerConfig, GuidanceConfig]:
    """The settings of a preset: the checkpoint's own (`paper`), or less than a third of the work (`fast`), or a scene
    that stays where it is beside the objects that are asked to move (`scene`).

    `tests/benchmarks/presets.py` measures how much control `fast` keeps, and `tests/benchmarks/scene.py` what `scene`
    does, on the embedded checkpoint. `scene` is unproven on Stable Video Diffusion.
    """
    if preset == "paper":
        return sampler, guidance
    if preset == "scene":
        learning_rate = guidance.learning_rate * SCENE_LEARNING_RATE
        held = {"hold_rest": True, "gradient_floor": SCENE_GRADIENT_FLOOR, "learning_rate": learning_rate}
        return sampler, guidance.replace(**held)
    return scale_work(sampler, guidance, FAST_STEPS, FAST_ITERATIONS, FAST_LEARNING_RATE)


def scale_work(
    sampler: SamplerConfig, guidance: GuidanceConfig, steps: float, iterations: float, learning_rate: float
) -> tuple[SamplerConfig, GuidanceConfig]:
    """The settings with these multiples of their steps, iterations and learning rate, rounded up."""
    guided_steps = guidance.guided_steps
    if guided_steps is not None:
        guided_steps = tuple(sorted({int(step * steps) for step in guided_steps}))
    changes: dict[str, Any] = {
        "iterations": math.ceil(guidance.iterations * iterations),
        "learning_rate": guidance.learning_rate * learning_rate,
        "guided_steps": guided_steps,
    }
    return sampler.replace(steps=math.ceil(sampler.steps * steps)), guidance.replace(**changes)
