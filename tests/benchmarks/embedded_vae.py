"""Quality of the embedded checkpoint's autoencoder: PSNR of held-out pictures after encoding and decoding.

python -m tests.benchmarks.embedded_vae --sheet vae.png
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from sgi2v.model import VideoModel, decode_latents, load_model
from sgi2v.video import Frames
from tests.benchmarks.held_out import TIMES_T, Split
from tools.tiny.world import SpriteSet, draw_scene

SHOWN = 8
"""Frames on the sheet."""


@torch.no_grad()
def reconstruct(model: VideoModel, frames_THWC: Frames) -> NDArray[np.float64]:
    """Encode each frame by itself, as first frames are, and decode all as one video: [T, H, W, C] in 0 to 255."""
    pixels_TCHW = torch.from_numpy(frames_THWC).permute(0, 3, 1, 2).float() / 127.5 - 1
    latents_TChw = model.vae.encode(pixels_TCHW).latent_dist.mode() * model.vae.config.scaling_factor
    return decode_latents(model, latents_TChw, len(frames_THWC)).double().numpy() * 255


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="checkpoint: a folder, an id, or embedded")
    parser.add_argument("--videos", type=int, default=64)
    parser.add_argument("--sheet", type=Path, help="PNG to draw: frames above, their reconstructions below")
    options = parser.parse_args()
    model = load_model(options.model)
    psnrs_db, squares, pairs = [], [], []
    for index in range(options.videos):
        frames_THWC = draw_scene(Split.TEST, index, sprite_set=SpriteSet.ANY).render(TIMES_T)
        decoded_THWC = reconstruct(model, frames_THWC)
        square_T = ((decoded_THWC - frames_THWC) ** 2).mean(axis=(1, 2, 3))
        squares.append(square_T)
        psnrs_db.append(10 * np.log10(255**2 / square_T))
        pairs.append(np.concatenate([frames_THWC[-1], decoded_THWC[-1].round().astype(np.uint8)]))
    per_frame = np.concatenate(psnrs_db)
    overall = 10 * np.log10(255**2 / np.concatenate(squares).mean())
    print(f"{len(per_frame)} held-out frames of {options.videos} videos; PSNR of 8-bit levels")
    print(f"over all pixels {overall:.2f} dB; mean over frames {per_frame.mean():.2f} dB")
    print("worst frame, 5 %, median: " + ", ".join(f"{np.percentile(per_frame, p):.2f} dB" for p in (0, 5, 50)))
    print(f"share of frames at 30 dB or more: {(per_frame >= 30).mean():.1%}")
    if options.sheet:
        sheet = np.concatenate(pairs[:SHOWN], axis=1)
        Image.fromarray(sheet).resize((sheet.shape[1] * 3, sheet.shape[0] * 3), Image.Resampling.NEAREST).save(
            options.sheet
        )


if __name__ == "__main__":
    main()
