"""Salient boxes against boxes that a person drew, and the regression that scores them.

    python -m tests.benchmarks.salient_boxes [--fit] [--sheet sheet.png] [--folder DIR]

A box is right where it overlaps a drawn one by half (intersection over union). Pictures are those of
`tests/manifests/boxes/drawn_boxes.json` whose packages are installed, or lie unpacked in DIR. The regression is fitted
to the pictures of FITTED alone; those of other packages are held out. `--fit` fits it again and prints its numbers, and
what comes out when each picture is left out in turn.

Axes: R candidates.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from manifests.boxes import salient
from manifests.boxes.geometry import areas, intersection_over_union, separate
from tests.manifests.boxes.test_salient import DRAWN, installed, photograph

FITTED = ("skimage", "sklearn", "matplotlib")
"""Packages whose pictures the regression is fitted to."""
SHRINKAGE = 3.0
"""Weight of the squared coefficients in the fit."""

Floats = NDArray[np.float64]


class Fit(NamedTuple):
    """A regression on standardised properties."""

    means: Floats
    deviations: Floats
    weights: Floats
    bias: float

    def scores(self, properties_R7: Floats) -> Floats:
        logits_R = (properties_R7 - self.means) / self.deviations @ self.weights + self.bias
        return np.asarray(1 / (1 + np.exp(-logits_R)))


class Candidates(NamedTuple):
    """All candidates of a picture."""

    properties_R7: Floats
    right_R: NDArray[np.bool_]
    boxes_R4: Floats
    area_R: Floats
    """As a share of the picture."""


def candidates_of(image_HWC: NDArray[np.uint8], drawn: Iterable[list[int]]) -> Candidates:
    height, width, _ = image_HWC.shape
    scale = salient.SIDE / max(height, width)
    size = (round(width * scale), round(height * scale))
    small_HWC = cv2.resize(image_HWC, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    found = [
        salient.Candidate(box, levels, number)
        for number, map_HW in enumerate(salient.saliency_maps(small_HWC))
        for box, levels in salient.stable_regions(map_HW)
    ]
    boxes_R4 = np.array([each.box for each in found]) * np.array([width / size[0], height / size[1]] * 2)
    right_R = intersection_over_union(boxes_R4, list(drawn)).max(axis=1) >= 0.5
    area_R = areas(boxes_R4) / (height * width)
    return Candidates(salient.properties(found, small_HWC), right_R, boxes_R4, area_R)


def fit(pictures: Iterable[Candidates]) -> Fit:
    """A logistic regression in which every picture weighs the same, by Newton's method."""
    pictures = list(pictures)
    properties = np.concatenate([each.properties_R7 for each in pictures])
    right = np.concatenate([each.right_R for each in pictures]).astype(np.float64)
    weight = np.concatenate([np.full(len(each.right_R), 1 / max(len(each.right_R), 20)) for each in pictures])
    weight *= len(weight) / weight.sum()
    means, deviations = properties.mean(axis=0), properties.std(axis=0)
    inputs = np.column_stack([(properties - means) / deviations, np.ones(len(properties))])
    shrinkage = SHRINKAGE * np.array([1.0] * len(means) + [0.0])
    solution = np.zeros(len(means) + 1)
    for _ in range(30):
        likely = 1 / (1 + np.exp(-inputs @ solution))
        slope = inputs.T @ (weight * (likely - right)) + shrinkage * solution
        curvature = (inputs * (weight * likely * (1 - likely))[:, None]).T @ inputs + np.diag(shrinkage)
        solution -= np.linalg.solve(curvature, slope)
    return Fit(means, deviations, solution[:-1], float(solution[-1]))


def left_out(pictures: Mapping[str, Candidates]) -> tuple[int, int]:
    """Right boxes and all boxes where each picture is judged by a regression that was fitted to the others."""
    right = total = 0
    shipped = salient.Salient()
    for name, each in pictures.items():
        scores = fit(other for key, other in pictures.items() if key != name).scores(each.properties_R7)
        usable = (scores >= shipped.min_score) & (each.area_R <= shipped.max_area)
        order = [n for n in np.argsort(-scores, kind="stable").tolist() if usable[n]]
        chosen = [order[n] for n in separate(each.boxes_R4[order], salient.MAX_COVERED)][: shipped.max_boxes]
        right, total = right + int(each.right_R[chosen].sum()), total + len(chosen)
    return right, total


def tile(image_HWC: NDArray[np.uint8], boxes: list[tuple[tuple[float, ...], bool]], side: int = 360) -> Image.Image:
    """The picture with its right boxes in green and the wrong ones in red."""
    picture = Image.fromarray(image_HWC)
    scale = side / max(picture.size)
    picture = picture.resize((round(picture.width * scale), round(picture.height * scale)))
    draw = ImageDraw.Draw(picture)
    for box, is_right in boxes:
        draw.rectangle([value * scale for value in box], outline="lime" if is_right else "red", width=2)
    return picture


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--sheet", type=Path)
    parser.add_argument("--folder", type=Path, help="where packages that are not installed lie unpacked")
    options = parser.parse_args()
    paths = {name: installed(name) or (options.folder / name if options.folder else None) for name in DRAWN}
    images = {name: photograph(path) for name, path in paths.items() if path is not None and path.exists()}
    groups: dict[str, list[bool]] = {"fitted": [], "held out": []}
    tiles = []
    for name, image_HWC in images.items():
        started = time.process_time()
        proposals = salient.Salient().propose(image_HWC, name).boxes
        seconds = time.process_time() - started
        drawn = list(DRAWN[name].values())
        right = [bool(intersection_over_union(each.box_xyxy, drawn).max() >= 0.5) for each in proposals]
        groups["fitted" if name.startswith(FITTED) else "held out"] += right
        scores = " ".join(f"{each.score:.2f}{'' if good else '!'}" for each, good in zip(proposals, right, strict=True))
        print(f"{name:50} {sum(right)} of {len(right)} right, {seconds:.2f} s of CPU  {scores}")
        tiles.append(tile(image_HWC, [(each.box_xyxy, good) for each, good in zip(proposals, right, strict=True)]))
    for group, right in groups.items():
        if right:
            print(f"{group}: {sum(right)} of {len(right)} boxes right, {np.mean(right):.0%}")
    if options.sheet:
        sheet = Image.new("RGB", (5 * 360, -(-len(tiles) // 5) * 360))
        for n, each in enumerate(tiles):
            sheet.paste(each, (n % 5 * 360, n // 5 * 360))
        sheet.save(options.sheet)
    if options.fit:
        every = {name: candidates_of(image_HWC, DRAWN[name].values()) for name, image_HWC in images.items()}
        fitted = {name: each for name, each in every.items() if name.startswith(FITTED)}
        for title, values in fit(fitted.values())._asdict().items():
            print(title, np.round(values, 2).tolist())
        for group, pictures in (("fitted", fitted), ("all", every)):
            right_boxes, total = left_out(pictures)
            share = f"{right_boxes} of {total} boxes right, {right_boxes / total:.0%}"
            print(f"{group}, each picture left out in turn: {share}")


if __name__ == "__main__":
    main()
