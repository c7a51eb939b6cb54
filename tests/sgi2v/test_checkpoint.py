"""Checkpoints from folders, URLs and the Hugging Face Hub, and the errors of those that cannot be used."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import fsspec
import numpy as np
import pytest
import torch
from fsspec.implementations.memory import MemoryFileSystem
from safetensors.torch import load_file, save_file

from sgi2v.checkpoint import open_checkpoint
from sgi2v.config import ModelConfig
from sgi2v.errors import ConfigError, ModelError
from sgi2v.fetch import EMBEDDED, weight_files
from sgi2v.model import load_model, resolve_dtype

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "image_encoder": "model"}


class BareFileSystem(MemoryFileSystem):
    """A store without tags and times for its files, which breaks off the next `breaks` downloads of the U-Net."""

    protocol = "bare"
    breaks: ClassVar[int] = 0

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return str(super()._strip_protocol(path.removeprefix("bare://")))

    def find(self, path: str, *args: Any, **kwargs: Any) -> dict[str, dict[str, Any]]:
        return {name: self.info(name) for name in super().find(path, *args, **kwargs)}

    def info(self, path: str, **kwargs: Any) -> dict[str, Any]:
        return {key: value for key, value in super().info(path, **kwargs).items() if key != "created"}

    def get_file(self, rpath: str, lpath: str, *args: Any, **kwargs: Any) -> None:
        if rpath.endswith("unet/diffusion_pytorch_model.safetensors") and BareFileSystem.breaks:
            BareFileSystem.breaks -= 1
            Path(lpath).write_bytes(self.cat_file(rpath, 0, 1000))
            if BareFileSystem.breaks % 2:
                raise EOFError("connection lost")
            return
        super().get_file(rpath, lpath, *args, **kwargs)


fsspec.register_implementation("bare", BareFileSystem, clobber=True)


def upload(folder: Path, protocol: str) -> str:
    """Copy a folder into a store in this process's memory, and return its URL."""
    root = f"/{uuid.uuid4().hex}/model"
    for file in folder.rglob("*"):
        if file.is_file():
            MemoryFileSystem().pipe_file(f"{root}/{file.relative_to(folder).as_posix()}", file.read_bytes())
    return f"{protocol}:/{root}"


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


def test_a_checkpoint_brings_its_own_settings(folder: Path) -> None:
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


def test_every_missing_file_is_named(folder: Path) -> None:
    shutil.rmtree(folder / "image_encoder")
    (folder / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"unet/diffusion_pytorch_model\.safetensors.*image_encoder/config\.json"):
        open_checkpoint(ModelConfig(str(folder)))


def test_pickled_weights_are_never_read(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_suffix(".bin"))
    with pytest.raises(ModelError, match="pickled"):
        open_checkpoint(ModelConfig(str(folder)))


def test_another_architecture_is_an_error_that_names_it(folder: Path) -> None:
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "_class_name": "UNet2DConditionModel"}))
    with pytest.raises(ModelError, match=r"unet of .* is UNet2DConditionModel, not UNetSpatioTemporalConditionModel"):
        open_checkpoint(ModelConfig(str(folder)))


@pytest.mark.parametrize(
    ("source", "message"),
    [("no/such/folder/here", "there is no model folder"), ("/nowhere", "there is no model folder"), ("", "empty")],
)
def test_a_missing_or_empty_source_is_an_error(source: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        open_checkpoint(ModelConfig(source))


def test_a_file_as_source_is_an_error(folder: Path) -> None:
    with pytest.raises(ModelError, match="is a file"):
        open_checkpoint(ModelConfig(str(folder / "model_index.json")))


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


def test_a_tensor_that_the_model_does_not_have_is_ignored(folder: Path) -> None:
    weights = folder / "image_encoder" / "model.safetensors"
    tensors = {**load_file(weights), "vision_model.embeddings.position_ids": torch.arange(5)[None]}
    save_file(tensors, weights, metadata={"format": "pt"})
    assert load_model(str(folder), device="cpu").image_encoder.config.image_size == 224


def test_a_revision_needs_a_hugging_face_id(folder: Path) -> None:
    for source in (str(folder), EMBEDDED, "memory://x"):
        with pytest.raises(ModelError, match="Hugging Face"):
            open_checkpoint(ModelConfig(source, revision="main"))


@pytest.mark.parametrize("protocol", ["memory", "bare"])
def test_a_url_is_downloaded_once_and_completely(folder: Path, tmp_path: Path, protocol: str) -> None:
    url = upload(folder, protocol)
    configuration = open_checkpoint(ModelConfig(url), weights=False)
    assert not list(configuration.path.rglob("*.safetensors"))
    checkpoint = open_checkpoint(ModelConfig(url))
    assert checkpoint.path.is_relative_to(tmp_path / "cache")
    assert checkpoint.revision == configuration.revision
    written = {file: file.stat().st_mtime_ns for file in checkpoint.path.rglob("*.safetensors")}
    assert len(written) == 3
    for file in written:
        assert file.read_bytes() == (folder / file.relative_to(checkpoint.path)).read_bytes()
    again = open_checkpoint(ModelConfig(url)).path
    assert {file: file.stat().st_mtime_ns for file in again.rglob("*.safetensors")} == written
    assert not list(checkpoint.path.rglob("*.partial"))


@pytest.mark.parametrize("protocol", ["file", "local"])
def test_a_local_url_is_used_in_place(folder: Path, tmp_path: Path, protocol: str) -> None:
    checkpoint = open_checkpoint(ModelConfig(f"{protocol}://{folder}"))
    assert checkpoint.path == folder
    assert checkpoint.revision == open_checkpoint(ModelConfig(str(folder))).revision
    assert not (tmp_path / "cache").exists()
    with pytest.raises(ModelError, match="there is no model folder"):
        open_checkpoint(ModelConfig(f"{protocol}://{folder}/none"))


@pytest.mark.parametrize("protocol", ["memory", "bare"])
def test_overwritten_weights_of_the_same_size_are_fetched_again(folder: Path, protocol: str) -> None:
    url = upload(folder, protocol)
    name = "unet/diffusion_pytorch_model.safetensors"
    first = open_checkpoint(ModelConfig(url))
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    MemoryFileSystem().pipe_file(f"{url.removeprefix(f'{protocol}:/')}/{name}", bytes(data))
    second = open_checkpoint(ModelConfig(url))
    assert second.revision != first.revision
    assert (second.path / name).read_bytes() == bytes(data)


@pytest.fixture
def web_folder(folder: Path) -> Iterator[str]:
    """The URL of the folder on an HTTP server, whose listing has names only."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_the_revision_of_an_http_folder_changes_with_its_files_dates(folder: Path, web_folder: str) -> None:
    first = open_checkpoint(ModelConfig(web_folder))
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    assert (first.path / "vae" / weights.name).read_bytes() == weights.read_bytes()
    assert open_checkpoint(ModelConfig(web_folder), weights=False).revision == first.revision
    os.utime(weights, (0, 1_000_000_000))
    assert open_checkpoint(ModelConfig(web_folder), weights=False).revision != first.revision


@pytest.mark.parametrize(("dtype", "variant"), [("auto", ".fp16"), ("bfloat16", ".fp16"), ("float32", "")])
def test_one_variant_of_the_weights_is_fetched(folder: Path, dtype: Any, variant: str) -> None:
    for component, stem in WEIGHTS.items():
        shutil.copy(folder / component / f"{stem}.safetensors", folder / component / f"{stem}.fp16.safetensors")
    (folder / "svd_xt.safetensors").write_bytes(b"one file")
    (folder / "unet" / "old").mkdir()
    (folder / "unet" / "old" / "diffusion_pytorch_model.safetensors").write_bytes(b"nested")
    (folder / "sgi2v.json").write_text("{}")
    checkpoint = open_checkpoint(ModelConfig(upload(folder, "memory"), dtype=dtype))
    fetched = {file.relative_to(checkpoint.path).as_posix() for file in checkpoint.path.rglob("*") if file.is_file()}
    weights = {f"{component}/{stem}{variant}.safetensors" for component, stem in WEIGHTS.items()}
    assert {name for name in fetched if name.endswith(".safetensors")} == weights
    assert {"sgi2v.json", "unet/config.json", "scheduler/scheduler_config.json"} <= fetched
    assert "model_index.json" not in fetched


def test_a_url_without_a_checkpoint_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "svd.safetensors").write_bytes(b"one file")
    with pytest.raises(ModelError, match="holds no checkpoint"):
        open_checkpoint(ModelConfig(upload(tmp_path, "memory")))


@pytest.mark.parametrize(
    ("source", "environment", "cause"),
    [
        ("s3://bucket/x", {}, "NoCredentialsError"),
        (
            "s3://bucket/x",
            {
                "AWS_ACCESS_KEY_ID": "a",
                "AWS_SECRET_ACCESS_KEY": "b",
                "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
                "AWS_MAX_ATTEMPTS": "1",
            },
            "EndpointConnectionError",
        ),
        ("gs://bucket/x", {}, "ImportError: .*gcsfs"),
        ("http://127.0.0.1:9/x", {}, "Client.*127.0.0.1"),
        ("nothing://x", {}, "ValueError: .*nothing"),
    ],
)
def test_the_error_for_an_unreachable_store_names_the_cause(
    source: str, environment: dict[str, str], cause: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    s3 = fsspec.get_filesystem_class("s3")
    s3.clear_instance_cache()
    with pytest.raises(ModelError, match=f"could not be fetched: {cause}"):
        open_checkpoint(ModelConfig(source))
    s3.clear_instance_cache()


@pytest.mark.parametrize("breaks", [3, 4])
def test_a_broken_download_is_retried(folder: Path, monkeypatch: pytest.MonkeyPatch, breaks: int) -> None:
    monkeypatch.setattr("sgi2v.fetch._FIRST_DELAY_S", 0)
    monkeypatch.setattr(BareFileSystem, "breaks", breaks)
    url, name = upload(folder, "bare"), "unet/diffusion_pytorch_model.safetensors"
    if breaks == 4:
        with pytest.raises(ModelError, match="ended after 1000 of"):
            open_checkpoint(ModelConfig(url))
        partial_path = open_checkpoint(ModelConfig(url), weights=False).path
        assert [file.name for file in (partial_path / "unet").glob("*safetensors*")] == [f"{Path(name).name}.partial"]
    assert (open_checkpoint(ModelConfig(url)).path / name).read_bytes() == (folder / name).read_bytes()


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


@pytest.mark.parametrize(("capability", "dtype"), [((7, 5), torch.float16), ((8, 0), torch.bfloat16)])
def test_auto_is_a_type_that_the_gpu_computes_in(
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


class Hub(BaseHTTPRequestHandler):
    """The part of the Hugging Face Hub's API that a download needs."""

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
    """Run a script in a new process whose Hugging Face Hub is at `endpoint`."""
    script = f"from sgi2v.checkpoint import *; from sgi2v.model import load_model\n{script}"
    environment = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", script]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_a_hugging_face_id_is_downloaded_and_its_commit_recorded(folder: Path, tmp_path: Path) -> None:
    (folder / "unet" / "big.bin").write_bytes(b"pickle")
    (folder / "vae" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"not asked for")
    Hub.root, Hub.served = folder, []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    config = "ModelConfig('org/svd', revision='main', dtype='float32')"
    try:
        script = f"print(open_checkpoint({config}, weights=False).revision)"
        configuration = open_from_hub(endpoint, tmp_path / "hub", script)
        assert configuration.stdout.split() == [COMMIT], configuration.stderr
        assert not any(name.endswith(".safetensors") for name in Hub.served)
        shutil.copytree(tmp_path / "hub", tmp_path / "configuration", symlinks=True)
        script = f"model = load_model({config}, device='cpu')\n"
        script += "print(model.checkpoint.revision, model.unet.config.num_frames)"
        loaded = open_from_hub(endpoint, tmp_path / "hub", script)
        assert loaded.stdout.split() == [COMMIT, "6"], loaded.stderr
        assert any(name.endswith(".safetensors") for name in Hub.served)
        assert not any(name.endswith((".bin", ".fp16.safetensors")) for name in Hub.served)
    finally:
        server.shutdown()
        server.server_close()
    offline = open_from_hub(endpoint, tmp_path / "hub", script)
    assert offline.stdout.split() == [COMMIT, "6"], offline.stderr
    without_weights = open_from_hub(endpoint, tmp_path / "configuration", script)
    assert "ModelError: org/svd could not be fetched" in without_weights.stderr


def test_the_error_for_an_unreachable_hugging_face_id_says_what_to_try(tmp_path: Path) -> None:
    script = "open_checkpoint(ModelConfig('org/none'), weights=False)"
    refused = open_from_hub("http://127.0.0.1:9", tmp_path / "hub", script)
    assert "ModelError: org/none could not be fetched" in refused.stderr
    assert "HF_TOKEN" in refused.stderr
