"""The picture of what guidance saw and did, drawn with Pillow, and its arrays.

Axes: as in `pipeline.inspect.inside`; P points of a curve.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from manifests.draw import draw_boxes
from pipeline.inspect.inside import Floats, Inside
from pipeline.output.storage import Storage
from sgi2v.video import Frames
from sgi2v.wording import escaped

TILE_HEIGHT, LABEL_WIDTH, GAP, PLOT_HEIGHT = 120, 225, 6, 170
"""Pixels."""
MAX_TILES = 8
"""Frames, or steps, in a row; more are thinned out evenly."""
BACKGROUND, TEXT, SUBTEXT, ACCENT = (24, 26, 31), (240, 241, 244), (158, 163, 174), (92, 200, 196)
HEAT = np.array([(18, 22, 30), (22, 78, 99), (35, 145, 132), (150, 200, 90), (253, 231, 76)], np.float64)
"""Colours from no change to the most."""


def save_inside(inside: Inside, sample_id: str, folder: str) -> Iterator[str]:
    """Write `<sample_id>.png` and `<sample_id>.npz`; yields where. folder: a path or any fsspec URL."""
    storage = Storage(folder)
    picture, arrays = io.BytesIO(), io.BytesIO()
    draw_inside(inside, sample_id).save(picture, "PNG", optimize=True)
    np.savez_compressed(
        arrays,
        frames=inside.frames_THWC,
        boxes=inside.boxes_NT4,
        guided_steps=np.array(inside.steps),
        step=np.array(inside.step),
        plain_components=inside.plain_Thw3.astype(np.float32),
        modified_components=inside.modified_Thw3.astype(np.float32),
        plain_shares=np.array(inside.plain_shares),
        modified_shares=np.array(inside.modified_shares),
        latent_change=inside.change_SThw.astype(np.float32),
        losses=inside.loss_SI,
    )
    for name, content in ((f"{sample_id}.png", picture), (f"{sample_id}.npz", arrays)):
        storage.put(name, content.getvalue())
        yield f"{storage.url}/{name}"


def draw_inside(inside: Inside, sample_id: str) -> Image.Image:
    """Frames, their features, where the latents were changed, and the loss."""
    frames, steps = _spread(len(inside.frames_THWC)), _spread(len(inside.steps))
    height, width = inside.frames_THWC.shape[1:3]
    zoom = TILE_HEIGHT / height
    tile = (max(1, round(width * zoom)), TILE_HEIGHT)
    video = [draw_boxes(inside.frames_THWC[t], inside.boxes_NT4[:, t], zoom).resize(tile) for t in frames]
    most = float(inside.change_SThw.max()) or 1.0
    per_step = inside.change_SThw[:, 1:].mean(axis=1)
    per_frame = inside.change_SThw.mean(axis=0)
    shown_steps = [f"step {inside.steps[s]}" for s in steps]
    shown_frames = [f"frame {t}" for t in frames]
    rows = [
        ("video", "with the asked boxes", video, shown_frames),
        (
            "self-attention",
            f"step {inside.step}; {_shares(inside.plain_shares)}",
            [_tile(picture, tile) for picture in _as_colours(inside.plain_Thw3)[frames]],
            shown_frames,
        ),
        (
            "... against frame 0",
            f"step {inside.step}; {_shares(inside.modified_shares)}",
            [_tile(picture, tile) for picture in _as_colours(inside.modified_Thw3)[frames]],
            shown_frames,
        ),
        (
            "change of the latents",
            "per guided step",
            [_tile(_heat(per_step[s], most), tile) for s in steps],
            shown_steps,
        ),
        ("", "per frame, mean of steps", [_tile(_heat(per_frame[t], most), tile) for t in frames], shown_frames),
    ]
    line = TILE_HEIGHT + 24
    total_width = LABEL_WIDTH + max(len(frames), len(steps), 4) * (tile[0] + GAP) + GAP
    picture = Image.new("RGB", (total_width, 34 + len(rows) * line + PLOT_HEIGHT + 2 * GAP), BACKGROUND)
    pen = ImageDraw.Draw(picture)
    gain = inside.record.metrics.get("control_gain")
    title = escaped(sample_id) + ("" if gain is None else f"  ·  control gain {gain:.2f}")
    pen.text((GAP, 8), title, TEXT, ImageFont.load_default(15))
    for number, (name, hint, tiles, captions) in enumerate(rows):
        top = 34 + number * line
        pen.text((GAP, top + 40), name, TEXT, ImageFont.load_default(14))
        pen.text((GAP, top + 60), hint, SUBTEXT, ImageFont.load_default(11))
        for place, (each, caption) in enumerate(zip(tiles, captions, strict=True)):
            left = LABEL_WIDTH + place * (tile[0] + GAP)
            picture.paste(each, (left, top))
            pen.text((left, top + TILE_HEIGHT + 3), caption, SUBTEXT, ImageFont.load_default(11))
    top = 34 + len(rows) * line
    pen.text((GAP, top + 40), "guidance loss", TEXT, ImageFont.load_default(14))
    pen.text((GAP, top + 60), "before each update", SUBTEXT, ImageFont.load_default(11))
    _draw_losses(pen, inside.loss_SI, inside.steps, (LABEL_WIDTH, top, total_width - GAP, top + PLOT_HEIGHT))
    return picture


def _spread(count: int) -> list[int]:
    """At most MAX_TILES of so many, evenly spread, the first and the last among them."""
    return sorted({round(at) for at in np.linspace(0, count - 1, min(count, MAX_TILES))})


def _shares(shares: Sequence[float]) -> str:
    return f"3 components, {sum(shares):.0%} of variance"


def _as_colours(components_Thw3: Floats) -> Frames:
    """Components as colours, each stretched between its 1st and 99th percentile over all frames."""
    low, high = np.percentile(components_Thw3, (1, 99), axis=(0, 1, 2))
    stretched = (components_Thw3 - low) / np.maximum(high - low, 1e-12)
    colours: Frames = (np.clip(stretched, 0, 1) * 255).round().astype(np.uint8)
    return colours


def _heat(change_hw: Floats, most: float) -> Frames:
    at = np.clip(change_hw / most, 0, 1) * (len(HEAT) - 1)
    channels = [np.interp(at, np.arange(len(HEAT)), HEAT[:, channel]) for channel in range(3)]
    colours: Frames = np.stack(channels, axis=-1).round().astype(np.uint8)
    return colours


def _tile(picture_hw3: Frames, size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(picture_hw3).resize(size, Image.Resampling.NEAREST)


def _draw_losses(
    pen: ImageDraw.ImageDraw, loss_SI: Floats, steps: Sequence[int], area: tuple[int, int, int, int]
) -> None:
    """A curve for each guided step, side by side: the losses before its updates."""
    left, top, right, bottom = area
    left, bottom = left + 44, bottom - 22
    finite = loss_SI[np.isfinite(loss_SI)]
    most = float(finite.max()) if finite.size and finite.max() > 0 else 1.0
    font = ImageFont.load_default(11)
    for share in (0.0, 0.5, 1.0):
        y = bottom - share * (bottom - top - 8)
        pen.line([(left, y), (right, y)], (49, 59, 73))
        pen.text((left - 6, y), f"{share * most:.3g}", SUBTEXT, font, anchor="rm")
    width = (right - left) / max(len(loss_SI), 1)
    every = -(-len(steps) // 16)
    for s, (step, loss_I) in enumerate(zip(steps, loss_SI, strict=True)):
        start = left + s * width
        points = [
            (start + width * (0.12 + 0.76 * i / max(len(loss_I) - 1, 1)), bottom - loss / most * (bottom - top - 8))
            for i, loss in enumerate(loss_I)
            if np.isfinite(loss)
        ]
        if len(points) > 1:
            pen.line(points, ACCENT, 2)
        for x, y in points:
            pen.ellipse((x - 2.5, y - 2.5, x + 2.5, y + 2.5), ACCENT)
        if s % every == 0:
            pen.text((start + width / 2, bottom + 5), f"step {step}", SUBTEXT, font, anchor="ma")
