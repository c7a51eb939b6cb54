"""generate(): what it returns, what does not change its frames, and its errors."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from sgi2v.config import GuidanceConfig, MemoryTier, SamplerConfig
from sgi2v.errors import ConfigError, ErrorCode, SampleError, TrajectoryError
from sgi2v.generate import generate
from sgi2v.model import VideoModel
from sgi2v.trajectory import BoxTracks

SAMPLER = SamplerConfig(height=64, width=128, num_frames=4, steps=5)
GUIDANCE = GuidanceConfig(iterations=2)


def tracks(frames: int = 4, scale: float = 1.0) -> BoxTracks:
    path = [np.array([[0.0, 0.0], [40.0, 8.0]]) * scale]
    return BoxTracks.from_paths(np.array([[16.0, 16, 56, 48]]) * scale, path, frames, int(64 * scale), int(128 * scale))


@pytest.mark.slow
def test_shapes_types_and_telemetry_of_a_generation(model: VideoModel, photograph: NDArray[np.uint8]) -> None:
    generation = generate(model, photograph, tracks(), SAMPLER, GUIDANCE, seed=1)
    assert generation.frames.shape == (4, 64, 128, 3)
    assert generation.frames.dtype == np.uint8
    assert generation.latents.shape == (4, 4, 8, 16)
    assert generation.losses.shape == (len(GUIDANCE.step_indices(5)), 2)
    assert np.isfinite(generation.losses).all()
    assert set(generation.seconds) == {"encode", "guide", "denoise", "decode"}
    assert all(seconds > 0 for seconds in generation.seconds.values())
    assert generation.latent_drift > 0
    assert generation.peak_gpu_bytes is None


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bits_after_other_samples(
    model: VideoModel, photograph: NDArray[np.uint8]
) -> None:
    first = generate(model, photograph, tracks(), SAMPLER, GUIDANCE, seed=1)
    other = generate(model, photograph[::-1].copy(), None, SAMPLER, GUIDANCE, seed=2)
    again = generate(model, Image.fromarray(photograph), tracks(), SAMPLER, GUIDANCE, seed=1)
    assert np.array_equal(first.frames, again.frames)
    assert np.array_equal(first.losses, again.losses)
    assert not np.array_equal(first.frames, other.frames)


@pytest.mark.slow
def test_without_guidance_tracks_or_boxes_it_is_plain_svd(model: VideoModel, photograph: NDArray[np.uint8]) -> None:
    plain = generate(model, photograph, tracks(), SAMPLER, None, seed=3)
    no_boxes = BoxTracks(np.zeros((0, 4, 4)), 64, 128)
    for absent in (None, no_boxes):
        assert np.array_equal(plain.frames, generate(model, photograph, absent, SAMPLER, GUIDANCE, seed=3).frames)
    assert plain.losses.size == 0
    assert plain.seconds["guide"] == 0
    guided = generate(model, photograph, tracks(), SAMPLER, GUIDANCE, seed=3)
    assert not np.allclose(plain.latents, guided.latents)


@pytest.mark.slow
def test_tracks_of_another_size_and_length_are_rescaled_and_resampled(
    model: VideoModel, photograph: NDArray[np.uint8]
) -> None:
    own = generate(model, photograph, tracks(), SAMPLER, GUIDANCE)
    resampled = generate(model, photograph, tracks(frames=7, scale=2), SAMPLER, GUIDANCE)
    assert np.array_equal(own.frames, resampled.frames)


@pytest.mark.slow
def test_a_mask_guides_by_the_object_alone_and_a_whole_one_changes_nothing(
    model: VideoModel, photograph: NDArray[np.uint8]
) -> None:
    own = generate(model, photograph, tracks(), SAMPLER, GUIDANCE)
    whole = dataclasses.replace(tracks(frames=7, scale=2), masks_NHW=np.ones((1, 9, 9), bool))
    assert np.array_equal(own.frames, generate(model, photograph, whole, SAMPLER, GUIDANCE).frames)
    half = np.zeros((1, 64, 128), bool)
    half[:, :, :30] = True
    masked = generate(model, photograph, dataclasses.replace(tracks(), masks_NHW=half), SAMPLER, GUIDANCE)
    assert masked.is_guided
    assert not np.array_equal(own.latents, masked.latents)


@pytest.mark.whole
def test_holding_the_rest_makes_another_video_and_the_same_one_in_the_lowest_memory_tier(
    model: VideoModel, photograph: NDArray[np.uint8]
) -> None:
    paper = generate(model, photograph, tracks(), SAMPLER, GUIDANCE)
    held = GUIDANCE.replace(hold_rest=True)
    videos = [generate(model, photograph, tracks(), SAMPLER, held, memory=MemoryTier(tier)) for tier in ("high", "low")]
    assert not np.array_equal(videos[0].latents, paper.latents)
    assert np.array_equal(videos[0].frames, videos[1].frames)
    camera = dataclasses.replace(tracks(), boxes_NT4=tracks().boxes_NT4 * [0.0, 0, 2.5, 1.5])
    assert np.array_equal(*(generate(model, photograph, camera, SAMPLER, each).frames for each in (GUIDANCE, held)))


def test_the_checkpoints_own_settings_are_the_default(model: VideoModel, photograph: NDArray[np.uint8]) -> None:
    own = {"sampler": {"height": 64, "width": 64, "num_frames": 3, "steps": 2}}
    with_defaults = dataclasses.replace(model, checkpoint=dataclasses.replace(model.checkpoint, defaults=own))
    assert generate(with_defaults, photograph, None).frames.shape == (3, 64, 64, 3)


@pytest.mark.slow
def test_boxes_that_leave_after_frame_0_guide_nothing(model: VideoModel, photograph: NDArray[np.uint8]) -> None:
    gone = BoxTracks.from_paths(np.array([[16.0, 16, 56, 48]]), [np.array([[0.0, 0.0], [900.0, 0.0]])], 2, 64, 128)
    sampler = SAMPLER.replace(num_frames=2)
    unguided = generate(model, photograph, gone, sampler, GUIDANCE)
    assert not unguided.is_guided
    assert not unguided.losses.any()
    assert np.array_equal(unguided.frames, generate(model, photograph, None, sampler, None).frames)
    assert generate(model, photograph, tracks(), SAMPLER, GUIDANCE).is_guided


def test_guided_steps_beyond_the_schedule_are_an_error(model: VideoModel, photograph: NDArray[np.uint8]) -> None:
    with pytest.raises(ConfigError, match=r"\[7\].*last of 5 steps"):
        generate(model, photograph, tracks(), SAMPLER, GuidanceConfig(guided_steps=(2, 7)))


def test_the_error_for_an_invalid_size_names_the_nearest(model: VideoModel, photograph: NDArray[np.uint8]) -> None:
    with pytest.raises(ConfigError, match="64 x 128"):
        generate(model, photograph, None, SamplerConfig(height=70, width=100, num_frames=4, steps=2))


def test_a_box_outside_the_first_frame_is_an_error(model: VideoModel, photograph: NDArray[np.uint8]) -> None:
    outside = BoxTracks(np.full((1, 4, 4), [130.0, 10, 150, 30]), 64, 128)
    with pytest.raises(TrajectoryError) as caught:
        generate(model, photograph, outside, SAMPLER, GUIDANCE)
    assert caught.value.code is ErrorCode.BOX_OUTSIDE


@pytest.mark.slow
def test_diverging_latents_are_an_error_of_the_sample(model: VideoModel, photograph: NDArray[np.uint8]) -> None:
    with pytest.raises(SampleError) as caught:
        generate(model, photograph, tracks(), SAMPLER, GuidanceConfig(learning_rate=1e30))
    assert caught.value.code is ErrorCode.GUIDANCE_DIVERGED
