"""Error of the paths that `manifest from-videos` takes from videos of known motion, and how many rows it keeps.

    python -m tests.benchmarks.video_paths [truth | salient]

A textured disc of 90 px moves over sand in 640 x 360 px. `truth` takes the true box of the first frame, `salient` the
boxes that are found in it; there a box counts as the disc's if they overlap by half. Errors are distances of the box's
centre from the truth at the 14 times of a clip, pixels; those of `salient` are of the displacement, because its box is
not centred. `scale` is the largest error of the relative size.
"""

from __future__ import annotations

import math
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from manifests.boxes import load_proposer
from manifests.boxes.filters import BoxFilters
from manifests.sources.clips import ClipSettings
from manifests.sources.videos import FilteredBoxes, Propose, Target, VideoFile, rows_of_video
from tests.manifests.footage import Disc, TrueBoxes, arc, constant_rate, line, render, variable_rate, write_video

SECONDS = 6.0
SCENES: dict[str, tuple[Disc, ...]] = {
    "translation": (Disc(line(80, 150, 75, 10)),),
    "there and back, 1/3 of the width a second": (Disc(lambda s: (80 + 213 * (2.2 - abs(s % 4.4 - 2.2)), 180)),),
    "arc": (Disc(arc(320, 180, 100, 0.9)),),
    "zoom in and out": (Disc(line(300, 180, 10, 0), radius=lambda s: 45 * math.exp(0.35 * math.sin(s))),),
    "turn by 23 degrees a second": (Disc(line(150, 180, 50, 0), angle=lambda s: 0.4 * s),),
    "two objects": (Disc(line(80, 90, 75, 5)), Disc(line(540, 270, -75, -5), texture=1)),
    "small, 36 px": (Disc(line(80, 150, 75, 10), radius=lambda s: 18.0),),
}
RATES: dict[str, list[float]] = {
    "30 fps": constant_rate(SECONDS, 30),
    "24 fps": constant_rate(SECONDS, 24),
    "10 to 66 fps": variable_rate(SECONDS),
}


def measure(path: Path, discs: Sequence[Disc], propose: Propose) -> tuple[list[float], list[float], int, Counter[str]]:
    """Errors of all frames, errors of the scales, number of rows, and what was left out."""
    video = VideoFile(str(path), path.name, path.stem)
    made = rows_of_video(video, Target(str(path.parent), "frames"), propose, ClipSettings())
    errors: list[float] = []
    scale_errors: list[float] = []
    for row in made.rows:
        start = row["reference"]["start_s"]
        times = [start + p / 7 for p in range(14)]
        for box, points, scales in zip(row["boxes"], row["trajectories"], row["scales"], strict=True):
            disc = max(discs, key=lambda each: overlap(box, each.box(start)))
            if overlap(box, disc.box(start)) < 0.5:
                continue
            true_P2, path_P2 = np.array([disc.centre(s) for s in times]), np.array(points)
            if not isinstance(propose.__self__, TrueBoxes):  # type: ignore[attr-defined]
                path_P2 = path_P2 - path_P2[0] + true_P2[0]
            errors += np.linalg.norm(path_P2 - true_P2, axis=-1)[1:].tolist()
            true_P = np.array([disc.radius(s) for s in times]) / disc.radius(start)
            scale_errors.append(float(np.abs(np.array(scales) - true_P).max()))
    return errors, scale_errors, len(made.rows), Counter(one.code for one in made.skipped)


def overlap(box: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union."""
    low, high = np.maximum(box[:2], other[:2]), np.minimum(box[2:], other[2:])
    shared = float(np.prod(np.maximum(high - low, 0)))
    areas = [(each[2] - each[0]) * (each[3] - each[1]) for each in (box, other)]
    return shared / (sum(areas) - shared)


def main(boxes: str = "truth") -> None:
    """Print the table."""
    print(f"{'motion':45}{'rate':15}{'clips':>6}{'rows':>6}{'mean px':>9}{'max px':>8}{'scale':>7}{'s':>7}  left out")
    with tempfile.TemporaryDirectory() as folder:
        for name, discs in SCENES.items():
            for rate, times in RATES.items():
                path = write_video(Path(folder) / "a.mp4", render(discs, times), times)
                proposer: Any = TrueBoxes(discs)
                if boxes != "truth":
                    proposer = FilteredBoxes(load_proposer(boxes), BoxFilters(), 576, 1024)
                begin = time.process_time()
                errors, scales, rows, skipped = measure(path, discs, proposer.propose)
                seconds = time.process_time() - begin
                mean, most = (f"{np.mean(errors):.2f}", f"{max(errors):.2f}") if errors else ("", "")
                scale = f"{max(scales):.3f}" if scales else ""
                clips = int(SECONDS // (13 / 7))
                left_out = ", ".join(f"{number} {code}" for code, number in skipped.items())
                numbers = f"{clips:6}{rows:6}{mean:>9}{most:>8}{scale:>7}{seconds:7.1f}"
                print(f"{name:45}{rate:15}{numbers}  {left_out}", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
