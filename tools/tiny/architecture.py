"""The untrained parts of the embedded checkpoint, and its files: SVD's classes and layout, much smaller.

Why these sizes: latents are 16 x 16, so that a box covers enough cells to differ from its surroundings. Layers with a
normalisation before the output have 96 channels: with three channels in each of its 32 groups, the mean of an even
area can be represented (see `initialization.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sgi2v.fetch import DEFAULTS_FILE
from tools.tiny.initialization import initialize_unet, initialize_vae
from tools.tiny.world import SIDE

LATENT_CHANNELS = 4
NUM_FRAMES = 8
EMBEDDING = 32
"""Width of the embeddings of the image, the time, the frame rate, the motion and the noise."""
SIGMA_MIN, SIGMA_MAX = 0.02, 80.0
"""Ends of the noise schedule, in units of the latents. SVD ends at 700, but 80 already drowns latents this small."""

FEATURE_EXTRACTOR = {
    "crop_size": {"height": 224, "width": 224},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_processor_type": "CLIPImageProcessor",
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "resample": 3,
    "rescale_factor": 1 / 255,
    "size": {"shortest_edge": 224},
}

SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "sigma_max": SIGMA_MAX,
    "sigma_min": SIGMA_MIN,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
}

MODEL_INDEX = {
    "_class_name": "StableVideoDiffusionPipeline",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "unet": ["diffusers", "UNetSpatioTemporalConditionModel"],
    "vae": ["diffusers", "AutoencoderKLTemporalDecoder"],
}


def new_vae() -> Any:
    """An untrained AutoencoderKLTemporalDecoder whose latent cells are 4 px."""
    from diffusers import AutoencoderKLTemporalDecoder

    vae = AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 3,
        block_out_channels=(96, 96, 96),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        sample_size=SIDE,
        force_upcast=False,
    )
    initialize_vae(vae)
    return vae


def new_unet() -> Any:
    """An untrained UNetSpatioTemporalConditionModel with levels of 16 x 16, 8 x 8 and 4 x 4 cells."""
    from diffusers import UNetSpatioTemporalConditionModel

    unet = UNetSpatioTemporalConditionModel(
        in_channels=2 * LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("DownBlockSpatioTemporal",) * 3,
        up_block_types=("UpBlockSpatioTemporal",) * 2 + ("CrossAttnUpBlockSpatioTemporal",),
        block_out_channels=(96, 96, 128),
        layers_per_block=1,
        num_attention_heads=(2, 2, 2),
        addition_time_embed_dim=EMBEDDING,
        projection_class_embeddings_input_dim=3 * EMBEDDING,
        cross_attention_dim=EMBEDDING,
        num_frames=NUM_FRAMES,
        sample_size=SIDE // 4,
    )
    initialize_unet(unet)
    return unet


def new_image_encoder() -> Any:
    """A CLIPVisionModelWithProjection with random weights. It is never trained: the U-Net learns to use it as it is."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=EMBEDDING,
            intermediate_size=2 * EMBEDDING,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=224,
            patch_size=32,
            projection_dim=EMBEDDING,
        )
    )


def write_checkpoint(folder: Path, parts: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Write `unet`, `vae` and `image_encoder` in float16, in diffusers' layout, and the default settings."""
    for name, module in parts.items():
        module.to(torch.float16).save_pretrained(folder / name, safe_serialization=True)
    for file, value in {
        "scheduler/scheduler_config.json": SCHEDULER,
        "feature_extractor/preprocessor_config.json": FEATURE_EXTRACTOR,
        "model_index.json": MODEL_INDEX,
        DEFAULTS_FILE: defaults,
    }.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(json.dumps(value, indent=2) + "\n")
