"""Costs of samples are counted once, kept in files, and shipped for the embedded checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sgi2v import costs, estimate
from sgi2v.checkpoint import Checkpoint, open_checkpoint
from sgi2v.config import GuidanceConfig, MemoryTier, ModelConfig, SamplerConfig
from sgi2v.costs import Cost, cost_key, known_cost
from sgi2v.estimate import count_cost, estimate_cost

COST = Cost({"guide": 1.0}, 2, dict.fromkeys(MemoryTier, 3))


@pytest.fixture(scope="module")
def embedded() -> Checkpoint:
    return open_checkpoint(ModelConfig(source="embedded"))


def test_the_shipped_costs_are_those_of_the_embedded_checkpoint(embedded: Checkpoint) -> None:
    sampler = embedded.sampler()
    for guidance in (embedded.guidance(), None):
        for dtype in ("float32", "bfloat16"):
            assert cost_key(embedded, sampler, guidance, dtype) in costs._shipped()


@pytest.mark.slow
def test_a_shipped_cost_is_what_is_counted(embedded: Checkpoint) -> None:
    settings = (embedded, embedded.sampler(), None)
    shipped, counted = known_cost(cost_key(*settings, "float32")), count_cost(*settings, torch.float32)
    assert shipped is not None
    assert (shipped.phase_flops, shipped.weights_bytes) == (counted.phase_flops, counted.weights_bytes)
    for tier in MemoryTier:  # libraries of other versions free their tensors at other moments
        assert shipped.working_bytes[tier] == pytest.approx(counted.working_bytes[tier], rel=0.05)


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
    settings = (embedded, SamplerConfig(num_frames=3), GuidanceConfig(), torch.float32)
    announced: list[int] = []
    assert estimate_cost(*settings, on_count=lambda: announced.append(len(counted))) == COST
    assert announced == [0], "counting is announced before it begins"
    if damage is not None:
        (file,) = tmp_path.rglob("*.json")
        file.write_bytes(damage)
    assert estimate_cost(*settings, on_count=lambda: announced.append(len(counted))) == COST
    assert len(counted) == len(announced) == (1 if damage is None else 2)


def test_where_nothing_can_be_kept_the_cost_is_counted_each_time(
    embedded: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SGI2V_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(estimate, "count_cost", lambda *_: COST)
    assert estimate_cost(embedded, SamplerConfig(num_frames=3), None, torch.float32) == COST
