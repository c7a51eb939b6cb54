"""What a sample costs, counted before anything is loaded: the U-Net is run on shapes alone.

FLOPs are torch's own count, attention included. Memory is that of all tensors that are alive at once.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cached_property
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode  # no public name; torch's manual names this one

from sgi2v.attention import replace_cross_attention
from sgi2v.checkpoint import Checkpoint
from sgi2v.config import GuidanceConfig, MemoryTier, SamplerConfig
from sgi2v.guidance import LossPlan, guided_features, plan_loss, trajectory_loss
from sgi2v.model import VideoModel
from sgi2v.sampling import PHASES
from sgi2v.trajectory import BoxTracks


@dataclass(frozen=True)
class Cost:
    """Of one sample."""

    phase_flops: dict[str, float]
    """Floating-point operations of each of `generate`'s phases; a multiply-add is two."""
    weights_bytes: int
    """Of all parts of the model."""
    working_bytes: Mapping[MemoryTier, int]
    """Most memory beside the weights, in each tier; a device needs some more for its kernels and its allocator."""

    @property
    def flops(self) -> float:
        """Of all phases."""
        return sum(self.phase_flops.values())


ALLOCATOR_SLACK = 1.15
"""What an allocator's unused pieces and the kernels' workspaces come to, relative to the tensors."""
_needed: dict[tuple[Hashable, ...], int] = {}
"""Bytes by tier, checkpoint and settings: counting takes seconds."""


class BytesAlive(TorchDispatchMode):
    """Counts the bytes of the tensors made inside that are alive, and the most of them at once."""

    def __init__(self, *modules: torch.nn.Module) -> None:
        """modules: their weights are not counted when an operation gives back a view of them."""
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.peak = 0
        self._known = {id(weight.untyped_storage()) for module in modules for weight in module.parameters()}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in _tensors_in(result):
            storage = tensor.untyped_storage()
            key, size = id(storage), storage.nbytes()
            if key not in self._known:
                self._known.add(key)
                self.now += size
                weakref.finalize(storage, self._freed, key, size)
        self.peak = max(self.peak, self.now)
        return result

    def _freed(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def _tensors_in(result: Any) -> Iterator[Tensor]:
    """The tensors that an operation returned: one, or a sequence that may be nested."""
    if isinstance(result, Tensor):
        yield result
    elif isinstance(result, tuple | list):
        for item in result:
            yield from _tensors_in(item)


def estimate_cost(
    checkpoint: Checkpoint,
    sampler: SamplerConfig,
    guidance: GuidanceConfig | None,
    dtype: torch.dtype,
) -> Cost:
    """Count a sample's cost for settings and a weights' type; FLOPs are those of the high tier."""
    with shapes_of(checkpoint, sampler, dtype) as shapes:
        working = {tier: shapes.peak(guidance, tier) for tier in MemoryTier}
        return Cost(shapes.flops(guidance, MemoryTier.HIGH), shapes.weights_bytes, working)


def count_flops(
    checkpoint: Checkpoint,
    sampler: SamplerConfig,
    guidance: GuidanceConfig | None,
    dtype: torch.dtype,
    tier: MemoryTier = MemoryTier.HIGH,
) -> dict[str, float]:
    """Of each of `generate`'s phases, without the memory; what a lower tier computes again counts again."""
    with shapes_of(checkpoint, sampler, dtype) as shapes:
        return shapes.flops(guidance, tier)


def roomiest_tier(
    checkpoint: Checkpoint,
    sampler: SamplerConfig,
    guidance: GuidanceConfig | None,
    dtype: torch.dtype,
    free_bytes: int,
) -> MemoryTier:
    """The fastest tier for the memory that is free once the weights are on the device; unguided, all are one."""
    if guidance is None:
        return MemoryTier.HIGH
    with ExitStack() as stack:
        shapes: Shapes | None = None
        for tier in (MemoryTier.HIGH, MemoryTier.MEDIUM):
            key = (tier, checkpoint.source, checkpoint.revision, sampler, guidance, dtype)
            if key not in _needed:
                shapes = shapes or stack.enter_context(shapes_of(checkpoint, sampler, dtype))
                _needed[key] = shapes.peak(guidance, tier)
            if _needed[key] * ALLOCATOR_SLACK <= free_bytes:
                return tier
    return MemoryTier.LOW


def choose_tier(
    named: str, model: VideoModel, sampler: SamplerConfig, guidance: GuidanceConfig | None, gpu_share: float = 1.0
) -> MemoryTier:
    """The tier that is named, or for `auto` the one that a loaded model's GPU has room for; a CPU's is the high one.

    gpu_share: of the GPU, where others have the rest.
    """
    if named != "auto":
        return MemoryTier(named)
    if model.device.type != "cuda":
        return MemoryTier.HIGH
    free_bytes, total_bytes = torch.cuda.mem_get_info(model.device)
    held_bytes = torch.cuda.memory_allocated(model.device)
    free_bytes += torch.cuda.memory_reserved(model.device) - held_bytes  # torch keeps it for its next tensors
    free_bytes = min(free_bytes, int(total_bytes * gpu_share) - held_bytes)
    return roomiest_tier(model.checkpoint, sampler, guidance, model.dtype, free_bytes)


@contextmanager
def shapes_of(checkpoint: Checkpoint, sampler: SamplerConfig, dtype: torch.dtype) -> Iterator[Shapes]:
    """The shapes of a model and of its inputs, for one count or several; nothing in torch has contents meanwhile."""
    # no public name; the public meta device would count the attention scores that a fused kernel never keeps
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), _default_dtype(dtype):
        yield Shapes(checkpoint, sampler)


class Shapes:
    """The model and its inputs without contents; made by `shapes_of`."""

    def __init__(self, checkpoint: Checkpoint, sampler: SamplerConfig) -> None:
        from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        configs = checkpoint.configs
        self.sampler = sampler
        self.unet: Any = UNetSpatioTemporalConditionModel.from_config(dict(configs["unet"])).requires_grad_(False)
        self.vae: Any = AutoencoderKLTemporalDecoder.from_config(dict(configs["vae"])).requires_grad_(False)
        self.clip: Any = CLIPVisionModelWithProjection(CLIPVisionConfig(**configs["image_encoder"]))
        replace_cross_attention(self.unet)
        self.cell_px = checkpoint.cell_px
        self.cells = sampler.height // self.cell_px, sampler.width // self.cell_px

    @property
    def weights_bytes(self) -> int:
        return sum(weight.nbytes for module in (self.unet, self.vae, self.clip) for weight in module.parameters())

    def flops(self, guidance: GuidanceConfig | None, tier: MemoryTier) -> dict[str, float]:
        """Of each phase of a sample."""
        counted = dict(self._unguided_flops)
        if guidance is not None:
            times = len(guidance.step_indices(self.sampler.steps)) * guidance.iterations
            counted["guide"] = times * _flops_of(lambda: self._guide(guidance, tier))
        return {phase: counted.get(phase, 0.0) for phase in PHASES}

    @cached_property
    def _unguided_flops(self) -> dict[str, float]:
        """Of the phases that are the same in every tier."""
        with torch.no_grad():
            return {
                "encode": _flops_of(self._encode),
                "denoise": self.sampler.steps * _flops_of(self._step),
                "decode": _flops_of(lambda: self._decode(self.sampler.num_frames)),
            }

    def peak(self, guidance: GuidanceConfig | None, tier: MemoryTier) -> int:
        """Most bytes alive at once, beside the weights."""
        if guidance is None:
            return self._unguided_peak
        alive = BytesAlive(self.unet, self.vae, self.clip)
        with alive:
            self._guide(guidance, tier)
        return max(self._unguided_peak, alive.peak)

    @cached_property
    def _unguided_peak(self) -> int:
        """Of what is the same in every tier."""
        alive = BytesAlive(self.unet, self.vae, self.clip)
        with alive, torch.no_grad():
            self._encode()
            self._step()
            self._decode(min(self.sampler.decode_chunk_size, self.sampler.num_frames))
        return alive.peak

    def _inputs(self, branches: int) -> dict[str, Tensor]:
        config = self.unet.config
        return {
            "sample": torch.zeros(branches, self.sampler.num_frames, config.in_channels, *self.cells),
            "timestep": torch.zeros(()),
            "encoder_hidden_states": torch.zeros(branches, 1, config.cross_attention_dim),
            "added_time_ids": torch.zeros(branches, 3),
        }

    def _encode(self) -> None:
        side = self.clip.config.image_size
        self.vae.encode(torch.zeros(1, 3, self.sampler.height, self.sampler.width))
        self.clip(torch.zeros(1, 3, side, side))

    def _step(self) -> None:
        self.unet(**self._inputs(2 if self.sampler.uses_cfg else 1))

    def _guide(self, guidance: GuidanceConfig, tier: MemoryTier) -> None:
        inputs = self._inputs(1)
        inputs["sample"].requires_grad_(True)
        loss = trajectory_loss(guided_features(self.unet, inputs, guidance, tier), self._plan(guidance))
        torch.autograd.grad(loss, inputs["sample"])

    def _plan(self, guidance: GuidanceConfig) -> LossPlan:
        """Of a box as large as the frame, which costs as much as any."""
        sampler = self.sampler
        boxes_NT4 = np.tile([0.0, 0.0, sampler.width, sampler.height], (1, sampler.num_frames, 1))
        tracks = BoxTracks(boxes_NT4, sampler.height, sampler.width)
        return plan_loss(tracks, *self.cells, self.cell_px, guidance, torch.device("cpu"))

    def _decode(self, num_frames: int) -> None:
        latents = torch.zeros(num_frames, self.vae.config.latent_channels, *self.cells)
        self.vae.decode(latents, num_frames=num_frames)


def _flops_of(computation: Callable[[], None]) -> float:
    """Of one computation on shapes."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    # the counter knows matrix products; fused attention kernels are opaque to it on a CPU
    with sdpa_kernel(SDPBackend.MATH), counter:
        computation()
    return float(counter.get_total_flops())


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def uses_tf32(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether convolutions in this type are computed in TF32 on this device: torch's default for float32 on a GPU."""
    return device.type == "cuda" and dtype is torch.float32 and torch.backends.cudnn.allow_tf32


def matrix_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """Measured FLOP/s of square matrix products on a device, the best of some: what no model exceeds.

    In TF32 where convolutions are.
    """
    is_gpu = device.type == "cuda"
    # a GPU that is waited for after each product idles for about a tenth of the time
    side, queued = (4096, 20) if is_gpu else (1024, 1)
    left = torch.randn(side, side, device=device).to(dtype)

    def multiply() -> float:
        start = perf_counter()
        for _ in range(queued):
            left @ left
        if is_gpu:
            torch.cuda.synchronize(device)
        return perf_counter() - start

    with _products_in_tf32() if uses_tf32(device, dtype) else nullcontext():
        multiply()  # the first one also chooses its kernel
        end = perf_counter() + seconds
        fastest = multiply()
        while perf_counter() < end:
            fastest = min(fastest, multiply())
    return 2 * side**3 * queued / fastest


@contextmanager
def _products_in_tf32() -> Iterator[None]:
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
