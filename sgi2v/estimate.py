"""What a sample costs, counted before anything is loaded: the U-Net is run on shapes alone.

FLOPs are torch's own count, attention included. Memory is what the guided pass keeps for its backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sgi2v.checkpoint import Checkpoint
from sgi2v.config import GuidanceConfig, SamplerConfig
from sgi2v.generate import PHASES
from sgi2v.guidance import guided_features


@dataclass(frozen=True)
class Cost:
    """Of one sample."""

    phase_flops: dict[str, float]
    """Floating-point operations of each of `generate`'s phases; a multiply-add is two."""
    weights_bytes: int
    """Of the U-Net."""
    kept_bytes: int
    """Held between forward and backward pass of a guided step; 0 without guidance."""

    @property
    def flops(self) -> float:
        """Of all phases."""
        return sum(self.phase_flops.values())

    @property
    def bytes(self) -> int:
        """Weights and what is kept: the floor of a worker's memory."""
        return self.weights_bytes + self.kept_bytes


def estimate_cost(
    checkpoint: Checkpoint, sampler: SamplerConfig, guidance: GuidanceConfig | None, dtype: torch.dtype
) -> Cost:
    """Count a sample's cost for settings and a weights' type."""
    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
    from torch._subclasses.fake_tensor import FakeTensorMode
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    cells = checkpoint.cell_px
    height, width = sampler.height // cells, sampler.width // cells
    config = checkpoint.configs["unet"]
    with FakeTensorMode(), _default_dtype(dtype):
        unet = UNetSpatioTemporalConditionModel.from_config(dict(config)).requires_grad_(False)

        def inputs(branches: int) -> dict[str, Tensor]:
            channels = config["in_channels"]
            return {
                "sample": torch.zeros(branches, sampler.num_frames, channels, height, width, dtype=dtype),
                "timestep": torch.zeros(()),
                "encoder_hidden_states": torch.zeros(branches, 1, config["cross_attention_dim"], dtype=dtype),
                "added_time_ids": torch.zeros(branches, 3, dtype=dtype),
            }

        # The counter knows matrix products; fused attention kernels are opaque to it on a CPU.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as denoising, torch.no_grad():
            unet(**inputs(2 if sampler.uses_cfg else 1))
        flops = dict.fromkeys(PHASES, 0.0)
        flops["denoise"] = float(sampler.steps * denoising.get_total_flops())
        vae = AutoencoderKLTemporalDecoder.from_config(dict(checkpoint.configs["vae"]))
        clip = CLIPVisionModelWithProjection(CLIPVisionConfig(**checkpoint.configs["image_encoder"]))
        side = clip.config.image_size
        with sdpa_kernel(SDPBackend.MATH), torch.no_grad():
            with FlopCounterMode(display=False) as encoding:
                vae.encode(torch.zeros(1, 3, sampler.height, sampler.width, dtype=dtype))
                clip(torch.zeros(1, 3, side, side, dtype=dtype))
            with FlopCounterMode(display=False) as decoding:
                latents = torch.zeros(sampler.num_frames, vae.config.latent_channels, height, width, dtype=dtype)
                vae.decode(latents, num_frames=sampler.num_frames)
        flops["encode"], flops["decode"] = float(encoding.get_total_flops()), float(decoding.get_total_flops())
        kept: dict[int, int] = {}
        if guidance is not None:
            weights = {parameter.untyped_storage()._cdata for parameter in unet.parameters()}

            def keep(tensor: Tensor) -> Tensor:
                storage = tensor.untyped_storage()
                if storage._cdata not in weights:
                    kept[storage._cdata] = storage.nbytes()
                return tensor

            conditional = inputs(1)
            conditional["sample"].requires_grad_(True)
            with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as guiding:
                guided_features(unet, conditional, guidance).sum().backward()  # type: ignore[no-untyped-call]
            flops["guide"] = float(
                len(guidance.step_indices(sampler.steps)) * guidance.iterations * guiding.get_total_flops()
            )
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                features = guided_features(unet, conditional, guidance)
            del features
        weights_bytes = sum(parameter.nbytes for parameter in unet.parameters())
    return Cost(flops, weights_bytes, sum(kept.values()))


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def matrix_rate(device: torch.device, dtype: torch.dtype, seconds: float = 0.5) -> float:
    """Measured FLOP/s of square matrix products on a device: what no model exceeds."""
    side = 4096 if device.type == "cuda" else 1024
    left = torch.randn(side, side, device=device).to(dtype)

    def multiply() -> float:
        left @ left
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return perf_counter()

    start = now = multiply()
    done = 0
    while done == 0 or now - start < seconds:
        now = multiply()
        done += 1
    return 2 * side**3 * done / (now - start)
