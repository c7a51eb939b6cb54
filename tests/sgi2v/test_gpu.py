"""On a GPU: the original implementation's numbers, the same video in every memory tier, out-of-memory recovery.

`python -m tests.benchmarks.gpu_lease` runs the same checks where pytest is not installed.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.benchmarks.gpu_lease import checks

pytestmark = pytest.mark.gpu
CUDA = torch.device("cuda")


@pytest.mark.parametrize("dtype", checks.DTYPES)
@pytest.mark.parametrize("case", checks.CASES, ids=lambda case: case.name)
def test_every_stage_conforms_on_a_gpu(dtype: str, case: Path) -> None:
    """In float32 within the tolerances; in 16 bits every stage is finite."""
    figures = checks.conformance(CUDA, dtype, case)
    assert figures["passed"], figures


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_video_is_the_same_in_every_tier_on_a_gpu(dtype: str) -> None:
    figures = checks.tiers(CUDA, dtype)
    assert figures["passed"], figures


def test_a_lower_tier_makes_the_video_when_memory_runs_out_on_a_gpu() -> None:
    figures = checks.oom_recovery(CUDA, checks.LARGE)
    assert figures["passed"], figures


def test_frames_are_the_cpus_whatever_is_decoded_at_once_on_a_gpu() -> None:
    figures = checks.decode_chunks(CUDA)
    assert figures["passed"], figures


def test_a_compiled_block_gives_the_same_values_and_gradients_on_a_gpu() -> None:
    figures = checks.compiled_block(CUDA)
    assert figures["passed"], figures
