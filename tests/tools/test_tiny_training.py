"""Training of the embedded checkpoint: it learns, it resumes, and it starts by passing colours through."""

from __future__ import annotations

import json
import shutil
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sgi2v.attention import LARGEST_BATCH
from sgi2v.errors import ConfigError
from tools.tiny import training
from tools.tiny.__main__ import FURTHER, SHIPPED, TRAINING_FILE, UNET_FILE, adopt
from tools.tiny.architecture import LATENT_CHANNELS, new_unet, new_vae
from tools.tiny.latents import LINE_FRAMES, _rendered_beside
from tools.tiny.train_unet import draw_frames, further_recipe
from tools.tiny.train_vae import VaeTask
from tools.tiny.training import Progress, Recipe, fit, load_trained, read_progress
from tools.tiny.world import draw_scene

RECIPE = Recipe(samples=1024, batch=8, learning_rate=0.1, warm_up=1, weight_decay=0.0)


class LineTask:
    """Fit the line y = 2 x + 1."""

    def __init__(self, device: torch.device) -> None:
        self.module = nn.Linear(1, 1, device=device)

    def loss(self, batch: int, seed: tuple[int, ...]) -> tuple[Tensor, dict[str, float]]:
        x_B1 = torch.from_numpy(np.random.default_rng(seed).normal(size=(batch, 1))).float()
        error_B1 = self.module(x_B1) - (2 * x_B1 + 1)
        return (error_B1**2).mean(), {"batch": batch}


class KilledError(Exception):
    """Ends a training half-way."""


class KilledTask(LineTask):
    """The same task, which ends the training after half of the samples."""

    def loss(self, batch: int, seed: tuple[int, ...]) -> tuple[Tensor, dict[str, float]]:
        if seed[1] == RECIPE.samples // RECIPE.batch // 2:
            raise KilledError
        return super().loss(batch, seed)


def weights(folder: Path) -> Tensor:
    module = nn.Linear(1, 1)
    load_trained(module, folder)
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def train_here(task: type[LineTask], folder: Path, port: int) -> None:
    """Train in this process."""
    folder.mkdir(exist_ok=True)
    training.train_worker(0, 1, port, task, RECIPE, folder)


@pytest.mark.whole
@pytest.mark.slow
def test_several_processes_learn_and_write_a_log(tmp_path: Path) -> None:
    fit(LineTask, RECIPE, tmp_path, processes=2)
    assert torch.allclose(weights(tmp_path), torch.tensor([2.0, 1.0]), atol=0.1)
    lines = [json.loads(line) for line in (tmp_path / training.LOG_FILE).read_text().splitlines()]
    assert lines[-1]["samples"] == RECIPE.samples
    assert lines[-1]["batch"] == RECIPE.batch // 2
    assert lines[-1]["loss"] < 0.1 * lines[0]["loss"]


@pytest.mark.slow
def test_a_killed_training_resumes_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_ports: list[int]
) -> None:
    monkeypatch.setattr(training, "SAVE_EVERY_S", 0.0)
    train_here(LineTask, tmp_path / "whole", free_ports[0])
    with pytest.raises(KilledError):
        train_here(KilledTask, tmp_path / "resumed", free_ports[1])
    assert not torch.equal(weights(tmp_path / "resumed"), weights(tmp_path / "whole"))
    train_here(LineTask, tmp_path / "resumed", free_ports[2])
    assert torch.equal(weights(tmp_path / "resumed"), weights(tmp_path / "whole"))


@pytest.mark.slow
def test_a_training_resumes_from_its_small_file_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free_ports: list[int]
) -> None:
    monkeypatch.setattr(training, "SAVE_EVERY_S", 0.0)
    with pytest.raises(KilledError):
        train_here(KilledTask, tmp_path, free_ports[0])
    (tmp_path / training.STATE_FILE).unlink()
    assert read_progress(tmp_path / training.WEIGHTS_FILE).samples == RECIPE.samples // 2
    train_here(LineTask, tmp_path, free_ports[1])
    assert read_progress(tmp_path / training.WEIGHTS_FILE).samples == RECIPE.samples
    assert torch.allclose(weights(tmp_path), torch.tensor([2.0, 1.0]), atol=0.1)


@pytest.mark.slow
def test_a_training_ends_with_its_time_and_saves_its_state(tmp_path: Path, free_ports: list[int]) -> None:
    training.train_worker(0, 1, free_ports[0], LineTask, RECIPE, tmp_path, limit_s=1e-9)
    assert read_progress(tmp_path / training.WEIGHTS_FILE).samples == RECIPE.batch
    assert (tmp_path / training.STATE_FILE).exists()


def test_further_training_becomes_the_checkpoints_unet(tmp_path: Path) -> None:
    checkpoint, work = tmp_path / "checkpoint", tmp_path / "work"
    shutil.copytree(SHIPPED, checkpoint)
    folder = work / FURTHER
    folder.mkdir(parents=True)
    trained = {name: weight + 1 for name, weight in load_file(SHIPPED / UNET_FILE).items()}
    training.write_weights(folder / training.WEIGHTS_FILE, trained, Progress(samples=512, seconds=3.5))
    assert (folder / training.WEIGHTS_FILE).stat().st_size < 16 << 20
    (folder / training.RECIPE_FILE).write_text(json.dumps({"samples": 1024}))
    (folder / training.LOG_FILE).write_text('{"samples": 512, "loss": 0.05}\n')
    adopt(work, checkpoint)
    adopted = load_file(checkpoint / UNET_FILE)
    assert all(torch.equal(adopted[name], weight) for name, weight in trained.items())
    recorded = json.loads((checkpoint / TRAINING_FILE).read_text())
    assert recorded["sha256"][UNET_FILE] == sha256((checkpoint / UNET_FILE).read_bytes()).hexdigest()
    assert recorded[FURTHER] == {
        "recipe": {"samples": 1024},
        "samples": 512,
        "seconds": 3.5,
        "log": [{"samples": 512, "loss": 0.05}],
    }


def test_attention_over_frames_of_a_batch_fits_into_cudas_grid() -> None:
    side = json.loads((SHIPPED / "unet" / "config.json").read_text())["sample_size"]
    assert further_recipe(on_gpu=True).batch * side**2 <= LARGEST_BATCH


def test_a_gpu_renders_nothing_where_all_lines_are_encoded() -> None:
    assert list(_rendered_beside([])) == []


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), False), ((8, 0), True)])
def test_a_gpu_before_2020_trains_in_float32(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert training.has_bfloat16(torch.device("cuda")) is expected


def test_a_training_with_another_recipe_is_refused(tmp_path: Path) -> None:
    (tmp_path / "recipe.json").write_text("{}\n")
    with pytest.raises(ConfigError, match="another recipe"):
        fit(LineTask, RECIPE, tmp_path, processes=1)


def test_the_learning_rate_rises_holds_and_falls_to_zero() -> None:
    recipe = Recipe(samples=10_000, batch=10, learning_rate=1.0, warm_up=100, decay=0.5)
    rates = [recipe.rate_at(samples) for samples in (0, 990, 5000, 7500, 10_000)]
    assert rates == pytest.approx([0.01, 1.0, 1.0, 0.5, 0.0])


@pytest.mark.slow
@torch.no_grad()
def test_untrained_parts_pass_colours_through() -> None:
    torch.manual_seed(0)
    vae = new_vae()
    frames_MHWC = np.concatenate([draw_scene(7, index).render(np.zeros(1)) for index in range(4)])
    pixels_MCHW = torch.from_numpy(frames_MHWC).permute(0, 3, 1, 2).float() / 127.5 - 1
    latents_MChw = vae.encode(pixels_MCHW).latent_dist.mode()
    decoded_MCHW = vae.decode(latents_MChw, num_frames=len(latents_MChw)).sample
    assert 0.5 < latents_MChw.std() < 2
    mean_error_MC = (decoded_MCHW - pixels_MCHW).mean(dim=(2, 3))
    assert mean_error_MC.square().mean().sqrt() < 0.5 * pixels_MCHW.mean(dim=(2, 3)).std()

    unet = new_unet()
    first_BTChw = latents_MChw[:1, None].expand(1, 8, LATENT_CHANNELS, 16, 16)
    inputs = torch.cat([torch.randn(first_BTChw.shape), first_BTChw], dim=2)
    velocity = unet(inputs, torch.zeros(1), torch.zeros(1, 1, 32), torch.zeros(1, 3)).sample
    assert (velocity + first_BTChw).square().mean() < 0.2 * first_BTChw.square().mean()


@pytest.mark.whole
@pytest.mark.slow
def test_the_autoencoders_loss_decreases() -> None:
    torch.manual_seed(0)
    task = VaeTask(torch.device("cpu"), mixed_precision=False)
    optimizer = torch.optim.AdamW(task.module.parameters(), lr=5e-5)
    losses = []
    for _ in range(4):
        loss, figures = task.loss(4, (1, 2, 3))
        losses.append(float(loss.detach()))
        assert 5 < figures["psnr_db"] < 40
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    assert losses[-1] < losses[0]


def test_videos_are_evenly_spaced_frames_of_their_line() -> None:
    rng = np.random.default_rng(0)
    drawn = [draw_frames(rng) for _ in range(300)]
    steps = [np.unique(np.diff(frames_T)) for frames_T in drawn]
    assert all(len(step) == 1 for step in steps)
    assert {int(step[0]) for step in steps} == {-2, -1, 0, 1, 2}
    assert all(frames_T.min() >= 0 and frames_T.max() < LINE_FRAMES for frames_T in drawn)
