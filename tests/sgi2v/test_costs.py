"""Costs of samples are counted once, kept in files, and shipped for well-known models."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import inspect
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from sgi2v import costs, estimate
from sgi2v.checkpoint import Checkpoint, open_checkpoint
from sgi2v.config import GuidanceConfig, ModelConfig, SamplerConfig, apply_preset
from sgi2v.costs import Cost, cost_key, known_cost
from sgi2v.estimate import count_cost, dtype_name, estimate_cost
from tools.costs import TYPES
from tools.full_size import write_configs

COST = Cost(2, {"encode": 1.0, "step": 1.0, "frame": 1.0}, {"encode": 3, "step": 3, "frame": 3})
BOTH = ("float32", "float32")


@pytest.fixture(scope="module")
def embedded() -> Checkpoint:
    return open_checkpoint(ModelConfig(source="embedded"))


@pytest.mark.parametrize("types", TYPES, ids=str)
@pytest.mark.parametrize("frames", [None, 14, 25], ids=["embedded", "SVD", "SVD-XT"])
def test_the_costs_of_well_known_models_are_shipped(
    embedded: Checkpoint, tmp_path: Path, frames: int | None, types: tuple[torch.dtype, torch.dtype]
) -> None:
    checkpoint = embedded
    if frames is not None:
        checkpoint = open_checkpoint(ModelConfig(source=str(write_configs(tmp_path, frames))), weights=False)
    sampler, guidance = checkpoint.sampler(), checkpoint.guidance()
    sampler = sampler if frames is None else sampler.replace(num_frames=frames)
    for preset in ("paper", "fast", "scene"):
        settings = apply_preset(preset, sampler, guidance)
        for guided in (settings[1], None):
            assert cost_key(checkpoint, settings[0], guided, *map(dtype_name, types)) in costs._shipped()


def test_a_cost_does_not_depend_on_who_saved_the_configuration(embedded: Checkpoint) -> None:
    unet = {
        **embedded.configs["unet"],
        "_diffusers_version": "0.24.0.dev0",
        "_name_or_path": "/home/x",
        "num_frames": 7,
    }
    clip = {**embedded.configs["image_encoder"], "torch_dtype": "float16", "transformers_version": "4.34.0.dev0"}
    saved = dataclasses.replace(embedded, configs={**embedded.configs, "unet": unet, "image_encoder": clip})
    settings = embedded.sampler(), embedded.guidance()
    assert cost_key(saved, *settings, *BOTH) == cost_key(embedded, *settings, *BOTH)
    deeper = {**unet, "layers_per_block": 3}
    other = dataclasses.replace(embedded, configs={**embedded.configs, "unet": deeper})
    assert cost_key(other, *settings, *BOTH) != cost_key(embedded, *settings, *BOTH)


def test_every_value_of_the_configurations_is_known_to_decide_a_cost_or_not() -> None:
    from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel

    indifferent = {
        "unet": {"sample_size", "num_frames"},
        "vae": {"sample_size", "scaling_factor", "force_upcast"},
    }
    classes = {"unet": UNetSpatioTemporalConditionModel, "vae": AutoencoderKLTemporalDecoder}
    for component, each in classes.items():
        values = set(inspect.signature(each.__init__).parameters) - {"self"}
        assert values == {*costs.ARCHITECTURE[component], *indifferent[component]}


@pytest.mark.whole
def test_a_shipped_cost_is_what_is_counted(embedded: Checkpoint) -> None:
    settings = (embedded, embedded.sampler(), None)
    _is_what_is_counted(known_cost(cost_key(*settings, *BOTH)), count_cost(*settings, torch.float32, torch.float32))


@pytest.mark.whole
@pytest.mark.slow
def test_the_shipped_cost_of_full_size_is_what_is_counted(tmp_path: Path) -> None:
    checkpoint = open_checkpoint(ModelConfig(source=str(write_configs(tmp_path))), weights=False)
    settings = (checkpoint, SamplerConfig(), GuidanceConfig())
    shipped = known_cost(cost_key(*settings, "float16", "bfloat16"))
    _is_what_is_counted(shipped, count_cost(*settings, torch.float16, torch.bfloat16))


def _is_what_is_counted(shipped: Cost | None, counted: Cost) -> None:
    assert shipped is not None
    assert (shipped.flops, shipped.weights_bytes) == (counted.flops, counted.weights_bytes)
    assert shipped.peak_bytes.keys() == counted.peak_bytes.keys()
    for part, size in counted.peak_bytes.items():  # libraries of other versions free their tensors at other moments
        assert shipped.peak_bytes[part] == pytest.approx(size, rel=0.05)


def test_the_operations_of_a_sample_are_those_of_its_parts(embedded: Checkpoint) -> None:
    """The number of steps and updates is no part of what is counted, so that no setting of theirs has to be counted."""
    sampler, guidance = SamplerConfig(num_frames=3, steps=10), GuidanceConfig(iterations=2, guided_steps=(1, 2, 3))
    cost = Cost(0, {"encode": 1.0, "update": 10.0, "step": 100.0, "frame": 1000.0}, {})
    assert cost.phase_flops(sampler, guidance) == {"encode": 1, "guide": 60, "denoise": 1000, "decode": 3000}
    assert cost.phase_flops(sampler, None)["guide"] == 0
    keys = {cost_key(embedded, sampler.replace(steps=steps), guidance, *BOTH) for steps in (10, 50)}
    assert len(keys) == 1


@pytest.mark.parametrize("damage", [None, b"", b"[]", b'{"weights_bytes": 1}'])
def test_a_cost_is_counted_once_and_again_if_its_file_is_damaged(
    embedded: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: bytes | None
) -> None:
    monkeypatch.setenv("SGI2V_CACHE", str(tmp_path))
    counted = []

    def count(*settings: object) -> Cost:
        counted.append(settings)
        return COST

    monkeypatch.setattr(estimate, "count_cost", count)
    monkeypatch.setattr(costs, "_kept", {})
    settings = (embedded, SamplerConfig(num_frames=3), GuidanceConfig(), torch.float32, torch.float32)
    announced: list[int] = []
    assert estimate_cost(*settings, on_count=lambda: announced.append(len(counted))) == COST
    assert announced == [0], "counting is announced before it begins"
    if damage is not None:
        (file,) = tmp_path.rglob("*.json")
        file.write_bytes(damage)
        costs._kept.clear()  # as in another process
    assert estimate_cost(*settings, on_count=lambda: announced.append(len(counted))) == COST
    assert len(counted) == len(announced) == (1 if damage is None else 2)


def test_a_cost_is_looked_up_in_a_checkout_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.setenv("SGI2V_CACHE", str(tmp_path))
    monkeypatch.setattr(costs, "_kept", {})
    assert known_cost("0" * 32) is None
    costs.keep_cost("0" * 32, COST)
    costs._kept.clear()
    assert known_cost("0" * 32) == COST


def test_where_nothing_can_be_kept_the_cost_is_counted_once_in_each_process(
    embedded: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SGI2V_CACHE", str(tmp_path / "file"))
    counted: list[object] = []
    monkeypatch.setattr(estimate, "count_cost", lambda *_: counted.append(1) or COST)
    monkeypatch.setattr(costs, "_kept", {})
    for _ in range(2):
        assert estimate_cost(embedded, SamplerConfig(num_frames=3), None, torch.float32, torch.float32) == COST
    assert len(counted) == 1


def test_workers_that_start_at_once_count_once(
    embedded: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SGI2V_CACHE", str(tmp_path))
    counted: list[object] = []
    both_ask = threading.Barrier(4)
    monkeypatch.setattr(estimate, "count_cost", lambda *_: counted.append(1) or COST)
    monkeypatch.setattr(costs, "_kept", {})

    def start() -> Cost:
        both_ask.wait()
        return estimate_cost(embedded, SamplerConfig(num_frames=3), None, torch.float32, torch.float32)

    with ThreadPoolExecutor(4) as workers:
        results = [worker.result() for worker in [workers.submit(start) for _ in range(4)]]
    assert results == [COST] * 4
    assert len(counted) == 1
    assert not list(tmp_path.rglob("*.partial"))
