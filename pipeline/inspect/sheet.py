"""sheet: a picture with the conditions of each sample beside frames of its videos in one or more runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw, ImageFont

from manifests.draw import MAX_SIDE, draw_boxes, draw_conditions
from manifests.fit import Placement
from manifests.images import load_image
from manifests.schema import Sample, parse_row
from pipeline.output.catalog import Catalog
from pipeline.output.records import SampleRecord
from pipeline.output.run_file import require_run
from pipeline.output.storage import Storage
from sgi2v.errors import SampleError
from sgi2v.video import Frames, decode_mp4
from sgi2v.wording import escaped

STRIP_HEIGHT = 128
"""Height of a frame on the sheet, pixels."""
LABEL_HEIGHT = 20
FONT_SIZE = 13
MAX_ERROR_CHARS = 160
GAP = 10
"""Between pictures, and around them, pixels."""
BACKGROUND, TEXT, SUBTEXT = (24, 26, 31), (240, 241, 244), (158, 163, 174)


@dataclass(frozen=True)
class _Strip:
    """One run's video of a sample."""

    label: str
    """`guided` or `unguided`."""
    record: SampleRecord | None
    """None: not finished."""
    frames: Frames | None
    """None: no video."""


def contact_sheet(manifest: pa.Table, manifest_uri: str, outputs: Sequence[str], frames: int) -> Image.Image:
    """One row per sample: its conditions, then for each run `frames` frames, evenly spaced over the video.

    Thin outlines show the asked boxes. A sample that cannot be drawn has its error instead. Raises ConfigError for an
    output without a run.
    """
    storages = [Storage(output) for output in outputs]
    labels = [_label(storage) for storage in storages]
    catalogs = [Catalog(storage) for storage in storages]
    rows = []
    for values in manifest.to_pylist():
        try:
            sample = parse_row(values)
            image_HWC = load_image(sample.image, manifest_uri)
            strips = [_strip(catalog, label, sample.sample_id) for catalog, label in zip(catalogs, labels, strict=True)]
            rows.append(_row(sample, image_HWC, strips, frames))
        except SampleError as error:
            rows.append(_error_row(values["sample_id"], error))
    return _stack(rows)


def _label(storage: Storage) -> str:
    return "guided" if require_run(storage).is_guided else "unguided"


def _strip(catalog: Catalog, label: str, sample_id: str) -> _Strip:
    record = catalog.get(sample_id)
    video = catalog.storage.get(record.file_name) if record is not None and record.file_name else None
    return _Strip(label, record, None if video is None else decode_mp4(video))


def _row(sample: Sample, image_HWC: Frames, strips: Sequence[_Strip], frames: int) -> Image.Image:
    strip_height = LABEL_HEIGHT + STRIP_HEIGHT
    height = len(strips) * strip_height + (len(strips) - 1) * GAP
    image_height, image_width = image_HWC.shape[:2]
    tracks = sample.tracks(frames, image_height, image_width)
    zoom = min((height - LABEL_HEIGHT) / image_height, MAX_SIDE / image_width)
    conditions = draw_conditions(image_HWC, tracks, zoom, beyond=False)
    pictures = [_draw_strip(strip, sample, image_HWC, frames) for strip in strips]
    row = Image.new("RGB", (conditions.width + GAP + max(picture.width for picture in pictures), height), BACKGROUND)
    row.paste(conditions, (0, LABEL_HEIGHT))
    _write(row, (0, LABEL_HEIGHT // 2), sample.sample_id, TEXT)
    for number, picture in enumerate(pictures):
        row.paste(picture, (conditions.width + GAP, number * (strip_height + GAP)))
    return row


def _error_row(sample_id: str, error: SampleError) -> Image.Image:
    """The id and the error of a sample that cannot be drawn."""
    lines = [sample_id, escaped(str(error))[:MAX_ERROR_CHARS]]
    width = max(round(ImageFont.load_default(FONT_SIZE).getlength(line)) for line in lines)
    row = Image.new("RGB", (width, 2 * LABEL_HEIGHT), BACKGROUND)
    for number, (line, colour) in enumerate(zip(lines, (TEXT, SUBTEXT), strict=True)):
        _write(row, (0, number * LABEL_HEIGHT + LABEL_HEIGHT // 2), line, colour)
    return row


def _draw_strip(strip: _Strip, sample: Sample, image_HWC: Frames, frames: int) -> Image.Image:
    height, width = image_HWC.shape[:2] if strip.frames is None else strip.frames.shape[1:3]
    zoom = min(STRIP_HEIGHT / height, MAX_SIDE / width)
    tile_width = max(1, round(width * zoom))
    picture = Image.new("RGB", (frames * tile_width, LABEL_HEIGHT + STRIP_HEIGHT), BACKGROUND)
    _write(picture, (0, LABEL_HEIGHT // 2), _caption(strip), SUBTEXT)
    if strip.frames is None:
        return picture
    count = len(strip.frames)
    tracks = _placement(strip.record, image_HWC, height, width).tracks(sample.tracks(count, *image_HWC.shape[:2]))
    for number, t in enumerate(np.linspace(0, count - 1, frames).round().astype(int)):
        boxes_N4 = tracks.boxes_NT4[:, t] if tracks.num_boxes else np.zeros((0, 4))
        picture.paste(draw_boxes(strip.frames[t], boxes_N4, zoom), (number * tile_width, LABEL_HEIGHT))
    return picture


def _placement(record: SampleRecord | None, image_HWC: Frames, height: int, width: int) -> Placement:
    """Where a video of this size shows its picture. Records of earlier versions do not say: it fills all frames."""
    whole = (0.0, 0.0, float(image_HWC.shape[1]), float(image_HWC.shape[0]))
    if record is None or record.source_box is None or record.picture_box is None:
        return Placement("stretch", height, width, whole, (0, 0, width, height))
    x0, y0, x1, y1 = record.source_box
    left, top, right, bottom = record.picture_box
    return Placement("crop", height, width, (x0, y0, x1, y1), (left, top, right, bottom))


def _caption(strip: _Strip) -> str:
    if strip.record is None:
        return f"{strip.label}: not finished"
    if strip.record.status == "failed":
        return f"{strip.label}: failed, {strip.record.error_code}"
    objmc, static = (strip.record.metrics.get(name) for name in ("objmc_px", "static_objmc_px"))
    if objmc is None or static is None:
        return f"{strip.label}, {strip.record.metrics.get('null_reason')}"
    return f"{strip.label}, ObjMC {objmc:.1f} px (static {static:.1f})"


def _write(picture: Image.Image, left_middle: tuple[int, int], text: str, colour: tuple[int, int, int]) -> None:
    ImageDraw.Draw(picture).text(left_middle, text, font=ImageFont.load_default(FONT_SIZE), fill=colour, anchor="lm")


def _stack(rows: Sequence[Image.Image]) -> Image.Image:
    width = max(row.width for row in rows) + 2 * GAP
    sheet = Image.new("RGB", (width, sum(row.height + 2 * GAP for row in rows)), BACKGROUND)
    top = GAP
    for row in rows:
        sheet.paste(row, (GAP, top))
        top += row.height + 2 * GAP
    return sheet
