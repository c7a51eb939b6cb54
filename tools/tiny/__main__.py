"""Train the embedded checkpoint. Run the steps in this order, from the checkout:

    python -m tools.tiny vae WORK              train the autoencoder: 26 minutes on two cores; writes WORK/vae
    python -m tools.tiny latents WORK          encode the U-Net's scenes; writes WORK/checkpoint and WORK/latents
    python -m tools.tiny unet WORK             train the U-Net: 3.5 hours on two cores; writes WORK/unet
    python -m tools.tiny export WORK FOLDER    write the checkpoint and training.json to FOLDER

A step that is interrupted resumes when it is run again. The shipped FOLDER is sgi2v/tiny/checkpoint; its README.md is
written by hand. The shipped U-Net can be trained on, for example where a GPU is at hand for some minutes:

    python -m tools.tiny further WORK --minutes 5   train the shipped U-Net further; writes WORK/further
    python -m tools.tiny adopt WORK FOLDER          put the result into the checkpoint in FOLDER

`further` resumes from WORK/further/weights.safetensors alone, which has less than 16 MiB.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save

from tools.tiny.architecture import new_image_encoder, new_unet, new_vae, write_checkpoint
from tools.tiny.latents import encode_lines
from tools.tiny.train_unet import UNET_RECIPE, further_recipe, unet_task
from tools.tiny.train_vae import VAE_RECIPE, VaeTask, latent_std
from tools.tiny.training import (
    LOG_FILE,
    RECIPE_FILE,
    STATE_FILE,
    WEIGHTS_FILE,
    Progress,
    fit,
    load_trained,
    read_progress,
    write_weights,
)

NUM_LINES = 5_000
IMAGE_ENCODER_SEED = 0

DEFAULTS = {
    "sampler": {
        "height": 64,
        "width": 64,
        "num_frames": 8,
        "steps": 20,
        "max_cfg_scale": 1.0,
        "motion_bucket_id": 96,
    },
    "guidance": {"layers": [[2, 1]], "guided_range": [0.95, 0.6]},
}
"""The checkpoint's default settings. Motion bucket 96 asks for 12 px of motion, in any direction."""

TRAINING_FILE = "training.json"
"""File beside the weights: the recipes, the progress and the logs of the trainings, and the digests of the weights."""
FURTHER = "further"
"""Folder of the further training of the shipped U-Net, and its entry in that file."""
SHIPPED = Path(__file__).parents[2] / "sgi2v" / "tiny" / "checkpoint"
UNET_FILE = "unet/diffusion_pytorch_model.safetensors"
LOG_LINES = 100
"""Lines of each training's log that are kept in that file, evenly spaced."""


def export(work: Path, folder: Path) -> None:
    """Write the checkpoint that the trainings in `work` have reached, and `training.json`.

    A part whose training has not begun is written untrained.
    """
    modules = {"vae": new_vae(), "unet": new_unet()}
    history: dict[str, Any] = {}
    for name, recipe in {"vae": VAE_RECIPE, "unet": UNET_RECIPE}.items():
        if (work / name / STATE_FILE).exists():
            progress = load_trained(modules[name], work / name)
            history[name] = {"recipe": asdict(recipe), **asdict(progress), "log": _log(work / name)}
    vae = modules["vae"]
    vae.register_to_config(scaling_factor=round(1 / latent_std(vae), 4))
    torch.manual_seed(IMAGE_ENCODER_SEED)
    write_checkpoint(folder, {**modules, "image_encoder": new_image_encoder()}, DEFAULTS)
    weights = sorted(folder.rglob("*.safetensors"))
    digests = {file.relative_to(folder).as_posix(): sha256(file.read_bytes()).hexdigest() for file in weights}
    training = {"lines": NUM_LINES, "torch": torch.__version__, "sha256": digests, **history}
    (folder / TRAINING_FILE).write_text(json.dumps(training, indent=1) + "\n")


def train_further(
    work: Path, latents: Path, lines: int, processes: int | None = None, minutes: float | None = None
) -> None:
    """Train the shipped U-Net on, in `work`/further. Encodes the scenes that `latents` lacks first.

    minutes: time for all of it; None trains to the end of the recipe.
    """
    end = None if minutes is None else time.monotonic() + 60 * minutes
    folder = work / FURTHER
    if not any((folder / name).exists() for name in (STATE_FILE, WEIGHTS_FILE)):
        folder.mkdir(parents=True, exist_ok=True)
        write_weights(folder / WEIGHTS_FILE, load_file(SHIPPED / UNET_FILE), Progress())
    encode_lines(SHIPPED, latents, lines, processes)
    recipe = further_recipe(on_gpu=torch.cuda.is_available())
    left_s = None if end is None else max(1.0, end - time.monotonic())
    fit(unet_task(latents, SHIPPED), recipe, folder, processes, left_s)


def adopt(work: Path, checkpoint: Path) -> None:
    """Replace a checkpoint's U-Net by the one in `work`/further, and say so in its `training.json`."""
    folder, unet_file = work / FURTHER, checkpoint / UNET_FILE
    unet_file.write_bytes(save(load_file(folder / WEIGHTS_FILE), {"format": "pt"}))
    training = json.loads((checkpoint / TRAINING_FILE).read_text())
    training["sha256"][UNET_FILE] = sha256(unet_file.read_bytes()).hexdigest()
    recipe = json.loads((folder / RECIPE_FILE).read_text())
    training[FURTHER] = {"recipe": recipe, **asdict(read_progress(folder / WEIGHTS_FILE)), "log": _log(folder)}
    (checkpoint / TRAINING_FILE).write_text(json.dumps(training, indent=1) + "\n")


def _log(folder: Path) -> list[dict[str, float]]:
    """Evenly spaced lines of a training's log."""
    lines = (folder / LOG_FILE).read_text().splitlines()
    chosen = np.linspace(0, len(lines) - 1, min(len(lines), LOG_LINES)).round().astype(int)
    return [json.loads(lines[at]) for at in chosen]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.tiny", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=["vae", "latents", "unet", "export", "further", "adopt"], help="step to run")
    parser.add_argument("work", type=Path, metavar="WORK", help="folder for the state of the trainings")
    parser.add_argument("checkpoint", type=Path, nargs="?", metavar="FOLDER", help="folder of a checkpoint to write")
    parser.add_argument(
        "--processes", type=int, metavar="N", help="processes to use; default: one per CPU core, or one on CUDA"
    )
    parser.add_argument("--minutes", type=float, metavar="N", help="time of `further`; default: to its recipe's end")
    parser.add_argument("--lines", type=int, default=NUM_LINES, metavar="N", help="scenes that `further` trains on")
    parser.add_argument(
        "--latents", type=Path, metavar="DIR", help="folder of its encoded scenes; default: WORK/latents"
    )
    options = parser.parse_args()
    work: Path = options.work
    if options.step in ("export", "adopt") and options.checkpoint is None:
        parser.error(f"{options.step} needs FOLDER: the folder to write the checkpoint to")
    match options.step:
        case "vae":
            fit(VaeTask, VAE_RECIPE, work / "vae", options.processes)
        case "latents":
            export(work, work / "checkpoint")
            encode_lines(work / "checkpoint", work / "latents", NUM_LINES, options.processes)
        case "unet":
            fit(unet_task(work / "latents", work / "checkpoint"), UNET_RECIPE, work / "unet", options.processes)
        case "export":
            export(work, options.checkpoint)
        case "further":
            latents = options.latents or work / "latents"
            train_further(work, latents, options.lines, options.processes, options.minutes)
        case "adopt":
            adopt(work, options.checkpoint)


if __name__ == "__main__":
    main()
