"""Motions and camera moves: what they are asked for, and what comes out."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from manifests.boxes.geometry import shared_areas
from manifests.motion import (
    EASINGS,
    MOTIONS,
    MOVES,
    OWN_DIRECTION,
    OWN_LENGTH,
    PAIRS,
    Ask,
    Floats,
    at_rest,
    background_boxes,
    boxes_P4,
    collide,
    path_length,
    stays_inside,
    with_camera,
)

SIZE = np.array([1024.0, 576.0])
START = np.array([500.0, 300.0])
ASK = Ask(
    direction=2.1, length=200.0, speed=150.0, seconds=2.0, points=201, tracks=(np.array([[0, 0], [5, 1], [6, 9.0]]),)
)
STARTS = np.array([[300.0, 200.0], [600.0, 400.0]])
SIDES = np.array([[40.0, 60.0], [80.0, 20.0]])


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def angle(path: Floats) -> float:
    return math.atan2(*(path[-1] - path[0])[::-1])


@pytest.mark.parametrize("name", MOTIONS)
@pytest.mark.parametrize("seed", range(3))
def test_a_motion_has_the_length_the_direction_and_the_time_that_are_asked_for(name: str, seed: int) -> None:
    path, scales = MOTIONS[name](rng(seed), START, ASK)
    assert path.shape == (201, 2)
    assert path[0] == pytest.approx(START)
    if name not in OWN_LENGTH:
        assert path_length(path) == pytest.approx(200, rel=0.02)
    if name not in OWN_DIRECTION | {"there-and-back", "spin"}:
        assert angle(path) == pytest.approx(2.1)
    still = np.abs(np.diff(np.concatenate([path, scales[:, None]], 1), axis=0)).max(1) < 1e-9
    assert np.flatnonzero(~still)[-1] == pytest.approx(200 * (200 / 150) / 2, abs=1)  # of 200 steps in 2 s
    other, _ = MOTIONS[name](rng(seed), START + 7, ASK)
    assert other == pytest.approx(path + 7)


def test_what_comes_back_ends_where_it_started_and_starts_as_asked() -> None:
    there, _ = MOTIONS["there-and-back"](rng(), START, ASK)
    assert there[-1] == pytest.approx(START)
    spin, _ = MOTIONS["spin"](rng(), START, ASK)
    for path in (there, spin):
        assert angle(path[:2]) == pytest.approx(2.1, abs=0.05)
    hurried, _ = MOTIONS["spin"](rng(), START, replace(ASK, speed=ASK.length * 13 / 3 / ASK.seconds, points=14))
    steps = np.diff(hurried[:4] @ np.array([1, 1j]))  # it takes three steps, and goes a quarter around in each
    assert abs(np.angle(steps[1] / steps[0])) == pytest.approx(np.pi / 2)
    centre_distance = np.linalg.norm(spin - (spin.max(0) + spin.min(0)) / 2, axis=1)
    assert np.ptp(centre_distance) < 80


def test_what_comes_closer_grows_and_what_goes_away_shrinks() -> None:
    assert MOTIONS["towards"](rng(), START, ASK).scales_P[[0, -1]] == pytest.approx([1, 1.5])
    assert MOTIONS["away"](rng(), START, ASK).scales_P[[0, -1]] == pytest.approx([1, 1 / 1.5])


def test_a_replayed_track_keeps_its_shape_and_its_timing() -> None:
    path, _ = MOTIONS["replay"](rng(), START, replace(ASK, speed=100.0, points=3))
    first, second = np.diff(path, axis=0)
    assert np.linalg.norm(first) / np.linalg.norm(second) == pytest.approx(np.hypot(5, 1) / np.hypot(1, 8))


@pytest.mark.parametrize(("easing", "half"), [("linear", 0.5), ("in", 0.25), ("out", 0.75), ("in-out", 0.5)])
def test_easings_change_the_speed_and_not_the_end(easing: str, half: float) -> None:
    assert EASINGS[easing](np.array([0, 0.5, 1])) == pytest.approx([0, half, 1])
    assert (np.diff(EASINGS[easing](np.linspace(0, 1, 50))) > 0).all()


def test_a_path_too_long_for_its_speed_takes_the_whole_clip() -> None:
    path, _ = MOTIONS["line"](rng(), START, replace(ASK, speed=20.0))
    assert path_length(path) == pytest.approx(200)
    assert np.linalg.norm(path[-1] - path[-2]) == pytest.approx(1)


def pair(name: str, ask: Ask = ASK) -> tuple[Floats, Floats]:
    one, other = PAIRS[name](rng(), STARTS, SIDES, ask)
    return one.path_P2, other.path_P2


def test_swapped_boxes_end_in_each_others_place_without_touching() -> None:
    one, other = PAIRS["swap"](rng(), STARTS, SIDES, ASK)
    assert one.path_P2[[0, -1]] == pytest.approx(STARTS)
    assert other.path_P2[[0, -1]] == pytest.approx(STARTS[::-1])
    boxes = [np.concatenate([start - side / 2, start + side / 2]) for start, side in zip(STARTS, SIDES, strict=True)]
    assert not collide(boxes_P4(boxes[0], one), boxes_P4(boxes[1], other))


@pytest.mark.parametrize("overlap", [False, True])
def test_boxes_that_meet_touch_or_overlap(overlap: bool) -> None:
    motions = PAIRS["meet"](rng(), STARTS, SIDES, replace(ASK, overlap=overlap))
    boxes = [np.concatenate([start - side / 2, start + side / 2]) for start, side in zip(STARTS, SIDES, strict=True)]
    one, other = (boxes_P4(box, motion) for box, motion in zip(boxes, motions, strict=True))
    assert collide(one, other) is overlap
    assert collide(one + np.array([-1, -1, 1, 1]), other)


def test_boxes_that_part_go_opposite_ways_by_the_length() -> None:
    one, other = pair("part")
    assert one[-1] - one[0] == pytest.approx(-(other[-1] - other[0]))
    assert path_length(one) == pytest.approx(200)
    assert np.linalg.norm(one[-1] - other[-1]) == pytest.approx(400 + np.linalg.norm(STARTS[0] - STARTS[1]))


def test_the_box_behind_passes_beside_and_ends_in_front() -> None:
    front, behind = pair("overtake")
    ahead = (STARTS[0] - STARTS[1]) / np.linalg.norm(STARTS[0] - STARTS[1])
    assert path_length(front) == pytest.approx(200)
    lead = (behind - front) @ ahead
    assert lead[0] == pytest.approx(-np.linalg.norm(STARTS[0] - STARTS[1]))
    assert lead[-1] > 40
    aside = np.abs((behind - front) @ np.array([-ahead[1], ahead[0]]))
    assert aside[np.abs(lead).argmin()] == pytest.approx(aside.max())
    assert aside.max() > 40


def test_pairs_at_one_place_give_numbers() -> None:
    for name in PAIRS:
        for motion in PAIRS[name](rng(), np.stack([START, START]), SIDES, ASK):
            assert np.isfinite(motion.path_P2).all()


def seen(name: str, point: tuple[float, float], ask: Ask = ASK) -> tuple[Floats, Floats]:
    """How far a point of the picture has moved at the end, and the sizes of a box there."""
    rest = at_rest(np.array([*point, *point]), ask.points)
    path, scales = with_camera(rest, MOVES[name](rng(), SIZE, ask), SIZE)
    assert path[0] == pytest.approx(point)
    return path[-1] - path[0], scales


@pytest.mark.parametrize(
    ("name", "point", "moved", "scale"),
    [
        ("pan", (0, 0), (-200, 0), 1),
        ("pan", (900, 500), (-200, 0), 1),
        ("tilt", (0, 0), (0, 200), 1),
        ("dolly-in", (512, 288), (0, 0), 1.5),
        ("dolly-in", (612, 288), (50, 0), 1.5),
        ("dolly-out", (662, 288), (-50, 0), 1 / 1.5),
        ("orbit", (512, 288), (0, 0), 1),
        ("orbit", (100, 576), (-200, 0), 1),
        ("orbit", (100, 0), (200, 0), 1),
        ("static", (10, 10), (0, 0), 1),
    ],
)
def test_where_the_camera_takes_a_point(
    name: str, point: tuple[float, float], moved: tuple[float, float], scale: float
) -> None:
    way, scales = seen(name, point)
    assert way == pytest.approx(moved, abs=1e-9)
    assert scales[[0, -1]] == pytest.approx([1, scale])


def test_a_roll_turns_about_the_middle() -> None:
    ask = replace(ASK, turn=0.2)
    way, scales = seen("roll", (612, 288), ask)
    assert abs(math.atan2(way[1], 100 + way[0])) == pytest.approx(0.2)
    assert scales == pytest.approx(1)


def test_a_hand_held_camera_shakes_a_little() -> None:
    rest = at_rest(np.array([600.0, 300, 640, 340]), ASK.points)
    path, scales = with_camera(rest, MOVES["hand-held"](rng(), SIZE, ASK), SIZE)
    away = np.linalg.norm(path - path[0], axis=1)
    assert 1 < away.max() < 0.03 * np.hypot(*SIZE)
    assert scales == pytest.approx(1)


def test_background_boxes_cover_the_picture_once() -> None:
    whole, nothing = np.array([0, 0, *SIZE]), np.empty((0, 4))
    boxes = background_boxes(whole, 3, 5, nothing, 256)
    assert len(boxes) == 15
    assert np.prod(boxes[:, 2:] - boxes[:, :2], axis=1).sum() == pytest.approx(SIZE.prod())
    taken = np.array([[300.0, 200, 360, 260], [320, 210, 380, 270]])
    boxes = background_boxes(whole, 3, 5, taken, 256)
    area = np.prod(boxes[:, 2:] - boxes[:, :2], axis=1).sum() / SIZE.prod()
    assert 0.93 < area < 1  # only what the boxes touch is left out
    assert not (shared_areas(boxes, taken) > 0).any()
    assert len(background_boxes(whole, 3, 5, taken, 20)) < 20
    for n, box in enumerate(boxes):
        assert not any(collide(box[None], other[None]) for other in boxes[:n])


def test_paths_of_many_boxes_are_those_of_each() -> None:
    boxes = background_boxes(np.array([0, 0, *SIZE]), 2, 2, np.empty((0, 4)), 256)
    maps = MOVES["dolly-in"](rng(), SIZE, ASK)
    many = with_camera(at_rest(boxes, ASK.points), maps, SIZE)
    one = with_camera(at_rest(boxes[2], ASK.points), maps, SIZE)
    assert many.path_P2[2] == pytest.approx(one.path_P2)
    assert many.scales_P == pytest.approx(one.scales_P)


def test_inside_means_the_whole_box_at_every_point() -> None:
    box = np.array([900.0, 100, 1000, 200])
    path = np.array([[950.0, 150], [974, 150]])
    motion = at_rest(box, 2)
    assert stays_inside(boxes_P4(box, motion._replace(path_P2=path)), SIZE)
    assert not stays_inside(boxes_P4(box, motion._replace(path_P2=path + np.array([[0, 0], [1, 0]]))), SIZE)
    assert not stays_inside(boxes_P4(box, motion._replace(scales_P=np.array([1, 1.6]))), SIZE)


def test_boxes_that_only_touch_do_not_collide() -> None:
    box = np.array([[0.0, 0, 10, 10]])
    assert not collide(box, box + np.array([10, 0, 10, 0]))
    assert collide(box, box + 9)
