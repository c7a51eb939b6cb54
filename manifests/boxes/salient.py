"""Boxes of things that stand out, found without weights.

Axes: H, W of the picture or of its small copy; K maps; R regions. Boxes are xyxy.

A thing stands out where its colour cannot be reached from the picture's border without crossing an edge (the minimum
barrier distance of Zhang et al., "Minimum Barrier Salient Object Detection at 80 FPS", ICCV 2015), or where it is
sharper than what is around it. Several such maps are cut at many levels. A region whose box stays the same over many
levels has a clear outline: it is a candidate, as the stable regions of Matas et al. (MSER, BMVC 2002) are. A logistic
regression over seven properties says how likely a candidate is the box that a person would draw.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from manifests.boxes.geometry import areas, intersection_over_union, separate
from manifests.boxes.proposer import Box, PictureError, Proposal, Proposed
from sgi2v.settings import Settings

Map = NDArray[np.float32]
Bytes = NDArray[np.uint8]

SIDE = 256
"""Longer side of the small copy in which things are looked for, pixels. Smaller pictures are enlarged."""
LEVEL_STEP = 6
"""Distance of the levels at which maps of 0 to 255 are cut."""
MIN_LEVELS = 3
"""Fewest levels over which a region keeps its box."""
SAME_BOX = 0.8
"""Intersection over union from which a region's box at the next level counts as the same."""
MIN_AREA, MAX_AREA = 0.004, 0.85
"""Area of a candidate's box, as a share of the picture."""
MIN_SIDE = 9
"""Shortest side of a candidate's box in the small copy, pixels."""
AGREEING = 0.7
"""Intersection over union from which candidates of two maps count as the same thing."""
MAX_COVERED = 0.5
"""Two boxes that share more than this part of the smaller one are the same thing, or a thing and its part."""

MEANS = (1.97, -3.67, 0.32, 0.64, 0.56, 0.71, 0.82)
DEVIATIONS = (0.76, 1.3, 0.15, 0.21, 0.14, 0.22, 0.74)
WEIGHTS = (0.28, 0.65, -0.32, 0.89, 0.24, 0.34, 0.58)
BIAS = -0.82
"""The regression, fitted to the boxes that a person drew in photographs of scikit-image, scikit-learn and Matplotlib
(`tests/benchmarks/salient_boxes.py`). It was not fitted to the photographs of other packages there."""


class Salient(Settings):
    """Things that stand out from what is around them. It needs no weights, and misses things rather than invent any."""

    section: ClassVar[str] = "boxes"
    name: ClassVar[str] = "salient"
    finds_objects: ClassVar[bool] = True

    max_boxes: Annotated[int, Field(ge=1, le=256)] = 8
    """Most boxes of one picture."""
    min_score: Annotated[float, Field(ge=0, le=1)] = 0.7
    """Least score of a box, 0 to 1. Lower values give more boxes, and more wrong ones."""
    max_area: Annotated[float, Field(gt=0, le=MAX_AREA)] = 0.6
    """Largest box, as a share of the picture. What fills the picture has no room to move; its parts may have."""

    def check(self, keys: Sequence[str]) -> list[PictureError]:
        """No entries: the pictures are all that is needed."""
        return []

    def propose(self, image_HWC: NDArray[np.uint8], key: str) -> Proposed:
        """The boxes of one picture, the most likely ones first."""
        height, width, _ = image_HWC.shape
        scale = SIDE / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        small_HWC = cv2.resize(image_HWC, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        candidates = [
            Candidate(box, levels, number)
            for number, map_HW in enumerate(saliency_maps(small_HWC))
            for box, levels in stable_regions(map_HW)
        ]
        if not candidates:
            return Proposed([], [])
        scores = scores_of(properties(candidates, small_HWC))
        order = sorted(range(len(candidates)), key=lambda n: (-scores[n], candidates[n].box))
        largest = self.max_area * size[0] * size[1]
        order = [n for n in order if scores[n] >= self.min_score and areas(candidates[n].box)[0] <= largest]
        to_picture = np.array([width / size[0], height / size[1]] * 2)
        boxes_R4 = np.array([candidates[n].box for n in order]).reshape(-1, 4) * to_picture
        chosen = separate(boxes_R4, MAX_COVERED)[: self.max_boxes]
        return Proposed([Proposal(_box(boxes_R4[n]), float(scores[order[n]])) for n in chosen], [])


def _box(box_4: NDArray[np.float64]) -> Box:
    x0, y0, x1, y1 = box_4.tolist()
    return x0, y0, x1, y1


class Candidate(NamedTuple):
    """A region that may be a thing."""

    box: tuple[int, int, int, int]
    """In the small copy."""
    levels: int
    """How many levels it is stable over."""
    map: int
    """Which map it was found in."""


def saliency_maps(small_HWC: Bytes) -> list[Bytes]:
    """Maps from 0 to 255 that are high on things: by colour, by sharpness, by both, by brightness and by darkness."""
    lab_HWC = cv2.cvtColor(small_HWC, cv2.COLOR_RGB2LAB).astype(np.float32)
    lab_HWC = cv2.bilateralFilter(lab_HWC, 7, 25, 5)
    coarse_HWC = _blurred(lab_HWC, 4)
    detail_HW = np.log1p(np.minimum(gradient(cv2.cvtColor(small_HWC, cv2.COLOR_RGB2GRAY)), 20))
    sharp_HW = _full_range(_blurred(detail_HW, 3)).astype(np.float32)
    channels_HWK = np.dstack([lab_HWC, coarse_HWC, sharp_HW])
    barriers_HWK = barrier_distances(channels_HWK)
    fine, coarse, sharp = barriers_HWK[..., :3].sum(2), barriers_HWK[..., 3:6].sum(2), barriers_HWK[..., 6]
    brightness_HW = _blurred(lab_HWC[..., 0], 1.2)
    by_border_HW = _unit(fine) + _unit(unlike_border(lab_HWC))
    return [
        _full_range(_blurred(fine, 1.2)),
        _full_range(_blurred(by_border_HW, 1.2)),
        _full_range(_blurred(coarse, 1.5)),
        _full_range(_blurred(_unit(fine) + _unit(sharp), 1.5)),
        _full_range(_blurred(detail_HW, 2.2)),
        _full_range(_blurred(detail_HW, 4.5)),
        brightness_HW.astype(np.uint8),
        (255 - brightness_HW).astype(np.uint8),
    ]


def barrier_distances(channels_HWK: Map) -> Map:
    """Minimum barrier distance of every pixel to the border, for each channel by itself.

    The barrier of a path is its largest value less its smallest one. Sweeps in four directions, twice, come close
    to the smallest barrier of all paths to the border.
    """
    distance = np.full_like(channels_HWK, np.inf)
    distance[[0, -1]] = 0
    distance[:, [0, -1]] = 0
    state = [distance, channels_HWK.copy(), channels_HWK.copy(), channels_HWK]
    for _ in range(2):
        for _ in range(2):
            _sweep(state, range(1, len(state[0])), -1)
            _sweep(state, range(len(state[0]) - 2, -1, -1), 1)
            state = [np.ascontiguousarray(each.swapaxes(0, 1)) for each in state]
    return state[0]


def _sweep(state: list[Map], rows: range, neighbour: int) -> None:
    """Let each row continue the paths of the row before it, where that lowers the barrier."""
    distance, highest, lowest, values = state
    for y in rows:
        high = np.maximum(highest[y + neighbour], values[y])
        low = np.minimum(lowest[y + neighbour], values[y])
        barrier = high - low
        better = barrier < distance[y]
        np.copyto(distance[y], barrier, where=better)
        np.copyto(highest[y], high, where=better)
        np.copyto(lowest[y], low, where=better)


def unlike_border(lab_HWC: Map) -> Map:
    """How much a pixel's colour differs from those along three of the picture's sides; the most unlike one is left out.

    A thing that touches one side is like that side, and still unlike the other three.
    """
    depth = max(2, round(0.06 * min(lab_HWC.shape[:2])))
    strips = (lab_HWC[:depth], lab_HWC[-depth:], lab_HWC[:, :depth], lab_HWC[:, -depth:])
    distances = []
    for strip in strips:
        colours = strip.reshape(-1, 3).astype(np.float64)
        inverse = np.linalg.inv(np.cov(colours.T) + 16 * np.eye(3))
        offset_HWC = lab_HWC - colours.mean(0)
        squared_HW = np.einsum("hwi,ij,hwj->hw", offset_HWC, inverse, offset_HWC)
        distances.append(_unit(np.sqrt(squared_HW)))
    return np.asarray(sum(distances) - np.maximum.reduce(distances), np.float32)


def stable_regions(map_HW: Bytes) -> Iterator[tuple[tuple[int, int, int, int], int]]:
    """Boxes of connected regions above a level that stay the same over several levels, and over how many."""
    height, width = map_HW.shape
    smallest = max(MIN_AREA * height * width, MIN_SIDE**2)
    regions: dict[int, Region] = {}
    labels_HW = np.zeros(map_HW.shape, np.int32)
    found: list[Region] = []
    for level in range(LEVEL_STEP, 256, LEVEL_STEP):
        _, next_labels_HW, stats, _ = cv2.connectedComponentsWithStatsWithAlgorithm(
            (map_HW >= level).astype(np.uint8), 8, cv2.CV_32S, cv2.CCL_GRANA
        )  # three fifths of the time of the default
        heirs: dict[int, tuple[float, int]] = {}
        boxes: dict[int, tuple[int, int, int, int]] = {}
        parents: dict[int, int] = {}
        sides_R2 = stats[:, 2:4]
        is_large = (sides_R2.prod(axis=1) >= smallest) & (sides_R2.min(axis=1) >= MIN_SIDE)
        for label in (np.flatnonzero(is_large[1:]) + 1).tolist():
            x, y, w, h, _ = stats[label].tolist()
            boxes[label] = (x, y, x + w, y + h)
            inside_x = x + int((next_labels_HW[y, x : x + w] == label).argmax())
            parents[label] = int(labels_HW[y, inside_x])
            if parents[label] in regions:
                same = overlap(boxes[label], regions[parents[label]].boxes[-1])
                heirs[parents[label]] = max(heirs.get(parents[label], (SAME_BOX, 0)), (same, label))
        next_regions: dict[int, Region] = {}
        for label, box in boxes.items():
            if heirs.get(parents[label], (0.0, 0))[1] == label:
                next_regions[label] = regions[parents[label]]
                next_regions[label].boxes.append(box)
            else:
                next_regions[label] = Region([box])
                found.append(next_regions[label])
        regions, labels_HW = next_regions, next_labels_HW
    for region in found:
        box = region.boxes[len(region.boxes) // 2]
        if len(region.boxes) >= MIN_LEVELS and areas(box)[0] <= MAX_AREA * height * width:
            yield box, len(region.boxes)


def overlap(first: tuple[int, int, int, int], second: tuple[int, int, int, int]) -> float:
    """Intersection over union of two boxes; NumPy would take most of the time for its calls."""
    w = min(first[2], second[2]) - max(first[0], second[0])
    h = min(first[3], second[3]) - max(first[1], second[1])
    if w <= 0 or h <= 0:
        return 0.0
    shared = w * h
    total = sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in (first, second))
    return shared / (total - shared)


@dataclass(frozen=True, eq=False)
class Region:
    """A connected region and its boxes, from the lowest level upwards."""

    boxes: list[tuple[int, int, int, int]]


def properties(candidates: list[Candidate], small_HWC: Bytes) -> NDArray[np.float64]:
    """The seven properties of each candidate [R, 7], in the order of WEIGHTS."""
    height, width, _ = small_HWC.shape
    boxes_R4 = np.array([each.box for each in candidates])
    lab_HWC = cv2.GaussianBlur(cv2.cvtColor(small_HWC, cv2.COLOR_RGB2LAB), (0, 0), 1)
    gradient_HW = gradient(lab_HWC)
    bins_HW = (lab_HWC // 32).astype(np.int64) @ np.array([64, 8, 1])
    same_RR = intersection_over_union(boxes_R4, boxes_R4) > AGREEING
    maps_R = np.array([each.map for each in candidates])
    rows = []
    for n, (x0, y0, x1, y1) in enumerate(boxes_R4.tolist()):
        w, h = x1 - x0, y1 - y0
        left, top, right, bottom = x0 - w // 4, y0 - h // 4, x1 + w // 4, y1 + h // 4
        around = (slice(max(0, top), bottom), slice(max(0, left), right))
        inside = (slice(y0, y1), slice(x0, x1))
        core = (slice(y0 + h // 10, y1 - h // 10), slice(x0 + w // 10, x1 - w // 10))
        in_bins = np.bincount(bins_HW[core].ravel(), minlength=512)
        ring_bins = np.bincount(bins_HW[around].ravel(), minlength=512) - np.bincount(
            bins_HW[inside].ravel(), minlength=512
        )
        in_share, ring_share = in_bins / in_bins.sum(), ring_bins / max(1, ring_bins.sum())
        ring_pixels = max(1, gradient_HW[around].size - gradient_HW[inside].size)
        in_edges = float(gradient_HW[core].mean())
        ring_edges = float(gradient_HW[around].sum() - gradient_HW[inside].sum()) / ring_pixels
        rows.append(
            (
                np.log(candidates[n].levels),
                np.log(w * h / (height * width)),
                np.hypot((x0 + x1) / 2 / width - 0.5, (y0 + y1) / 2 / height - 0.5),  # from the picture's centre
                1 - np.minimum(in_share, ring_share).sum(),  # colours that are not around it
                in_edges / (in_edges + ring_edges + 1),
                min(w, h) / max(w, h),
                np.log(len(set(maps_R[same_RR[n]].tolist()))),  # maps that have this box
            )
        )
    return np.array(rows)


def scores_of(properties_R7: NDArray[np.float64]) -> NDArray[np.float64]:
    """How likely each candidate is a box that a person would draw, 0 to 1."""
    logits_R = (properties_R7 - MEANS) / DEVIATIONS @ np.array(WEIGHTS) + BIAS
    return np.asarray(1 / (1 + np.exp(-logits_R)))


def gradient(image: NDArray[Any]) -> Map:
    """Size of the gradient over all channels, grey levels per pixel."""
    across, down = (cv2.Sobel(image, cv2.CV_32F, *order) / 8 for order in ((1, 0), (0, 1)))
    squared = across**2 + down**2
    return np.asarray(np.sqrt(squared.sum(2) if squared.ndim == 3 else squared))


def _blurred(image: Map, sigma: float) -> Map:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), sigma))


def _unit(map_HW: NDArray[Any]) -> Map:
    """The map from 0 to 1; a flat one is 0."""
    return np.asarray(map_HW / max(float(map_HW.max()), 1e-6), np.float32)


def _full_range(map_HW: Map) -> Bytes:
    """The map from 0 to 255, with the lowest hundredth and the highest half hundredth at the ends."""
    low, high = np.percentile(map_HW, (1, 99.5))
    return np.asarray(np.clip((map_HW - low) / max(high - low, 1e-6) * 255, 0, 255), np.uint8)
