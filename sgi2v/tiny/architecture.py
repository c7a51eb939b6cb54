"""An untrained checkpoint of SVD's architecture at a toy's size: `python -m sgi2v.tiny.architecture FOLDER`.

Weights are random, but scaled and in a few places set by hand, so that its videos can be looked at and tracked:
the VAE is close to a linear map there and back, and the U-Net's shortest path from its input to its output draws
the first frame. Everything else is noise. See `checkpoint/README.md` for what that can and cannot show.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sgi2v.fetch import DEFAULTS_FILE

CHANNELS = 32
LATENT_CHANNELS = 4
SCALING_FACTOR = 0.18215
BRANCH_GAIN = 0.05
"""The last layer of every residual branch is multiplied by this: what is added stays small beside what it passes."""
OTHER_GAIN = 0.03
"""Share of the random channels in what is handed out."""
NOISE_GAIN = 1.5
"""The U-Net's output per unit of its noisy input: Euler's noise shrinks by exp(-pi / 2 x this) on its way down."""
CONTRAST = 0.4
"""Standard deviation of decoded pixels in [-1, 1]."""
LINEAR_AT = 8.0
"""Where SiLU is a straight line to within a hundredth for values a few units around."""

NUM_FRAMES = 8

DEFAULTS = {
    "sampler": {"height": 64, "width": 64, "num_frames": NUM_FRAMES, "steps": 12, "max_cfg_scale": 1.5},
    "guidance": {"layers": [[2, 1], [2, 2]], "guided_range": [0.7, 0.4]},
}

SCHEDULER = {
    "_class_name": "EulerDiscreteScheduler",
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "beta_start": 0.00085,
    "interpolation_type": "linear",
    "num_train_timesteps": 1000,
    "prediction_type": "v_prediction",
    "sigma_max": 700.0,
    "sigma_min": 0.002,
    "steps_offset": 1,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
}

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

MODEL_INDEX = {
    "_class_name": "StableVideoDiffusionPipeline",
    "feature_extractor": ["transformers", "CLIPImageProcessor"],
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "unet": ["diffusers", "UNetSpatioTemporalConditionModel"],
    "vae": ["diffusers", "AutoencoderKLTemporalDecoder"],
}


def build_random(folder: Path, seed: int = 0) -> None:
    """Write the checkpoint in diffusers layout, float16; the same seed and torch release write the same bytes."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        components = {"unet": _unet(), "vae": _vae(), "image_encoder": _image_encoder()}
    for name, module in components.items():
        module.half().save_pretrained(folder / name, safe_serialization=True)
    for file, value in {
        "scheduler/scheduler_config.json": SCHEDULER,
        "feature_extractor/preprocessor_config.json": FEATURE_EXTRACTOR,
        "model_index.json": MODEL_INDEX,
        DEFAULTS_FILE: DEFAULTS,
    }.items():
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_text(json.dumps(value, indent=2) + "\n")


def _image_encoder() -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    return CLIPVisionModelWithProjection(
        CLIPVisionConfig(
            hidden_size=CHANNELS,
            intermediate_size=2 * CHANNELS,
            num_hidden_layers=2,
            num_attention_heads=4,
            image_size=224,
            patch_size=32,
            projection_dim=CHANNELS,
        )
    )


@torch.no_grad()
def _vae() -> Any:
    """Colour averaged over a cell, in a random basis; its mean and contrast are lost in the last normalisation."""
    from diffusers import AutoencoderKLTemporalDecoder

    vae = AutoencoderKLTemporalDecoder(
        down_block_types=("DownEncoderBlock2D",) * 3,
        block_out_channels=(CHANNELS,) * 3,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        sample_size=64,
        scaling_factor=SCALING_FACTOR,
        force_upcast=False,
    )
    _quiet_branches(vae)
    basis_43, _ = torch.linalg.qr(torch.randn(LATENT_CHANNELS, 3))
    colours = slice(0, 3)

    encoder = vae.encoder
    _pass_through(encoder.conv_in, torch.eye(3), colours, colours)
    for block in encoder.down_blocks[:-1]:
        # of the 3 x 3 taps, these four are the pixels of the cell: the padding is never touched
        _pass_through(block.downsamplers[0].conv, torch.eye(CHANNELS), slice(None), slice(None), _mean_of_four())
    _linear_norm(encoder.conv_norm_out)
    _hand_out(encoder.conv_out, basis_43 / SCALING_FACTOR, slice(0, LATENT_CHANNELS), colours)
    _pass_through(vae.quant_conv, torch.eye(2 * LATENT_CHANNELS), slice(None), slice(None))

    decoder = vae.decoder
    _pass_through(decoder.conv_in, basis_43.T * SCALING_FACTOR, colours, slice(0, LATENT_CHANNELS))
    for block in decoder.up_blocks[:-1]:
        _pass_through(block.upsamplers[0].conv, torch.eye(CHANNELS), slice(None), slice(None), _bilinear())
    _linear_norm(decoder.conv_norm_out)
    _hand_out(decoder.conv_out, torch.eye(3) * CONTRAST, colours, colours)
    nn.init.dirac_(decoder.time_conv_out.weight)
    nn.init.zeros_(decoder.time_conv_out.bias)
    return vae


@torch.no_grad()
def _unet() -> Any:
    """Through the outermost skip connection it passes its noisy input and the first frame on; the rest is random."""
    from diffusers import UNetSpatioTemporalConditionModel

    unet = UNetSpatioTemporalConditionModel(
        block_out_channels=(CHANNELS,) * 4,
        addition_time_embed_dim=CHANNELS,
        projection_class_embeddings_input_dim=3 * CHANNELS,
        cross_attention_dim=CHANNELS,
        num_attention_heads=(4,) * 4,
        layers_per_block=2,
        num_frames=NUM_FRAMES,
        sample_size=16,
    )
    _quiet_branches(unet)
    inputs = slice(0, 2 * LATENT_CHANNELS)
    # the first frame's latents are not scaled, so the noisy ones are brought to their size
    unet.conv_in.weight[:, :LATENT_CHANNELS] /= SCALING_FACTOR
    sizes = torch.tensor([1 / SCALING_FACTOR] * LATENT_CHANNELS + [1.0] * LATENT_CHANNELS)
    _pass_through(unet.conv_in, sizes.diag(), inputs, inputs)
    shortcut = unet.up_blocks[-1].resnets[-1].spatial_res_block.conv_shortcut
    skipped = slice(CHANNELS, CHANNELS + 2 * LATENT_CHANNELS)
    _pass_through(shortcut, torch.eye(2 * LATENT_CHANNELS), inputs, skipped)
    _linear_norm(unet.conv_norm_out)
    # v-prediction at high noise is minus the clean latents
    noise, frame = NOISE_GAIN * torch.eye(LATENT_CHANNELS), -torch.eye(LATENT_CHANNELS)
    _hand_out(unet.conv_out, torch.cat([noise, frame], dim=1), slice(None), inputs)
    return unet


def _quiet_branches(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if name.endswith((".conv2", ".proj_out", ".to_out.0")):
            module.weight.mul_(BRANCH_GAIN)


def _centre() -> Tensor:
    kernel = torch.zeros(3, 3)
    kernel[1, 1] = 1
    return kernel


def _mean_of_four() -> Tensor:
    kernel = torch.zeros(3, 3)
    kernel[:2, :2] = 0.25
    return kernel


def _bilinear() -> Tensor:
    """After doubling by repetition, this makes it linear interpolation."""
    side = torch.tensor([0.25, 0.5, 0.25])
    return torch.outer(side, side)


def _pass_through(conv: Any, matrix_OI: Tensor, outputs: slice, inputs: slice, kernel_33: Tensor | None = None) -> None:
    """These outputs become `matrix` times these inputs, and nothing else; the other outputs stay random."""
    kernel = (_centre() if kernel_33 is None else kernel_33) if conv.kernel_size == (3, 3) else torch.ones(1, 1)
    conv.weight[outputs] = 0
    conv.weight[outputs, inputs] = matrix_OI[..., None, None] * kernel
    conv.bias[outputs] = 0


def _linear_norm(norm: Any) -> None:
    """Shift what is normalised to where the SiLU behind it is a straight line."""
    nn.init.constant_(norm.bias, LINEAR_AT)


def _hand_out(conv: Any, matrix_OI: Tensor, outputs: slice, inputs: slice) -> None:
    """As `_pass_through`, with a little of every other channel, and `_linear_norm`'s shift taken away again."""
    others = conv.weight[outputs].clone()
    _pass_through(conv, matrix_OI, outputs, inputs)
    others[:, inputs] = 0
    centred = others - others.mean(dim=(1, 2, 3), keepdim=True)
    conv.weight[outputs] += OTHER_GAIN * centred
    conv.bias[outputs] = -LINEAR_AT * conv.weight[outputs].sum(dim=(1, 2, 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=build_random.__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    build_random(options.folder, options.seed)


if __name__ == "__main__":
    main()
