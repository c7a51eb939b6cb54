"""Where checkpoints come from, and what is said of one that is none."""

from __future__ import annotations

import json
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


def test_its_own_settings_travel_with_it(folder: Path) -> None:
    settings = {"sampler": {"height": 64, "width": 64}, "guidance": {"layers": [[3, 0]], "learning_rate": 0.5}}
    (folder / "sgi2v.json").write_text(json.dumps(settings))
    checkpoint = open_checkpoint(ModelConfig(source=str(folder)))
    assert (checkpoint.sampler().height, checkpoint.sampler(height=128).height) == (64, 128)
    assert checkpoint.guidance().layers == ((3, 0),)
    (folder / "sgi2v.json").write_text(json.dumps({"sampler": {"hight": 64}}))
    with pytest.raises(ConfigError, match="hight"):
        open_checkpoint(ModelConfig(source=str(folder))).sampler()


def test_everything_that_is_missing_is_named(folder: Path) -> None:
    shutil.rmtree(folder / "image_encoder")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"unet/diffusion_pytorch_model\.safetensors.*image_encoder/config\.json"):
        open_checkpoint(ModelConfig(source=str(folder)))


def test_pickled_weights_are_never_read(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelError, match="pickled"):
        open_checkpoint(ModelConfig(source=str(folder)))


def test_another_architecture_is_told_by_name(folder: Path) -> None:
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": "UNet2DConditionModel"}))
    with pytest.raises(ModelError, match="unet is a UNet2DConditionModel"):
        open_checkpoint(ModelConfig(source=str(folder)))


@pytest.mark.parametrize(
    ("source", "said"),
    [("no/such/folder/here", "there is no model folder"), ("/nowhere", "there is no model folder"), ("", "empty")],
)
def test_a_source_that_is_nothing(source: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        open_checkpoint(ModelConfig(source=source))


def test_a_file_is_not_a_checkpoint(folder: Path) -> None:
    with pytest.raises(ModelError, match="is a file"):
        open_checkpoint(ModelConfig(source=str(folder / "model_index.json")))


@pytest.mark.parametrize("component", WEIGHTS)
@pytest.mark.parametrize("fault", ["truncated", "garbage"])
def test_damaged_weights_are_an_error_of_the_model(folder: Path, component: str, fault: str) -> None:
    weights = folder / component / f"{WEIGHTS[component]}.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000] if fault == "truncated" else b"\xff" * 1000)
    with pytest.raises(ModelError, match=component):
        load_model(str(folder), device="cpu")


@pytest.mark.parametrize("component", WEIGHTS)
@pytest.mark.parametrize("fault", ["are missing", "have the wrong shape"])
def test_tensors_that_do_not_fit_are_named(folder: Path, component: str, fault: str) -> None:
    weights = folder / component / f"{WEIGHTS[component]}.safetensors"
    tensors = load_file(weights)
    keys = sorted(tensors)[:4]
    for key in keys:
        if fault == "are missing":
            del tensors[key]
        else:
            tensors[key] = torch.zeros(3, 5)
    save_file(tensors, weights, metadata={"format": "pt"})
    said = f"{component} of .* cannot be used: 4 of its tensors {fault}: {', '.join(keys[:3])}, \\.\\.\\."
    with pytest.raises(ModelError, match=said):
        load_model(str(folder), device="cpu")


def test_a_tensor_that_nobody_needs_is_passed_over(folder: Path) -> None:
    weights = folder / "image_encoder" / "model.safetensors"
    tensors = {**load_file(weights), "vision_model.embeddings.position_ids": torch.arange(5)[None]}
    save_file(tensors, weights, metadata={"format": "pt"})
    assert load_model(str(folder), device="cpu").image_encoder.config.image_size == 224


def test_a_revision_needs_a_hugging_face_id(folder: Path) -> None:
    for source in (str(folder), EMBEDDED, "memory://x"):
        with pytest.raises(ModelError, match="Hugging Face"):
            open_checkpoint(ModelConfig(source=source, revision="main"))


def test_sixteen_bits_prefer_the_fp16_variant_and_keep_one_type(folder: Path) -> None:
    for component, stem in (("unet", "diffusion_pytorch_model"), ("image_encoder", "model")):
        shutil.copy(folder / component / f"{stem}.safetensors", folder / component / f"{stem}.fp16.safetensors")
    assert weight_files(folder, "unet", half=True)[0] == "fp16"
    assert weight_files(folder, "unet", half=False)[0] is None
    assert weight_files(folder, "vae", half=True)[0] is None
    model = load_model(str(folder), device="cpu", dtype="bfloat16")
    for part in (model.unet, model.vae, model.image_encoder):
        assert {weight.dtype for weight in part.parameters()} == {torch.bfloat16}
        assert not any(weight.requires_grad for weight in part.parameters())


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16)])
def test_auto_is_what_the_gpu_computes_in(
    monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], dtype: torch.dtype
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert resolve_dtype("auto", torch.device("cuda")) is dtype


def test_bfloat16_weights_keep_float32_latents(folder: Path) -> None:
    from sgi2v.config import SamplerConfig
    from sgi2v.generate import generate

    model = load_model(str(folder), device="cpu", dtype="bfloat16")
    image = np.full((64, 64, 3), 90, np.uint8)
    generation = generate(model, image, None, SamplerConfig(height=64, width=64, num_frames=3, steps=2))
    assert generation.latents.dtype == torch.float32
    assert not torch.equal(generation.latents, generation.latents.bfloat16().float())
