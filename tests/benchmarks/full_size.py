"""Write a checkpoint of full-size Stable Video Diffusion with random weights, to measure its cost.

    python -m tests.benchmarks.full_size FOLDER [--xt]
    sgi2v-batch bench --model FOLDER

Speed and memory do not depend on the values of the weights, as long as they are ordinary numbers.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from tools.full_size import IMAGE_ENCODER, NUM_FRAMES, XT_FRAMES, write_configs


def write_weights(folder: Path, device: str) -> None:
    """Write the random weights that the classes start with, in float16. device: where they are drawn."""
    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    torch.manual_seed(0)
    with torch.device(device):
        parts = {
            "unet": UNetSpatioTemporalConditionModel.from_config(str(folder / "unet")),
            "vae": AutoencoderKLTemporalDecoder.from_config(str(folder / "vae")),
            "image_encoder": CLIPVisionModelWithProjection(CLIPVisionConfig(**IMAGE_ENCODER)),
        }
    for name, module in parts.items():
        module.to(torch.float16).save_pretrained(folder / name, safe_serialization=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder to write to")
    parser.add_argument("--xt", action="store_true", help="SVD-XT, 25 frames, in place of SVD, 14 frames")
    options = parser.parse_args()
    write_configs(options.folder, XT_FRAMES if options.xt else NUM_FRAMES)
    write_weights(options.folder, "cuda" if torch.cuda.is_available() else "cpu")


if __name__ == "__main__":
    main()
