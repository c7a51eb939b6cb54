"""The world of the embedded checkpoint: patterned sprites that move on straight lines over a soft ground.

A seed and an index give a scene. A scene is a formula: it can be rendered at any time in [0, 1] and at any size.
Either sprites move, or the camera pans or zooms, which moves everything. Speed is constant. Boxes and paths are known
exactly. Coordinates are in pixels of a 64 x 64 frame.

Axes: T times, H W pixels, C colours, K blobs of the ground, N sprites; 2 is xy, 4 is xyxy.
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Rng = np.random.Generator

SIDE = 64
"""Side of a frame, pixels."""
ZOOM_RADIUS = 24.0
"""Distance from the frame's centre at which the displacement of a zoom is measured, pixels."""
GROUND_MARGIN = 32
"""How far the ground extends beyond the frame in scenes that pan, pixels."""


class Motion(StrEnum):
    """What moves in a scene."""

    OBJECT = "object"
    PAN = "pan"
    ZOOM = "zoom"


class SpriteSet(StrEnum):
    """Which sprites a scene may show."""

    ANY = "any"
    """Any colours, size and angle: for the autoencoder, which should handle all of them."""
    CAST = "cast"
    """A small fixed set of characters: for the U-Net, which can learn each of them."""


SHARES = {
    SpriteSet.ANY: {Motion.OBJECT: 0.72, Motion.PAN: 0.18, Motion.ZOOM: 0.10},
    SpriteSet.CAST: {Motion.OBJECT: 0.84, Motion.PAN: 0.16, Motion.ZOOM: 0.0},
}
"""Share of the scenes with each motion."""
CAST_COLOURS = tuple(
    tuple(np.array(pair, np.float32) / 255)
    for pair in (
        ((226, 38, 42), (255, 244, 214)),
        ((247, 138, 20), (60, 20, 90)),
        ((250, 220, 30), (170, 30, 30)),
        ((40, 170, 60), (240, 255, 200)),
        ((30, 200, 210), (20, 30, 90)),
        ((30, 70, 220), (255, 230, 120)),
        ((150, 40, 190), (190, 255, 200)),
        ((245, 110, 180), (30, 60, 60)),
    )
)
"""Colours of a character's body and pattern, RGB in [0, 1]."""
CAST_OUTLINES = (("disc", 0.0), ("square", 0.0), ("square", np.pi / 4))
"""Outlines of the characters, each with its own angle, radians."""
CAST_RADII = (8.5, 10.5)
"""Radii of the characters, pixels."""


@dataclass(frozen=True)
class Sprite:
    """One object: an outline, a pattern inside it, two colours and a straight path."""

    outline: str
    pattern: str
    angle: float
    """Angle of the outline and its pattern, radians."""
    radius: float
    """Radius of the circle around it, pixels."""
    colours_2C: Floats
    """Colours of the body and of the pattern, RGB in [0, 1]."""
    path_22: Floats
    """Centre at time 0 and at time 1, in world pixels."""

    @property
    def displacement(self) -> float:
        """Length of the path, pixels."""
        return float(np.linalg.norm(self.path_22[1] - self.path_22[0]))


@dataclass(frozen=True)
class Scene:
    """Sprites on a ground, seen by a camera."""

    motion: Motion
    sprites: tuple[Sprite, ...]
    """If any sprite moves, the first one does. Later ones are drawn over earlier ones."""
    ground_C: Floats
    """Base colour of the ground, RGB in [0, 1]."""
    slope_2C: Floats
    """Change of the ground's colour from the left side of the frame to the right, and from the top to the bottom."""
    blob_centres_K2: Floats
    blob_radii_K: Floats
    blob_colours_KC: Floats
    """Colour that each blob adds to the ground at its centre."""
    pan_22: Floats
    """World point at the frame's top-left corner, at time 0 and at time 1."""
    zoom_2: Floats
    """Magnification about the frame's centre, at time 0 and at time 1."""

    @property
    def displacement(self) -> float:
        """Displacement from time 0 to time 1, pixels: of the fastest sprite, the pan, or the zoom at ZOOM_RADIUS."""
        match self.motion:
            case Motion.OBJECT:
                return max(sprite.displacement for sprite in self.sprites)
            case Motion.PAN:
                return float(np.linalg.norm(self.pan_22[1] - self.pan_22[0]))
            case Motion.ZOOM:
                return float(ZOOM_RADIUS * abs(self.zoom_2[1] - self.zoom_2[0]) / self.zoom_2.mean())

    def boxes_NT4(self, times_T: Floats) -> Floats:
        """The box of every sprite at these times, in pixels of the frame."""
        boxes = []
        for sprite in self.sprites:
            zoom_T1, corner_T2 = self._camera(times_T)
            centre_T2 = _interpolate(sprite.path_22, times_T)
            centre_T2 = (centre_T2 - corner_T2 - SIDE / 2) * zoom_T1 + SIDE / 2
            reach_T1 = sprite.radius * zoom_T1
            boxes.append(np.concatenate([centre_T2 - reach_T1, centre_T2 + reach_T1], axis=1))
        return np.stack(boxes)

    def render(self, times_T: Floats, side: int = SIDE) -> NDArray[np.uint8]:
        """The frames at these times, uint8 [T, side, side, 3]."""
        pixel = SIDE / side
        at = (np.arange(side, dtype=np.float32) + 0.5) * pixel
        frame_HW2 = np.stack(np.meshgrid(at, at), axis=-1)
        zoom_T1, corner_T2 = self._camera(np.asarray(times_T, np.float32))
        world_THW2 = (frame_HW2 - SIDE / 2) / zoom_T1[:, None, None] + SIDE / 2 + corner_T2[:, None, None]
        frames_THWC = self._ground(world_THW2)
        for sprite in self.sprites:
            local_THW2 = world_THW2 - _interpolate(sprite.path_22, times_T)[:, None, None]
            frames_THWC = _draw(frames_THWC, sprite, local_THW2, pixel / zoom_T1[:, :, None])
        return (frames_THWC * 255).round().clip(0, 255).astype(np.uint8)

    def masks_NTHW(self, times_T: Floats) -> Floats:
        """How much of each pixel each sprite covers, without the others: [N, T, 64, 64] in [0, 1]."""
        nothing, white = np.zeros(3, np.float32), np.ones((2, 3), np.float32)
        black = replace(
            self, ground_C=nothing, slope_2C=np.zeros_like(self.slope_2C), blob_colours_KC=0 * self.blob_colours_KC
        )
        alone = [replace(black, sprites=(replace(sprite, colours_2C=white),)) for sprite in self.sprites]
        return np.stack([scene.render(times_T)[..., 0] / 255 for scene in alone])

    def with_path(self, path_22: Floats) -> Scene:
        """The same scene, with the first sprite on this path and all other sprites at rest."""
        first, *others = self.sprites
        still = [replace(other, path_22=other.path_22[[0, 0]]) for other in others]
        moved = replace(first, path_22=np.asarray(path_22, np.float32))
        return replace(self, motion=Motion.OBJECT, sprites=(moved, *still))

    @property
    def sprites_touch(self) -> bool:
        """Whether two sprites come within a pixel of each other at any time."""
        return _any_touch(list(self.sprites))

    def _camera(self, times_T: Floats) -> tuple[Floats, Floats]:
        """Magnification [T, 1], and the world point at the frame's top-left corner [T, 2]."""
        return _interpolate(self.zoom_2[:, None], times_T), _interpolate(self.pan_22, times_T)

    def _ground(self, world_THW2: Floats) -> Floats:
        ground_THWC = self.ground_C + (world_THW2 / SIDE - 0.5) @ self.slope_2C
        for centre_2, radius, colour_C in zip(
            self.blob_centres_K2, self.blob_radii_K, self.blob_colours_KC, strict=True
        ):
            distance_THW = ((world_THW2 - centre_2) ** 2).sum(axis=-1) / (2 * radius**2)
            ground_THWC += np.exp(-distance_THW)[..., None] * colour_C
        return ground_THWC


def draw_scene(seed: int, index: int, motion: Motion | None = None, sprite_set: SpriteSet = SpriteSet.CAST) -> Scene:
    """The scene of this seed and index, the same on every machine. motion: None draws it according to SHARES."""
    rng = np.random.default_rng([seed, index])
    shares = SHARES[sprite_set]
    drawn = Motion(rng.choice([str(kind) for kind in shares], p=list(shares.values())))
    motion = motion or drawn
    ground_C = _colour(rng, saturation=(0.05, 0.45), value=(0.25, 0.85))
    num_blobs = int(rng.integers(4, 8))
    margin = GROUND_MARGIN if motion is Motion.PAN else 0
    return Scene(
        motion=motion,
        sprites=_draw_sprites(rng, motion, ground_C, sprite_set),
        ground_C=ground_C,
        slope_2C=rng.normal(0, 0.05, (2, 3)).astype(np.float32),
        blob_centres_K2=rng.uniform(-margin, SIDE + margin, (num_blobs, 2)).astype(np.float32),
        blob_radii_K=rng.uniform(6, 14, num_blobs).astype(np.float32),
        blob_colours_KC=rng.normal(0, 0.07, (num_blobs, 3)).astype(np.float32),
        pan_22=_pan(rng) if motion is Motion.PAN else np.zeros((2, 2), np.float32),
        zoom_2=_zoom(rng) if motion is Motion.ZOOM else np.ones(2, np.float32),
    )


def _draw_sprites(rng: Rng, motion: Motion, ground_C: Floats, sprite_set: SpriteSet) -> tuple[Sprite, ...]:
    """One sprite or two that never touch. If sprites move, the second one does so in half of the scenes."""
    count = 1 + int(rng.random() < 0.3)
    for _ in range(1000):
        sprites: list[Sprite] = []
        for n in range(count):
            moves = motion is Motion.OBJECT and (n == 0 or rng.random() < 0.5)
            if sprite_set is SpriteSet.CAST:
                draw, radius = _cast_sprite, float(rng.choice(CAST_RADII))
            else:
                draw, radius = _any_sprite, float(rng.uniform(8, 12) if count == 1 else rng.uniform(7.5, 10))
            sprites.append(draw(rng, radius, ground_C, path_22=_path(rng, radius, moves)))
        if not _any_touch(sprites):
            return tuple(sprites)
    raise AssertionError("two sprites of these sizes always fit into a frame")


def _any_sprite(rng: Rng, radius: float, ground_C: Floats, path_22: Floats) -> Sprite:
    for _ in range(1000):
        body_C = _colour(rng, saturation=(0.65, 1.0), value=(0.55, 1.0))
        if np.linalg.norm(body_C - ground_C) > 0.5:
            break
    for _ in range(1000):
        pattern_C = _colour(rng, saturation=(0.0, 1.0), value=(0.0, 1.0))
        if np.linalg.norm(pattern_C - body_C) > 0.6:
            break
    return Sprite(
        outline=str(rng.choice(list(OUTLINES))),
        pattern=str(rng.choice(list(PATTERNS))),
        angle=float(rng.uniform(0, 2 * np.pi)),
        radius=radius,
        colours_2C=np.stack([body_C, pattern_C]),
        path_22=path_22,
    )


def _cast_sprite(rng: Rng, radius: float, ground_C: Floats, path_22: Floats) -> Sprite:
    """A character of the cast whose colour differs from the ground."""
    visible = [pair for pair in CAST_COLOURS if np.linalg.norm(pair[0] - ground_C) > 0.45]
    outline, angle = CAST_OUTLINES[rng.integers(len(CAST_OUTLINES))]
    pattern = str(rng.choice(list(PATTERNS)))
    return Sprite(outline, pattern, angle, radius, np.stack(visible[rng.integers(len(visible))]), path_22)


def _path(rng: Rng, radius: float, moves: bool) -> Floats:
    """A straight path on which the whole sprite stays inside the frame; no motion unless it moves."""
    low, high = radius + 1, SIDE - radius - 1
    for _ in range(1000):
        start_2 = rng.uniform(low, high, 2)
        angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(4, 40) if moves else 0.0
        end_2 = start_2 + length * np.array([np.cos(angle), np.sin(angle)])
        if (end_2 >= low).all() and (end_2 <= high).all():
            return np.stack([start_2, end_2]).astype(np.float32)
    raise AssertionError("a path of these lengths always fits into a frame")


def _any_touch(sprites: list[Sprite]) -> bool:
    """Whether any two sprites come within a pixel of each other."""
    times_T = np.linspace(0, 1, 16)
    for n, sprite in enumerate(sprites):
        for other in sprites[:n]:
            apart_T2 = _interpolate(sprite.path_22, times_T) - _interpolate(other.path_22, times_T)
            if np.linalg.norm(apart_T2, axis=1).min() < sprite.radius + other.radius + 1:
                return True
    return False


def _pan(rng: Rng) -> Floats:
    angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(4, 30)
    half_2 = length / 2 * np.array([np.cos(angle), np.sin(angle)])
    return np.stack([-half_2, half_2]).astype(np.float32)


def _zoom(rng: Rng) -> Floats:
    ratio = np.exp(rng.uniform(0.1, 0.5) * rng.choice([-1, 1]))
    return np.array([ratio**-0.5, ratio**0.5], np.float32)


def _colour(rng: Rng, saturation: tuple[float, float], value: tuple[float, float]) -> Floats:
    return np.array(colorsys.hsv_to_rgb(rng.random(), rng.uniform(*saturation), rng.uniform(*value)), np.float32)


def _interpolate(ends_2X: Floats, times_T: Floats) -> Floats:
    """Points on the line between two ends, [T, X]."""
    times_T1 = np.asarray(times_T, np.float32)[:, None]
    points_TX: Floats = ends_2X[0] * (1 - times_T1) + ends_2X[1] * times_T1
    return points_TX


def _draw(frames_THWC: Floats, sprite: Sprite, local_THW2: Floats, pixel_T11: Floats) -> Floats:
    """The frames with a sprite on them. Edges are one pixel soft, so that motion by part of a pixel shows."""
    cos, sin = np.float32(np.cos(sprite.angle)), np.float32(np.sin(sprite.angle))
    x_THW = (cos * local_THW2[..., 0] + sin * local_THW2[..., 1]) / sprite.radius
    y_THW = (cos * local_THW2[..., 1] - sin * local_THW2[..., 0]) / sprite.radius
    softness = pixel_T11 / sprite.radius
    body_THW1 = np.clip(0.5 - OUTLINES[sprite.outline](x_THW, y_THW) / softness, 0, 1)[..., None]
    pattern_THW1 = np.clip(0.5 - PATTERNS[sprite.pattern](x_THW, y_THW) / softness, 0, 1)[..., None]
    colour_THWC = sprite.colours_2C[0] * (1 - pattern_THW1) + sprite.colours_2C[1] * pattern_THW1
    drawn_THWC: Floats = frames_THWC * (1 - body_THW1) + colour_THWC * body_THW1
    return drawn_THWC


OUTLINES = {
    "disc": lambda x, y: np.hypot(x, y) - 0.95,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 0.72,
    "egg": lambda x, y: np.hypot(x, y * 1.35) - 0.95,
    "bar": lambda x, y: np.maximum(np.abs(x) - 0.85, np.abs(y) - 0.55),
}
"""Approximate signed distance to each outline in the unit circle, negative inside."""

PATTERNS = {
    "half": lambda x, y: x,
    "stripe": lambda x, y: np.abs(x) - 0.25,
    "spot": lambda x, y: np.hypot(x, y) - 0.38,
}
"""Approximate signed distance to each pattern, negative inside. The outline cuts patterns off."""
