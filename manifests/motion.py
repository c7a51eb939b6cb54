"""How boxes and the camera move: every motion is a small function from a random generator and parameters to a path.

A motion of one box is `motion(rng, start_2, ask)`, a motion of two boxes is `motion(rng, starts_22, sides_22, ask)`,
and a camera move is `move(rng, size_2, ask)`. They stand in tables by name: MOTIONS, PAIRS, MOVES.

Axes: P path points, N boxes, K points of a curve; 2 is xy, 4 is xyxy, 23 an affine map. Pixels of the source image. A
direction is an angle in radians: 0 is right, pi / 2 is down. Lengths are lengths along the path. Curves are complex
numbers x + iy, so that turning and stretching one is a multiplication.
"""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from manifests.boxes.geometry import shared_areas

Floats = NDArray[np.float64]
Curve = NDArray[np.complexfloating[Any, Any]]

EASINGS: Mapping[str, Callable[[Floats], Floats]] = {
    "linear": lambda u: u,
    "in": lambda u: u * u,
    "out": lambda u: u * (2 - u),
    "in-out": lambda u: u * u * (3 - 2 * u),
}
"""Share of the way by share of the time: `in` starts slowly, `out` ends slowly."""

CURVE_POINTS = 65
"""Points of a curve before it is sampled at the times of the path's points."""
_SHARE_K = np.linspace(0.0, 1.0, CURVE_POINTS)
ARC_BEND = (math.radians(60), math.radians(150))
"""Angle through which an arc turns, smallest and largest."""
SPIN_TURN = (math.pi, 2 * math.pi)
"""Angle through which a box goes around a point, smallest and largest."""
SPIN_STEP = math.pi / 2
"""Largest angle between two points of such a path: a fast box goes less far around, or it would jump across."""
SPLINE_POINTS, SPLINE_SPREAD = 5, 0.25
"""Points that a spline goes through, and their largest distance from the straight line, as a share of its length."""
INERTIA, WALK_NOISE = 0.8, 0.35
"""Share of a push that is left of a walk's velocity after each step, and the size of a push, in mean steps."""
BOW = 0.25
"""Height of the bows in which two boxes swap their places, as a share of their distance."""
SHAKE, SHAKE_ROLL, SHAKE_HERTZ, SHAKE_WAVES = 0.01, math.radians(0.7), (0.3, 2.0), 4
"""A hand-held camera: its largest shift as a share of the diagonal, its largest roll, and how fast and how many waves
are added up in each."""
CUTS = 2
"""Times that a box of the background is cut in four where an object is in its way."""

EDGE_PX = 0.5
"""A box that is over an edge by less than this is inside."""


@dataclass(frozen=True)
class Ask:
    """What a box or the camera is asked to do."""

    direction: float
    """Of the way from the first to the last point; of the first step for motions that come back."""
    length: float
    """Of the path."""
    speed: float
    """Mean speed while it moves, pixels a second. It moves from the first frame on, and then stands still."""
    seconds: float
    """Of the clip. A path that is too long for its speed takes the whole clip."""
    points: int
    """P."""
    easing: str = "linear"
    zoom: float = 1.5
    """Size at the end of what comes closer, relative to the size at the start."""
    turn: float = 0.2
    """Angle through which a rolling camera turns, radians."""
    overlap: bool = False
    """Whether boxes that meet end on top of each other, not side by side."""
    tracks: tuple[Floats, ...] = ()
    """Real tracks [K, 2], evenly spaced in time, for `replay`."""

    def way_P(self, length: float | None = None) -> Floats:
        """[P]: share of the way at each point, for a path of `length` pixels (None: of the length asked for)."""
        moving = min((self.length if length is None else length) / self.speed, self.seconds)
        share_P = np.arange(self.points) * (self.seconds / (self.points - 1) / max(moving, 1e-9))
        return EASINGS[self.easing](np.minimum(share_P, 1.0))

    @property
    def ahead(self) -> complex:
        """Step of one pixel in the direction."""
        return cmath.rect(1.0, self.direction)


class Motion(NamedTuple):
    """The path of a box's centre, and its size relative to the first point."""

    path_P2: Floats
    scales_P: Floats


OneBox = Callable[[np.random.Generator, Floats, Ask], Motion]
"""(random generator, start_2, ask)."""
TwoBoxes = Callable[[np.random.Generator, Floats, Floats, Ask], tuple[Motion, Motion]]
"""(random generator, starts_22, sides_22 (width and height of each box), ask)."""
CameraMove = Callable[[np.random.Generator, Floats, Ask], Floats]
"""(random generator, size_2 of the picture, ask) -> [P, 2, 3], affine maps about the picture's centre."""


def line(rng: np.random.Generator, start_2: Floats, ask: Ask) -> Motion:
    """Straight ahead."""
    return _from(start_2, ask.way_P() * (ask.length * ask.ahead))


def arc(rng: np.random.Generator, start_2: Floats, ask: Ask) -> Motion:
    """Along a part of a circle, to the left or to the right."""
    angle = rng.uniform(*ARC_BEND) * rng.choice((-1, 1))
    return _along((np.exp(1j * angle * _SHARE_K) - 1) / 1j, start_2, ask)


def spline(rng: np.random.Generator, start_2: Floats, ask: Ask) -> Motion:
    """A smooth curve through random points beside the straight line."""
    aside = rng.uniform(-SPLINE_SPREAD, SPLINE_SPREAD, SPLINE_POINTS)
    return _along(_smooth(np.linspace(0.0, 1.0, SPLINE_POINTS) + 1j * aside), start_2, ask)


def there_and_back(rng: np.random.Generator, start_2: Floats, ask: Ask) -> Motion:
    """Straight ahead for half of the length, and back to the start."""
    out_P = 1 - np.abs(1 - 2 * ask.way_P())
    return _from(start_2, _of_length(out_P * ask.ahead, ask.length))


def walk(rng: np.random.Generator, start_2: Floats, ask: Ask) -> Motion:
    """A random walk with inertia: its velocity changes little from one moment to the next, and pushes wear off."""
    push_2K = rng.normal(0.0, WALK_NOISE, (2, CURVE_POINTS - 1))
    kept_K = INERTIA ** np.arange(CURVE_POINTS - 1)
    velocity_K = 1 + np.convolve(push_2K[0] + 1j * push_2K[1], kept_K)[: CURVE_POINTS - 1]
    return _timed(np.concatenate([[0], np.cumsum(velocity_K)]), start_2, ask)


def spin(rng: np.random.Generator, start_2: Floats, ask: Ask) -> Motion:
    """Around a point beside the start, which it leaves in the direction asked for."""
    way_P = ask.way_P()
    turn = min(rng.uniform(*SPIN_TURN), SPIN_STEP / np.diff(way_P).max()) * rng.choice((-1, 1))
    return _from(start_2, _of_length((np.exp(1j * turn * way_P) - 1) / (1j * turn) * ask.ahead, ask.length))


def towards(rng: np.random.Generator, start_2: Floats, ask: Ask) -> Motion:
    """Grows on the spot, as what comes towards the camera. Takes as long as a path of the length asked for."""
    return Motion(np.tile(start_2, (ask.points, 1)), ask.zoom ** ask.way_P())


def away(rng: np.random.Generator, start_2: Floats, ask: Ask) -> Motion:
    """Shrinks on the spot, as what goes away from the camera. Takes as long as a path of the length asked for."""
    return Motion(np.tile(start_2, (ask.points, 1)), ask.zoom ** -ask.way_P())


def replay(rng: np.random.Generator, start_2: Floats, ask: Ask) -> Motion:
    """A real track with its shape and its timing, turned to the direction and stretched to the length asked for."""
    return _timed(ask.tracks[rng.integers(len(ask.tracks))] @ np.array([1, 1j]), start_2, ask)


def swap(rng: np.random.Generator, starts_22: Floats, sides_22: Floats, ask: Ask) -> tuple[Motion, Motion]:
    """Each box goes to the other's place, past each other in two bows. Their places decide direction and length."""
    side = rng.choice((-1.0, 1.0))
    one, other = (_bowed(starts_22[n], starts_22[1 - n], side * BOW, ask) for n in (0, 1))
    return one, other


def meet(rng: np.random.Generator, starts_22: Floats, sides_22: Floats, ask: Ask) -> tuple[Motion, Motion]:
    """Both boxes go straight towards each other until they touch. Their places decide direction and length."""
    ahead, distance = _between(starts_22[0], starts_22[1])
    width, height = sides_22.sum(0) / 2
    touching = min(width / max(abs(ahead.real), 1e-9), height / max(abs(ahead.imag), 1e-9))
    step = max(distance - touching * (0.7 if ask.overlap else 1.01), 0.0) / 2
    way_P = ask.way_P(step) * (step * ahead)
    return _from(starts_22[0], way_P), _from(starts_22[1], -way_P)


def part(rng: np.random.Generator, starts_22: Floats, sides_22: Floats, ask: Ask) -> tuple[Motion, Motion]:
    """Both boxes go straight away from each other. Their places decide the direction."""
    ahead, _ = _between(starts_22[0], starts_22[1])
    way_P = ask.way_P() * (ask.length * ahead)
    return _from(starts_22[0], -way_P), _from(starts_22[1], way_P)


def overtake(rng: np.random.Generator, starts_22: Floats, sides_22: Floats, ask: Ask) -> tuple[Motion, Motion]:
    """The box in front goes straight ahead; the other passes it beside its way, and ends in front of it.

    The direction is the way from the second box to the first, and length and speed are those of the first.
    """
    front_2, behind_2 = starts_22
    ahead, distance = _between(behind_2, front_2)
    width, height = sides_22.sum(0) / 2
    along = width * abs(ahead.real) + height * abs(ahead.imag)
    across = (width * abs(ahead.imag) + height * abs(ahead.real)) * rng.choice((-1.1, 1.1))
    aside_K = np.minimum(2 * _SHARE_K, 1)
    curve_K = ((distance + ask.length + along) * _SHARE_K + 1j * across * aside_K**2 * (3 - 2 * aside_K)) * ahead
    way_P = ask.way_P()
    return _from(front_2, way_P * (ask.length * ahead)), _from(behind_2, _sampled(curve_K, way_P))


MOTIONS: Mapping[str, OneBox] = {
    "line": line,
    "arc": arc,
    "spline": spline,
    "there-and-back": there_and_back,
    "walk": walk,
    "spin": spin,
    "towards": towards,
    "away": away,
    "replay": replay,
}
"""Motions of one box by name."""

PAIRS: Mapping[str, TwoBoxes] = {"swap": swap, "meet": meet, "part": part, "overtake": overtake}
"""Motions of two boxes by name."""

OWN_DIRECTION = frozenset({"towards", "away", "swap", "meet", "part", "overtake"})
"""Motions that have no direction, or one that the places of the boxes decide."""
OWN_LENGTH = frozenset({"towards", "away", "swap", "meet", "overtake"})
"""Motions whose paths have no length, or one that the places of the boxes decide."""


def pan(rng: np.random.Generator, size_2: Floats, ask: Ask) -> Floats:
    """The picture moves to the left or to the right, whichever is nearer to the direction asked for."""
    return _maps(ask.way_P() * 0, shift_P=ask.way_P() * math.copysign(ask.length, math.cos(ask.direction)))


def tilt(rng: np.random.Generator, size_2: Floats, ask: Ask) -> Floats:
    """The picture moves up or down, whichever is nearer to the direction asked for."""
    return _maps(ask.way_P() * 0, shift_P=ask.way_P() * 1j * math.copysign(ask.length, math.sin(ask.direction)))


def dolly_in(rng: np.random.Generator, size_2: Floats, ask: Ask) -> Floats:
    """The picture grows about its centre. Takes as long as a path of the length asked for."""
    return _maps(np.log(ask.zoom) * ask.way_P())


def dolly_out(rng: np.random.Generator, size_2: Floats, ask: Ask) -> Floats:
    """The picture shrinks about its centre. Takes as long as a path of the length asked for."""
    return _maps(-np.log(ask.zoom) * ask.way_P())


def roll(rng: np.random.Generator, size_2: Floats, ask: Ask) -> Floats:
    """The picture turns about its centre, clockwise or not. Takes as long as a path of the length asked for."""
    return _maps(1j * rng.choice((-1, 1)) * ask.turn * ask.way_P())


def orbit(rng: np.random.Generator, size_2: Floats, ask: Ask) -> Floats:
    """Around the middle of the scene: what is low in the picture, and so near, goes one way, what is high the other.

    Depth is not known, so that this is a shear: the lower and the upper border move by the length asked for.
    """
    maps_P23 = _maps(ask.way_P() * 0)
    maps_P23[:, 0, 1] = ask.way_P() * math.copysign(ask.length, math.cos(ask.direction)) / (size_2[1] / 2)
    return maps_P23


def static(rng: np.random.Generator, size_2: Floats, ask: Ask) -> Floats:
    """The picture stands still."""
    return _maps(ask.way_P() * 0)


def hand_held(rng: np.random.Generator, size_2: Floats, ask: Ask) -> Floats:
    """The picture shakes a little: sums of slow waves shift and turn it, from where it is at the first point."""
    time_P = np.linspace(0.0, ask.seconds, ask.points)
    hertz, phase = rng.uniform(*SHAKE_HERTZ, (3, SHAKE_WAVES, 1)), rng.uniform(0, 2 * np.pi, (3, SHAKE_WAVES, 1))
    waves_3P = np.sin(2 * np.pi * hertz * time_P + phase).mean(1)
    x_P, y_P, turn_P = (waves_3P - waves_3P[:, :1]) / 2
    return _maps(1j * SHAKE_ROLL * turn_P, shift_P=SHAKE * math.hypot(*size_2) * (x_P + 1j * y_P))


MOVES: Mapping[str, CameraMove] = {
    "pan": pan,
    "tilt": tilt,
    "dolly-in": dolly_in,
    "dolly-out": dolly_out,
    "roll": roll,
    "orbit": orbit,
    "static": static,
    "hand-held": hand_held,
}
"""Camera moves by name. Their directions are those of the picture: it goes left where the camera pans right."""


def background_boxes(part_4: Floats, rows: int, columns: int, taken_M4: Floats, most: int) -> Floats:
    """[N, 4]: boxes that cover a part of the picture, but for where the boxes `taken` are.

    They are the cells of a grid. A cell that one of the boxes touches is cut in four, CUTS times, unless that gives
    more than `most` boxes; what they still touch then is left out.
    """
    x, y = np.linspace(part_4[0], part_4[2], columns + 1), np.linspace(part_4[1], part_4[3], rows + 1)
    cells_N4 = np.array([[x[c], y[r], x[c + 1], y[r + 1]] for r in range(rows) for c in range(columns)])
    free: list[Floats] = []
    for _ in range(CUTS + 1):
        is_free_N = (shared_areas(cells_N4, taken_M4) == 0).all(1)
        free.append(cells_N4[is_free_N])
        if sum(map(len, free)) + 4 * np.count_nonzero(~is_free_N) > most:
            break
        low_N2, high_N2 = np.split(cells_N4[~is_free_N], 2, axis=1)
        middle_N2 = (low_N2 + high_N2) / 2
        corners = (low_N2, middle_N2, high_N2)
        parts = [
            np.stack([corners[i][:, 0], corners[j][:, 1], corners[i + 1][:, 0], corners[j + 1][:, 1]], 1)
            for j in (0, 1)
            for i in (0, 1)
        ]
        cells_N4 = np.concatenate(parts)
    return np.concatenate(free)[:most]


def with_camera(motion: Motion, maps_P23: Floats, size_2: Floats) -> Motion:
    """The motion of a box, or motions of many boxes [N, P, 2], as a camera that moves sees them."""
    middle_2, (a_P, b_P, x_P), (c_P, d_P, y_P) = size_2 / 2, *(maps_P23[:, row].T for row in (0, 1))
    x, y = np.moveaxis(motion.path_P2 - middle_2, -1, 0)
    path = np.stack([a_P * x + b_P * y + x_P, c_P * x + d_P * y + y_P], -1) + middle_2
    return Motion(path, motion.scales_P * np.sqrt(a_P * d_P - b_P * c_P))


def at_rest(boxes: Floats, points: int) -> Motion:
    """The motion of a box [4] that stays where it is, or the paths [N, P, 2] of many boxes [N, 4]."""
    centres = (boxes[..., :2] + boxes[..., 2:]) / 2
    return Motion(np.repeat(centres[..., None, :], points, -2), np.ones(points))


def boxes_P4(box_4: Floats, motion: Motion) -> Floats:
    """The box at every point of its path."""
    scale_P1 = (motion.scales_P / motion.scales_P[0])[:, None]
    half_2 = (box_4[2:] - box_4[:2]) / 2
    shift_P2 = motion.path_P2 + (box_4[:2] + half_2 - motion.path_P2[0])
    return np.concatenate([shift_P2 - half_2 * scale_P1, shift_P2 + half_2 * scale_P1], 1)


def stays_inside(boxes_P4: Floats, size_2: Floats) -> bool:
    """Whether the box is wholly inside the picture at every point."""
    x0, y0, _, _ = boxes_P4.min(0)
    _, _, x1, y1 = boxes_P4.max(0)
    return bool(x0 >= -EDGE_PX and y0 >= -EDGE_PX and x1 <= size_2[0] + EDGE_PX and y1 <= size_2[1] + EDGE_PX)


def collide(one_P4: Floats, other_P4: Floats) -> bool:
    """Whether two boxes overlap at any point."""
    overlap_P2 = np.minimum(one_P4[:, 2:], other_P4[:, 2:]) > np.maximum(one_P4[:, :2], other_P4[:, :2])
    return bool((overlap_P2[:, 0] & overlap_P2[:, 1]).any())


def path_length(path_P2: Floats) -> float:
    """Length along the path."""
    return float(np.hypot(*np.diff(path_P2, axis=0).T).sum())


def _from(start_2: Floats, curve_P: Curve) -> Motion:
    """A path from the start on, of a box that keeps its size."""
    return Motion(start_2 + curve_P.view(np.float64).reshape(-1, 2), np.ones(len(curve_P)))


def _between(start_2: Floats, end_2: Floats) -> tuple[complex, float]:
    """Step of one pixel from one point towards another, and their distance."""
    between = complex(*(end_2 - start_2))
    return between / max(abs(between), 1e-9), abs(between)


def _along(curve_K: Curve, start_2: Floats, ask: Ask) -> Motion:
    """Along a curve at the speed asked for, whatever the distances between its points are."""
    return _from(start_2, _fitted(_sampled(curve_K, ask.way_P()), ask))


def _timed(curve_K: Curve, start_2: Floats, ask: Ask) -> Motion:
    """Along a curve whose points are evenly spaced in time, which keeps its faster and slower parts."""
    path_P = np.interp(ask.way_P() * (len(curve_K) - 1), np.arange(len(curve_K)), curve_K)
    return _from(start_2, _fitted(path_P, ask))


def _sampled(curve_K: Curve, way_P: Floats) -> Curve:
    """[P]: the points of a curve at these shares of its length."""
    travelled_K = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(curve_K)))])
    curve_P: Curve = np.interp(way_P * travelled_K[-1], travelled_K, curve_K)
    return curve_P


def _fitted(path_P: Curve, ask: Ask) -> Curve:
    """The path from 0 on, in the direction and of the length asked for."""
    way = path_P[-1] - path_P[0]
    return _of_length((path_P - path_P[0]) * (ask.ahead * (way.conjugate() / abs(way) if way else 1)), ask.length)


def _of_length(path_P: Curve, length: float) -> Curve:
    """The path stretched to a length from point to point."""
    return path_P * (length / max(float(np.abs(np.diff(path_P)).sum()), 1e-9))


def _bowed(start_2: Floats, end_2: Floats, bow: float, ask: Ask) -> Motion:
    """From one point to another in half a sine wave, whose height is a share `bow` of their distance."""
    ahead, distance = _between(start_2, end_2)
    curve_K = (_SHARE_K + 1j * bow * np.sin(np.pi * _SHARE_K)) * (distance * ahead)
    return _from(start_2, _sampled(curve_K, ask.way_P(float(np.abs(np.diff(curve_K)).sum()))))


def _smooth(points_K: Curve) -> Curve:
    """A smooth curve through evenly spaced points: a cubic Hermite spline with Catmull-Rom tangents."""
    at = _SHARE_K * (len(points_K) - 1)
    piece = np.minimum(at.astype(int), len(points_K) - 2)
    u, tangents = at - piece, np.gradient(points_K)
    curve: Curve = (
        (2 * u**3 - 3 * u**2 + 1) * points_K[piece]
        + (u**3 - 2 * u**2 + u) * tangents[piece]
        + (3 * u**2 - 2 * u**3) * points_K[piece + 1]
        + (u**3 - u**2) * tangents[piece + 1]
    )
    return curve


def _maps(zoom_turn_P: Floats | Curve, shift_P: Floats | Curve | float = 0.0) -> Floats:
    """[P, 2, 3]: maps that zoom by exp(real part) and turn by the imaginary part, clockwise, and then shift."""
    maps_P23 = np.empty((len(zoom_turn_P), 2, 3))
    factor_P, shift_P = np.exp(zoom_turn_P), np.asarray(shift_P)
    maps_P23[:, 0, 0] = maps_P23[:, 1, 1] = factor_P.real
    maps_P23[:, 1, 0], maps_P23[:, 0, 1] = factor_P.imag, -factor_P.imag
    maps_P23[:, 0, 2], maps_P23[:, 1, 2] = shift_P.real, shift_P.imag
    return maps_P23
