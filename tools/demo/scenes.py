"""The demo's scenes: characters of the embedded checkpoint's world on grounds drawn for the demo.

A picture has SIZE pixels a side. Coordinates of a `Scene` are in world pixels, SIDE of them a side.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tools.tiny.world import CAST_COLOURS, SIDE, Motion, Scene, Sprite

SIZE = 256
UNIT = SIZE // SIDE
"""Picture pixels per world pixel."""

Picture = NDArray[np.uint8]
RED, ORANGE, YELLOW, GREEN, BLUE = 0, 1, 2, 3, 5
"""Indices into CAST_COLOURS."""


def beach() -> Scene:
    """A striped red ball on sand."""
    ball = _sprite("disc", "stripe", RED, 10.5, at=(17, 42))
    return _scene("d9c48f", [(12, 8, 14, "9fb8a6"), (52, 50, 12, "c9a468"), (40, 16, 10, "e9dcae")], ball)


def meadow() -> Scene:
    """A blue tile and an orange kite on green."""
    tile = _sprite("square", "half", BLUE, 10.5, at=(20, 34))
    kite = _sprite("square", "spot", ORANGE, 8.5, at=(46, 30), angle=np.pi / 4)
    return _scene("7fa86a", [(8, 54, 13, "5e8f57"), (34, 6, 12, "a5c187"), (58, 56, 11, "8fb98b")], tile, kite)


def dusk() -> Scene:
    """A yellow disc on violet."""
    disc = _sprite("disc", "spot", YELLOW, 10.5, at=(34, 17))
    return _scene("5b4a78", [(10, 40, 14, "7a5a86"), (54, 20, 12, "43386a"), (44, 58, 12, "6c4f6a")], disc)


def lake() -> Scene:
    """A red disc and a green tile on spotted blue."""
    disc = _sprite("disc", "half", RED, 10.5, at=(40, 20))
    tile = _sprite("square", "stripe", GREEN, 8.5, at=(26, 44))
    spots = [(12, 10, 9, "a9c6d6"), (12, 34, 8, "5f88b8"), (56, 52, 10, "93b9cf"), (60, 8, 8, "5b83a6")]
    return _scene("7fa6c6", spots, disc, tile)


def picture(scene: Scene) -> Picture:
    """The first frame of the scene, uint8 [SIZE, SIZE, 3]."""
    first: Picture = scene.render(np.zeros(1), SIZE)[0]
    return first


def box(scene: Scene, sprite: int) -> list[float]:
    """The box of a sprite in the first frame, xyxy in picture pixels."""
    corners: list[float] = (scene.boxes_NT4(np.zeros(1))[sprite, 0] * UNIT).round(2).tolist()
    return corners


def _scene(ground: str, blobs: Sequence[tuple[float, float, float, str]], *sprites: Sprite) -> Scene:
    """A scene at rest. blobs: x, y, radius, and the colour of the ground there. Colours are hex RGB."""
    return Scene(
        motion=Motion.OBJECT,
        sprites=sprites,
        ground_C=_rgb(ground),
        slope_2C=np.array([[0.03, 0.0, -0.03], [-0.04, -0.03, 0.0]], np.float32),
        blob_centres_K2=np.array([(x, y) for x, y, _, _ in blobs], np.float32),
        blob_radii_K=np.array([radius for _, _, radius, _ in blobs], np.float32),
        blob_colours_KC=np.stack([_rgb(colour) - _rgb(ground) for _, _, _, colour in blobs]),
        pan_22=np.zeros((2, 2), np.float32),
        zoom_2=np.ones(2, np.float32),
    )


def _sprite(
    outline: str, pattern: str, colours: int, radius: float, at: tuple[float, float], angle: float = 0.0
) -> Sprite:
    """A character of the cast, at rest. colours: index into CAST_COLOURS. at: its centre."""
    return Sprite(outline, pattern, angle, radius, np.stack(CAST_COLOURS[colours]), np.array([at, at], np.float32))


def _rgb(code: str) -> NDArray[np.float32]:
    return np.array([int(code[at : at + 2], 16) / 255 for at in (0, 2, 4)], np.float32)
