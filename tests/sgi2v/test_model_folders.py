"""Model folders as people have them: with links, missing shards, strange files; and where the cache lies."""

from __future__ import annotations

import os
import pwd
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sgi2v.checkpoint import open_checkpoint
from sgi2v.config import ModelConfig
from sgi2v.errors import ModelError
from sgi2v.fetch import cache_root
from sgi2v.model import load_model

WEIGHTS = "diffusion_pytorch_model"


@pytest.fixture
def folder(golden_checkpoint: Path, tmp_path: Path) -> Path:
    return shutil.copytree(golden_checkpoint, tmp_path / "checkpoint")


def revision(folder: Path) -> str:
    return open_checkpoint(ModelConfig(source=str(folder))).revision


@pytest.mark.parametrize("linked", ["the folder", "its components", "its files"])
def test_the_revision_changes_with_the_files_behind_links(folder: Path, tmp_path: Path, linked: str) -> None:
    links = tmp_path / "links"
    if linked == "the folder":
        links.symlink_to(folder)
    else:
        paths = folder.glob("*") if linked == "its components" else folder.rglob("*.*")
        for path in paths:
            link = links / path.relative_to(folder)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    before = revision(links)
    assert before == revision(folder)
    weights = folder / "vae" / f"{WEIGHTS}.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert revision(links) == revision(folder) != before


@pytest.mark.parametrize("changed", range(5))
def test_the_revision_of_a_large_folder_changes_with_every_tensor(folder: Path, changed: int) -> None:
    weights = folder / "unet" / f"{WEIGHTS}.safetensors"
    tensors = load_file(weights)
    names = ["conv_in.weight", *(f"more.{number}" for number in range(3)), sorted(tensors)[-1]]
    tensors |= {name: torch.full((300_000 + number,), 0.5) for number, name in enumerate(names[1:4])}
    save_file(tensors, weights, metadata={"format": "pt"})
    size, before = weights.stat().st_size, revision(folder)
    tensors[names[changed]] += 0.25
    save_file(tensors, weights, metadata={"format": "pt"})
    assert weights.stat().st_size == size > 1 << 20
    assert revision(folder) != before


@pytest.mark.parametrize(
    "start", [b"\xff" * 8, b"\x04" + bytes(7) + b"[[1]", b"\x02" + bytes(7) + b"{", b"\x07" + bytes(7) + b'{"a":1}']
)
def test_a_large_file_without_a_header_has_a_digest(folder: Path, start: bytes) -> None:
    weights = folder / "unet" / f"{WEIGHTS}.safetensors"
    weights.write_bytes(start + bytes(1 << 21) + b"1")
    before = revision(folder)
    weights.write_bytes(start + bytes(1 << 21) + b"2")
    assert revision(folder) != before


def test_files_that_are_no_part_of_a_checkpoint_change_nothing(folder: Path) -> None:
    before = revision(folder)
    (folder / "vae" / "._config.json").write_bytes(b"\0\5\x16\7")
    (folder / "old.json").mkdir()
    (folder / "gone.safetensors").symlink_to("../blobs/0123")
    assert revision(folder) == before


def test_weights_behind_a_broken_link_are_missing(folder: Path) -> None:
    weights = folder / "unet" / f"{WEIGHTS}.safetensors"
    weights.unlink()
    weights.symlink_to("../../blobs/0123")
    with pytest.raises(ModelError, match=f"lacks unet/{WEIGHTS}.safetensors"):
        revision(folder)


@pytest.mark.parametrize("shards", [(1,), (2,), (1, 3), ()])
def test_a_set_of_shards_with_a_hole_is_missing(folder: Path, shards: tuple[int, ...]) -> None:
    weights = folder / "unet" / f"{WEIGHTS}.safetensors"
    for number in shards:
        shutil.copy(weights, weights.with_name(f"{WEIGHTS}-{number:05d}-of-00003.safetensors"))
    weights.unlink()
    with pytest.raises(ModelError, match=f"lacks unet/{WEIGHTS}.safetensors"):
        revision(folder)


def test_a_whole_set_of_shards_is_enough_beside_the_rest_of_another(folder: Path) -> None:
    weights = folder / "unet" / f"{WEIGHTS}.safetensors"
    for shard in ("00001-of-00002", "00002-of-00002", "00001-of-00003"):
        shutil.copy(weights, weights.with_name(f"{WEIGHTS}-{shard}.safetensors"))
    weights.unlink()
    assert revision(folder)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "variant"), [("auto", "fp16"), ("bfloat16", "fp16"), ("float32", None)])
def test_the_files_that_are_fetched_are_the_ones_that_are_loaded(folder: Path, dtype: Any, variant: str | None) -> None:
    """A cache may hold both kinds, from runs with other settings."""
    for component, stem in (("unet", WEIGHTS), ("vae", WEIGHTS), ("image_encoder", "model")):
        weights = folder / component / f"{stem}.safetensors"
        halves = {name: torch.full_like(tensor, 0.5) for name, tensor in load_file(weights).items()}
        save_file(halves, weights.with_name(f"{stem}.fp16.safetensors"), metadata={"format": "pt"})
    model = load_model(str(folder), device="cpu", dtype=dtype)
    for part in (model.unet, model.vae, model.image_encoder):
        weight = next(part.parameters())
        assert bool((weight == 0.5).all()) == (variant == "fp16")


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_entry(user: int) -> None:
        raise KeyError(user)

    for name in ("SGI2V_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    assert cache_root() == Path(tempfile.gettempdir()) / f"sgi2v-batch-{os.getuid()}"
    monkeypatch.setenv("HOME", "/home/me")
    assert cache_root() == Path("/home/me/.cache/sgi2v-batch")
    monkeypatch.setenv("XDG_CACHE_HOME", "/caches")
    assert cache_root() == Path("/caches/sgi2v-batch")
    monkeypatch.setenv("SGI2V_CACHE", "/models")
    assert cache_root() == Path("/models")
    monkeypatch.setenv("SGI2V_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert cache_root() == Path("/home/me/.cache/sgi2v-batch")


def test_a_cache_that_cannot_be_a_folder_is_a_model_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("SGI2V_CACHE", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="could not be fetched"):
        open_checkpoint(ModelConfig(source="owner/name"))
