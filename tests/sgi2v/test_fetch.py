"""Fetching checkpoints from folders and stores; no file is left half fetched."""

from __future__ import annotations

import os
import shutil
import sys
import uuid
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any, ClassVar

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

import sgi2v.retry
from sgi2v.checkpoint import open_checkpoint
from sgi2v.config import ModelConfig
from sgi2v.errors import ModelError

WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "image_encoder": "model"}


class BareFileSystem(MemoryFileSystem):
    """A store whose listing has no version tag and no time, and which cuts the next `breaks` downloads of the U-Net."""

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
    """The URL of a copy of a folder in a store in this process's memory."""
    root = f"/{uuid.uuid4().hex}/model"
    for file in folder.rglob("*"):
        if file.is_file():
            MemoryFileSystem().pipe_file(f"{root}/{file.relative_to(folder).as_posix()}", file.read_bytes())
    return f"{protocol}:/{root}"


@pytest.fixture
def folder(golden_checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(golden_checkpoint, tmp_path / "checkpoint")


@pytest.fixture(autouse=True)
def _temporary_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SGI2V_CACHE", str(tmp_path / "cache"))


def test_the_revision_of_a_folder_changes_with_its_contents(folder: Path) -> None:
    first = open_checkpoint(ModelConfig(source=str(folder))).revision
    assert open_checkpoint(ModelConfig(source=str(folder))).revision == first
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(bytes(data))
    assert open_checkpoint(ModelConfig(source=str(folder))).revision != first


@pytest.mark.parametrize("protocol", ["memory", "bare"])
def test_a_url_is_copied_to_the_cache_once(folder: Path, tmp_path: Path, protocol: str) -> None:
    url = upload(folder, protocol)
    configuration = open_checkpoint(ModelConfig(source=url), weights=False)
    assert not list(configuration.path.rglob("*.safetensors"))
    checkpoint = open_checkpoint(ModelConfig(source=url))
    assert checkpoint.path.is_relative_to(tmp_path / "cache")
    assert checkpoint.revision == configuration.revision
    written = {file: file.stat().st_mtime_ns for file in checkpoint.path.rglob("*.safetensors")}
    assert len(written) == 3
    for file in written:
        assert file.read_bytes() == (folder / file.relative_to(checkpoint.path)).read_bytes()
    again = open_checkpoint(ModelConfig(source=url)).path
    assert {file: file.stat().st_mtime_ns for file in again.rglob("*.safetensors")} == written
    assert not list(checkpoint.path.rglob("*.partial"))


@pytest.mark.parametrize("protocol", ["file", "local"])
def test_a_local_url_is_used_in_place(folder: Path, tmp_path: Path, protocol: str) -> None:
    checkpoint = open_checkpoint(ModelConfig(source=f"{protocol}://{folder}"))
    assert checkpoint.path == folder
    assert checkpoint.revision == open_checkpoint(ModelConfig(source=str(folder))).revision
    assert not (tmp_path / "cache").exists()
    with pytest.raises(ModelError, match="there is no model folder"):
        open_checkpoint(ModelConfig(source=f"{protocol}://{folder}/none"))


@pytest.mark.parametrize("protocol", ["memory", "bare"])
def test_overwritten_weights_of_the_same_size_are_fetched_again(folder: Path, protocol: str) -> None:
    url = upload(folder, protocol)
    name = "unet/diffusion_pytorch_model.safetensors"
    first = open_checkpoint(ModelConfig(source=url))
    data = bytearray((folder / name).read_bytes())
    data[-1] ^= 1
    MemoryFileSystem().pipe_file(f"{url.removeprefix(f'{protocol}:/')}/{name}", bytes(data))
    second = open_checkpoint(ModelConfig(source=url))
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


def test_the_revision_of_an_http_folder_changes_with_its_dates(folder: Path, web_folder: str) -> None:
    first = open_checkpoint(ModelConfig(source=web_folder))
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    assert (first.path / "vae" / weights.name).read_bytes() == weights.read_bytes()
    assert open_checkpoint(ModelConfig(source=web_folder), weights=False).revision == first.revision
    os.utime(weights, (0, 1_000_000_000))
    assert open_checkpoint(ModelConfig(source=web_folder), weights=False).revision != first.revision


@pytest.mark.parametrize(("dtype", "variant"), [("auto", ".fp16"), ("bfloat16", ".fp16"), ("float32", "")])
def test_one_variant_of_each_component_is_fetched(folder: Path, dtype: Any, variant: str) -> None:
    for component, stem in WEIGHTS.items():
        shutil.copy(folder / component / f"{stem}.safetensors", folder / component / f"{stem}.fp16.safetensors")
    (folder / "svd_xt.safetensors").write_bytes(b"one file")
    (folder / "unet" / "old").mkdir()
    (folder / "unet" / "old" / "diffusion_pytorch_model.safetensors").write_bytes(b"nested")
    (folder / "sgi2v.json").write_text("{}")
    checkpoint = open_checkpoint(ModelConfig(source=upload(folder, "memory"), dtype=dtype))
    fetched = {file.relative_to(checkpoint.path).as_posix() for file in checkpoint.path.rglob("*") if file.is_file()}
    weights = {f"{component}/{stem}{variant}.safetensors" for component, stem in WEIGHTS.items()}
    assert {name for name in fetched if name.endswith(".safetensors")} == weights
    assert {"sgi2v.json", "unet/config.json", "scheduler/scheduler_config.json"} <= fetched
    assert "model_index.json" not in fetched


def test_a_url_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "svd.safetensors").write_bytes(b"one file")
    with pytest.raises(ModelError, match="holds no checkpoint"):
        open_checkpoint(ModelConfig(source=upload(tmp_path, "memory")))


@pytest.mark.parametrize(
    ("source", "environment", "message"),
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
def test_an_unreachable_store_is_a_model_error_that_says_why(
    source: str, environment: dict[str, str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    with pytest.raises(ModelError, match=f"could not be fetched: {message}"):
        open_checkpoint(ModelConfig(source=source))
    s3.clear_instance_cache()


@pytest.mark.parametrize("breaks", [3, 4])
def test_a_broken_download_is_retried(folder: Path, monkeypatch: pytest.MonkeyPatch, breaks: int) -> None:
    monkeypatch.setattr(sgi2v.retry, "FIRST_DELAY_S", 0)
    monkeypatch.setattr(BareFileSystem, "breaks", breaks)
    url, name = upload(folder, "bare"), "unet/diffusion_pytorch_model.safetensors"
    if breaks == 4:
        with pytest.raises(ModelError, match=r"fetched: downloading .* failed: OSError: .* ended after 1000 of"):
            open_checkpoint(ModelConfig(source=url))
        half = open_checkpoint(ModelConfig(source=url), weights=False).path
        assert [file.name for file in (half / "unet").glob("*safetensors*")] == [f"{Path(name).name}.partial"]
    assert (open_checkpoint(ModelConfig(source=url)).path / name).read_bytes() == (folder / name).read_bytes()
