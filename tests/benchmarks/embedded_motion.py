"""Quality of the embedded checkpoint's U-Net: whether unguided videos keep their objects and move as in training.

    python -m tests.benchmarks.embedded_motion --sheet unguided.png

Uses held-out scenes in which an object moves. `truth` is the scene itself, rendered from the same first frame. The
object is found by its looks in every frame. Columns: `looks`, root mean square difference to the object in the first
frame, 8-bit levels; `kept`, share of frames in which `looks` is less than half of what it is without the object;
`bent`, distance of the path from a straight line at constant speed as a share of the displacement, over videos that
move.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from sgi2v.generate import generate
from sgi2v.model import load_model
from tests.benchmarks.held_out import ObjectTrack, Split, error_when_absent, find_object, has_distinct_looks
from tools.tiny.latents import LINE_FRAMES
from tools.tiny.train_unet import ANY_MOTION_BUCKET, BUCKETS_PER_PX, draw_frames
from tools.tiny.training import in_processes
from tools.tiny.world import Motion, draw_scene

SHOWN = 10
"""Videos on the sheet."""
TRUTH, ANY_MOTION = "truth", "any motion"
ASKED_PX = (4, 12, 20)
"""Displacements that motion buckets ask for."""
MOVING_PX = 2.0
"""Displacement from which a video counts as moving."""
QUANTILES = (10, 25, 50, 75, 90)


def _work(rank: int, processes: int, options: argparse.Namespace, folder: Path) -> None:
    """Make every `processes`-th video, from `rank` on, and save it to the folder."""
    torch.set_num_threads(1)
    model = load_model(options.model)
    buckets = {ANY_MOTION: ANY_MOTION_BUCKET} | {f"asked for {px} px": px * BUCKETS_PER_PX for px in ASKED_PX}
    for index in range(rank, options.videos, processes):
        scene = draw_scene(Split.TEST, index, Motion.OBJECT)
        if not has_distinct_looks(scene):
            continue
        times_T = draw_frames(np.random.default_rng([Split.TEST, index, 2])) / (LINE_FRAMES - 1)
        mask_HW = scene.masks_NTHW(times_T[:1])[0, 0]
        videos = {TRUTH: scene.render(times_T)}
        for name, bucket in buckets.items():
            sampler = model.checkpoint.sampler().replace(motion_bucket_id=bucket)
            videos[name] = generate(model, videos[TRUTH][0], None, sampler=sampler, seed=index).frames
        np.savez(
            folder / f"{index:05d}.npz",
            absent=error_when_absent(scene, videos[TRUTH][0], mask_HW, times_T[0]),
            mask=mask_HW,
            **videos,
        )


def _figures(tracks: list[ObjectTrack], absent_V: Any) -> str:
    """Cells of a row of the table. Axes: V videos, T frames."""
    displacement_V = np.array([np.linalg.norm(track.displacements_T2[-1]) for track in tracks])
    errors_VT = np.array([track.errors_T[1:] for track in tracks])
    straight = np.linspace(0, 1, len(tracks[0].errors_T))[:, None]
    off_V = np.array(
        [np.linalg.norm(t.displacements_T2 - straight * t.displacements_T2[-1], axis=1).mean() for t in tracks]
    )
    moving_V = displacement_V > MOVING_PX
    kept_VT = errors_VT < absent_V[:, None] / 2
    cells = [
        " / ".join(f"{value:.1f}" for value in np.percentile(displacement_V, QUANTILES)),
        f"{errors_VT.mean():.1f}",
        f"{errors_VT[:, -1].mean():.1f}",
        f"{kept_VT.mean():.1%}",
        f"{kept_VT[:, -1].mean():.1%}",
        f"{(off_V[moving_V] / displacement_V[moving_V]).mean():.2f}",
    ]
    return " | ".join(cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="embedded", help="checkpoint: a folder, an id, or embedded")
    parser.add_argument("--videos", type=int, default=64)
    parser.add_argument("--processes", type=int, help="default: one per CPU core")
    parser.add_argument("--sheet", type=Path, help="PNG to draw: in pairs, the truth and an unguided video")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        in_processes(_work, (options, Path(folder)), options.processes)
        samples = [dict(np.load(file)) for file in sorted(Path(folder).iterdir())]
    absent_V = np.array([float(sample["absent"]) for sample in samples])
    names = [name for name in samples[0] if name not in ("absent", "mask")]
    quantiles = " / ".join(f"{q} %" for q in QUANTILES)
    print(f"{len(samples)} held-out first frames; `looks` without the object: {absent_V.mean():.1f}")
    print(f"| | displacement px, {quantiles} | looks | looks, last frame | kept | kept to the last | bent |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name in names:
        print(f"| {name} | {_figures([find_object(sample[name], sample['mask']) for sample in samples], absent_V)} |")
    if options.sheet:
        rows = [
            np.concatenate(list(sample[name]), axis=1) for sample in samples[:SHOWN] for name in (TRUTH, ANY_MOTION)
        ]
        sheet = np.concatenate(rows)
        Image.fromarray(sheet).resize((sheet.shape[1] * 2, sheet.shape[0] * 2), Image.Resampling.NEAREST).save(
            options.sheet
        )


if __name__ == "__main__":
    main()
