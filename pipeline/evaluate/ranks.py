"""How alike two lists of numbers rank the same videos."""

from __future__ import annotations

import numpy as np

from sgi2v.trajectory import Floats

MOST_PAIRED = 5000
"""Videos of which every pair is compared for Kendall's coefficient; of more, so many are drawn."""
SEED = 0


def ranks(values: Floats) -> Floats:
    """Ranks from 0; equal values share the mean of their ranks."""
    order = np.argsort(values, kind="stable")
    ordered = values[order]
    starts = np.flatnonzero(np.r_[True, ordered[1:] != ordered[:-1]])
    ends = np.r_[starts[1:], len(values)]
    shared = np.empty(len(values))
    shared[order] = np.repeat((starts + ends - 1) / 2, ends - starts)
    return shared


def spearman(first: Floats, second: Floats) -> float | None:
    """Spearman's coefficient: 1 for the same order, -1 for the reverse. None where one list is constant."""
    a, b = (each - each.mean() for each in (ranks(first), ranks(second)))
    scale = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / scale if scale else None


def kendall(first: Floats, second: Floats) -> float | None:
    """Kendall's tau-b: how many more pairs of videos have the same order than the reverse. None as `spearman`."""
    if len(first) > MOST_PAIRED:
        drawn = np.random.default_rng(SEED).choice(len(first), MOST_PAIRED, replace=False)
        first, second = first[drawn], second[drawn]
    same, untied_first, untied_second = 0.0, 0.0, 0.0
    for number in range(len(first)):
        a, b = (np.sign(each[number + 1 :] - each[number]) for each in (first, second))
        same += float((a * b).sum())
        untied_first += float(np.abs(a).sum())
        untied_second += float(np.abs(b).sum())
    scale = float(np.sqrt(untied_first * untied_second))
    return same / scale if scale else None
