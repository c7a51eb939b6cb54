"""The U-Net's training data: scenes that are rendered and encoded once.

A line is one scene at 16 evenly spaced times. Any 8 evenly spaced frames of it, forwards or backwards, make a training
video: one encoding gives many starts, speeds and directions.

Axes: M lines, B lines of a batch, L frames of a line, N frames of a batch, C latent channels, h w latent cells,
D embedding.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray

from sgi2v.model import VideoModel, embed_image, load_model
from tools.tiny.training import has_bfloat16, in_processes, print_progress
from tools.tiny.world import draw_scene

LINE_FRAMES = 16
GPU_BATCH = 32
"""Lines that a GPU encodes at once."""
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
    model = load_model(str(checkpoint), dtype="float32")
    lines = Lines(folder, "r+")
    missing = [m for m in range(rank, len(lines.latents), processes) if np.isnan(lines.displacements[m])]
    is_gpu = model.device.type == "cuda"
    batch = GPU_BATCH if is_gpu else 1
    batches = [missing[at : at + batch] for at in range(0, len(missing), batch)]
    started = time.monotonic()
    rendered = _rendered_beside(batches) if is_gpu else map(render_lines, batches)
    for done, (batch_B, (frames_BLHWC, displacements_B)) in enumerate(zip(batches, rendered, strict=True), 1):
        lines.latents[batch_B], lines.embeddings[batch_B] = encode_frames(
            model, frames_BLHWC, has_bfloat16(model.device)
        )
        lines.displacements[batch_B] = displacements_B  # last: it marks the lines as encoded
        if rank == 0 and (is_gpu or done % 50 == 0):
            rate = done / (time.monotonic() - started)
            left_min = (len(batches) - done) / rate / 60
            print_progress(f"{batch_B[-1] + 1} of {len(lines.latents)} lines, {left_min:.0f} min left")


def _rendered_beside(batches: list[list[int]]) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.float32]]]:
    """Render batches of lines on all CPU cores while a GPU encodes: one core is too slow for it."""
    if not batches:  # all lines were encoded before
        return
    with get_context("spawn").Pool(min(len(batches), len(os.sched_getaffinity(0)))) as pool:
        yield from pool.imap(render_lines, batches)


def render_lines(lines_B: list[int]) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Frames [B, L, H, W, 3] and displacements [B] of scenes."""
    scenes = [draw_scene(WORLD_SEED, m) for m in lines_B]
    frames_BLHWC = np.stack([scene.render(np.linspace(0, 1, LINE_FRAMES)) for scene in scenes])
    return frames_BLHWC, np.array([scene.displacement for scene in scenes], np.float32)


@torch.no_grad()
def encode_frames(
    model: VideoModel, frames_BLHWC: NDArray[np.uint8], mixed_precision: bool = True
) -> tuple[NDArray[np.float16], NDArray[np.float16]]:
    """Latents [B, L, C, h, w] and embeddings [B, L, D] of frames, in the types of `Lines`.

    mixed_precision: encode in bfloat16, as for the shipped U-Net. Slow on a CPU that has no bfloat16 arithmetic.
    """
    frames_NHWC = torch.from_numpy(frames_BLHWC).flatten(0, 1)
    pixels_NCHW = frames_NHWC.permute(0, 3, 1, 2).to(model.device).float() / 127.5 - 1
    with torch.autocast(model.device.type, torch.bfloat16, enabled=mixed_precision):
        latents_NChw = model.vae.encode(pixels_NCHW).latent_dist.mode()
    latents, embeddings = (
        part.float().cpu().numpy().astype(np.float16).reshape(*frames_BLHWC.shape[:2], *part.shape[1:])
        for part in (latents_NChw, embed_image(model, pixels_NCHW))
    )
    return latents, embeddings


def encode_line(
    model: VideoModel, m: int, mixed_precision: bool = True
) -> tuple[NDArray[np.float16], NDArray[np.float16], np.float32]:
    """Latents [L, C, h, w], embeddings [L, D] and displacement of scene m, in the types of `Lines`."""
    frames_1LHWC, displacements_1 = render_lines([m])
    latents_1LChw, embeddings_1LD = encode_frames(model, frames_1LHWC, mixed_precision)
    return latents_1LChw[0], embeddings_1LD[0], displacements_1[0]
