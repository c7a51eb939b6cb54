"""Videos whose motion is known: textured discs that move over sand, written as any kind of file."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, partial
from pathlib import Path
from typing import Any, ClassVar

import av
import cv2
import numpy as np
import skimage.data

from manifests.boxes.proposer import Proposal, Proposed

WIDTH, HEIGHT = 640, 360
TIME_BASE = Fraction(1, 90_000)
TEXTURES: tuple[Callable[[], Any], ...] = (skimage.data.astronaut, skimage.data.chelsea)


def line(x: float, y: float, vx: float, vy: float) -> Callable[[float], tuple[float, float]]:
    """A centre that starts at xy and moves by this many pixels a second."""
    return partial(_on_line, x, y, vx, vy)


def _on_line(x: float, y: float, vx: float, vy: float, s: float) -> tuple[float, float]:
    return x + vx * s, y + vy * s


def arc(x: float, y: float, radius: float, turn: float) -> Callable[[float], tuple[float, float]]:
    """A centre that goes around xy by this many radians a second."""
    return partial(_on_arc, x, y, radius, turn)


def _on_arc(x: float, y: float, radius: float, turn: float, s: float) -> tuple[float, float]:
    return x + radius * math.cos(turn * s), y + radius * math.sin(turn * s)


def constant(value: float) -> Callable[[float], float]:
    """The same at every time."""
    return partial(_constant, value)


def _constant(value: float, s: float) -> float:
    return value


RADIUS, UPRIGHT = constant(45.0), constant(0.0)


@dataclass(frozen=True)
class Disc:
    """A round piece of a photograph. Its centre, radius and angle are functions of the time in seconds; pixels."""

    centre: Callable[[float], tuple[float, float]]
    radius: Callable[[float], float] = RADIUS
    angle: Callable[[float], float] = UPRIGHT
    texture: int = 0

    def box(self, s: float) -> list[float]:
        """Around the disc at a time."""
        (x, y), r = self.centre(s), self.radius(s)
        return [x - r, y - r, x + r, y + r]


@cache
def _photograph(number: int) -> Any:
    return TEXTURES[number]()


@cache
def background(seed: int = 0) -> Any:
    """Sand: smooth random spots of little contrast, in a colour of the seed, uint8 [HEIGHT, WIDTH, 3]."""
    rng = np.random.default_rng(seed)
    spots = cv2.GaussianBlur(rng.normal(size=(HEIGHT, WIDTH, 1)), (0, 0), 2)[..., None]
    return np.clip(rng.uniform(70, 190, 3) + 8 * spots / spots.std(), 0, 255).astype(np.uint8)


def render(discs: Sequence[Disc], times: Sequence[float], ground: int = 0) -> np.ndarray:
    """Frames at these times, uint8 [T, H, W, 3]. Edges are exact to a fraction of a pixel."""
    return np.stack([_frame(discs, s, ground) for s in times])


def _frame(discs: Sequence[Disc], s: float, ground: int) -> np.ndarray:
    frame = background(ground).copy()
    for disc in discs:
        (x, y), radius, angle = disc.centre(s), disc.radius(s), disc.angle(s)
        x0, y0 = (max(math.floor(middle - radius) - 2, 0) for middle in (x, y))
        part = frame[y0 : math.ceil(y + radius) + 2, x0 : math.ceil(x + radius) + 2]
        if not part.size:
            continue
        scale = 2 * radius / 300
        turn = scale * np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
        # in OpenCV the centre of the first pixel is 0
        shift = np.array([x - x0, y - y0]) - 0.5 - turn @ [149.5, 149.5]
        moved = cv2.warpAffine(_texture(disc.texture, round(0.5 / scale, 1)), np.c_[turn, shift], part.shape[1::-1])
        rows, columns = np.ogrid[: part.shape[0], : part.shape[1]]
        distance = np.hypot(columns + 0.5 + x0 - x, rows + 0.5 + y0 - y)
        alpha = np.clip(radius - distance + 0.5, 0, 1)[..., None]
        part[:] = np.clip(part * (1 - alpha) + moved * alpha + 0.5, 0, 255).astype(np.uint8)
    return frame


@cache
def _texture(number: int, sigma: float) -> Any:
    """A photograph without the details that are lost when it shrinks."""
    return cv2.GaussianBlur(_photograph(number)[:300, :300], (0, 0), max(sigma, 0.3)).astype(np.float32)


def constant_rate(seconds: float, fps: float) -> list[float]:
    """Times of frames at a constant rate."""
    return [t / fps for t in range(math.ceil(seconds * fps) + 1)]


def variable_rate(seconds: float, seed: int = 0) -> list[float]:
    """Times of frames that are 15 to 100 ms apart."""
    steps = np.random.default_rng(seed).uniform(0.015, 0.1, math.ceil(seconds / 0.015))
    times = np.concatenate([[0.0], np.cumsum(steps)])
    return [float(s) for s in times[: np.searchsorted(times, seconds) + 1]]


def write_video(
    path: Path,
    frames: np.ndarray,
    times: Sequence[float],
    codec: str = "libx264",
    pixels: str = "yuv420p",
    turn: int = 0,
    options: dict[str, str] | None = None,
    change: Callable[[Any], None] = lambda stream: None,
) -> Path:
    """Encode frames that are shown at these seconds. turn: degrees that a player turns them by, counter-clockwise.

    options: of the file's format. change: is given the stream before it is encoded. MPEG-4 has 30 frames a second.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=30, options={"crf": "14"} if codec == "libx264" else {})
        stream.height, stream.width, stream.pix_fmt = frames.shape[1], frames.shape[2], pixels
        base = Fraction(1, 30) if codec == "mpeg4" else TIME_BASE
        stream.time_base = stream.codec_context.time_base = base
        if turn:
            stream.set_display_rotation(turn)
        change(stream)
        for frame, s in zip(frames, times, strict=True):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24").reformat(format=pixels)
            picture.pts, picture.time_base = round(s / base), base
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    return path


@dataclass(frozen=True)
class TrueBoxes:
    """A proposer that knows the discs. The clip's start is in the key, as its last number of milliseconds."""

    discs: tuple[Disc, ...]
    name: ClassVar[str] = "truth"
    finds_objects: ClassVar[bool] = True

    def check(self, keys: Sequence[str]) -> list[Any]:
        return []

    def propose(self, image_HWC: np.ndarray, key: str) -> Proposed:
        s = int(key.removesuffix(".png").rpartition("-")[2]) / 1000
        return Proposed([Proposal(tuple(disc.box(s))) for disc in self.discs], [])
