"""Lower memory tiers keep less, give the same numbers, and are chosen where higher ones do not fit."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgi2v import estimate
from sgi2v.checkpoint import open_checkpoint
from sgi2v.config import Feature, GuidanceConfig, MemoryTier, ModelConfig, SamplerConfig
from sgi2v.errors import ErrorCode, SampleError, is_out_of_memory
from sgi2v.estimate import ALLOCATOR_SLACK, BytesAlive, FakeModel, choose_tier, fake_model, fastest_tier
from sgi2v.generate import generate
from sgi2v.guidance import guided_features
from sgi2v.model import VideoModel
from tests.benchmarks.full_size import write_configs
from tests.sgi2v.test_features import inputs
from tests.sgi2v.test_generate import GUIDANCE, SAMPLER, tracks

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


@pytest.mark.slow
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


@pytest.mark.whole
@pytest.mark.slow
def test_the_fastest_tier_that_fits_is_taken(model: VideoModel, monkeypatch: pytest.MonkeyPatch) -> None:
    # enough frames that the guided pass is what needs the most memory
    sampler = SAMPLER.replace(num_frames=32, decode_chunk_size=1)
    checkpoint = model.checkpoint
    with fake_model(checkpoint, sampler, torch.float32) as fake:
        peaks = {tier: fake.peak(GUIDANCE, tier) for tier in MemoryTier}
    assert peaks[MemoryTier.LOW] < 0.6 * peaks[MemoryTier.HIGH]
    # counted once here, so that each of the calls below need not count it again
    key = (checkpoint.source, checkpoint.revision, sampler, GUIDANCE, torch.float32)
    monkeypatch.setitem(estimate._peak_cache, (MemoryTier.MEDIUM, *key), peaks[MemoryTier.MEDIUM])
    for tier, lower in itertools.pairwise(MemoryTier):
        enough = round(peaks[tier] * ALLOCATOR_SLACK) + 1
        assert fastest_tier(checkpoint, sampler, GUIDANCE, torch.float32, enough) is tier
        assert fastest_tier(checkpoint, sampler, GUIDANCE, torch.float32, enough - 2) is lower
    assert choose_tier("auto", model, sampler, GUIDANCE) is MemoryTier.HIGH
    assert choose_tier("low", model, sampler, GUIDANCE) is MemoryTier.LOW
    assert fastest_tier(checkpoint, sampler, None, torch.float32, free_bytes=0) is MemoryTier.HIGH


@pytest.mark.parametrize(
    ("free_gib", "reserved_gib", "gpu_share", "tier"),
    [
        (9, 0, 1.0, MemoryTier.HIGH),
        (7, 0, 1.0, MemoryTier.MEDIUM),
        (3, 0, 1.0, MemoryTier.LOW),
        (3, 6, 1.0, MemoryTier.HIGH),
        (3, 3, 1.0, MemoryTier.MEDIUM),
        (9, 0, 0.5, MemoryTier.LOW),
    ],
)
def test_the_tier_is_chosen_by_what_torch_can_still_allocate(
    model: VideoModel,
    monkeypatch: pytest.MonkeyPatch,
    free_gib: int,
    reserved_gib: int,
    gpu_share: float,
    tier: MemoryTier,
) -> None:
    """A GPU of 14 GiB with 4 GiB of weights on it; the high tier needs 8 GiB, the medium one 5."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (free_gib * GIB, 14 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda _: 4 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: (4 + reserved_gib) * GIB)
    key = (model.checkpoint.source, model.checkpoint.revision, SAMPLER, GUIDANCE, model.dtype)
    for cached_tier, gib in ((MemoryTier.HIGH, 8), (MemoryTier.MEDIUM, 5)):
        monkeypatch.setitem(estimate._peak_cache, (cached_tier, *key), round(gib * GIB / ALLOCATOR_SLACK))
    on_gpu = dataclasses.replace(model, device=torch.device("cuda"))
    assert choose_tier("auto", on_gpu, SAMPLER, GUIDANCE, gpu_share) is tier


@pytest.mark.whole
@pytest.mark.slow
@pytest.mark.parametrize(("num_frames", "gib"), [(14, 22), (25, 40)])
def test_full_size_fits_the_cards_that_it_is_meant_for(tmp_path: Path, num_frames: int, gib: int) -> None:
    with fake_full_size(tmp_path, num_frames) as fake:
        medium_bytes, low_bytes = (fake.peak(GuidanceConfig(), tier) for tier in (MemoryTier.MEDIUM, MemoryTier.LOW))
    assert fake.weights_bytes + ALLOCATOR_SLACK * medium_bytes < gib * GIB
    assert low_bytes < 12 * GIB


@pytest.mark.whole
@pytest.mark.slow
def test_lower_tiers_of_full_size_cost_what_is_stated(tmp_path: Path) -> None:
    with fake_full_size(tmp_path, num_frames=14) as fake:
        flops = [sum(fake.flops(GuidanceConfig(), tier).values()) for tier in MemoryTier]
    assert np.array(flops) / flops[0] == pytest.approx([1, 1.08, 1.21], abs=0.005)


@contextmanager
def fake_full_size(folder: Path, num_frames: int) -> Iterator[FakeModel]:
    """SVD's architecture at its own size on fake tensors."""
    checkpoint = open_checkpoint(ModelConfig(source=str(write_configs(folder, num_frames))), weights=False)
    with fake_model(checkpoint, SamplerConfig(num_frames=num_frames), torch.bfloat16) as fake:
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
