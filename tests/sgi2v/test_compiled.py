"""Compiled blocks make the same video, with every feature recorded and in every memory tier."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sgi2v.compiled import blocks_of, compile_blocks, uncompiled
from sgi2v.config import Feature, GuidanceConfig, MemoryTier, SamplerConfig
from sgi2v.generate import Generation, generate
from sgi2v.model import VideoModel, load_model
from sgi2v.trial import moving_box, shortest
from tests.sgi2v.test_generate import GUIDANCE, SAMPLER, tracks


class EagerBackend:
    """Runs each graph with torch's ordinary kernels, and counts the graphs. Inductor would take minutes."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: torch.fx.GraphModule, _example_inputs: list[Any]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


@pytest.fixture(scope="module")
def backend() -> EagerBackend:
    return EagerBackend()


@pytest.fixture(scope="module")
def compiled(golden_checkpoint: Path, backend: EagerBackend) -> Iterator[VideoModel]:
    """A model whose blocks are traced as for compilation; a block that breaks into several graphs raises."""
    torch.compiler.reset()
    model = load_model(str(golden_checkpoint), device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "compile", partial(torch.compile, backend=backend, fullgraph=True))
        compile_blocks(model.unet)
    yield model
    torch.compiler.reset()


def generate_small(
    model: VideoModel,
    image: NDArray[np.uint8],
    tier: MemoryTier,
    sampler: SamplerConfig,
    guidance: GuidanceConfig | None,
) -> Generation:
    return generate(model, image, tracks(), sampler, guidance, seed=1, memory=tier)


@pytest.mark.whole
@pytest.mark.slow
@pytest.mark.parametrize(
    ("tier", "feature"),
    [
        *((MemoryTier.HIGH, feature) for feature in Feature),
        *((tier, GUIDANCE.feature) for tier in (MemoryTier.MEDIUM, MemoryTier.LOW)),
    ],
)
def test_a_compiled_model_makes_the_same_video(
    model: VideoModel,
    compiled: VideoModel,
    backend: EagerBackend,
    photograph: NDArray[np.uint8],
    tier: MemoryTier,
    feature: Feature,
) -> None:
    # one update only: AdamW turns a difference in a gradient's last bit into a whole step
    settings = shortest(SAMPLER, GUIDANCE.replace(feature=feature))
    expected = generate_small(model, photograph, tier, *settings)
    actual = generate_small(compiled, photograph, tier, *settings)
    assert expected.losses.min() > 0
    np.testing.assert_allclose(actual.losses, expected.losses, rtol=1e-3)
    torch.testing.assert_close(actual.latents, expected.latents, rtol=0, atol=1e-2)
    assert backend.graphs > 0


@pytest.mark.whole
def test_the_shortest_sample_leaves_nothing_to_compile(
    compiled: VideoModel, backend: EagerBackend, photograph: NDArray[np.uint8]
) -> None:
    generate(compiled, *moving_box(SAMPLER), *shortest(SAMPLER, GUIDANCE))
    before = backend.graphs
    generate_small(compiled, photograph, MemoryTier.HIGH, SAMPLER, GUIDANCE)
    assert backend.graphs == before


def test_a_block_runs_uncompiled_inside_the_context_only(compiled: VideoModel) -> None:
    block = next(blocks_of(compiled.unet))
    before = block.forward
    with uncompiled(block):
        assert block.forward.__func__ is type(block).forward
    assert block.forward is before


@pytest.mark.whole
@pytest.mark.slow
def test_inductor_compiles_a_block_and_caches_the_result(
    golden_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    block = load_model(str(golden_checkpoint), device="cpu").unet.down_blocks[0].resnets[0].temporal_res_block
    torch.manual_seed(0)
    hidden_BCThw = torch.randn(1, block.in_channels, 4, 4, 8, requires_grad=True)
    embedding_BTD = torch.randn(1, 4, block.time_emb_proj.in_features)
    results = []
    for forward in (block.forward, torch.compile(block.forward, dynamic=False)):
        output = forward(hidden_BCThw, embedding_BTD)
        results.append((output.detach(), *torch.autograd.grad(output.square().sum(), hidden_BCThw)))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)
    assert list(tmp_path.rglob("*.so")), "no compiled code in the cache folder"
