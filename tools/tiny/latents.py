"""The U-Net's training data: scenes that are rendered and encoded once.

A line is one scene at 16 evenly spaced times. Any 8 evenly spaced frames of it, forwards or backwards, make a training
video: one encoding gives many starts, speeds and directions.

Axes: M lines, L frames of a line, C latent channels, h w latent cells, D embedding.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from sgi2v.model import VideoModel, embed_image, load_model
from tools.tiny.training import in_processes, print_progress
from tools.tiny.world import draw_scene

LINE_FRAMES = 16
WORLD_SEED = 200
"""Seed of the U-Net's scenes. The autoencoder's scenes and the held-out ones have other seeds."""


class Lines:
    """Encoded lines on disk, as memory maps that several processes fill."""

    def __init__(self, folder: Path, mode: Any = "r") -> None:
        self.latents: NDArray[np.float16] = np.load(folder / "latents_MLChw.npy", mmap_mode=mode)
        """Means of the posterior, unscaled, [M, L, C, h, w]."""
        self.embeddings: NDArray[np.float16] = np.load(folder / "embeddings_MLD.npy", mmap_mode=mode)
        """Outputs of the image encoder, [M, L, D]."""
        self.displacements: NDArray[np.float32] = np.load(folder / "displacements_M.npy", mmap_mode=mode)
        """Displacement from a line's first frame to its last, pixels; NaN for a line that is not encoded yet."""


def encode_lines(checkpoint: Path, folder: Path, count: int, processes: int | None = None) -> None:
    """Encode scenes 0 .. count - 1 with the autoencoder and the image encoder of a checkpoint.

    Writes `latents_MLChw.npy`, `embeddings_MLD.npy` and `displacements_M.npy` to `folder`. After an interruption it
    encodes only the lines that are missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "displacements_M.npy").exists():
        _new_array(folder / "latents_MLChw.npy", np.float16, (count, LINE_FRAMES, 4, 16, 16))
        _new_array(folder / "embeddings_MLD.npy", np.float16, (count, LINE_FRAMES, 32))
        _new_array(folder / "displacements_M.npy", np.float32, (count,))[:] = np.nan
    in_processes(_encode, (checkpoint, folder), processes)


def _new_array(file: Path, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    return open_memmap(file, mode="w+", dtype=dtype, shape=shape)


def _encode(rank: int, processes: int, checkpoint: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    model = load_model(str(checkpoint))
    lines = Lines(folder, "r+")
    missing = [m for m in range(rank, len(lines.latents), processes) if np.isnan(lines.displacements[m])]
    started = time.monotonic()
    for done, m in enumerate(missing):
        lines.latents[m], lines.embeddings[m], lines.displacements[m] = encode_line(model, m)
        if rank == 0 and done % 50 == 49:
            rate = (done + 1) / (time.monotonic() - started)
            print_progress(f"{m + 1} of {len(lines.latents)} lines, {(len(missing) - done) / rate / 60:.0f} min left")


@torch.no_grad()
def encode_line(
    model: VideoModel, m: int, mixed_precision: bool = True
) -> tuple[NDArray[np.float16], NDArray[np.float16], np.float32]:
    """Latents [L, C, h, w], embeddings [L, D] and displacement of scene m, in the types of `Lines`.

    mixed_precision: encode in bfloat16, as for the training. Slow on a CPU that has no bfloat16 arithmetic.
    """
    scene = draw_scene(WORLD_SEED, m)
    frames_LHWC = scene.render(np.linspace(0, 1, LINE_FRAMES))
    pixels_LCHW = torch.from_numpy(frames_LHWC).permute(0, 3, 1, 2).to(model.device).float() / 127.5 - 1
    with torch.autocast(model.device.type, torch.bfloat16, enabled=mixed_precision):
        latents_LChw = model.vae.encode(pixels_LCHW).latent_dist.mode()
    latents, embeddings = (part.float().cpu().numpy() for part in (latents_LChw, embed_image(model, pixels_LCHW)))
    return latents.astype(np.float16), embeddings.astype(np.float16), np.float32(scene.displacement)
