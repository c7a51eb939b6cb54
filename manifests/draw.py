"""Drawing of a sample: its image, its boxes, and where they should go.

Display pixels are pixels of the finished picture. The overlay is drawn SUPERSAMPLING times as large and then reduced,
which makes its edges smooth.

Axes: N boxes, T frames, P points of a curve, H W pixels, C colours; 2 is xy, 4 is xyxy.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from sgi2v.errors import ConfigError
from sgi2v.trajectory import BoxTracks

Floats = NDArray[np.float64]
RGB = tuple[int, int, int]
Point = tuple[float, float]

PALETTE: tuple[RGB, ...] = (
    (255, 176, 0),
    (86, 180, 233),
    (240, 80, 140),
    (0, 200, 150),
    (160, 130, 255),
    (255, 115, 50),
    (240, 228, 66),
)
"""Colours of the boxes, distinct for colour-blind readers too. Further boxes start again from the first."""

HELD: RGB = (205, 209, 217)
"""Colour of boxes that are told to stay."""

MIN_WIDTH, MAX_SIDE = 768, 1600
"""Narrower images are enlarged to MIN_WIDTH; larger ones are reduced to MAX_SIDE. Display pixels."""

MAX_MARGIN = 0.25
"""Widest margin for what leaves the frame, as a share of the image's longer side."""

SUPERSAMPLING = 3

FRAME_MS, REST_MS = 140, 1200
"""How long a moving picture shows a frame, and its last one, milliseconds."""

_FARTHEST = 1e12
"""Overlay pixels. A point beyond is drawn as if it were here; so a difference of two points is a finite number."""

_BACKGROUND: RGB = (44, 47, 54)
_STRIP: RGB = (24, 26, 31)
_DARK: RGB = (12, 13, 16)
_WHITE: RGB = (255, 255, 255)
_TEXT: RGB = (240, 241, 244)
_SUBTEXT: RGB = (158, 163, 174)


@dataclass(frozen=True)
class _Canvas:
    """The overlay, the position of image pixels on it, and its line width."""

    draw: ImageDraw.ImageDraw
    size: tuple[int, int]
    """Width and height, overlay pixels."""
    scale: float
    """Overlay pixels per image pixel."""
    origin: Point
    """Top-left corner of the image, overlay pixels."""
    line: float
    """Width of a line, overlay pixels."""

    @property
    def near(self) -> tuple[Floats, Floats]:
        """Top-left and bottom-right corner of the area in which lines are drawn: the overlay and as much around it.

        Nothing outside can be seen, and the work must not grow with the size of a coordinate.
        """
        size_2 = np.array(self.size, np.float64)
        return -size_2, 2 * size_2

    def place(self, points_P2: Floats) -> Floats:
        """Points of the image in overlay pixels."""
        placed_P2: Floats = np.clip(points_P2 * self.scale + np.array(self.origin), -_FARTHEST, _FARTHEST)
        return placed_P2

    def place_box(self, box: Floats) -> tuple[float, float, float, float]:
        """A box of the image in overlay pixels. Sides that are far outside are brought near it."""
        (x0, y0), (x1, y1) = np.clip(self.place(box.reshape(2, 2)), *self.near).tolist()
        return x0, y0, x1, y1


def draw_sample(image_HWC: NDArray[np.uint8], tracks: BoxTracks, title: str | None) -> Image.Image:
    """The image with each box in frame 0, its path, and its outline in the last frame, dashed. A caption is below.

    Boxes that are told to stay are grey, and have no path. Of a box with a mask, the object is tinted.

    image_HWC: uint8 RGB. tracks: in pixels of any frame size; they are rescaled to the image.
    """
    height, width = image_HWC.shape[:2]
    zoom = min(max(1.0, MIN_WIDTH / width), MAX_SIDE / max(height, width))
    picture = draw_conditions(image_HWC, tracks, zoom)
    still = 0 if tracks.still_N is None else int(tracks.still_N.sum())
    facts = f"{width} x {height} px  ·  {tracks.num_boxes} box{'' if tracks.num_boxes == 1 else 'es'}"
    return _with_caption(picture, title, f"{facts}  ·  {still} told to stay" if still else facts)


def draw_conditions(image_HWC: NDArray[np.uint8], tracks: BoxTracks, zoom: float, beyond: bool = True) -> Image.Image:
    """The image with its boxes and paths, enlarged by `zoom`.

    image_HWC: uint8 RGB. tracks: in pixels of any frame size; they are rescaled to the image. beyond: add a margin for
    boxes and paths that leave the frame.
    """
    height, width = image_HWC.shape[:2]
    tracks = tracks.rescale(height, width)
    shown = _size_shown(width, height, zoom)
    left, top, right, bottom = _margins(tracks, zoom) if beyond else (0, 0, 0, 0)
    size = (left + shown[0] + right, top + shown[1] + bottom)
    picture = Image.new("RGB", size, _BACKGROUND)
    picture.paste(Image.fromarray(image_HWC).resize(shown, Image.Resampling.LANCZOS), (left, top))

    overlay = Image.new("RGBA", (size[0] * SUPERSAMPLING, size[1] * SUPERSAMPLING))
    line = SUPERSAMPLING * min(max(2.0, 0.0032 * max(shown)), 5.0)
    origin = (left * SUPERSAMPLING, top * SUPERSAMPLING)
    canvas = _Canvas(ImageDraw.Draw(overlay), overlay.size, zoom * SUPERSAMPLING, origin, line)
    still_N = [False] * tracks.num_boxes if tracks.still_N is None else tracks.still_N.tolist()
    colours = [HELD if still else PALETTE[n % len(PALETTE)] for n, still in enumerate(still_N)]
    for n, (boxes_T4, colour) in enumerate(zip(tracks.boxes_NT4, colours, strict=True)):
        if tracks.masks_NHW is not None:
            _tint(overlay, canvas, tracks.masks_NHW[n], boxes_T4[0], colour, (shown[0], shown[1]))
        _draw_first_box(canvas, boxes_T4[0], colour, is_filled=tracks.masks_NHW is None)
    for boxes_T4, colour in zip(tracks.boxes_NT4, colours, strict=True):
        _draw_last_box(canvas, boxes_T4, colour)
    for path_T2, colour, still in zip(tracks.centres_NT2, colours, still_N, strict=True):
        for part_P2 in [] if still else _parts_within(canvas.place(path_T2), *canvas.near):
            _draw_path(canvas, part_P2, colour)
    if tracks.num_boxes > 1:
        for n, (boxes_T4, colour) in enumerate(zip(tracks.boxes_NT4, colours, strict=True)):
            _draw_number(canvas, boxes_T4[0], n, colour)
    reduced = overlay.resize(size, Image.Resampling.BOX)
    picture.paste(reduced, (0, 0), reduced)
    return picture


def save_picture(picture: Image.Image, target: Path) -> None:
    """Write a picture and the folders above it. Raises ConfigError if that fails."""
    with _saving(target):
        picture.save(target)


def save_moving_picture(frames: Sequence[Image.Image], target: Path) -> None:
    """Write frames as a WebP or GIF that plays for ever, and rests on the last frame. Raises as `save_picture`."""
    durations_ms = [*[FRAME_MS] * (len(frames) - 1), REST_MS]
    with _saving(target):
        frames[0].save(
            target, save_all=True, append_images=frames[1:], duration=durations_ms, loop=0, quality=80, method=6
        )


@contextmanager
def _saving(target: Path) -> Iterator[None]:
    """Make the folders above a picture that is written in the block. Raises ConfigError if that fails."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield
    except (OSError, ValueError) as error:
        raise ConfigError(f"{target} cannot be written ({error}): give another path") from error


def draw_boxes(frame_HWC: NDArray[np.uint8], boxes_N4: Floats, zoom: float) -> Image.Image:
    """A video frame, enlarged by `zoom`, with thin outlines where its boxes should be. boxes_N4: in its pixels."""
    height, width = frame_HWC.shape[:2]
    size = _size_shown(width, height, zoom)
    picture = Image.fromarray(frame_HWC).resize(size, Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(picture)
    corner_4 = np.array([*size, *size], np.float64)
    for n, box in enumerate(np.clip(boxes_N4 * zoom, -corner_4, 2 * corner_4)):  # far sides are not seen
        draw.rectangle([float(side) for side in box], outline=PALETTE[n % len(PALETTE)], width=max(1, size[0] // 120))
    return picture


def _size_shown(width: int, height: int, zoom: float) -> tuple[int, int]:
    """Width and height of an enlarged image, display pixels. No side vanishes."""
    return max(1, round(width * zoom)), max(1, round(height * zoom))


def _margins(tracks: BoxTracks, zoom: float) -> tuple[int, int, int, int]:
    """Margins (left, top, right, bottom) for boxes and paths that leave the frame, display pixels."""
    if tracks.num_boxes == 0:
        return (0, 0, 0, 0)
    ends_N4 = tracks.boxes_NT4[:, [0, -1]].reshape(-1, 4)
    points_N2 = np.concatenate([ends_N4[:, :2], ends_N4[:, 2:], tracks.centres_NT2.reshape(-1, 2)])
    (x0, y0), (x1, y1) = points_N2.min(axis=0), points_N2.max(axis=0)
    beyond = np.array([-x0, -y0, x1 - tracks.width, y1 - tracks.height]) * zoom
    most = MAX_MARGIN * max(tracks.width, tracks.height) * zoom
    left, top, right, bottom = (math.ceil(min(side + 16, most)) if side > 0 else 0 for side in beyond)
    return left, top, right, bottom


def _tint(
    overlay: Image.Image,
    canvas: _Canvas,
    mask_HW: NDArray[np.uint8],
    box: Floats,
    colour: RGB,
    shown: tuple[int, int],
) -> None:
    """Colour the object's pixels in its box. shown: width and height of the image, display pixels."""
    size = (shown[0] * SUPERSAMPLING, shown[1] * SUPERSAMPLING)
    left, top = (round(side) for side in canvas.origin)
    x0, y0, x1, y1 = (round(side) for side in canvas.place_box(box))
    object_HW = np.zeros(size[::-1], np.uint8)
    in_box = (slice(max(y0 - top, 0), max(y1 - top, 0)), slice(max(x0 - left, 0), max(x1 - left, 0)))
    object_HW[in_box] = np.asarray(Image.fromarray(mask_HW).resize(size))[in_box]
    overlay.paste((*colour, 120), (left, top), Image.fromarray(object_HW))


def _draw_first_box(canvas: _Canvas, box: Floats, colour: RGB, is_filled: bool = True) -> None:
    x0, y0, x1, y1 = canvas.place_box(box)
    width = canvas.line
    casing = 0.55 * width
    if is_filled:
        canvas.draw.rectangle((x0, y0, x1, y1), fill=(*colour, 46))
    canvas.draw.rectangle(_grown(x0, y0, x1, y1, width / 2 + casing), outline=(*_DARK, 170), width=round(casing * 2))
    canvas.draw.rectangle(_grown(x0, y0, x1, y1, width / 2), outline=(*colour, 255), width=round(width))


def _grown(x0: float, y0: float, x1: float, y1: float, by: float) -> tuple[float, float, float, float]:
    """The box, larger by `by` on every side."""
    return (x0 - by, y0 - by, x1 + by, y1 + by)


def _draw_last_box(canvas: _Canvas, boxes_T4: Floats, colour: RGB) -> None:
    """The dashed outline of a box in the last frame; nothing for a box that does not move."""
    if np.abs(boxes_T4[-1] - boxes_T4[0]).max() * canvas.scale < 2 * canvas.line:
        return
    (x0, y0), (x1, y1) = canvas.place(boxes_T4[-1].reshape(2, 2))
    corners = [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]
    for width, ink in ((1.5 * canvas.line, (*_DARK, 150)), (0.7 * canvas.line, (*colour, 235))):
        for start, end in pairwise(corners):
            for part_P2 in _parts_within(np.array([start, end]), *canvas.near):
                _draw_dashes(canvas.draw, part_P2[0], part_P2[-1], 4.0 * canvas.line, width, ink)


def _draw_dashes(
    draw: ImageDraw.ImageDraw, start: Floats, end: Floats, dash: float, width: float, ink: tuple[int, int, int, int]
) -> None:
    """A dashed line that starts and ends with a dash, so that corners are closed."""
    length = math.dist(start, end)
    count = max(1, round(length / dash / 2)) * 2 + 1
    at = np.linspace(start, end, count + 1)
    for n in range(0, count, 2):
        draw.line([tuple(at[n]), tuple(at[n + 1])], fill=ink, width=max(1, round(width)))


def _parts_within(path_P2: Floats, low_2: Floats, high_2: Floats) -> list[Floats]:
    """The parts of a path inside a rectangle, two points or more each. A path that never leaves it is one part."""
    parts: list[list[Floats]] = []
    for start, end in pairwise(path_P2):
        first, last = 0.0, 1.0
        for axis, step in enumerate(end - start):
            if step:
                crossings = ((low_2[axis] - start[axis]) / step, (high_2[axis] - start[axis]) / step)
                first, last = max(first, min(crossings)), min(last, max(crossings))
            elif not low_2[axis] <= start[axis] <= high_2[axis]:
                first, last = 1.0, 0.0
        if first >= last:
            continue
        enters, leaves = (end if share == 1 else start + share * (end - start) for share in (first, last))
        if parts and np.array_equal(parts[-1][-1], enters):
            parts[-1].append(leaves)
        else:
            parts.append([enters, leaves])
    return [np.array(part) for part in parts]


def _draw_path(canvas: _Canvas, path_T2: Floats, colour: RGB) -> None:
    """The path of a box's centre: stronger and wider with time, a dot per frame, an arrow head at the end."""
    line = canvas.line
    travelled = np.concatenate([[0.0], np.cumsum(np.linalg.norm(np.diff(path_T2, axis=0), axis=1))])
    if travelled[-1] < 3 * line:
        canvas.draw.circle(tuple(path_T2[0]), 2.6 * line, fill=(*_DARK, 190))
        canvas.draw.circle(tuple(path_T2[0]), 2.0 * line, fill=(*colour, 255))
        canvas.draw.circle(tuple(path_T2[0]), 0.9 * line, fill=(*_WHITE, 255))
        return
    head = min(6.0 * line, 0.6 * travelled[-1])
    curve_P2, share_P = _smooth(path_T2, travelled, line / 2)
    tip = path_T2[-1]
    body = np.linalg.norm(curve_P2 - tip, axis=1) > 0.7 * head
    last = int(np.flatnonzero(body)[-1]) if body.any() else 0
    beyond_P2 = np.maximum(-curve_P2, curve_P2 - np.array(canvas.size))
    seen = np.flatnonzero(beyond_P2[: last + 1].max(axis=1) < 2 * line)
    for casing in (0.9 * line, 0.0):
        for point, share in zip(curve_P2[seen], share_P[seen], strict=True):
            radius = (0.45 + 0.4 * share) * line + casing / 2
            ink = (*_DARK, round(60 + 110 * share)) if casing else (*colour, round(140 + 115 * share))
            canvas.draw.circle(tuple(point), radius, fill=ink)
        direction = tip - curve_P2[last]
        _draw_head(canvas.draw, tip, direction, head, casing, (*_DARK, 170) if casing else (*colour, 255))
    spacing = travelled[-1] / (len(path_T2) - 1)
    every = max(1, math.ceil(4 * line / max(spacing, 1e-9)))
    for point in path_T2[: len(path_T2) - 1 : every]:
        if math.dist(point, tip) > head + line:
            canvas.draw.circle(tuple(point), 0.5 * line, fill=(*_WHITE, 255))


def _smooth(path_T2: Floats, travelled: Floats, step: float) -> tuple[Floats, Floats]:
    """A smooth curve [P, 2] through the points, sampled every `step`, and how far along the path each sample is [P].

    travelled: length of the path up to each point. Repeated points count once. A sample's position is between 0 and 1.
    """
    moved = np.concatenate([[True], np.diff(travelled) > 1e-6])
    points, knots = path_T2[moved], travelled[moved]
    at = np.linspace(0.0, knots[-1], max(2, math.ceil(knots[-1] / step)) + 1)
    tangents = np.gradient(points, knots, axis=0)
    piece = np.clip(np.searchsorted(knots, at, side="right") - 1, 0, len(knots) - 2)
    span = (knots[piece + 1] - knots[piece])[:, None]
    u = (at - knots[piece])[:, None] / span
    curve = (  # cubic Hermite spline
        (2 * u**3 - 3 * u**2 + 1) * points[piece]
        + (u**3 - 2 * u**2 + u) * span * tangents[piece]
        + (3 * u**2 - 2 * u**3) * points[piece + 1]
        + (u**3 - u**2) * span * tangents[piece + 1]
    )
    return curve, at / knots[-1]


def _draw_head(
    draw: ImageDraw.ImageDraw,
    tip: Floats,
    direction: Floats,
    length: float,
    grow: float,
    ink: tuple[int, int, int, int],
) -> None:
    """A swept-back arrow head that points along `direction`, larger by `grow` on every side."""
    ahead = direction / max(float(np.linalg.norm(direction)), 1e-9)
    aside = np.array([-ahead[1], ahead[0]])
    outline = [
        tip + 1.6 * grow * ahead,
        tip - (length + 0.7 * grow) * ahead + (0.52 * length + 1.1 * grow) * aside,
        tip - (0.72 * length + 0.5 * grow) * ahead,
        tip - (length + 0.7 * grow) * ahead - (0.52 * length + 1.1 * grow) * aside,
    ]
    draw.polygon([(float(x), float(y)) for x, y in outline], fill=ink)


def _draw_number(canvas: _Canvas, box: Floats, n: int, colour: RGB) -> None:
    """A tag with the box's index, the one used in messages, at its top-left corner."""
    font_size = max(12.0 * SUPERSAMPLING, 5.2 * canvas.line)
    font = ImageFont.load_default(font_size)
    x, y, _, _ = canvas.place_box(box)
    text = str(n)
    pad = 0.32 * font_size
    width, height = font.getlength(text) + 2 * pad, font_size + pad
    x, y = x - canvas.line, y - canvas.line
    canvas.draw.rectangle((x, y, x + width, y + height), fill=(*colour, 255))
    canvas.draw.text((x + width / 2, y + height / 2), text, font=font, fill=(*_DARK, 255), anchor="mm")


def _with_caption(picture: Image.Image, title: str | None, facts: str) -> Image.Image:
    """The picture with a strip below it: the title at the left, facts at the right."""
    font_size = max(14.0, picture.width / 62)
    font = ImageFont.load_default(font_size)
    height, pad = round(font_size * 2.1), round(font_size * 0.8)
    captioned = Image.new("RGB", (picture.width, picture.height + height), _STRIP)
    captioned.paste(picture, (0, 0))
    draw = ImageDraw.Draw(captioned)
    middle = picture.height + height / 2
    draw.text((picture.width - pad, middle), facts, font=font, fill=_SUBTEXT, anchor="rm")
    room = picture.width - 3 * pad - font.getlength(facts)
    draw.text((pad, middle), _fitted(title or "", font, room), font=font, fill=_TEXT, anchor="lm")
    return captioned


def _fitted(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, room: float) -> str:
    """The text, with its middle cut out if it is wider than `room`."""
    kept = len(text)
    fitted = text
    while kept > 2 and font.getlength(fitted) > room:
        kept -= 1
        fitted = f"{text[: (kept + 1) // 2]}…{text[len(text) - kept // 2 :]}"
    return fitted
