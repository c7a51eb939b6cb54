"""Load a checkpoint of SVD's architecture; encode the first frame, decode the latents.

Axes: T frames, C channels, H W pixels, h w latent cells, D width of the image embedding.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgi2v.attention import replace_cross_attention
from sgi2v.checkpoint import Checkpoint, open_checkpoint
from sgi2v.config import DType, ModelConfig, SamplerConfig, auto_dtype
from sgi2v.errors import ConfigError, ModelError
from sgi2v.fetch import prefers_half, weight_files
from sgi2v.kernels import use_kernels
from sgi2v.resize import resize_antialiased

_MAX_NAMED_TENSORS = 3
"""Faulty tensors that an error message names."""


@dataclass(frozen=True)
class VideoModel:
    """The parts of Stable Video Diffusion on one device; the type of their weights never changes."""

    checkpoint: Checkpoint
    unet: Any
    vae: Any
    image_encoder: Any
    scheduler_config: dict[str, Any]
    image_mean: tuple[float, ...]
    """Mean of CLIP's input, per channel."""
    image_std: tuple[float, ...]
    """Standard deviation of CLIP's input, per channel."""
    device: torch.device
    dtype: torch.dtype
    """Type of the U-Net's weights."""
    kernels: str
    """What computes attention and convolutions over frames, in words."""
    cfg_passes: int
    """U-Net passes of a step with classifier-free guidance."""

    @property
    def cell_px(self) -> int:
        """Pixels per latent cell and side."""
        return self.checkpoint.cell_px

    @property
    def decoder_dtype(self) -> torch.dtype:
        """Type of the VAE decoder's weights; the encoder's may be wider."""
        return _dtype_of(self.vae.decoder)

    @property
    def weights_bytes(self) -> int:
        """Bytes of all weights."""
        parts = (self.unet, self.vae, self.image_encoder)
        return sum(weight.nbytes for part in parts for weight in part.parameters())


@dataclass(frozen=True)
class Conditioning:
    """The U-Net's inputs that depend on the first frame; row 0 is unconditional, row 1 conditional."""

    image_embeddings_21D: Tensor
    image_latents_2Chw: Tensor
    time_ids_23: Tensor
    """(fps - 1, motion bucket id, noise augmentation strength) per row."""


def load_model(
    source: str | ModelConfig,
    device: str | torch.device | None = None,
    dtype: DType | torch.dtype = "auto",
    revision: str | None = None,
) -> VideoModel:
    """Load SVD, SVD 1.1, SVD-XT or any checkpoint of that architecture, for inference.

    source: Hugging Face id, folder, fsspec URL or `embedded`; or a ModelConfig in place of source, dtype and revision.
    device: None takes the GPU if there is one. dtype: type of the weights; `auto` is float32 on a CPU and
    float16 on a GPU. Raises ModelError, whose message names what is missing or damaged.
    """
    if isinstance(source, ModelConfig):
        config = source
    else:
        name = dtype if isinstance(dtype, str) else str(dtype).removeprefix("torch.")
        config = ModelConfig(source=source, revision=revision, dtype=name)  # type: ignore[arg-type]
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    weights_dtype = resolve_dtype(config.dtype, device)
    model = _load(open_checkpoint(config), device, weights_dtype, prefers_half(config))
    return use_kernels(model, config.kernels)


def resolve_dtype(dtype: DType, device: torch.device) -> torch.dtype:
    """The type of the weights for a setting of dtype. Raises ConfigError for float16 on a CPU."""
    if dtype == "auto":
        dtype = auto_dtype(on_gpu=device.type != "cpu")
    if dtype == "float16" and device.type == "cpu":
        raise ConfigError("float16 is not usable on a CPU: set model.dtype to float32 or bfloat16")
    resolved: torch.dtype = getattr(torch, dtype)
    return resolved


def resolve_vae_dtype(vae_config: Mapping[str, Any], dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """The type of the VAE's weights beside a U-Net of type `dtype`.

    A VAE whose config says force_upcast overflows in float16; bfloat16 has float32's range.
    """
    if dtype is not torch.float16 or not vae_config.get("force_upcast", True):
        return dtype
    return torch.bfloat16 if _has_bfloat16(device) else torch.float32


def encoder_dtype(vae_config: Mapping[str, Any], vae_dtype: torch.dtype) -> torch.dtype:
    """The type of the VAE's encoder beside a decoder of type `vae_dtype`.

    One whose config says force_upcast stays in float32: its latents steer every step, and it runs once.
    """
    return torch.float32 if vae_config.get("force_upcast", True) else vae_dtype


def _has_bfloat16(device: torch.device) -> bool:
    """Whether the device computes in bfloat16 itself, and not by way of float32."""
    return device.type != "cuda" or torch.cuda.get_device_capability(device) >= (8, 0)


def _load(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, half: bool) -> VideoModel:
    """half: prefer the fp16 files, whatever type the weights get here."""
    from safetensors import SafetensorError

    try:
        from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
        from transformers import CLIPVisionModelWithProjection
    except (RuntimeError, ImportError) as error:
        if find_spec("torchvision") is None:
            raise
        raise ModelError(  # both import torchvision wherever it is installed, though nothing here needs it
            f"diffusers and transformers cannot be imported, probably because torchvision does not fit torch "
            f"{torch.__version__}: install the torchvision of the same index as torch, or run "
            "`pip uninstall torchvision`"
        ) from error

    configs = checkpoint.configs
    vae_dtype = resolve_vae_dtype(configs["vae"], dtype, device)

    def component(component_class: Any, name: str, weights_dtype: torch.dtype) -> Any:
        variant, _ = weight_files(checkpoint.path, name, half)
        try:
            module, loading_info = component_class.from_pretrained(
                str(checkpoint.path / name),
                use_safetensors=True,
                variant=variant,
                dtype=weights_dtype,
                ignore_mismatched_sizes=True,  # _check_tensors reports them by name
                output_loading_info=True,
            )
            _check_tensors(f"{name} of {checkpoint.source}", loading_info)
            module.to(device).eval().requires_grad_(False)
            replace_cross_attention(module)
            return module
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise ModelError(f"{name} of {checkpoint.source} cannot be loaded: {error}") from error

    vae = component(AutoencoderKLTemporalDecoder, "vae", encoder_dtype(configs["vae"], vae_dtype))
    vae.decoder.to(vae_dtype)
    extractor = configs["feature_extractor"]
    return VideoModel(
        checkpoint=checkpoint,
        unet=component(UNetSpatioTemporalConditionModel, "unet", dtype),
        vae=vae,
        image_encoder=component(CLIPVisionModelWithProjection, "image_encoder", dtype),
        scheduler_config=dict(configs["scheduler"]),
        image_mean=tuple(extractor["image_mean"]),
        image_std=tuple(extractor["image_std"]),
        device=device,
        dtype=dtype,
        kernels="",
        cfg_passes=1,
    )


def _dtype_of(module: Any) -> torch.dtype:
    """The type of a module's weights."""
    dtype: torch.dtype = next(module.parameters()).dtype
    return dtype


def _check_tensors(component: str, loading_info: Mapping[str, Any]) -> None:
    """Raise ModelError for tensors that the library did not load from the file and filled with random values.

    loading_info: what `from_pretrained` returns with `output_loading_info`.
    """
    mismatched = {key for key, *_ in loading_info["mismatched_keys"]}
    missing = set(loading_info["missing_keys"]) - mismatched
    for keys, fault in ((missing, "missing"), (mismatched, "of the wrong shape")):
        if keys:
            names = ", ".join(sorted(keys)[:_MAX_NAMED_TENSORS]) + (", ..." if len(keys) > _MAX_NAMED_TENSORS else "")
            are = "is" if len(keys) == 1 else "are"
            raise ModelError(f"{component} cannot be used: {len(keys)} of its tensors {are} {fault}: {names}")
    if loading_info["error_msgs"]:
        raise ModelError(f"{component} cannot be used: {'; '.join(map(str, loading_info['error_msgs']))}")


@torch.no_grad()
def encode_image(
    model: VideoModel, image_HWC: NDArray[np.uint8], noise_1CHW: Tensor, sampler: SamplerConfig
) -> Conditioning:
    """Condition on the first frame as SVD does.

    image: RGB at output size. noise: unit Gaussian [1, 3, H, W]; `noise_aug_strength` times it is added. The VAE
    encodes in the type of its encoder, and not in TF32.
    """
    pixels_1CHW = torch.from_numpy(np.array(image_HWC)).permute(2, 0, 1)[None].float() / 255 * 2 - 1
    noised_1CHW = pixels_1CHW + sampler.noise_aug_strength * noise_1CHW
    pixels = noised_1CHW.to(model.device, _dtype_of(model.vae.encoder))
    with torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        latents = model.vae.encode(pixels).latent_dist.mode()
    latents = latents.to(model.dtype)
    embedding = embed_image(model, pixels_1CHW)
    time_ids = torch.tensor([[sampler.fps - 1, sampler.motion_bucket_id, sampler.noise_aug_strength]])
    return Conditioning(
        image_embeddings_21D=torch.stack([torch.zeros_like(embedding), embedding]),
        image_latents_2Chw=torch.cat([torch.zeros_like(latents), latents]),
        time_ids_23=time_ids.to(model.device, model.dtype).repeat(2, 1),
    )


def embed_image(model: VideoModel, pixels_1CHW: Tensor) -> Tensor:
    """CLIP embedding [1, D] of an image in [-1, 1], resized with antialiasing to the encoder's size."""
    side = model.image_encoder.config.image_size
    resized = (resize_antialiased(pixels_1CHW, side, side) + 1) / 2
    mean, std = (
        torch.tensor(values, device=resized.device).view(1, -1, 1, 1) for values in (model.image_mean, model.image_std)
    )
    normalized = ((resized - mean) / std).to(model.device, model.dtype)
    embedding: Tensor = model.image_encoder(normalized).image_embeds
    return embedding


@torch.no_grad()
def decode_latents(model: VideoModel, latents_TChw: Tensor, chunk_size: int) -> Tensor:
    """Decode one video's latents to float32 [T, H, W, 3] in [0, 1], `chunk_size` frames at a time."""
    scaled = (latents_TChw / model.vae.config.scaling_factor).to(model.decoder_dtype)
    frames = [model.vae.decode(chunk, num_frames=len(chunk)).sample.float() for chunk in scaled.split(chunk_size)]
    return (torch.cat(frames) / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)


def quiet_libraries() -> None:
    """Keep the progress bars and notices of diffusers and transformers out of a worker's log."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
