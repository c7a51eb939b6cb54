"""What the demo's scenes are painted with: a canvas, shapes, textures, light.

Positions are pixels of the finished image. A canvas is FINER times as large on each side and reduced at the end,
which makes edges smooth. Colours are RGB in [0, 1]; masks are [H, W] in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Floats = NDArray[np.float64]
Colour = tuple[float, float, float]
Point = tuple[float, float]

SIDE = 256
FINER = 2
LIGHT = np.array([-0.45, -0.62, 0.64])
"""Unit vector towards the light: x right, y down, z to the viewer."""


def _grid() -> tuple[Floats, Floats]:
    at = (np.arange(SIDE * FINER) + 0.5) / FINER
    x_HW, y_HW = np.meshgrid(at, at)
    return x_HW, y_HW


X, Y = _grid()
"""Position of every canvas pixel."""


@dataclass
class Canvas:
    """A picture in the making."""

    rgb_HW3: Floats = field(default_factory=lambda: np.ones((*X.shape, 3)))

    def fill(self, mask_HW: NDArray[np.bool_] | Floats, colour: Colour | Floats, opacity: float = 1.0) -> None:
        """Cover with one colour, or with a picture [H, W, 3], where the mask is."""
        cover = (opacity * np.asarray(mask_HW, np.float64))[..., None]
        self.rgb_HW3 += cover * (np.asarray(colour) - self.rgb_HW3)

    def shade(self, mask_HW: Floats, strength: float) -> None:
        """Darken by `strength` where the mask is 1; a negative strength brightens."""
        self.rgb_HW3 *= 1 - strength * mask_HW[..., None]

    def finish(self) -> NDArray[np.uint8]:
        """uint8 [SIDE, SIDE, 3]."""
        fine = self.rgb_HW3.clip(0, 1).reshape(SIDE, FINER, SIDE, FINER, 3)
        return np.asarray((fine.mean(axis=(1, 3)) * 255).round(), np.uint8)


def rgb(code: str) -> Colour:
    """A colour from its six hexadecimal digits."""
    red, green, blue = bytes.fromhex(code)
    return red / 255, green / 255, blue / 255


def blend(share_HW: Floats, *colours: Colour) -> Floats:
    """[H, W, 3]: from the first colour at 0 evenly through to the last at 1."""
    stops = np.linspace(0, 1, len(colours))
    columns = np.array(colours)
    return np.stack([np.interp(share_HW, stops, columns[:, channel]) for channel in range(3)], axis=-1)


def ramp(values: Floats, start: float, end: float) -> Floats:
    """0 at `start`, 1 at `end`, smooth in between, constant outside."""
    share = np.clip((values - start) / (end - start), 0, 1)
    return np.asarray(share * share * (3 - 2 * share))


def ellipse(centre: Point, radii: Point) -> NDArray[np.bool_]:
    return np.asarray(((X - centre[0]) / radii[0]) ** 2 + ((Y - centre[1]) / radii[1]) ** 2 <= 1)


def glow(centre: Point, radii: Point) -> Floats:
    """A Gaussian spot; radii are its standard deviations."""
    return np.asarray(np.exp(-(((X - centre[0]) / radii[0]) ** 2 + ((Y - centre[1]) / radii[1]) ** 2) / 2))


def box(x0: float, y0: float, x1: float, y1: float, radius: float = 0.0) -> NDArray[np.bool_]:
    """A rectangle with rounded corners."""
    beyond_x = np.abs(X - (x0 + x1) / 2) - (x1 - x0) / 2 + radius
    beyond_y = np.abs(Y - (y0 + y1) / 2) - (y1 - y0) / 2 + radius
    return np.asarray(np.hypot(np.maximum(beyond_x, 0), np.maximum(beyond_y, 0)) <= max(radius, 1e-9))


def polygon(points: Sequence[Point]) -> NDArray[np.bool_]:
    mask = Image.new("1", (X.shape[1], X.shape[0]))
    ImageDraw.Draw(mask).polygon([(x * FINER, y * FINER) for x, y in points], fill=1)
    return np.asarray(mask)


def line(start: Point, end: Point, width: float) -> NDArray[np.bool_]:
    """A straight line with round ends."""
    along_x, along_y = end[0] - start[0], end[1] - start[1]
    share = ((X - start[0]) * along_x + (Y - start[1]) * along_y) / (along_x**2 + along_y**2)
    share = np.clip(share, 0, 1)
    return np.asarray(np.hypot(X - start[0] - share * along_x, Y - start[1] - share * along_y) <= width / 2)


def noise(x_HW: Floats, y_HW: Floats, seed: int, octaves: int = 3) -> Floats:
    """Smooth noise in [0, 1] whose coarsest features are about one unit of x and y wide."""
    rng = np.random.default_rng(seed)
    total = np.zeros_like(x_HW)
    for octave in range(octaves):
        lattice = rng.random((64, 64))
        x, y = x_HW * 2**octave + 17.3 * octave, y_HW * 2**octave + 5.1 * octave
        column, row = np.floor(x).astype(int), np.floor(y).astype(int)
        right, below = ramp(x - column, 0, 1), ramp(y - row, 0, 1)
        above = _mix(lattice[row % 64, column % 64], lattice[row % 64, (column + 1) % 64], right)
        beneath = _mix(lattice[(row + 1) % 64, column % 64], lattice[(row + 1) % 64, (column + 1) % 64], right)
        total += _mix(above, beneath, below) / 2**octave
    return total / (2 - 2.0 ** (1 - octaves))


def _mix(start: Floats, end: Floats, share: Floats) -> Floats:
    return np.asarray(start + (end - start) * share)


def sphere(centre: Point, radius: float) -> tuple[NDArray[np.bool_], Floats]:
    """The disc of a sphere and its normals [H, W, 3], which outside the disc point sideways."""
    x, y = (X - centre[0]) / radius, (Y - centre[1]) / radius
    squared = x * x + y * y
    normals = np.stack([x, y, np.sqrt(np.clip(1 - squared, 0, None))], axis=-1)
    return np.asarray(squared <= 1), normals


def lit(colour_HW3: Floats, normals_HW3: Floats, gloss: float = 0.0) -> Floats:
    """The colour under LIGHT, with half of the light from everywhere and a highlight of strength `gloss`."""
    towards = np.clip(normals_HW3 @ LIGHT, 0, None)
    half = LIGHT + np.array([0.0, 0.0, 1.0])
    highlight = np.clip(normals_HW3 @ (half / np.linalg.norm(half)), 0, None) ** 40
    edge = 0.75 + 0.25 * np.clip(normals_HW3[..., 2], 0, 1)
    return np.asarray(colour_HW3 * ((0.42 + 0.72 * towards) * edge)[..., None] + gloss * highlight[..., None])
