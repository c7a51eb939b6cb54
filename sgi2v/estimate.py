"""Count what a sample costs before any weight is loaded, by running the model on fake tensors, which hold no data.

FLOPs are torch's own count, attention included. Memory is the largest sum of bytes of all tensors alive at once.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
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
from sgi2v.costs import Cost, cost_key, counting_alone, keep_cost, known_cost
from sgi2v.guidance import LossPlan, guided_features, plan_loss, trajectory_loss
from sgi2v.model import VideoModel, encoder_dtype
from sgi2v.room import does_not_fit, fitting_chunk, fitting_tier, free_bytes, most_bytes
from sgi2v.trajectory import BoxTracks


class BytesAlive(TorchDispatchMode):
    """Counts the bytes of all living tensors that operations inside the context made: `now`, and their `peak`."""

    def __init__(self, *modules: torch.nn.Module) -> None:
        """modules: views of their weights are not counted."""
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
    vae_dtype: torch.dtype,
    on_count: Callable[[], None] = lambda: None,
) -> Cost:
    """What the parts of a sample cost with weights of these types; counted once a machine, and then read from a file.

    on_count: called before it is counted.
    """
    key = cost_key(checkpoint, sampler, guidance, dtype_name(dtype), dtype_name(vae_dtype))
    if (cost := known_cost(key)) is not None:
        return cost
    with counting_alone(key):
        if (cost := known_cost(key)) is None:
            on_count()
            cost = count_cost(checkpoint, sampler, guidance, dtype, vae_dtype)
            keep_cost(key, cost)
    return cost


def count_cost(
    checkpoint: Checkpoint,
    sampler: SamplerConfig,
    guidance: GuidanceConfig | None,
    dtype: torch.dtype,
    vae_dtype: torch.dtype,
) -> Cost:
    """What the parts of a sample cost with weights of these types. Counting takes tens of seconds."""
    with fake_model(checkpoint, sampler, dtype, vae_dtype) as model:
        return Cost(model.weights_bytes, model.flops(guidance, MemoryTier.HIGH), model.peaks(guidance))


def count_flops(
    checkpoint: Checkpoint,
    sampler: SamplerConfig,
    guidance: GuidanceConfig | None,
    dtype: torch.dtype,
    tier: MemoryTier = MemoryTier.HIGH,
) -> dict[str, float]:
    """Phase -> floating-point operations of a sample; what a lower tier computes again counts again."""
    with fake_model(checkpoint, sampler, dtype, dtype) as model:
        return Cost(0, model.flops(guidance, tier), {}).phase_flops(sampler, guidance)


def choose_tier(memory: str, model: VideoModel, sampler: SamplerConfig, guidance: GuidanceConfig | None) -> MemoryTier:
    """The tier for a setting of memory: a tier's name, or `auto`.

    `auto` is the fastest tier that fits into what the loaded model's GPU has free for this process, and the high tier
    on a CPU. Without guidance all tiers are the same. Raises ConfigError if not even the low tier can fit.
    """
    if memory != "auto":
        return MemoryTier(memory)
    if model.device.type != "cuda":
        return MemoryTier.HIGH
    cost = estimate_cost(model.checkpoint, sampler, guidance, model.dtype, model.decoder_dtype)
    if (tier := fitting_tier(cost, free_bytes(model.device))) is not None:
        return tier
    most = most_bytes(model.device)
    if cost.working_bytes(MemoryTier.LOW, frames_at_once=1) > most:
        raise does_not_fit(model, sampler, cost, most)
    return MemoryTier.LOW


def choose_chunk(model: VideoModel, sampler: SamplerConfig, guidance: GuidanceConfig | None) -> int:
    """Frames to decode at once: as the setting says, or fewer where the GPU's free memory has no room for them.

    Nothing is counted for it: where the cost of a sample is not known yet, it is as the setting says.
    """
    whole = min(sampler.decode_chunk_size, sampler.num_frames)
    if model.device.type != "cuda":
        return whole
    names = dtype_name(model.dtype), dtype_name(model.decoder_dtype)
    cost = known_cost(cost_key(model.checkpoint, sampler, guidance, *names))
    return whole if cost is None else fitting_chunk(cost, sampler, free_bytes(model.device))


def dtype_name(dtype: torch.dtype) -> str:
    """The name without torch's prefix, such as `float32`."""
    return str(dtype).removeprefix("torch.")


@contextmanager
def fake_model(
    checkpoint: Checkpoint, sampler: SamplerConfig, dtype: torch.dtype, vae_dtype: torch.dtype
) -> Iterator[FakeModel]:
    """A model on fake tensors, for one count or several. Inside the context every new tensor of torch is fake."""
    # FakeTensorMode has no public name; on the public meta device fused attention would count its scores as memory
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode(), _default_dtype(dtype):
        yield FakeModel(checkpoint, sampler, vae_dtype)


class FakeModel:
    """A model and its inputs on fake tensors; use `fake_model` to make one."""

    def __init__(self, checkpoint: Checkpoint, sampler: SamplerConfig, vae_dtype: torch.dtype) -> None:
        from diffusers import UNetSpatioTemporalConditionModel
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        configs = checkpoint.configs
        self.sampler = sampler
        self.unet: Any = UNetSpatioTemporalConditionModel.from_config(dict(configs["unet"])).requires_grad_(False)
        self.vae_dtype = vae_dtype
        self.encode_dtype = encoder_dtype(configs["vae"], vae_dtype)
        self.vae: Any = _fake_vae(configs["vae"], self.encode_dtype)
        self.vae.decoder = _fake_vae(configs["vae"], vae_dtype).decoder  # fake weights cannot be cast in place
        self.clip: Any = CLIPVisionModelWithProjection(CLIPVisionConfig(**configs["image_encoder"]))
        replace_cross_attention(self.unet)
        self.cell_px = checkpoint.cell_px
        self.cells = sampler.height // self.cell_px, sampler.width // self.cell_px

    @property
    def weights_bytes(self) -> int:
        """Bytes of all weights."""
        return sum(weight.nbytes for module in (self.unet, self.vae, self.clip) for weight in module.parameters())

    def flops(self, guidance: GuidanceConfig | None, tier: MemoryTier) -> dict[str, float]:
        """Part of a sample, as `Cost` names it -> floating-point operations."""
        with torch.no_grad():
            parts = {
                "encode": _flops_of(self._encode),
                "step": _flops_of(self._step),
                "frame": _flops_of(self._decode_frame),
            }
        if guidance is not None:
            parts["update"] = _flops_of(lambda: self._guide(guidance, tier))
        return parts

    def peaks(self, guidance: GuidanceConfig | None) -> dict[str, int]:
        """Part of a sample, as `Cost` names it -> most bytes alive at once beside the weights."""
        with torch.no_grad():
            parts = {
                "encode": self._peak_of(self._encode),
                "step": self._peak_of(self._step),
                "frame": self._peak_of(self._decode_frame),
            }
        if guidance is not None:
            for tier in MemoryTier:
                parts[f"update_{tier}"] = self._peak_of(partial(self._guide, guidance, tier))
        return parts

    def _peak_of(self, computation: Callable[[], None]) -> int:
        alive = BytesAlive(self.unet, self.vae, self.clip)
        with alive:
            computation()
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
        self.vae.encode(torch.zeros(1, 3, self.sampler.height, self.sampler.width, dtype=self.encode_dtype))
        self.clip(torch.zeros(1, 3, side, side))

    def _step(self) -> None:
        self.unet(**self._inputs(2 if self.sampler.uses_cfg else 1))

    def _guide(self, guidance: GuidanceConfig, tier: MemoryTier) -> None:
        inputs = self._inputs(1)
        inputs["sample"].requires_grad_(True)
        loss = trajectory_loss(guided_features(self.unet, inputs, guidance, tier), self._plan(guidance))
        torch.autograd.grad(loss, inputs["sample"])

    def _plan(self, guidance: GuidanceConfig) -> LossPlan:
        """The loss of one box as large as the frame: neither other boxes nor held cells take more memory."""
        sampler = self.sampler
        boxes_NT4 = np.tile([0.0, 0.0, sampler.width, sampler.height], (1, sampler.num_frames, 1))
        tracks = BoxTracks(boxes_NT4, sampler.height, sampler.width)
        return plan_loss(tracks, *self.cells, self.cell_px, guidance, torch.device("cpu"))

    def _decode_frame(self) -> None:
        """Decode one frame. Several at once take as many times its memory and its operations."""
        latents = torch.zeros(1, self.vae.config.latent_channels, *self.cells, dtype=self.vae_dtype)
        self.vae.decode(latents, num_frames=1)


def _fake_vae(config: Mapping[str, Any], dtype: torch.dtype) -> Any:
    from diffusers import AutoencoderKLTemporalDecoder

    with _default_dtype(dtype):
        return AutoencoderKLTemporalDecoder.from_config(dict(config)).requires_grad_(False)


def _flops_of(computation: Callable[[], None]) -> float:
    """Floating-point operations of a computation on fake tensors."""
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False)
    # the counter counts matrix products, and cannot look into a CPU's fused attention kernels
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
    """Whether this device computes convolutions of this type in TF32: torch's default for float32 on a GPU."""
    return device.type == "cuda" and dtype is torch.float32 and torch.backends.cudnn.allow_tf32


def matrix_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """Measured FLOP/s of square matrix products on a device, the best of several: an upper bound for any model.

    The products are in TF32 where convolutions are. seconds: how long to measure.
    """
    is_gpu = device.type == "cuda"
    # waiting for a GPU after each product would leave it idle for about a tenth of the time
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
        multiply()  # the first call also chooses the kernel
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
