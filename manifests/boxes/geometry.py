"""Boxes of masks, and areas and overlaps of boxes. H, W of a picture; N, M boxes; boxes are xyxy."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def tight_box(mask_HW: NDArray[np.bool_]) -> tuple[float, float, float, float]:
    """The half-open box around the pixels that are in; there must be one."""
    x, y = np.flatnonzero(mask_HW.any(axis=0)), np.flatnonzero(mask_HW.any(axis=1))
    return float(x[0]), float(y[0]), float(x[-1] + 1), float(y[-1] + 1)


def areas(boxes: ArrayLike) -> Floats:
    """The area of each box [N]."""
    x0, y0, x1, y1 = np.asarray(boxes, np.float64).reshape(-1, 4).T
    return np.maximum(x1 - x0, 0) * np.maximum(y1 - y0, 0)


def shared_areas(boxes_N: ArrayLike, boxes_M: ArrayLike) -> Floats:
    """The area that each box shares with each of the others [N, M]."""
    first, second = (np.asarray(boxes, np.float64).reshape(-1, 4) for boxes in (boxes_N, boxes_M))
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    return np.asarray(np.maximum(high - low, 0).prod(axis=2))


def intersection_over_union(boxes_N: ArrayLike, boxes_M: ArrayLike) -> Floats:
    """Shared area over joint area, 0 to 1 [N, M]. The boxes must have areas."""
    shared = shared_areas(boxes_N, boxes_M)
    return shared / (areas(boxes_N)[:, None] + areas(boxes_M)[None, :] - shared)


def covered_shares(boxes_N: ArrayLike, boxes_M: ArrayLike) -> Floats:
    """Shared area over the area of the smaller box, 0 to 1 [N, M]. The boxes must have areas."""
    return shared_areas(boxes_N, boxes_M) / np.minimum(areas(boxes_N)[:, None], areas(boxes_M)[None, :])


def separate(boxes_N: ArrayLike, max_covered: float) -> list[int]:
    """Which boxes stay, in their order, where of two that cover each other by more than `max_covered` the first stays.

    max_covered: share of the smaller box, 0 to 1.
    """
    covered = covered_shares(boxes_N, boxes_N)
    kept: list[int] = []
    for n in range(len(covered)):
        if not (covered[n, kept] > max_covered).any():
            kept.append(n)
    return kept
