"""The U-Net's data: lines of motion, encoded once.

A line is a scene at 16 even times. Any 8 of its frames that are evenly apart, read forwards or backwards, are a
video of their own: another start, speed and direction at no further encoding.

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
from tools.tiny.training import in_processes, say
from tools.tiny.world import draw_scene

LINE_FRAMES = 16
WORLD_SEED = 200
"""The autoencoder's scenes and the held-out ones have seeds of their own."""


class Lines:
    """Encoded lines on disk, appended to by several processes: lines that are there stay as they are."""

    def __init__(self, folder: Path, mode: Any = "r") -> None:
        self.latents: NDArray[np.float16] = np.load(folder / "latents_MLChw.npy", mmap_mode=mode)
        """Unscaled means of the posterior, [M, L, C, h, w]."""
        self.embeddings: NDArray[np.float16] = np.load(folder / "embeddings_MLD.npy", mmap_mode=mode)
        """Of the image encoder, [M, L, D]."""
        self.displacements: NDArray[np.float32] = np.load(folder / "displacements_M.npy", mmap_mode=mode)
        """From the first frame of the line to the last, pixels; NaN where a line is not encoded yet."""


def encode_lines(checkpoint: Path, folder: Path, count: int, processes: int | None = None) -> None:
    """Encode scenes 0 .. count - 1 with the autoencoder and the image encoder of `checkpoint`; goes on if cut short."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "displacements_M.npy").exists():
        _make(folder / "latents_MLChw.npy", np.float16, (count, LINE_FRAMES, 4, 16, 16))
        _make(folder / "embeddings_MLD.npy", np.float16, (count, LINE_FRAMES, 32))
        _make(folder / "displacements_M.npy", np.float32, (count,))[:] = np.nan
    in_processes(_encode, (checkpoint, folder), processes)


def _make(file: Path, dtype: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    return open_memmap(file, mode="w+", dtype=dtype, shape=shape)


def _encode(rank: int, processes: int, checkpoint: Path, folder: Path) -> None:
    torch.set_num_threads(1)
    model = load_model(str(checkpoint))
    lines = Lines(folder, "r+")
    left = [m for m in range(rank, len(lines.latents), processes) if np.isnan(lines.displacements[m])]
    started = time.monotonic()
    for done, m in enumerate(left):
        lines.latents[m], lines.embeddings[m], lines.displacements[m] = encode_line(model, m)
        if rank == 0 and done % 50 == 49:
            rate = (done + 1) / (time.monotonic() - started)
            say(f"{m + 1} of {len(lines.latents)} lines, {(len(left) - done) / rate / 60:.0f} min left")


@torch.no_grad()
def encode_line(model: VideoModel, m: int) -> tuple[NDArray[np.float16], NDArray[np.float16], np.float32]:
    """Of scene m: latents [L, C, h, w], embeddings [L, D] and displacement, as `Lines` keeps them."""
    scene = draw_scene(WORLD_SEED, m)
    frames_LHWC = scene.render(np.linspace(0, 1, LINE_FRAMES))
    pixels_LCHW = torch.from_numpy(frames_LHWC).permute(0, 3, 1, 2).to(model.device).float() / 127.5 - 1
    with torch.autocast(model.device.type, torch.bfloat16):
        latents_LChw = model.vae.encode(pixels_LCHW).latent_dist.mode()
    latents, embeddings = (each.float().cpu().numpy() for each in (latents_LChw, embed_image(model, pixels_LCHW)))
    return latents.astype(np.float16), embeddings.astype(np.float16), np.float32(scene.displacement)
