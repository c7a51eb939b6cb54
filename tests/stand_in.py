"""`sgi2v-batch` with a generator that only shifts the picture: `python -m tests.stand_in run ...`.

Everything but the generator is real, so tests of the dataflow need no model. Settings come from the environment, which
Ray passes on to its workers.
"""

from __future__ import annotations

import os
import time
from types import SimpleNamespace
from typing import Any

import numpy as np
from numpy.typing import NDArray

import pipeline.run
from pipeline.cli.main import main
from pipeline.config import RunConfig
from pipeline.flow.attempts import LedgerClient
from pipeline.flow.generate import Generate
from sgi2v.config import MemoryTier, SamplerConfig
from sgi2v.trajectory import BoxTracks

SECONDS = "SGI2V_STAND_IN_SECONDS"
"""Environment variable: seconds that a sample takes; 0 if unset."""


class StandIn(Generate):
    """The stage with a generator that has no model and does not import torch."""

    def __init__(self, config: RunConfig, device: str, ledger: LedgerClient | None = None) -> None:
        self.config = config
        self.ledger = ledger
        self.device = device
        self.memory = MemoryTier.HIGH
        self.model: Any = SimpleNamespace(dtype="torch.float32", kernels="none")

    def _sample(
        self,
        model: object,
        image_HWC: NDArray[np.uint8],
        tracks: BoxTracks,
        sampler: SamplerConfig,
        guidance: object,
        seed: int,
    ) -> Any:
        """The picture, which moves to the right by one pixel a frame, with the seed in its first row."""
        time.sleep(float(os.environ.get(SECONDS, "0")))
        frames_THWC = np.stack([np.roll(image_HWC, t, axis=1) for t in range(sampler.num_frames)])
        frames_THWC[:, 0, :8, 0] = list(seed.to_bytes(8, "big", signed=True))
        return SimpleNamespace(
            frames=frames_THWC,
            losses=np.zeros((1, 1)),
            is_guided=guidance is not None and tracks.num_boxes > 0,
            seconds={"encode": 0.0, "guide": 0.0, "denoise": 0.0, "decode": 0.0},
            skipped_updates=0,
            latent_drift=0.0,
            decode_chunk=sampler.decode_chunk_size,
            peak_gpu_bytes=None,
        )


def install(stage: type[Generate] = StandIn) -> None:
    """Make runs of this process use this stage in place of `Generate`."""
    pipeline.run.Generate = stage  # type: ignore[misc]


if __name__ == "__main__":
    install()
    main()
