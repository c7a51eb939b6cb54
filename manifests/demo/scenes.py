"""The pictures of the demo: scenes of the embedded checkpoint's world, whose training drew its own at random.

A picture is SIZE pixels a side; `Scene` counts in 64ths of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from sgi2v.tiny.world import SIDE, Motion, Scene, Sprite

SIZE = 256
UNIT = SIZE // SIDE
"""Pixels of a picture per pixel of the world."""

Picture = NDArray[np.uint8]


def beach() -> Scene:
    """A striped ball on sand."""
    ball = _sprite("disc", "stripe", 0.5, 10.5, "d7263d", "fdf6e6", at=(17, 42))
    return _scene("d9c48f", [(12, 8, 14, "9fb8a6"), (52, 50, 12, "c9a468"), (40, 16, 10, "e9dcae")], ball)


def meadow() -> Scene:
    """A blue egg and an orange tile on green."""
    egg = _sprite("egg", "half", 0.9, 9.5, "1f5fd0", "f4f1e8", at=(20, 34))
    tile = _sprite("square", "spot", 0.3, 9.0, "f08a1d", "3a1f5c", at=(46, 30))
    return _scene("7fa86a", [(8, 54, 13, "5e8f57"), (34, 6, 12, "a5c187"), (58, 56, 11, "8fb98b")], egg, tile)


def dusk() -> Scene:
    """A yellow bar on violet."""
    bar = _sprite("bar", "stripe", 1.2, 11.5, "f5d21f", "7a1f1f", at=(34, 17))
    return _scene("5b4a78", [(10, 40, 14, "7a5a86"), (54, 20, 12, "43386a"), (44, 58, 12, "6c4f6a")], bar)


def lake() -> Scene:
    """A red disc and a green tile on spotted blue."""
    disc = _sprite("disc", "half", 2.2, 9.0, "e2403a", "ffe9c9", at=(42, 22))
    tile = _sprite("square", "stripe", 0.8, 9.0, "2fae4e", "0e2b1a", at=(34, 46))
    spots = [(12, 10, 9, "a9c6d6"), (12, 34, 8, "5f88b8"), (56, 52, 10, "93b9cf"), (60, 8, 8, "5b83a6")]
    return _scene("7fa6c6", spots, disc, tile)


def picture(scene: Scene) -> Picture:
    """[SIZE, SIZE, 3]: the scene as it begins."""
    first: Picture = scene.render(np.zeros(1), SIZE)[0]
    return first


def box(scene: Scene, sprite: int) -> list[float]:
    """Around a sprite as the scene begins, xyxy in pixels of the picture."""
    corners: list[float] = (scene.boxes_NT4(np.zeros(1))[sprite, 0] * UNIT).round(2).tolist()
    return corners


def _scene(ground: str, blobs: Sequence[tuple[float, float, float, str]], *sprites: Sprite) -> Scene:
    """blobs: x, y, radius, and the colour that the ground takes there."""
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
    outline: str, pattern: str, angle: float, radius: float, body: str, mark: str, at: tuple[float, float]
) -> Sprite:
    return Sprite(outline, pattern, angle, radius, np.stack([_rgb(body), _rgb(mark)]), np.array([at, at], np.float32))


def _rgb(code: str) -> NDArray[np.float32]:
    return np.array([int(code[at : at + 2], 16) / 255 for at in (0, 2, 4)], np.float32)
