"""The embedded checkpoint, and our sampling against the stock pipeline's on it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from sgi2v import tiny
from sgi2v.generate import generate
from sgi2v.model import VideoModel, load_model
from sgi2v.tiny.architecture import build_random
from sgi2v.trajectory import BoxTracks

CHECKPOINT = Path(tiny.__file__).parent / "checkpoint"


@pytest.fixture(scope="module")
def embedded() -> VideoModel:
    return load_model("embedded", device="cpu")


@pytest.fixture(scope="module")
def pattern() -> NDArray[np.uint8]:
    """[64, 64, 3]: a striped square on a gradient."""
    y, x = np.mgrid[:64, :64]
    image_HWC = np.stack([x * 3, y * 2 + 60, 200 - x - y], axis=-1)
    image_HWC[20:44, 16:40] = np.where((x + y)[20:44, 16:40, None] // 5 % 2, [230, 90, 40], [250, 220, 120])
    return image_HWC.astype(np.uint8)


@pytest.mark.parametrize(("seed", "max_cfg_scale", "decode_chunk_size"), [(3, 3.0, 8), (4, 1.5, 3), (5, 1.0, 8)])
def test_generates_what_the_stock_pipeline_does(
    embedded: VideoModel, pattern: NDArray[np.uint8], seed: int, max_cfg_scale: float, decode_chunk_size: int
) -> None:
    from diffusers import StableVideoDiffusionPipeline

    pipeline = StableVideoDiffusionPipeline.from_pretrained(str(CHECKPOINT), torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    sampler = dataclasses.replace(
        embedded.checkpoint.sampler(), steps=6, max_cfg_scale=max_cfg_scale, decode_chunk_size=decode_chunk_size
    )
    stock_THWC = pipeline(
        Image.fromarray(pattern),
        height=sampler.height,
        width=sampler.width,
        num_frames=sampler.num_frames,
        num_inference_steps=sampler.steps,
        max_guidance_scale=max_cfg_scale,
        decode_chunk_size=decode_chunk_size,
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type="np",
    ).frames[0]
    ours_THWC = generate(embedded, pattern, tracks=None, sampler=sampler, guidance=None, seed=seed).frames
    # our frames are rounded to the nearest level, which alone makes half of one
    assert np.abs(ours_THWC - stock_THWC * 255.0).max() < 0.51


def test_its_own_settings_guide_and_give_a_video_worth_tracking(
    embedded: VideoModel, pattern: NDArray[np.uint8]
) -> None:
    path = np.array([[28.0, 32.0], [40.0, 32.0]])
    tracks = BoxTracks.from_paths(np.array([[16.0, 20.0, 40.0, 44.0]]), [path], 8, 64, 64)
    guidance = embedded.checkpoint.guidance()
    generation = generate(embedded, pattern, tracks, guidance=guidance, seed=1)
    frames = generation.frames.astype(np.float64)
    assert generation.frames.shape == (8, 64, 64, 3)
    assert generation.losses.shape == (len(guidance.step_indices(12)), guidance.iterations)
    assert (generation.losses[-1, -1] < 0.8 * generation.losses[:, 0]).all()
    assert (frames.std(axis=(1, 2, 3)) > 30).all()
    assert ((frames == 0) | (frames == 255)).mean() < 0.05
    assert np.abs(np.diff(frames, axis=0)).mean() < 12


def test_is_what_its_recipe_builds(tmp_path: Path) -> None:
    build_random(tmp_path)
    built = {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file()}
    shipped = {file.relative_to(CHECKPOINT).as_posix() for file in CHECKPOINT.rglob("*") if file.is_file()}
    assert shipped == built | {"README.md"}
    for name in built:
        if name.endswith(".safetensors"):
            _assert_same_weights(CHECKPOINT / name, tmp_path / name)


def _assert_same_weights(one: Path, other: Path) -> None:
    """To within what another release's matrix factorisation may round otherwise."""
    from safetensors.torch import load_file

    ones, others = load_file(one), load_file(other)
    assert ones.keys() == others.keys()
    for name, weight in ones.items():
        torch.testing.assert_close(weight, others[name], rtol=2e-3, atol=1e-4)


def test_is_small() -> None:
    assert sum(file.stat().st_size for file in CHECKPOINT.rglob("*") if file.is_file()) <= 40e6
