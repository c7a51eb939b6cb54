"""sheet: the conditions of each sample beside its videos in one or more runs, as a picture or as a moving one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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


@dataclass(frozen=True)
class _Shown:
    """A sample of the manifest, with what each run made of it."""

    sample: Sample
    image_HWC: Frames
    strips: Sequence[_Strip]

    @property
    def num_frames(self) -> int:
        """Frames of its longest video; 1 where it has none."""
        return max((len(strip.frames) for strip in self.strips if strip.frames is not None), default=1)


def contact_sheet(manifest: pa.Table, manifest_uri: str, outputs: Sequence[str], frames: int) -> Image.Image:
    """One row per sample: its conditions, then for each run `frames` frames, evenly spaced over the video.

    Thin outlines show the asked boxes. A sample that cannot be drawn has its error instead. Raises ConfigError for an
    output without a run.
    """
    rows = _shown(manifest, manifest_uri, outputs)
    return _stack([each if isinstance(each, Image.Image) else _row(each, frames) for each in rows])


def moving_sheet(manifest: pa.Table, manifest_uri: str, outputs: Sequence[str], columns: int = 2) -> list[Image.Image]:
    """The frames of a moving picture: per sample its conditions, and beside them the video of each run, playing.

    columns: samples in a row. A shorter video stays at its last frame. Raises as `contact_sheet`.
    """
    samples = list(_shown(manifest, manifest_uri, outputs))
    num_frames = max((each.num_frames for each in samples if isinstance(each, _Shown)), default=1)
    moving = [[each] * num_frames if isinstance(each, Image.Image) else _moving(each, num_frames) for each in samples]
    lines = [moving[first : first + columns] for first in range(0, len(moving), columns)]
    return [_stack([_beside([tiles[t] for tiles in line], 2 * GAP) for line in lines]) for t in range(num_frames)]


def _shown(manifest: pa.Table, manifest_uri: str, outputs: Sequence[str]) -> Iterator[_Shown | Image.Image]:
    """Each sample with its videos; a picture of the error where it cannot be drawn."""
    storages = [Storage(output) for output in outputs]
    labels = [_label(storage) for storage in storages]
    catalogs = [Catalog(storage) for storage in storages]
    for values in manifest.to_pylist():
        try:
            sample = parse_row(values)
            image_HWC = load_image(sample.image, manifest_uri)
        except SampleError as error:
            yield _error_row(values["sample_id"], error)
        else:
            strips = [_strip(catalog, label, sample.sample_id) for catalog, label in zip(catalogs, labels, strict=True)]
            yield _Shown(sample, image_HWC, strips)


def _label(storage: Storage) -> str:
    return "guided" if require_run(storage).is_guided else "unguided"


def _strip(catalog: Catalog, label: str, sample_id: str) -> _Strip:
    record = catalog.get(sample_id)
    video = catalog.storage.get(record.file_name) if record is not None and record.file_name else None
    return _Strip(label, record, None if video is None else decode_mp4(video))


def _row(shown: _Shown, frames: int) -> Image.Image:
    """Conditions, and beside them a line of frames for each run."""
    strip_height = LABEL_HEIGHT + STRIP_HEIGHT
    height = len(shown.strips) * strip_height + (len(shown.strips) - 1) * GAP
    pictures = [_draw_strip(strip, shown, frames) for strip in shown.strips]
    strips = Image.new("RGB", (max(picture.width for picture in pictures), height), BACKGROUND)
    for number, picture in enumerate(pictures):
        strips.paste(picture, (0, number * (strip_height + GAP)))
    return _beside([_conditions(shown, height, frames), strips], GAP)


def _moving(shown: _Shown, num_frames: int) -> list[Image.Image]:
    """Conditions and the current frame of each run, for every frame."""
    conditions = _conditions(shown, LABEL_HEIGHT + STRIP_HEIGHT, shown.num_frames)
    return [
        _beside([conditions, *(_draw_frames(strip, shown, [t]) for strip in shown.strips)], GAP)
        for t in range(num_frames)
    ]


def _conditions(shown: _Shown, height: int, frames: int) -> Image.Image:
    """The first frame with boxes and paths under the sample's id, `height` pixels high."""
    image_height, image_width = shown.image_HWC.shape[:2]
    tracks = shown.sample.tracks(frames, image_height, image_width)
    zoom = min((height - LABEL_HEIGHT) / image_height, MAX_SIDE / image_width)
    drawn = draw_conditions(shown.image_HWC, tracks, zoom, beyond=False)
    picture = Image.new("RGB", (drawn.width, height), BACKGROUND)
    picture.paste(drawn, (0, LABEL_HEIGHT))
    _write(picture, (0, LABEL_HEIGHT // 2), shown.sample.sample_id, TEXT)
    return picture


def _error_row(sample_id: str, error: SampleError) -> Image.Image:
    """The id and the error of a sample that cannot be drawn."""
    lines = [sample_id, escaped(str(error))[:MAX_ERROR_CHARS]]
    width = max(round(ImageFont.load_default(FONT_SIZE).getlength(line)) for line in lines)
    row = Image.new("RGB", (width, 2 * LABEL_HEIGHT), BACKGROUND)
    for number, (line, colour) in enumerate(zip(lines, (TEXT, SUBTEXT), strict=True)):
        _write(row, (0, number * LABEL_HEIGHT + LABEL_HEIGHT // 2), line, colour)
    return row


def _draw_strip(strip: _Strip, shown: _Shown, frames: int) -> Image.Image:
    """`frames` frames of a video, evenly spaced over it, in a line."""
    count = 1 if strip.frames is None else len(strip.frames)
    return _draw_frames(strip, shown, np.linspace(0, count - 1, frames).round().astype(int).tolist())


def _draw_frames(strip: _Strip, shown: _Shown, chosen: Sequence[int]) -> Image.Image:
    """Frames of a video in a line, by their numbers; one past the end is the last one."""
    height, width = shown.image_HWC.shape[:2] if strip.frames is None else strip.frames.shape[1:3]
    zoom = min(STRIP_HEIGHT / height, MAX_SIDE / width)
    tile_width = max(1, round(width * zoom))
    picture = Image.new("RGB", (len(chosen) * tile_width, LABEL_HEIGHT + STRIP_HEIGHT), BACKGROUND)
    _write(picture, (0, LABEL_HEIGHT // 2), _caption(strip, is_brief=len(chosen) == 1), SUBTEXT)
    if strip.frames is None:
        return picture
    count = len(strip.frames)
    asked = shown.sample.tracks(count, *shown.image_HWC.shape[:2])
    tracks = _placement(strip.record, shown.image_HWC, height, width).tracks(asked)
    for number, t in enumerate(min(each, count - 1) for each in chosen):
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


def _caption(strip: _Strip, is_brief: bool) -> str:
    """The run and its result. is_brief: there is room for two words."""
    if strip.record is None:
        return f"{strip.label}: not finished"
    if strip.record.status == "failed":
        return f"{strip.label}: failed, {strip.record.error_code}"
    objmc, static = (strip.record.metrics.get(name) for name in ("objmc_px", "static_objmc_px"))
    if objmc is None or static is None:
        return f"{strip.label}, {strip.record.metrics.get('null_reason')}"
    if is_brief:
        return f"{strip.label}, {objmc:.1f} px"
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


def _beside(pictures: Sequence[Image.Image], gap: int) -> Image.Image:
    """Pictures in a line."""
    width = sum(picture.width for picture in pictures) + gap * (len(pictures) - 1)
    line = Image.new("RGB", (width, max(picture.height for picture in pictures)), BACKGROUND)
    left = 0
    for picture in pictures:
        line.paste(picture, (left, 0))
        left += picture.width + gap
    return line
