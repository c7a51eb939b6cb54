"""A sample of any size, to try a model with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sgi2v.config import GuidanceConfig, SamplerConfig
from sgi2v.trajectory import BoxTracks


def moving_box(sampler: SamplerConfig) -> tuple[NDArray[np.uint8], BoxTracks]:
    """A sample of any size: noise for a picture [H, W, 3], and one box that crosses it."""
    height, width = sampler.height, sampler.width
    image_HWC = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    boxes_N4 = np.array([[width / 8, height / 4, 3 * width / 8, 3 * height / 4]])
    path = np.array([[width / 4, height / 2], [3 * width / 4, height / 2]])
    return image_HWC, BoxTracks.from_paths(boxes_N4, [path], sampler.num_frames, height, width)


def shortest(sampler: SamplerConfig, guidance: GuidanceConfig | None) -> tuple[SamplerConfig, GuidanceConfig | None]:
    """Settings whose sample runs, once, all that these run: a guided step and another."""
    if guidance is not None:
        guidance = guidance.replace(guided_steps=(0,), iterations=1)
    return sampler.replace(steps=2), guidance
