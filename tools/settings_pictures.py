"""Draws what settings of guidance do, for docs/control.md: python -m tools.settings_pictures [NAME ...].

Each picture has a line per value: frames of the video that the embedded checkpoint makes of a row of the demo, with the
asked boxes as outlines. All lines of a picture start from the same noise. A line takes ten seconds of one core or more.
"""

from __future__ import annotations

import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from manifests.draw import draw_boxes, save_picture
from manifests.fit import VideoSize, place
from manifests.images import load_image
from manifests.io import read_manifest
from manifests.schema import parse_row
from sgi2v import GuidanceConfig, generate, load_model
from sgi2v.config import Feature

PICTURES = Path(__file__).parents[1] / "docs" / "pictures"
ZOOM, SHOWN, LABEL_WIDTH, GAP = 2, 5, 190, 4
"""Enlargement of a frame; frames of a line; pixels of its label and between frames."""
UNGUIDED = "unguided"

SETTINGS: dict[str, tuple[str, dict[str, dict[str, Any] | None]]] = {
    "learning-rate": (
        "disc-sinks",
        {UNGUIDED: None, **{f"learning_rate {rate}": {"learning_rate": rate} for rate in (0.05, 0.1, 0.21, 0.4, 0.8)}},
    ),
    "iterations": ("disc-sinks", {f"iterations {count}": {"iterations": count} for count in (1, 3, 5, 10)}),
    "guided-range": (
        "disc-sinks",
        {
            f"guided_range {first} to {last}": {"guided_range": (first, last)}
            for first, last in ((0.95, 0.8), (0.95, 0.6), (0.95, 0.4), (0.5, 0.15))
        },
    ),
    "feature": ("two-part", {f"{feature}": {"feature": feature} for feature in Feature}),
    "fft-cutoff": ("two-part", {f"fft_cutoff {cutoff}": {"fft_cutoff": cutoff} for cutoff in (0.25, 0.5, 1.0, None)}),
    "heatmap-sigma": ("two-part", {f"heatmap_sigma {sigma}": {"heatmap_sigma": sigma} for sigma in (0.2, 0.4, 1.0)}),
}
"""Picture -> row of the demo, and the lines: what each changes of the checkpoint's own settings. None: no guidance."""


def draw(name: str) -> Image.Image:
    """The picture of one setting."""
    sample_id, lines = SETTINGS[name]
    model = load_model("embedded")
    manifest = str(files("manifests.demo") / "demo.parquet")
    sample = next(filter(lambda each: each.sample_id == sample_id, map(parse_row, read_manifest(manifest).to_pylist())))
    sampler, own = model.checkpoint.sampler(), model.checkpoint.guidance()
    image_HWC = load_image(sample.image, manifest)
    tracks = sample.tracks(sampler.num_frames, *image_HWC.shape[:2])
    placement = place(tracks, VideoSize(sampler.height, sampler.width, "crop", model.checkpoint.size_multiple))
    tracks, first_HWC = placement.tracks(tracks), placement.image(image_HWC)
    strips = []
    for label, changes in lines.items():
        guidance: GuidanceConfig | None = None if changes is None else own.replace(**changes)
        made = generate(model, first_HWC, tracks, sampler=sampler, guidance=guidance, seed=sample.seed or 817)
        chosen = np.linspace(0, sampler.num_frames - 1, SHOWN).round().astype(int)
        strips.append(_line(label, [draw_boxes(made.frames[t], tracks.boxes_NT4[:, t], ZOOM) for t in chosen]))
    picture = Image.new("RGB", (strips[0].width, sum(strip.height for strip in strips)), "white")
    for number, strip in enumerate(strips):
        picture.paste(strip, (0, number * strip.height))
    return picture


def _line(label: str, frames: list[Image.Image]) -> Image.Image:
    """A label, and frames beside it."""
    width, height = frames[0].size
    line = Image.new("RGB", (LABEL_WIDTH + len(frames) * (width + GAP), height + GAP), (24, 26, 31))
    ImageDraw.Draw(line).text(
        (8, height / 2), label, font=ImageFont.load_default(13), fill=(240, 241, 244), anchor="lm"
    )
    for number, frame in enumerate(frames):
        line.paste(frame, (LABEL_WIDTH + number * (width + GAP), 0))
    return line


if __name__ == "__main__":
    for name in sys.argv[1:] or SETTINGS:
        save_picture(draw(name), PICTURES / f"{name}.webp")
