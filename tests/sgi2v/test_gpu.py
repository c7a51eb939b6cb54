"""On a GPU: the original implementation's numbers, and the same video in every memory tier."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sgi2v.config import MemoryTier
from sgi2v.generate import generate
from sgi2v.model import load_model
from tests.conformance import run_case
from tests.sgi2v.test_conformance import CASES
from tests.sgi2v.test_generate import GUIDANCE, SAMPLER, tracks

pytestmark = pytest.mark.gpu


@pytest.fixture
def _whole_float32() -> Iterator[None]:
    """Compute convolutions in float32; torch's default is TF32."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.backends.cudnn.allow_tf32 = before


@pytest.mark.usefixtures("_whole_float32")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_every_stage_conforms_on_a_gpu(golden_checkpoint: Path, case: Path) -> None:
    model = load_model(str(golden_checkpoint), device="cuda", dtype="float32")
    assert [difference for difference in run_case(model, case) if not difference.conforms] == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_video_is_the_same_in_every_tier_on_a_gpu(
    golden_checkpoint: Path, photograph: NDArray[np.uint8], dtype: str
) -> None:
    model = load_model(str(golden_checkpoint), device="cuda", dtype=dtype)
    high, *lower = (
        generate(model, photograph, tracks(), SAMPLER, GUIDANCE, seed=1, memory=tier) for tier in MemoryTier
    )
    assert np.isfinite(high.losses).all()
    for generation in lower:
        assert np.isfinite(generation.losses).all()
        assert np.abs(high.frames.astype(int) - generation.frames).mean() < 2
