"""The five pictures of the demo. Every object carries a pattern of its own, so that its points can be followed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from manifests.demo.paint import (
    Canvas,
    Floats,
    Point,
    X,
    Y,
    blend,
    box,
    ellipse,
    glow,
    line,
    lit,
    noise,
    polygon,
    ramp,
    rgb,
    sphere,
)

Picture = NDArray[np.uint8]


def ball() -> Picture:
    """A beach ball on a wooden floor before a papered wall."""
    canvas = Canvas()
    lozenges = np.cos(np.pi * (X + Y) / 16) * np.cos(np.pi * (X - Y) / 16)
    canvas.fill(np.ones_like(X), blend(ramp(Y, 0, 150), rgb("7fb5b0"), rgb("9ccbc2")))
    canvas.fill(ramp(lozenges, 0.72, 0.86), rgb("d8ece4"), 0.75)
    canvas.shade(1 - ramp(np.hypot(X - 90, Y - 40), 40, 260), -0.10)
    _planks(canvas, 152, rgb("c58f58"), rgb("9a6637"))
    canvas.fill(box(-5, 142, 261, 153), blend(ramp(Y, 142, 153), rgb("fbf7ee"), rgb("d9cfbd")))
    canvas.shade(glow((84, 206), (34, 6.5)), 0.55)
    canvas.shade(glow((70, 204), (22, 4)), 0.45)
    disc, normals = sphere((66, 168), 37)
    tilted = normals @ _tilt(0.55, -0.6)
    segment = np.floor((np.arctan2(tilted[..., 0], tilted[..., 2]) / (2 * np.pi) + 0.5) * 6).astype(int) % 6
    palette = np.array([rgb(code) for code in ("e8413c", "fdf6e6", "f6b93b", "fdf6e6", "2f7fc4", "fdf6e6")])
    colours = palette[segment]
    colours[np.abs(tilted[..., 1]) > 0.965] = rgb("e8413c")
    canvas.fill(disc, lit(colours, normals, gloss=0.55))
    return canvas.finish()


def balloons() -> Picture:
    """Two hot-air balloons over hills in the morning."""
    canvas = Canvas()
    canvas.fill(np.ones_like(X), blend(Y / 256, rgb("4d8fd1"), rgb("a9d0ec"), rgb("fde3c3")))
    cloud = noise(X / 70, Y / 26, seed=5, octaves=4) * ramp(np.abs(Y - 120), 130, 20)
    canvas.fill(ramp(cloud, 0.42, 0.68), rgb("ffffff"), 0.85)
    for at, (height, seed, near, far) in enumerate(
        [(204, 1, "8fb3a4", "a9c6b6"), (218, 2, "6d9a70", "87b184"), (236, 3, "4c7d47", "6a9a55")]
    ):
        ridge = height + 12 * np.sin(X / (46 - 6 * at) + 2 * at) + 5 * np.sin(X / 17 + at)
        texture = noise(X / 9, Y / 5, seed)
        canvas.fill(ridge < Y, blend(texture, rgb(near), rgb(far)))
    _balloon(canvas, (86, 116), 43, ["d9443a", "f7e3b5", "e88b2e", "f7e3b5"], zigzag=True)
    _balloon(canvas, (181, 84), 31, ["2c6e9e", "f4f1e8", "49a49a", "f4f1e8"], zigzag=False)
    return canvas.finish()


def robot() -> Picture:
    """A tin robot on a table, between building blocks and a marble."""
    canvas = Canvas()
    canvas.fill(np.ones_like(X), blend(ramp(Y, 0, 190), rgb("efd9b4"), rgb("e3bd92")))
    canvas.fill(ramp(np.cos(np.pi * X / 12), 0.80, 0.95), rgb("f8ead0"), 0.55)
    _planks(canvas, 178, rgb("8d5f45"), rgb("6b4431"))
    for centre, radii in (((134, 222), (50, 7)), ((58, 218), (34, 6)), ((214, 219), (22, 4))):
        canvas.shade(glow(centre, radii), 0.6)
    _block(canvas, (30, 178, 70, 218), "3f7fbf", "ring")
    _block(canvas, (40, 139, 78, 177), "d8a52c", "cross")
    disc, normals = sphere((211, 200), 19)
    swirl = np.sin(5 * normals[..., 0] + 7 * normals[..., 1] + 3 * noise(X / 14, Y / 14, seed=8))
    canvas.fill(disc, lit(blend(ramp(swirl, -0.25, 0.25), rgb("2f9e77"), rgb("d8f0d2")), normals, gloss=0.8))
    _tin_robot(canvas)
    return canvas.finish()


def boat() -> Picture:
    """A sailing boat on the evening sea."""
    canvas = Canvas()
    horizon = 132
    canvas.fill(np.ones_like(X), blend(Y / horizon, rgb("3f5f9a"), rgb("c98aa0"), rgb("fcc98a")))
    streaks = noise(X / 90, Y / 9, seed=11, octaves=3)
    canvas.fill(ramp(streaks, 0.52, 0.78) * ramp(Y, 120, 40), rgb("ffdcc0"), 0.55)
    canvas.fill(glow((196, 104), (34, 30)), rgb("ffe2a0"), 0.75)
    canvas.fill(ellipse((196, 104), (16, 16)), rgb("fff4cf"))
    depth = np.clip((Y - horizon) / (256 - horizon), 1e-3, 1)
    swell = noise((X - 128) / (70 * depth + 8) + 30, 3.2 * np.log(depth) + 40, seed=12, octaves=3)
    sea = blend(0.55 * depth + 0.9 * (swell - 0.4), rgb("e8a78c"), rgb("54759f"), rgb("244a78"), rgb("183458"))
    canvas.fill(horizon < Y, sea)
    glitter = ramp(swell, 0.56, 0.70) * glow((196, 180), (26, 60))
    canvas.fill(glitter * (horizon < Y), rgb("ffe9b5"), 0.9)
    _sailing_boat(canvas, (84, 190))
    wash = noise(X / 11, Y / 4, seed=14, octaves=2) * glow((86, 196), (38, 3))
    canvas.fill(ramp(wash, 0.25, 0.5), rgb("eef4f7"), 0.9)
    return canvas.finish()


def valley() -> Picture:
    """A house and trees in a meadow, mountains behind."""
    canvas = Canvas()
    canvas.fill(np.ones_like(X), blend(ramp(Y, 0, 150), rgb("5da3dc"), rgb("dff0f7")))
    cloud = noise(X / 60 + 3, Y / 22, seed=21, octaves=4) * ramp(Y, 100, 30)
    canvas.fill(ramp(cloud, 0.48, 0.66), rgb("ffffff"), 0.95)
    _mountains(canvas)
    for height, seed, dark, light in ((150, 25, "5f9a58", "88bd68"), (172, 26, "6fa848", "a6cf5e")):
        slope = height + 9 * np.sin(X / 38 + seed) + 4 * np.sin(X / 15 + seed)
        grass = 0.6 * noise(X / 16, Y / 6, seed) + 0.4 * noise(X / 3, Y / 3, seed + 1, octaves=1)
        canvas.fill(slope < Y, blend(grass, rgb(dark), rgb(light)))
    bend = 150 + 26 * np.sin((Y - 176) / 24) + 0.3 * (Y - 176)
    track = ramp(np.abs(X - bend) - (Y - 168) / 8, 3, 1) * (Y > 184)
    canvas.fill(track, blend(noise(X / 5, Y / 3, seed=30), rgb("c9a877"), rgb("e8d2a4")))
    _house(canvas)
    _tree(canvas, (216, 176), 27, 31)
    _tree(canvas, (46, 186), 22, 32)
    _tree(canvas, (92, 220), 15, 33)
    return canvas.finish()


def _tilt(about_z: float, about_x: float) -> Floats:
    """A rotation, to be multiplied from the right."""
    cos_z, sin_z, cos_x, sin_x = np.cos(about_z), np.sin(about_z), np.cos(about_x), np.sin(about_x)
    in_plane = np.array([[cos_z, -sin_z, 0], [sin_z, cos_z, 0], [0, 0, 1]])
    over = np.array([[1, 0, 0], [0, cos_x, -sin_x], [0, sin_x, cos_x]])
    return np.asarray(in_plane @ over)


def _planks(canvas: Canvas, top: float, light: tuple[float, float, float], dark: tuple[float, float, float]) -> None:
    """A boarded floor or table from `top` down, in perspective."""
    away = 1 / np.clip(Y - top + 34, 1, None)
    across = (X - 128) * away * 1.7 + 20
    board = np.floor(across)
    grain = noise(across * 5 + board * 7.7, away * 160 + board * 3.1, seed=40, octaves=3)
    tone = 0.55 * grain + 0.45 * np.modf(np.sin(board * 12.9) * 43.7)[0] ** 2
    canvas.fill(top < Y, blend(tone, light, dark))
    seam = ramp(np.abs(across - np.round(across)), 0.035, 0.012)
    canvas.shade(seam * (top < Y), 0.45)


def _balloon(canvas: Canvas, centre: Point, radius: float, codes: list[str], zigzag: bool) -> None:
    x, y = (X - centre[0]) / radius, (Y - centre[1]) / radius
    below = np.clip((y - 0.35) / 0.9, 0, 1)  # the circle goes over into a throat of the same slope
    half_width = np.where(y < 0.35, np.sqrt(np.clip(1 - y * y, 0, None)), 0.937 - 0.337 * below - 0.38 * below**2)
    inside = (np.abs(x) <= half_width) & (y > -1) & (y < 1.25)
    across = np.clip(x / np.maximum(half_width, 1e-6), -1, 1)
    gore = np.floor((np.arcsin(across) / np.pi + 0.5) * 8).astype(int)
    band = np.abs(y - 0.05 - (0.09 * np.abs((across * 5) % 2 - 1) if zigzag else 0)) < 0.13
    colours = np.array([rgb(code) for code in codes])[gore % len(codes)]
    colours[band] = rgb(codes[0])
    colours[band & (np.floor(across * 9) % 2 == 0)] = rgb(codes[1])
    slope = np.clip(0.85 * y, -0.85, 0.7)
    level = np.sqrt(1 - slope**2)
    normals = np.stack([across * level, slope, np.sqrt(1 - across**2) * level], axis=-1)
    basket = centre[1] + 1.58 * radius
    for side in (-1, 1):
        start = (centre[0] + side * 0.24 * radius, centre[1] + 1.2 * radius)
        canvas.fill(line(start, (centre[0] + side * 0.15 * radius, basket), 0.9), rgb("4a3a2c"))
    weave = ramp(np.sin(X * 2.2) * np.sin(Y * 2.2), -0.2, 0.2)
    half, height = 0.19 * radius, 0.27 * radius
    cloth = blend(weave, rgb("7a4b26"), rgb("b98045"))
    canvas.fill(box(centre[0] - half, basket - 2, centre[0] + half, basket + height, 2), cloth)
    canvas.fill(inside, lit(colours, normals, gloss=0.1))


def _block(canvas: Canvas, place: tuple[float, float, float, float], code: str, mark: str) -> None:
    x0, y0, x1, y1 = place
    centre, size = ((x0 + x1) / 2, (y0 + y1) / 2), x1 - x0
    grain = noise(X / 3, Y / 14, seed=50)
    wood = blend(grain, rgb("e9cf9f"), rgb("d3b07a"))
    canvas.fill(box(x0, y0, x1, y1, 3), wood)
    canvas.fill(box(x0 + 3, y0 + 3, x1 - 3, y1 - 3, 2), rgb(code))
    canvas.fill(box(x0 + 6, y0 + 6, x1 - 6, y1 - 6, 2), wood)
    if mark == "ring":
        canvas.fill(ellipse(centre, (size * 0.26, size * 0.26)), rgb(code))
        canvas.fill(ellipse(centre, (size * 0.12, size * 0.12)), wood)
    else:
        reach = size * 0.21
        for sign in (-1, 1):
            ends = ((centre[0] - reach, centre[1] - sign * reach), (centre[0] + reach, centre[1] + sign * reach))
            canvas.fill(line(*ends, size * 0.16), rgb(code))
    canvas.shade(box(x0, y0, x1, y1, 3) * ramp(X, x0, x1 + 12), 0.22)


def _tin_robot(canvas: Canvas) -> None:
    tin, dark, red, cream = rgb("6f9fb5"), rgb("2d3a45"), rgb("cf4436"), rgb("f5ead2")

    def part(x0: float, y0: float, x1: float, y1: float, radius: float, colour: tuple[float, float, float]) -> None:
        """A rounded sheet of tin, lit from the left."""
        bulge = (2 * X - x0 - x1) / (x1 - x0)
        canvas.fill(box(x0, y0, x1, y1, radius), np.asarray(colour) * (1.12 - 0.32 * ramp(bulge, -0.7, 1.0))[..., None])

    for x in (112, 142):
        part(x, 188, x + 16, 214, 2, tin)
        part(x - 5, 208, x + 20, 222, 5, red)
        for y in (193, 199):
            canvas.fill(box(x, y, x + 16, y + 2), dark, 0.6)
    for x, grip in ((84, 91), (172, 179)):
        part(x, 126, x + 14, 172, 6, tin)
        for y in range(136, 166, 6):
            canvas.fill(box(x, y, x + 14, y + 2), dark, 0.55)
        canvas.fill(ellipse((grip, 176), (9, 9)) & ~ellipse((grip, 181), (4, 7)), red)
    part(100, 116, 170, 190, 7, tin)
    part(108, 126, 162, 158, 4, cream)
    canvas.fill(ellipse((122, 142), (10, 10)), dark)
    canvas.fill(ellipse((122, 142), (8, 8)), rgb("fdfaf2"))
    canvas.fill(line((122, 142), (127, 136), 2), red)
    for at, code in enumerate(("cf4436", "e7b23a", "3f9b6c", "3f7fbf")):
        canvas.fill(ellipse((141 + 13 * (at % 2), 135 + 13 * (at // 2)), (4.6, 4.6)), rgb(code))
    for x in range(110, 162, 8):
        canvas.fill(box(x, 166, x + 4, 182, 1), dark, 0.75)
    part(122, 106, 148, 118, 2, dark)
    part(106, 62, 164, 108, 8, tin)
    for x in (121, 149):
        canvas.fill(ellipse((x, 80), (10, 10)), dark)
        canvas.fill(ellipse((x, 80), (7.5, 7.5)), rgb("ffe27a"))
        canvas.fill(ellipse((x + 1.5, 81), (3.2, 3.2)), dark)
    part(116, 95, 154, 103, 2, cream)
    for x in range(121, 154, 6):
        canvas.fill(box(x, 95, x + 1.6, 103), dark)
    for x in (104, 166):
        part(x - 5, 76, x + 5, 92, 3, red)
    canvas.fill(line((135, 62), (135, 46), 2.4), dark)
    disc, normals = sphere((135, 42), 6.5)
    canvas.fill(disc, lit(np.broadcast_to(red, (*X.shape, 3)), normals, gloss=0.6))


def _sailing_boat(canvas: Canvas, waterline: Point) -> None:
    x, y = waterline
    shadow = noise(X / 18, Y / 3, seed=13, octaves=2) * glow((x, y + 14), (30, 13)) * (y < Y)
    canvas.fill(ramp(shadow, 0.1, 0.6), rgb("142a44"), 0.75)
    canvas.fill(line((x + 3, y - 16), (x + 3, y - 112), 2.6), rgb("5b3a22"))
    main = polygon([(x + 6, y - 108), (x + 12, y - 74), (x + 46, y - 26), (x + 6, y - 24)])
    jib = polygon([(x, y - 104), (x - 18, y - 60), (x - 40, y - 24), (x, y - 26)])
    stripes = ramp(np.sin((Y - 0.18 * X) * 2 * np.pi / 20), -0.12, 0.12)
    canvas.fill(main, blend(stripes, rgb("f9f1df"), rgb("d5553f")))
    canvas.fill(jib, blend(ramp(np.sin((X + Y) * 2 * np.pi / 24), 0.55, 0.75), rgb("fff8ea"), rgb("2f6f8f")))
    canvas.shade((main | jib) * ramp(X, x - 40, x + 60), 0.22)
    canvas.fill(polygon([(x + 3, y - 121), (x + 20, y - 116), (x + 3, y - 110)]), rgb("e8b13a"))
    hull = polygon([(x - 46, y - 20), (x + 54, y - 22), (x + 38, y + 5), (x - 34, y + 5)])
    canvas.fill(hull, blend(ramp(Y, y - 22, y + 5), rgb("3b4f73"), rgb("22304d")))
    canvas.fill(hull & (y - 16 < Y) & (y - 11.5 > Y), rgb("f5ead2"))
    canvas.fill(hull & (y - 1 < Y), rgb("b8402f"))
    for at in range(4):
        canvas.fill(ellipse((x - 24 + 17 * at, y - 6), (2.8, 2.8)), rgb("ffdf8a"))


def _mountains(canvas: Canvas) -> None:
    for base, peak, seed, dark, light in ((108, 46, 22, "7f93b2", "a9b8cd"), (136, 62, 23, "5b7390", "8799ab")):
        crest = base - peak * (1 - np.abs(((X + 40 * (seed - 22) + 12) % 112) / 56 - 1)) ** 1.15
        crest = crest - 16 * (noise(X / 22, 0 * X, seed, octaves=4) - 0.5)
        rock = noise(X / 12 + Y / 20, Y / 10, seed + 40, octaves=4)
        canvas.fill(crest < Y, blend(ramp(rock, 0.25, 0.75), rgb(dark), rgb(light)))
        snow = ramp(Y - crest + 26 * (rock - 0.5), 20, 15) * ramp(crest, base - 0.35 * peak, base - 0.6 * peak)
        canvas.fill(snow * (crest < Y), rgb("f8fbff"))


def _house(canvas: Canvas) -> None:
    canvas.shade(glow((136, 190), (30, 4)), 0.4)
    boards = ramp(np.cos(2 * np.pi * Y / 6), 0.7, 0.95)
    canvas.fill(box(112, 156, 156, 190), blend(boards, rgb("f7ecd6"), rgb("cdb58d")))
    canvas.fill(box(142, 132, 149, 150), rgb("8d4a38"))
    tiles = ramp(np.cos(2 * np.pi * Y / 5) + np.cos(2 * np.pi * (X + 2.5 * np.floor(Y / 5)) / 7), 0.5, 1.4)
    roof = polygon([(106, 158), (122, 135), (147, 135), (162, 158)])
    canvas.fill(roof, blend(tiles, rgb("b8432f"), rgb("e0775a")))
    canvas.fill(box(128, 170, 139, 190), rgb("5b3a2a"))
    for x in (116, 144):
        canvas.fill(box(x, 166, x + 9, 177), rgb("fdf9ee"))
        canvas.fill(box(x + 1.3, 167.3, x + 7.7, 175.7), rgb("4b7fa6"))
        canvas.fill(box(x + 4, 166, x + 5, 177), rgb("fdf9ee"))


def _tree(canvas: Canvas, centre: Point, radius: float, seed: int) -> None:
    x, y = centre
    canvas.shade(glow((x + 5, y + 1.75 * radius), (radius * 0.8, radius * 0.13)), 0.45)
    trunk = polygon([(x - 3, y), (x + 3, y), (x + 5, y + 1.75 * radius), (x - 5, y + 1.75 * radius)])
    canvas.fill(trunk, blend(noise(X / 2, Y / 8, seed), rgb("5d4029"), rgb("8c6642")))
    leaves = noise(X / 5, Y / 5, seed, octaves=3)
    ragged = np.hypot(X - x, (Y - y) / 1.12) + 9 * (leaves - 0.5) < radius
    light = leaves + 0.35 * ((x - X) + (y - Y)) / radius
    canvas.fill(ragged, blend(ramp(light, -0.1, 1.1), rgb("1f4d2b"), rgb("3f8440"), rgb("a3cc58")))
