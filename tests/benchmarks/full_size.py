"""Write a checkpoint of full-size Stable Video Diffusion with random weights, to measure its cost.

    python -m tests.benchmarks.full_size FOLDER [--xt]
    sgi2v-batch bench --model FOLDER

Speed and memory do not depend on the values of the weights, as long as they are ordinary numbers.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch

from tools.tiny.architecture import FEATURE_EXTRACTOR, MODEL_INDEX, SCHEDULER

NUM_FRAMES = 14
XT_FRAMES = 25

UNET = {
    "_class_name": "UNetSpatioTemporalConditionModel",
    "addition_time_embed_dim": 256,
    "block_out_channels": [320, 640, 1280, 1280],
    "cross_attention_dim": 1024,
    "down_block_types": ["CrossAttnDownBlockSpatioTemporal"] * 3 + ["DownBlockSpatioTemporal"],
    "in_channels": 8,
    "layers_per_block": 2,
    "num_attention_heads": [5, 10, 20, 20],
    "out_channels": 4,
    "projection_class_embeddings_input_dim": 768,
    "sample_size": 96,
    "transformer_layers_per_block": 1,
    "up_block_types": ["UpBlockSpatioTemporal"] + ["CrossAttnUpBlockSpatioTemporal"] * 3,
}
VAE = {
    "_class_name": "AutoencoderKLTemporalDecoder",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "force_upcast": True,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "out_channels": 3,
    "sample_size": 768,
    "scaling_factor": 0.18215,
}
IMAGE_ENCODER = {
    "architectures": ["CLIPVisionModelWithProjection"],
    "hidden_act": "gelu",
    "hidden_size": 1280,
    "image_size": 224,
    "intermediate_size": 5120,
    "model_type": "clip_vision_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 32,
    "patch_size": 14,
    "projection_dim": 1024,
}


def write_configs(folder: Path, num_frames: int = NUM_FRAMES) -> Path:
    """Write a checkpoint without weights: enough for `open_checkpoint(..., weights=False)`. Returns the folder."""
    files: dict[str, Any] = {
        "unet/config.json": {**UNET, "num_frames": num_frames},
        "vae/config.json": VAE,
        "image_encoder/config.json": IMAGE_ENCODER,
        "scheduler/scheduler_config.json": {**SCHEDULER, "sigma_max": 700.0, "sigma_min": 0.002},
        "feature_extractor/preprocessor_config.json": FEATURE_EXTRACTOR,
        "model_index.json": MODEL_INDEX,
    }
    for file, value in files.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(json.dumps(value, indent=2) + "\n")
    return folder


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
