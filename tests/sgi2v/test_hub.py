"""Checkpoints of the Hugging Face Hub: what happens where it fails, and which weights a revision stands for."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub.constants
import pytest

import sgi2v.retry
from pipeline.config import resolve
from pipeline.flow.generate import Generate
from sgi2v.checkpoint import Checkpoint, open_checkpoint, pinned
from sgi2v.config import ModelConfig
from sgi2v.errors import ConfigError, ModelError
from sgi2v.fetch import cache_root
from tests.hub_stand_in import COMMIT, LATER_COMMIT, MODEL, Fault, Hub, hub_stand_in
from tests.pipeline.runs import write_good

WEIGHTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "image_encoder": "model"}
FULL, FP16 = ({f"{folder}/{stem}{infix}.safetensors" for folder, stem in WEIGHTS.items()} for infix in ("", ".fp16"))
REASONS: dict[Any, str] = {
    401: "the Hub wants a valid token (401)",
    403: "the Hub refuses access (403)",
    404: "the Hub has no such model or revision, or it is private (404)",
    429: "the Hub has had too many requests from here (429)",
    503: "the Hub failed (503)",
    "cut": "the Hub did not answer (",
    "unreachable": "the Hub did not answer (ConnectError: ",
    "offline": "HF_HUB_OFFLINE is set",
}
ADVICE = {401: "HF_TOKEN", 403: "licence", 404: "Check the name", 429: "in some minutes", "offline": "HF_HUB_OFFLINE"}


@pytest.fixture
def hub(golden_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with weights in both variants; this process asks it, and has an empty cache."""
    folder = shutil.copytree(golden_checkpoint, tmp_path / "checkpoint")
    for component, stem in WEIGHTS.items():
        file = folder / component / f"{stem}.safetensors"
        shutil.copy(file, file.with_name(f"{stem}.fp16.safetensors"))
    monkeypatch.setenv("SGI2V_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(sgi2v.retry, "FIRST_DELAY_S", 0)
    constants = huggingface_hub.constants
    with hub_stand_in(folder) as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.url)
        template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        yield running


def opened(dtype: Any = "auto", revision: str | None = None, weights: bool = True) -> Checkpoint:
    return open_checkpoint(ModelConfig(source=MODEL, dtype=dtype, revision=revision), weights=weights)


def weights_in(checkpoint: Checkpoint) -> set[str]:
    return {file.relative_to(checkpoint.path).as_posix() for file in checkpoint.path.rglob("*.safetensors")}


def set_fault(hub: Hub, fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if fault == "offline":
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    elif fault == "unreachable":
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    else:
        hub.fault = fault


@pytest.mark.slow
@pytest.mark.parametrize("fault", REASONS)
def test_with_an_empty_cache_an_error_of_the_hub_says_what_to_do(
    hub: Hub, fault: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_fault(hub, fault, monkeypatch)
    with pytest.raises(ModelError) as raised:
        opened()
    message = str(raised.value)
    assert message.startswith(f"{MODEL} could not be fetched from Hugging Face: {REASONS[fault]}")
    assert ADVICE.get(fault, "run the same command again") in message
    assert "local_files_only" not in message
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.url)
    hub.fault = None
    assert weights_in(opened()) == FP16, "the next run goes on"


@pytest.mark.parametrize("fault", [fault for fault in REASONS if fault != "cut"])
def test_a_full_cache_survives_every_error_of_the_hub(hub: Hub, fault: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first = opened()
    assert (first.revision, first.note, weights_in(first)) == (COMMIT, None, FP16)
    set_fault(hub, fault, monkeypatch)
    again = opened()
    assert (again.revision, again.path) == (first.revision, first.path)
    if fault == "offline":
        assert again.note is None, "the user has asked for it"
    else:
        assert again.note is not None
        assert again.note.startswith(f"{MODEL}: {REASONS[fault]}")
        assert again.note.endswith(f", so the files in the local cache are used, at {COMMIT}")


@pytest.mark.whole
def test_a_download_of_a_later_commit_that_is_cut_leaves_the_whole_one_in_use(hub: Hub) -> None:
    first = opened()
    hub.commit, hub.fault = LATER_COMMIT, "cut"
    unet = hub.root / "unet" / "diffusion_pytorch_model.fp16.safetensors"
    unet.write_bytes(unet.read_bytes()[:-1] + b"\1")
    again = opened()
    assert (again.revision, again.path) == (COMMIT, first.path)
    assert again.note is not None
    assert again.note.startswith(f"{MODEL}: the Hub did not answer (")
    hub.fault = None
    assert opened().revision == LATER_COMMIT
    hub.fault = 503
    assert opened().revision == LATER_COMMIT


@pytest.mark.parametrize("fault", [None, 429])
def test_workers_open_the_revision_of_the_plan_without_asking_the_hub(hub: Hub, fault: Fault) -> None:
    config = ModelConfig(source=MODEL)
    plan = open_checkpoint(config)
    hub.requests, hub.fault = 0, fault
    started = [open_checkpoint(pinned(config, plan.revision)) for _ in range(20)]
    assert {(worker.revision, worker.note) for worker in started} == {(COMMIT, None)}
    assert hub.requests == 0
    shutil.rmtree(cache_root())  # another node, whose cache has these files from elsewhere
    assert open_checkpoint(pinned(config, plan.revision)).revision == COMMIT
    assert hub.requests == 0


def test_a_full_cache_is_used_where_nothing_can_be_written(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a container without a home folder, whose cache of the Hub is mounted to be read only."""
    config = ModelConfig(source=MODEL)
    plan = open_checkpoint(config)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SGI2V_CACHE", str(tmp_path / "file"))
    hub.requests = 0
    again = open_checkpoint(config)
    assert (again.revision, again.path, hub.requests) == (plan.revision, plan.path, 0)
    assert again.note is not None
    assert "Not a directory" in again.note
    worker = open_checkpoint(pinned(config, plan.revision))
    assert (worker.revision, worker.note) == (COMMIT, None)
    shutil.rmtree(plan.path / "vae")
    with pytest.raises(ModelError, match=r"could not be fetched from Hugging Face: .*Not a directory"):
        open_checkpoint(config)


def test_only_a_source_of_the_hub_is_pinned(tmp_path: Path) -> None:
    for source in ("embedded", str(tmp_path), "s3://bucket/model"):
        assert pinned(ModelConfig(source=source), COMMIT).revision is None
    assert pinned(ModelConfig(source=MODEL, revision="main"), f"{COMMIT}+0123").revision == COMMIT


@pytest.mark.slow
def test_a_worker_starts_from_the_cache(hub: Hub, tmp_path: Path) -> None:
    flags = {"model": {"source": MODEL}, "sampler": {"height": 64, "width": 64, "num_frames": 2, "steps": 2}}
    config, _ = resolve(str(write_good(tmp_path, 1)), str(tmp_path / "out"), {}, flags)
    hub.requests, hub.commit = 0, LATER_COMMIT
    worker = Generate(config, "cpu")
    assert not isinstance(worker.model, ConfigError)
    assert worker.model.checkpoint.revision == COMMIT, "the branch has moved, and the plan has not"
    assert hub.requests == 0
    moved = dataclasses.replace(config, model_revision=f"{COMMIT}+0123456789ab")
    assert "give every node the same weights" in str(Generate(moved, "cpu").model)


@pytest.mark.parametrize(("cached", "asked", "missing"), [("auto", "float32", ""), ("float32", "auto", ".fp16")])
def test_cached_weights_of_the_other_variant_are_not_taken_while_the_hub_fails(
    hub: Hub, cached: Any, asked: Any, missing: str
) -> None:
    opened(cached)
    hub.fault = 503
    with pytest.raises(ModelError) as raised:
        opened(asked)
    file = f"image_encoder/model{missing}.safetensors"
    assert f"The local cache lacks files that --dtype {asked} needs: {file}" in str(raised.value)
    assert opened(asked, weights=False).revision == COMMIT
    hub.fault = None
    assert weights_in(opened(asked)) == FULL | FP16


@pytest.mark.parametrize(("cached", "asked"), [("auto", "float32"), ("float32", "auto")])
def test_weights_that_may_not_be_the_hubs_choice_have_a_revision_of_their_own(
    hub: Hub, cached: Any, asked: Any
) -> None:
    """Another program has filled the cache, so which files the Hub has is not known here."""
    opened(cached)
    shutil.rmtree(cache_root())
    hub.fault = 503
    assert opened(cached).revision == COMMIT
    other = opened(asked)
    commit, _, digest = other.revision.partition("+")
    assert (commit, len(digest)) == (COMMIT, 12)
    assert opened(asked, revision=COMMIT).revision == other.revision, "as in a worker"
    file = other.path / "vae" / f"diffusion_pytorch_model{'.fp16' if cached == 'auto' else ''}.safetensors"
    data = file.read_bytes()
    file.unlink()
    file.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    assert opened(asked).revision not in {COMMIT, other.revision}
    hub.fault = None
    assert opened(asked).revision == COMMIT


def test_a_model_with_one_variant_is_the_same_revision_with_and_without_the_hub(hub: Hub) -> None:
    for name in FP16:
        (hub.root / name).unlink()
    first = opened()
    assert (first.revision, weights_in(first)) == (COMMIT, FULL)
    hub.fault = 503
    assert opened().revision == COMMIT


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]"])
def test_a_damaged_record_counts_as_none(hub: Hub, damage: bytes) -> None:
    opened()
    (record,) = cache_root().rglob(f"{COMMIT}.json")
    record.write_bytes(damage)
    hub.fault = 429
    assert opened().revision == COMMIT


@pytest.mark.slow
def test_a_hugging_face_id_is_downloaded_by_the_names_of_the_environment(hub: Hub, tmp_path: Path) -> None:
    """In a process of its own, which reads HF_ENDPOINT and HF_HOME."""
    (hub.root / "unet" / "big.bin").write_bytes(b"pickle")
    script = (
        "from sgi2v.checkpoint import *\n"
        f"config = ModelConfig(source='{MODEL}', revision='main', dtype='float32')\n"
        "print(open_checkpoint(config, weights=False).revision, open_checkpoint(config).revision)"
    )
    settings = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-c", script]
    first = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, check=False)
    assert first.stdout.split() == [COMMIT, COMMIT], first.stderr
    assert {name for name in hub.served if name.endswith((".safetensors", ".bin"))} == FULL
