"""Paired differences: their interval by bootstrap, their p-value by changed signs, Holm's correction.

Axes: I images, R resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgi2v.trajectory import Floats

RESAMPLES = 10_000
MANY_IMAGES, FEWER_RESAMPLES = 5_000, 1_000
"""Of more images than these, fewer resamples are drawn: the interval's own error is small then."""
CHUNK = 2_000_000
"""Numbers that are drawn at once."""
EXACT_IMAGES = 13
"""Of up to so many images every choice of signs is counted."""
LEVEL = 0.95
SEED = 0
Draw = Callable[[np.random.Generator, tuple[int, int]], NDArray[Any]]
"""Draws, for each resample, one number for each image."""


def interval(differences_I: Floats) -> tuple[float, float] | None:
    """The 95 % interval of the mean over images, by the percentiles of a bootstrap. None for fewer than two images."""
    if len(differences_I) < 2:
        return None
    means_R = _resampled(differences_I, lambda draw, shape: draw.integers(0, len(differences_I), shape), gather=True)
    low, high = np.quantile(means_R, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def p_value(differences_I: Floats) -> float | None:
    """How often a mean as large comes of changing the signs of the differences at random, on both sides.

    None for fewer than two images.
    """
    count = len(differences_I)
    if count < 2:
        return None
    observed = abs(float(differences_I.mean())) * (1 - 1e-12)
    if count <= EXACT_IMAGES:
        signs = 1 - 2 * ((np.arange(2**count)[:, None] >> np.arange(count)) & 1)
        return float((np.abs(signs @ differences_I / count) >= observed).mean())
    means_R = _resampled(differences_I, lambda draw, shape: draw.choice([-1.0, 1.0], shape), gather=False)
    return float((1 + (np.abs(means_R) >= observed).sum()) / (1 + len(means_R)))


def _resampled(differences_I: Floats, draw: Draw, gather: bool) -> Floats:
    """The means of resamples. draw: gives the images of each resample (gather), or their signs."""
    count = len(differences_I)
    resamples = RESAMPLES if count <= MANY_IMAGES else FEWER_RESAMPLES
    step = max(1, CHUNK // count)
    generator, means = np.random.default_rng(SEED), []
    for start in range(0, resamples, step):
        drawn = draw(generator, (min(step, resamples - start), count))
        means.append((differences_I[drawn] if gather else drawn * differences_I).mean(axis=1))
    return np.concatenate(means)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """The p-values corrected for their number, by Holm: the chance of any false alarm among them stays below each."""
    known = sorted((p, number) for number, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, number) in enumerate(known):
        largest = max(largest, min(1.0, p * (len(known) - rank)))
        corrected[number] = largest
    return corrected
