"""A synthetic sample of any size, to try a model."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sgi2v.config import GuidanceConfig, SamplerConfig
from sgi2v.trajectory import BoxTracks


def moving_box(sampler: SamplerConfig) -> tuple[NDArray[np.uint8], BoxTracks]:
    """A noise image [H, W, 3] of the sampler's size, and one box that crosses it."""
    height, width = sampler.height, sampler.width
    image_HWC = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    boxes_N4 = np.array([[width / 8, height / 4, 3 * width / 8, 3 * height / 4]])
    path = np.array([[width / 4, height / 2], [3 * width / 4, height / 2]])
    return image_HWC, BoxTracks.from_paths(boxes_N4, [path], sampler.num_frames, height, width)


def shortest(sampler: SamplerConfig, guidance: GuidanceConfig | None) -> tuple[SamplerConfig, GuidanceConfig | None]:
    """The same settings cut down to two steps, of which the first is guided with one update.

    Such a sample still runs all the code that a full one runs.
    """
    if guidance is not None:
        guidance = guidance.replace(guided_steps=(0,), iterations=1)
    return sampler.replace(steps=2), guidance
