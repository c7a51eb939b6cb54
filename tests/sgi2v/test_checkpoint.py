"""Checkpoints from folders, URLs and the Hugging Face Hub, and the errors of those that cannot be used."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sgi2v.checkpoint import open_checkpoint
from sgi2v.config import ModelConfig
from sgi2v.errors import ConfigError, ModelError
from sgi2v.fetch import EMBEDDED, weight_files
from sgi2v.model import load_model, resolve_dtype

WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "image_encoder": "model"}


@pytest.fixture
def folder(golden_checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(golden_checkpoint, tmp_path / "checkpoint")


def test_a_folder_of_svds_architecture(folder: Path) -> None:
    checkpoint = open_checkpoint(ModelConfig(source=str(folder)))
    assert (checkpoint.cell_px, checkpoint.size_multiple) == (8, 64)
    assert checkpoint.sampler().num_frames == 6
    assert checkpoint.guidance().layers == ((2, 1), (2, 2))


def test_a_checkpoint_brings_its_own_settings(folder: Path) -> None:
    settings = {"sampler": {"height": 64, "width": 64}, "guidance": {"layers": [[3, 0]], "learning_rate": 0.5}}
    (folder / "sgi2v.json").write_text(json.dumps(settings))
    checkpoint = open_checkpoint(ModelConfig(source=str(folder)))
    assert (checkpoint.sampler().height, checkpoint.sampler(height=128).height) == (64, 128)
    assert checkpoint.guidance().layers == ((3, 0),)
    (folder / "sgi2v.json").write_text(json.dumps({"sampler": {"hight": 64}}))
    with pytest.raises(ConfigError, match="hight"):
        open_checkpoint(ModelConfig(source=str(folder))).sampler()


def test_every_missing_file_is_named(folder: Path) -> None:
    shutil.rmtree(folder / "image_encoder")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"unet/diffusion_pytorch_model\.safetensors.*image_encoder/config\.json"):
        open_checkpoint(ModelConfig(source=str(folder)))


def test_pickled_weights_are_never_read(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelError, match="pickled"):
        open_checkpoint(ModelConfig(source=str(folder)))


def test_another_architecture_is_an_error_that_names_it(folder: Path) -> None:
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": "UNet2DConditionModel"}))
    with pytest.raises(ModelError, match=r"unet of .* is UNet2DConditionModel, not UNetSpatioTemporalConditionModel"):
        open_checkpoint(ModelConfig(source=str(folder)))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/folder/here", "there is no model folder"),
        ("/nowhere", "there is no model folder"),
        ("", "empty"),
        ("embeded", r"there is no model folder embeded \(did you mean embedded\?\)"),
        ("stable-video-difusion-img2vid", r"\(did you mean stabilityai/stable-video-diffusion-img2vid\?\)"),
        ("svd/xt/folder", "svd/xt/folder: give"),
    ],
)
def test_a_missing_or_empty_source_is_an_error(source: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_checkpoint(ModelConfig(source=source))


def test_a_file_as_source_is_an_error(folder: Path) -> None:
    with pytest.raises(ModelError, match="is a file"):
        open_checkpoint(ModelConfig(source=str(folder / "model_index.json")))


@pytest.mark.slow
@pytest.mark.parametrize("component", WEIGHTS)
@pytest.mark.parametrize("fault", ["truncated", "garbage"])
def test_damaged_weights_are_a_model_error(folder: Path, component: str, fault: str) -> None:
    weights = folder / component / f"{WEIGHTS[component]}.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000] if fault == "truncated" else b"\xff" * 1000)
    with pytest.raises(ModelError, match=component):
        load_model(str(folder), device="cpu")


@pytest.mark.parametrize(
    ("component", "fault", "count"),
    [
        *((component, fault, 4) for component in WEIGHTS for fault in ("missing", "of the wrong shape")),
        ("vae", "missing", 1),
    ],
)
def test_missing_and_misshapen_tensors_are_named(folder: Path, component: str, fault: str, count: int) -> None:
    weights = folder / component / f"{WEIGHTS[component]}.safetensors"
    tensors = load_file(weights)
    keys = sorted(tensors)[:count]
    for key in keys:
        if fault == "missing":
            del tensors[key]
        else:
            tensors[key] = torch.zeros(3, 5)
    save_file(tensors, weights, metadata={"format": "pt"})
    number, more = ("1 of its tensors is", "") if count == 1 else ("4 of its tensors are", ", ...")
    message = f"{component} of {folder} cannot be used: {number} {fault}: {', '.join(keys[:3])}{more}"
    with pytest.raises(ModelError, match=re.escape(message)):
        load_model(str(folder), device="cpu")


@pytest.mark.slow
def test_a_tensor_that_the_model_does_not_have_is_ignored(folder: Path) -> None:
    weights = folder / "image_encoder" / "model.safetensors"
    tensors = {**load_file(weights), "vision_model.embeddings.position_ids": torch.arange(5)[None]}
    save_file(tensors, weights, metadata={"format": "pt"})
    assert load_model(str(folder), device="cpu").image_encoder.config.image_size == 224


def test_a_revision_needs_a_hugging_face_id(folder: Path) -> None:
    for source in (str(folder), EMBEDDED, "memory://x"):
        with pytest.raises(ModelError, match="Hugging Face"):
            open_checkpoint(ModelConfig(source=source, revision="main"))


def test_16_bit_weights_prefer_the_fp16_variant_and_have_one_type(folder: Path) -> None:
    for component, stem in (("unet", "diffusion_pytorch_model"), ("image_encoder", "model")):
        shutil.copy(folder / component / f"{stem}.safetensors", folder / component / f"{stem}.fp16.safetensors")
    assert weight_files(folder, "unet", half=True)[0] == "fp16"
    assert weight_files(folder, "unet", half=False)[0] is None
    assert weight_files(folder, "vae", half=True)[0] is None
    model = load_model(str(folder), device="cpu", dtype="bfloat16")
    for part in (model.unet, model.vae, model.image_encoder):
        assert {weight.dtype for weight in part.parameters()} == {torch.bfloat16}
        assert not any(weight.requires_grad for weight in part.parameters())


def test_auto_is_the_same_type_on_every_gpu() -> None:
    assert resolve_dtype("auto", torch.device("cuda")) is torch.float16
    assert resolve_dtype("auto", torch.device("cpu")) is torch.float32


@pytest.mark.whole
def test_bfloat16_weights_keep_float32_latents(folder: Path) -> None:
    from sgi2v.config import SamplerConfig
    from sgi2v.generate import generate

    model = load_model(str(folder), device="cpu", dtype="bfloat16")
    image = np.full((64, 64, 3), 90, np.uint8)
    generation = generate(model, image, None, SamplerConfig(height=64, width=64, num_frames=3, steps=2))
    assert generation.latents.dtype == torch.float32
    assert not torch.equal(generation.latents, generation.latents.bfloat16().float())
