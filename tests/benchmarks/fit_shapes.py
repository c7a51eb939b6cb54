"""What each `fit` makes of a disc in pictures of other shapes: python -m tests.benchmarks.fit_shapes FOLDER.

Rows go through the first stage of a run at 576 x 1024, so no model is needed. The disc has a box and a path. Prints its
roundness (its width over its height; 1 is round) in the frame, and the largest distance between the sides of its box
and of the disc. Writes a picture of each frame with its boxes.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from manifests.draw import draw_sample, save_picture
from manifests.fit import FITS
from manifests.io import read_manifest
from manifests.schema import EXTENSION_SCHEMA, MANIFEST_SCHEMA
from pipeline.config import resolve
from pipeline.flow.load import Load
from pipeline.flow.row import InFlight, pixels_of, sampler_of, state_of, tracks_of

PICTURES = {"portrait": (1200, 1600), "panorama": (2400, 600), "4:3": (1600, 1200)}
"""(width, height)"""
RADIUS = 90
DISC = (230, 40, 40)
NEAR = 60
"""Difference of colour, 8-bit levels, up to which a pixel is the disc's."""


def picture(width: int, height: int, x: float, y: float) -> Image.Image:
    """A grid of squares of 100 px on a gradient, and the disc; drawn four times as large, for smooth edges."""
    image = Image.linear_gradient("L").resize((4 * width, 4 * height)).point(lambda level: 90 + level // 4)
    image = image.convert("RGB")
    draw = ImageDraw.Draw(image)
    for at in range(0, 4 * max(width, height), 400):
        draw.line([(at, 0), (at, 4 * height)], fill=(70, 90, 110), width=8)
        draw.line([(0, at), (4 * width, at)], fill=(70, 90, 110), width=8)
    draw.circle((4 * x, 4 * y), 4 * RADIUS, fill=DISC)
    return image.resize((width, height), Image.Resampling.BOX)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, (width, height) in PICTURES.items():
        x, y = 0.7 * width, 0.3 * height
        picture(width, height, x, y).save(folder / f"{name.replace(':', '')}.png")
        box = [x - RADIUS, y - RADIUS, x + RADIUS, y + RADIUS]
        path = [[x, y], [x + 0.1 * width, y + 0.1 * height]]
        for fit in FITS:
            sample_id = f"{name.replace(':', '')}-{fit}"
            image = f"{name.replace(':', '')}.png"
            rows.append({"sample_id": sample_id, "image": image, "boxes": [box], "trajectories": [path], "fit": fit})
    schema = pa.schema([*MANIFEST_SCHEMA, EXTENSION_SCHEMA.field("fit")])
    pq.write_table(pa.Table.from_pylist(rows, schema), folder / "m.parquet")
    size = {"height": 576, "width": 1024, "num_frames": 14}
    config, _ = resolve(str(folder / "m.parquet"), str(folder), {}, {"model": {"source": "embedded"}, "sampler": size})
    config = replace(config, size_multiple=64)  # Stable Video Diffusion's
    load, todo = Load(config), InFlight.begin(read_manifest(config.manifest))
    print("| sample | frame | picture shown | roundness | box beside disc, px |")
    print("| --- | --- | --- | --- | --- |")
    for number in range(todo.num_rows):
        row = load(todo.slice(number, 1))
        state = state_of(row)
        sampler = sampler_of(state, config.sampler)
        frame_HWC = pixels_of(row, "first_frame", (sampler.height, sampler.width, 3))
        tracks = tracks_of(state, sampler)
        is_disc_HW = np.abs(frame_HWC.astype(int) - DISC).max(axis=-1) <= NEAR
        ys, xs = np.nonzero(is_disc_HW)
        disc = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
        roundness = (disc[2] - disc[0]) / (disc[3] - disc[1])
        off_px = np.abs(tracks.boxes_NT4[0, 0] - disc).max()
        shown = [round(side) for side in state.record_fields["source_box"]]
        frame = f"{sampler.width} x {sampler.height}"
        print(f"| {state.sample_id} | {frame} | {shown} | {roundness:.3f} | {off_px:.1f} |")
        save_picture(draw_sample(frame_HWC, tracks, state.sample_id), folder / f"frame-{state.sample_id}.png")


if __name__ == "__main__":
    main()
