"""The embedded checkpoint: its files match their recipe, and sampling on it matches diffusers' own pipeline."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from functools import cache, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file

from sgi2v.generate import generate
from sgi2v.metrics.objmc import motion_fidelity
from sgi2v.metrics.quality import sample_quality
from sgi2v.model import VideoModel, load_model
from sgi2v.tracking.lucas_kanade import LucasKanade
from tests.benchmarks.embedded_vae import reconstruct
from tests.benchmarks.held_out import TIMES_T, Split, draw_held_out, find_object
from tools import tiny
from tools.tiny import train_unet
from tools.tiny.__main__ import DEFAULTS, IMAGE_ENCODER_SEED, NUM_LINES, TRAINING_FILE
from tools.tiny.architecture import new_image_encoder, new_unet, new_vae, write_checkpoint
from tools.tiny.latents import encode_line
from tools.tiny.train_unet import UNET_RECIPE, UnetTask
from tools.tiny.train_vae import VAE_RECIPE, VaeTask
from tools.tiny.training import Recipe, Task
from tools.tiny.world import SpriteSet, draw_scene

CHECKPOINT = Path(tiny.__file__).parents[2] / "sgi2v" / "tiny" / "checkpoint"
UNET_FILE, VAE_FILE = (CHECKPOINT / name / "diffusion_pytorch_model.safetensors" for name in ("unet", "vae"))
PROCESSES = 2
"""Processes of the training. Each drew half of every batch, and the first wrote the log."""


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "max_cfg_scale", "decode_chunk_size"), [(4, 1.5, 3), pytest.param(5, 1.0, 8, marks=pytest.mark.whole)]
)
def test_unguided_frames_match_diffusers_pipeline(
    embedded: VideoModel, pattern: NDArray[np.uint8], seed: int, max_cfg_scale: float, decode_chunk_size: int
) -> None:
    from diffusers import StableVideoDiffusionPipeline

    pipeline = StableVideoDiffusionPipeline.from_pretrained(str(CHECKPOINT), torch_dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    sampler = embedded.checkpoint.sampler().replace(
        steps=4, max_cfg_scale=max_cfg_scale, decode_chunk_size=decode_chunk_size
    )
    stock_THWC = pipeline(
        Image.fromarray(pattern),
        height=sampler.height,
        width=sampler.width,
        num_frames=sampler.num_frames,
        num_inference_steps=sampler.steps,
        max_guidance_scale=max_cfg_scale,
        motion_bucket_id=sampler.motion_bucket_id,
        decode_chunk_size=decode_chunk_size,
        generator=torch.Generator("cpu").manual_seed(seed),
        output_type="np",
    ).frames[0]
    ours_THWC = generate(embedded, pattern, tracks=None, sampler=sampler, guidance=None, seed=seed).frames
    # our frames are rounded to whole levels, which alone differs by up to 0.5
    assert np.abs(ours_THWC - stock_THWC * 255.0).max() < 0.51


@pytest.mark.whole
def test_its_default_settings_move_an_object_along_its_path(embedded: VideoModel) -> None:
    """The bounds hold for this picture and seed.

    The projection is 0.97 guided and -0.11 unguided, the control gain 0.87 and -0.40.
    """
    sampler, guidance = embedded.checkpoint.sampler(), embedded.checkpoint.guidance()
    sample = draw_held_out(Split.DEV, 7)
    guided = generate(embedded, sample.image, sample.tracks, guidance=guidance, seed=7)
    unguided = generate(embedded, sample.image, None, seed=7)
    assert guided.frames.shape == (8, 64, 64, 3)
    assert guided.losses.shape == (len(guidance.step_indices(sampler.steps)), guidance.iterations)
    assert (guided.losses[:, -1] < guided.losses[:, 0]).all()
    quality = sample_quality(guided.frames, sample.image)
    assert quality.first_frame_psnr_db is not None
    assert quality.first_frame_psnr_db > 22
    projections = [sample.projection(find_object(each.frames, sample.mask_HW)) for each in (guided, unguided)]
    assert projections[0] > 0.8
    assert projections[1] < 0.2
    gains = [motion_fidelity(each.frames, sample.tracks, LucasKanade()).control_gain for each in (guided, unguided)]
    assert gains[0] is not None
    assert gains[1] is not None
    assert gains[0] > 0.7
    assert gains[1] < 0


class LazyLines:
    """The lines of the U-Net's training data. Each is encoded when it is first read."""

    def __init__(self, model: VideoModel) -> None:
        encode = cache(partial(encode_line, model, mixed_precision=False))
        self.latents, self.embeddings, self.displacements = (
            LazyArray(lambda m, part=part: encode(m)[part]) for part in range(3)
        )


@dataclasses.dataclass
class LazyArray:
    """One array of the lines, indexed by line."""

    read: Callable[[int], Any]

    def __len__(self) -> int:
        return NUM_LINES

    def __getitem__(self, m: int) -> Any:
        return self.read(int(m))


def _training() -> dict[str, Any]:
    """Recipes, logs and digests that ship with the checkpoint."""
    training: dict[str, Any] = json.loads((CHECKPOINT / TRAINING_FILE).read_text())
    return training


def _loss(task: Task, recipe: Recipe, step: int) -> float:
    """The loss of the training's first process at this step, in float32: bfloat16 is slow on many CPUs."""
    with torch.no_grad():
        return float(task.loss(recipe.batch // PROCESSES, (recipe.seed, step, 0))[0])


def test_training_file_matches_recipes_and_weights() -> None:
    training = _training()
    for name, recipe in {"vae": VAE_RECIPE, "unet": UNET_RECIPE}.items():
        assert training[name]["recipe"] == dataclasses.asdict(recipe)
        assert training[name]["samples"] == recipe.samples
        losses = [line["loss"] for line in training[name]["log"]]
        assert np.mean(losses[-5:]) < 0.5 * losses[0]
    assert training["lines"] == NUM_LINES
    weights = {file.relative_to(CHECKPOINT).as_posix(): file for file in CHECKPOINT.rglob("*.safetensors")}
    assert training["sha256"] == {name: sha256(file.read_bytes()).hexdigest() for name, file in weights.items()}


def test_image_encoder_is_drawn_from_its_seed() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(IMAGE_ENCODER_SEED)
        drawn = new_image_encoder().to(torch.float16).state_dict()
    shipped = load_file(CHECKPOINT / "image_encoder" / "model.safetensors")
    assert drawn.keys() == shipped.keys()
    assert all(torch.equal(drawn[name], weight) for name, weight in shipped.items())


@pytest.mark.whole
def test_autoencoder_losses_match_the_start_and_the_end_of_its_log() -> None:
    """The shipped weights have a loss of 0.0014 on the last two batches. Halfway through, the log has 0.005."""
    log = _training()["vae"]["log"]
    with torch.random.fork_rng():
        torch.manual_seed(VAE_RECIPE.seed)
        task = VaeTask(torch.device("cpu"), mixed_precision=False)
    assert log[0]["samples"] == VAE_RECIPE.batch
    assert _loss(task, VAE_RECIPE, 0) == pytest.approx(log[0]["loss"], rel=1e-2)

    task.module.load_state_dict(load_file(VAE_FILE))
    steps = VAE_RECIPE.samples // VAE_RECIPE.batch
    last = np.mean([_loss(task, VAE_RECIPE, step) for step in (steps - 2, steps - 1)])
    assert last == pytest.approx(np.mean([line["loss"] for line in log[-5:]]), rel=0.2)


@pytest.mark.whole
@pytest.mark.slow
def test_unet_losses_match_the_start_and_the_end_of_its_log(
    embedded: VideoModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The shipped weights have a loss of 0.050 on the last batch, and untrained weights 0.93 on such batches.

    The log's last ten lines have 0.072, and halfway through the training it has 0.097.
    """
    monkeypatch.setattr(train_unet, "Lines", lambda folder: LazyLines(embedded))
    monkeypatch.setattr(shutil, "which", lambda name: None)  # do not compile: it takes longer than these batches
    log = _training()["unet"]["log"]
    with torch.random.fork_rng():
        torch.manual_seed(UNET_RECIPE.seed)
        task = UnetTask(Path(), embedded.vae.config.scaling_factor, torch.device("cpu"), mixed_precision=False)
    assert log[0]["samples"] == UNET_RECIPE.batch
    assert _loss(task, UNET_RECIPE, 0) == pytest.approx(log[0]["loss"], rel=1e-2)

    task.module.load_state_dict(load_file(UNET_FILE))
    steps = UNET_RECIPE.samples // UNET_RECIPE.batch
    assert _loss(task, UNET_RECIPE, steps - 1) < 0.9 * np.mean([line["loss"] for line in log[-10:]])


def test_files_and_shapes_match_the_architecture(tmp_path: Path) -> None:
    parts = {"vae": new_vae(), "unet": new_unet(), "image_encoder": new_image_encoder()}
    write_checkpoint(tmp_path, parts, DEFAULTS)
    built = {file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*") if file.is_file()}
    shipped = {file.relative_to(CHECKPOINT).as_posix() for file in CHECKPOINT.rglob("*") if file.is_file()}
    assert shipped == built | {"README.md", TRAINING_FILE}
    for name in sorted(built):
        if name.endswith(".safetensors"):
            assert _shapes(CHECKPOINT / name) == _shapes(tmp_path / name)
        elif name != "vae/config.json":  # has the scaling factor, which depends on the trained weights
            assert json.loads((CHECKPOINT / name).read_text()) == json.loads((tmp_path / name).read_text())


def _shapes(file: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    return {name: (weight.shape, weight.dtype) for name, weight in load_file(file).items()}


@pytest.mark.slow
def test_autoencoder_reconstructs_held_out_pictures(embedded: VideoModel) -> None:
    for index in range(3):
        frames_THWC = draw_scene(Split.TEST, index, sprite_set=SpriteSet.ANY).render(TIMES_T[::3])
        square = ((reconstruct(embedded, frames_THWC) - frames_THWC) ** 2).mean()
        assert 10 * np.log10(255**2 / square) > 30


def test_checkpoint_is_small() -> None:
    assert sum(file.stat().st_size for file in CHECKPOINT.rglob("*") if file.is_file()) <= 40e6
