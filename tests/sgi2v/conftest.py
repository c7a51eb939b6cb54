"""Fixtures of the method's tests: a tiny model of SVD's block types, and a photograph."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sgi2v.model import VideoModel, load_model

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def golden_checkpoint() -> Path:
    return GOLDEN / "checkpoint"


@pytest.fixture(scope="session")
def model(golden_checkpoint: Path) -> VideoModel:
    return load_model(str(golden_checkpoint), device="cpu")


@pytest.fixture(scope="session")
def photograph() -> NDArray[np.uint8]:
    """[64, 128, 3] RGB."""
    from skimage import data

    return np.ascontiguousarray(data.astronaut()[40:296:4, 60:572:4][:64, :128])
