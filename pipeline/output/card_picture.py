"""The picture of the dataset card: how metrics are distributed. See docs/output-format.md, Dataset card."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sgi2v.wording import counted

PICTURE = "distributions.png"
WIDTH, HEIGHT, MARGIN = 1200, 640, 28
"""Of the picture, and around each of its panels, pixels."""
COLUMNS, ROWS, BINS = 3, 2, 24
INK, PALE, BAR, RULE = (36, 39, 46), (110, 116, 128), (58, 124, 190), (214, 218, 226)
SECONDS = ("seconds_encode", "seconds_guide", "seconds_denoise", "seconds_decode")


@dataclass(frozen=True)
class Panel:
    """One histogram."""

    column: str
    """Of the index; `seconds` is the sum of SECONDS."""
    title: str
    unit: str
    lowest: float = 0.0
    """Values below count in the first bar."""
    highest: float | None = None
    """Values above count in the last bar. None: the 99th percentile, so that a few far ones do not press the rest."""


PANELS = (
    Panel("control_gain", "control gain: 1 follows exactly", "", -0.5, 1.0),
    Panel("objmc_px", "distance from the asked path", "px"),
    Panel("static_objmc_px", "asked: mean distance from the start", "px"),
    Panel("background_change", "change of the background", "levels"),
    Panel("background_motion_px", "motion of the background", "px"),
    Panel("seconds", "generation of a sample", "s"),
)


def draw_distributions(committed: pa.Table) -> bytes | None:
    """A PNG of 3 x 2 histograms; None if no value is known. committed: the index of the committed samples."""
    columns = {panel.column: _values(committed, panel.column) for panel in PANELS}
    if not any(map(len, columns.values())):
        return None
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    wide, tall = (WIDTH - (COLUMNS + 1) * MARGIN) // COLUMNS, (HEIGHT - (ROWS + 1) * MARGIN) // ROWS
    for number, panel in enumerate(PANELS):
        column, row = number % COLUMNS, number // COLUMNS
        at = MARGIN + column * (wide + MARGIN), MARGIN + row * (tall + MARGIN)
        _draw_panel(draw, panel, columns[panel.column], (*at, wide, tall))
    sink = io.BytesIO()
    picture.quantize(32).save(sink, "PNG", optimize=True)
    return sink.getvalue()


def _values(committed: pa.Table, column: str) -> NDArray[np.float64]:
    if column != "seconds":
        values = committed[column]
    else:
        values = committed[SECONDS[0]]
        for name in SECONDS[1:]:
            values = pc.add(values, committed[name])
    return np.asarray(values.drop_null(), np.float64)


def _draw_panel(
    draw: ImageDraw.ImageDraw, panel: Panel, values: NDArray[np.float64], place: tuple[int, int, int, int]
) -> None:
    x, y, width, height = place
    _text(draw, (x, y), panel.title, 17)
    if not len(values):
        _text(draw, (x, y + 30), "not known of any sample", 15, ink=PALE)
        return
    middle = f"{np.median(values):.3g} {panel.unit}".rstrip()
    _text(draw, (x, y + 24), f"median {middle}, {counted(len(values), 'sample')}", 15, ink=PALE)
    low = panel.lowest
    high = float(np.percentile(values, 99)) if panel.highest is None else panel.highest
    high = high if high > low else low + 1.0
    counts = np.histogram(np.clip(values, low, high), BINS, (low, high))[0]
    bottom, room, step = y + height - 24, height - 78, width / BINS
    for number, count in enumerate(counts.tolist()):
        top = bottom - max(count / counts.max() * room, 1) if count else bottom
        draw.rectangle((x + number * step + 1, top, x + (number + 1) * step - 1, bottom), fill=BAR)
    draw.line((x, bottom, x + width, bottom), fill=RULE, width=2)
    ends = (" or less" if values.min() < low else "", "", " or more" if values.max() > high else "")
    for share, anchor, end in zip((0.0, 0.5, 1.0), ("la", "ma", "ra"), ends, strict=True):
        _text(draw, (x + share * width, bottom + 5), f"{low + share * (high - low):.3g}{end}", 14, anchor, PALE)


def _text(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    size: int,
    anchor: str = "la",
    ink: tuple[int, int, int] = INK,
) -> None:
    draw.text(at, text, font=ImageFont.load_default(size), fill=ink, anchor=anchor)
