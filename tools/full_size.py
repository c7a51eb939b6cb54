"""The configuration of Stable Video Diffusion at its own size, without weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

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
