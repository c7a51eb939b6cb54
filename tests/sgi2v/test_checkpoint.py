"""Where checkpoints come from, and what is said of one that is none."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import numpy as np
import pytest
import torch

from sgi2v.checkpoint import EMBEDDED, open_checkpoint, weight_files
from sgi2v.config import ModelConfig
from sgi2v.errors import ConfigError, ModelError
from sgi2v.model import load_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(golden_checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(golden_checkpoint, tmp_path / "checkpoint")


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGI2V_CACHE", str(tmp_path / "cache"))


def test_a_folder_of_svds_architecture(folder: Path) -> None:
    checkpoint = open_checkpoint(ModelConfig(str(folder)))
    assert (checkpoint.cell_px, checkpoint.size_multiple) == (8, 64)
    assert checkpoint.sampler().num_frames == 6
    assert checkpoint.guidance().layers == ((2, 1), (2, 2))


def test_its_own_settings_travel_with_it(folder: Path) -> None:
    settings = {"sampler": {"height": 64, "width": 64}, "guidance": {"layers": [[3, 0]], "learning_rate": 0.5}}
    (folder / "sgi2v.json").write_text(json.dumps(settings))
    checkpoint = open_checkpoint(ModelConfig(str(folder)))
    assert (checkpoint.sampler().height, checkpoint.sampler(height=128).height) == (64, 128)
    assert checkpoint.guidance().layers == ((3, 0),)
    (folder / "sgi2v.json").write_text(json.dumps({"sampler": {"hight": 64}}))
    with pytest.raises(ConfigError, match="hight"):
        open_checkpoint(ModelConfig(str(folder))).sampler()


def test_the_revision_of_a_folder_changes_with_its_contents(folder: Path) -> None:
    first = open_checkpoint(ModelConfig(str(folder))).revision
    assert open_checkpoint(ModelConfig(str(folder))).revision == first
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert open_checkpoint(ModelConfig(str(folder))).revision != first


def test_everything_that_is_missing_is_named(folder: Path) -> None:
    shutil.rmtree(folder / "image_encoder")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"unet/diffusion_pytorch_model\.safetensors.*image_encoder/config\.json"):
        open_checkpoint(ModelConfig(str(folder)))


def test_pickled_weights_are_never_read(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelError, match="pickled"):
        open_checkpoint(ModelConfig(str(folder)))


def test_another_architecture_is_told_by_name(folder: Path) -> None:
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": "UNet2DConditionModel"}))
    with pytest.raises(ModelError, match="unet is a UNet2DConditionModel"):
        open_checkpoint(ModelConfig(str(folder)))


@pytest.mark.parametrize(
    ("source", "said"),
    [("no/such/folder/here", "there is no model folder"), ("/nowhere", "there is no model folder"), ("", "empty")],
)
def test_a_source_that_is_nothing(source: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        open_checkpoint(ModelConfig(source))


def test_a_file_is_not_a_checkpoint(folder: Path) -> None:
    with pytest.raises(ModelError, match="is a file"):
        open_checkpoint(ModelConfig(str(folder / "model_index.json")))


def test_damaged_weights_are_an_error_of_the_model(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelError, match="unet"):
        load_model(str(folder), device="cpu")


def test_a_revision_needs_a_hugging_face_id(folder: Path) -> None:
    for source in (str(folder), EMBEDDED, "memory://x"):
        with pytest.raises(ModelError, match="Hugging Face"):
            open_checkpoint(ModelConfig(source, revision="main"))


def test_a_url_is_copied_once_and_whole(folder: Path, tmp_path: Path) -> None:
    url = f"file://{folder}"
    configuration = open_checkpoint(ModelConfig(url), weights=False)
    assert not list(configuration.path.rglob("*.safetensors"))
    checkpoint = open_checkpoint(ModelConfig(url))
    assert checkpoint.path.is_relative_to(tmp_path / "cache")
    assert checkpoint.revision == configuration.revision
    written = {file: file.stat().st_mtime_ns for file in checkpoint.path.rglob("*.safetensors")}
    assert len(written) == 3
    assert {
        file: file.stat().st_mtime_ns for file in open_checkpoint(ModelConfig(url)).path.rglob("*.safetensors")
    } == (written)
    assert not list(checkpoint.path.rglob("*.partial"))


def test_a_url_of_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="holds no checkpoint"):
        open_checkpoint(ModelConfig(f"file://{tmp_path / 'empty'}"))


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


def test_bfloat16_weights_keep_float32_latents(folder: Path) -> None:
    from sgi2v.config import SamplerConfig
    from sgi2v.generate import generate

    model = load_model(str(folder), device="cpu", dtype="bfloat16")
    image = np.full((64, 64, 3), 90, np.uint8)
    generation = generate(model, image, None, SamplerConfig(height=64, width=64, num_frames=3, steps=2))
    assert generation.latents.dtype == torch.float32
    assert not torch.equal(generation.latents, generation.latents.bfloat16().float())


class Hub(BaseHTTPRequestHandler):
    """As much of the Hugging Face Hub as a download needs."""

    root: ClassVar[Path]
    served: ClassVar[list[str]]

    def do_GET(self) -> None:
        _, kind, *rest = self.path.partition("?")[0].split("/")
        if kind == "api" and rest[3:4] == ["revision"]:
            siblings = [{"rfilename": name} for name in self.names()]
            self.reply(json.dumps({"id": "org/svd", "sha": COMMIT, "siblings": siblings}).encode())
        elif kind == "api" and rest[3:4] == ["tree"]:
            entries = [{"type": "file", "path": name, "size": 1, "oid": "0"} for name in self.names()]
            self.reply(json.dumps(entries).encode())
        elif rest[1:2] == ["resolve"]:
            name = "/".join(rest[3:])
            self.served.append(name)
            self.reply((self.root / name).read_bytes())
        else:
            self.send_error(404)

    do_HEAD = do_GET

    def names(self) -> list[str]:
        return [file.relative_to(self.root).as_posix() for file in self.root.rglob("*") if file.is_file()]

    def reply(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hash(body) & 0xFFFFFFFF:x}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Keep the test's output clean."""


def open_from_hub(endpoint: str, home: Path, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a process of its own whose Hugging Face Hub is at `endpoint`."""
    script = f"from sgi2v.checkpoint import *; from sgi2v.model import load_model\n{script}"
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", script]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_a_hugging_face_id_is_downloaded_and_its_commit_recorded(folder: Path, tmp_path: Path) -> None:
    (folder / "unet" / "big.bin").write_bytes(b"pickle")
    Hub.root, Hub.served = folder, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    config = "ModelConfig('org/svd', revision='main')"
    try:
        script = f"print(open_checkpoint({config}, weights=False).revision)"
        configuration = open_from_hub(endpoint, tmp_path / "hub", script)
        assert configuration.stdout.split() == [COMMIT], configuration.stderr
        assert not any(name.endswith(".safetensors") for name in Hub.served)
        script = f"model = load_model({config}, device='cpu')\n"
        script += "print(model.checkpoint.revision, model.unet.config.num_frames)"
        loaded = open_from_hub(endpoint, tmp_path / "hub", script)
        assert loaded.stdout.split() == [COMMIT, "6"], loaded.stderr
        assert any(name.endswith(".safetensors") for name in Hub.served)
        assert not any(name.endswith(".bin") for name in Hub.served)
    finally:
        server.shutdown()
        server.server_close()
    offline = open_from_hub(endpoint, tmp_path / "hub", script)
    assert offline.stdout.split() == [COMMIT, "6"], offline.stderr


def test_a_hugging_face_id_that_cannot_be_had_says_what_to_try(tmp_path: Path) -> None:
    script = "open_checkpoint(ModelConfig('org/none'), weights=False)"
    refused = open_from_hub("http://127.0.0.1:9", tmp_path / "hub", script)
    assert "ModelError: org/none could not be fetched" in refused.stderr
    assert "HF_TOKEN" in refused.stderr
