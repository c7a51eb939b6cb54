"""Lower memory tiers keep less, give the same numbers, and are chosen where higher ones do not fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgi2v.checkpoint import open_checkpoint
from sgi2v.config import Feature, GuidanceConfig, MemoryTier, ModelConfig, SamplerConfig
from sgi2v.costs import Cost
from sgi2v.errors import ErrorCode, SampleError, is_out_of_memory
from sgi2v.estimate import BytesAlive, FakeModel, fake_model
from sgi2v.generate import generate
from sgi2v.guidance import guided_features
from sgi2v.memory import SAMPLES_BEFORE_RETRY, TierKeeper
from sgi2v.model import VideoModel, decode_latents
from sgi2v.room import ALLOCATOR_SLACK
from tests.sgi2v.test_features import inputs
from tests.sgi2v.test_generate import GUIDANCE, SAMPLER, tracks
from tools.full_size import write_configs

GIB = 2**30


def guided_pass(model: VideoModel, guidance: GuidanceConfig, tier: MemoryTier) -> tuple[Tensor, Tensor, int]:
    """Features, their gradient, and the bytes kept for the backward pass."""
    kept: dict[int, int] = {}
    weights = {weight.untyped_storage().data_ptr() for weight in model.unet.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if (place := tensor.untyped_storage().data_ptr()) not in weights:
            kept[place] = tensor.untyped_storage().nbytes()
        return tensor

    unet_inputs = inputs()
    unet_inputs["sample"].requires_grad_(True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        features = guided_features(model.unet, unet_inputs, guidance, tier)
    (gradient,) = torch.autograd.grad(features.square().sum(), unet_inputs["sample"])
    return features.detach(), gradient, sum(kept.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("feature", "layers"),
    [*((feature, ((2, 1), (2, 2))) for feature in Feature), (Feature.UPSAMPLE_BLOCK, ((0, 1), (3, 2)))],
)
def test_a_lower_tier_keeps_less_and_changes_no_bit(
    model: VideoModel, feature: Feature, layers: tuple[tuple[int, int], ...]
) -> None:
    guidance = GuidanceConfig(layers=layers, feature=feature)
    features, gradient, kept = guided_pass(model, guidance, MemoryTier.HIGH)
    assert gradient.abs().max() > 0
    kept_above = kept
    for tier in (MemoryTier.MEDIUM, MemoryTier.LOW):
        lower_features, lower_gradient, lower_kept = guided_pass(model, guidance, tier)
        assert torch.equal(features, lower_features)
        assert torch.equal(gradient, lower_gradient)
        assert lower_kept < 0.75 * kept_above
        kept_above = lower_kept
    assert lower_kept < 0.5 * kept
    assert not any("forward" in vars(module) for module in model.unet.modules())


@pytest.mark.whole
def test_a_video_is_the_same_in_every_tier(model: VideoModel, photograph: NDArray[np.uint8]) -> None:
    high, *lower = (
        generate(model, photograph, tracks(), SAMPLER, GUIDANCE, seed=1, memory=tier) for tier in MemoryTier
    )
    for generation in lower:
        assert torch.equal(high.latents, generation.latents)
        assert np.array_equal(high.losses, generation.losses)


def test_the_peak_counts_only_living_tensors_and_no_views() -> None:
    weights = torch.nn.Linear(1000, 1000)
    with BytesAlive(weights) as alive:
        first = torch.zeros(1000)
        del first
        second = torch.zeros(2000)
        third = second.view(2, 1000) + 1
        weights.weight.t()
    assert alive.peak == 4 * 4000
    assert third.sum() == 2000


class DecoderInSmallMemory:
    """A VAE whose decoder runs out of memory with more than `most` frames at once."""

    def __init__(self, vae: Any, most: int) -> None:
        self.vae, self.most = vae, most
        self.tried: list[int] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.vae, name)

    def decode(self, latents: Tensor, num_frames: int) -> Any:
        self.tried.append(num_frames)
        if num_frames > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")
        return self.vae.decode(latents, num_frames=num_frames)


@pytest.mark.parametrize(("most", "tried", "chunk"), [(4, [4], 4), (3, [4, 2, 2], 2), (1, [4, 2, 1, 1, 1, 1], 1)])
def test_a_decode_without_memory_is_done_again_alone_in_smaller_chunks(
    model: VideoModel, photograph: NDArray[np.uint8], most: int, tried: list[int], chunk: int
) -> None:
    vae = DecoderInSmallMemory(model.vae, most)
    sampler = SAMPLER.replace(steps=1)
    steps: list[int] = []
    small = dataclasses.replace(model, vae=vae)
    generation = generate(small, photograph, tracks(), sampler, GUIDANCE, seed=1, on_step=steps.append)
    assert (vae.tried, generation.decode_chunk) == (tried, chunk)
    assert steps == [0], "nothing but the decode is done again"
    asked = decode_latents(model, generation.latents, chunk)
    assert np.array_equal(generation.frames, (asked * 255).round().to(torch.uint8).numpy())


def test_a_frame_that_cannot_be_decoded_fails_the_sample_in_every_tier(
    model: VideoModel, photograph: NDArray[np.uint8]
) -> None:
    small = dataclasses.replace(model, vae=DecoderInSmallMemory(model.vae, most=0))
    with pytest.raises(SampleError, match="one frame cannot be decoded: CUDA out of memory") as raised:
        generate(small, photograph, None, SAMPLER.replace(steps=1))
    assert raised.value.code is ErrorCode.OUT_OF_MEMORY
    assert not is_out_of_memory(raised.value), "a lower tier is not tried"


def test_a_tier_that_was_left_is_tried_again_later_and_ever_less_often() -> None:
    keeper, fits = TierKeeper(MemoryTier.HIGH), {MemoryTier.MEDIUM}
    tried: list[MemoryTier] = []
    for sample in range(40):
        if sample == 36:
            fits = set(MemoryTier)  # the neighbour is gone
        tried.append(keeper.next())
        keeper.finished(tried[-1], tried[-1] if tried[-1] in fits else MemoryTier.MEDIUM)
    assert [sample for sample, tier in enumerate(tried) if tier is MemoryTier.HIGH] == [0, 9, 26]
    for _ in range(20):
        tried.append(keeper.next())
        keeper.finished(tried[-1], tried[-1])
    assert tried[59] is MemoryTier.HIGH
    assert keeper.wait == SAMPLES_BEFORE_RETRY


@pytest.mark.whole
@pytest.mark.slow
@pytest.mark.parametrize(("num_frames", "gib"), [(14, 22), (25, 40)])
def test_full_size_fits_the_cards_that_it_is_meant_for(tmp_path: Path, num_frames: int, gib: int) -> None:
    with fake_full_size(tmp_path, num_frames) as fake:
        cost = Cost(fake.weights_bytes, {}, fake.peaks(GuidanceConfig()))
    medium_bytes, low_bytes = (cost.working_bytes(tier, 8) for tier in (MemoryTier.MEDIUM, MemoryTier.LOW))
    assert cost.weights_bytes + ALLOCATOR_SLACK * medium_bytes < gib * GIB
    assert low_bytes < 12 * GIB


@pytest.mark.whole
@pytest.mark.slow
def test_lower_tiers_of_full_size_cost_what_is_stated(tmp_path: Path) -> None:
    with fake_full_size(tmp_path, num_frames=14) as fake:
        costs = [Cost(0, fake.flops(GuidanceConfig(), tier), {}) for tier in MemoryTier]
    flops = [sum(cost.phase_flops(SamplerConfig(), GuidanceConfig()).values()) for cost in costs]
    assert np.array(flops) / flops[0] == pytest.approx([1, 1.08, 1.21], abs=0.005)


@contextmanager
def fake_full_size(folder: Path, num_frames: int) -> Iterator[FakeModel]:
    """SVD's architecture at its own size on fake tensors."""
    checkpoint = open_checkpoint(ModelConfig(source=str(write_configs(folder, num_frames))), weights=False)
    with fake_model(checkpoint, SamplerConfig(num_frames=num_frames), torch.bfloat16, torch.bfloat16) as fake:
        yield fake


@pytest.mark.parametrize(
    "message",
    [
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "CUDA error: out of memory",
        "CUDA driver error: out of memory",
        "Triton Error [CUDA]: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "GET was unable to find an engine to execute this computation",
        "[enforce fail at alloc_cpu.cpp:117] data. DefaultCPUAllocator: can't allocate memory",
    ],
)
def test_out_of_memory_errors_of_libraries_are_recognised(message: str) -> None:
    assert is_out_of_memory(RuntimeError(message))


def test_other_errors_are_not_out_of_memory_errors() -> None:
    assert not is_out_of_memory(RuntimeError("CUDA error: device-side assert triggered"))
    assert not is_out_of_memory(SampleError(ErrorCode.WORKER_DIED, "killed, as by a system that runs out of memory"))
    assert is_out_of_memory(MemoryError())
