"""Draw the demo and write its manifest: `python -m manifests.demo.build FOLDER`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from manifests.demo import scenes
from manifests.demo.paint import Floats
from manifests.io import write_manifest
from manifests.schema import MANIFEST_SCHEMA

MANIFEST = "demo.parquet"

Path2 = list[list[float]]


@dataclass(frozen=True)
class Motion:
    """What happens in a scene: one row of the manifest."""

    sample_id: str
    description: str
    scene: Callable[[], scenes.Picture]
    boxes: list[list[float]]
    trajectories: list[Path2]
    scales: list[list[float]] | None = None


def build_demo(folder: Path) -> None:
    """Write one PNG per scene and the manifest that names them into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for scene in dict.fromkeys(motion.scene for motion in motions()):
        Image.fromarray(scene()).save(folder / _file_name(scene), optimize=True)
    write_manifest(demo_table(), str(folder / MANIFEST))


def demo_table() -> pa.Table:
    """The manifest: the known columns and `description`."""
    rows = [
        {
            "sample_id": motion.sample_id,
            "image": _file_name(motion.scene),
            "boxes": motion.boxes,
            "trajectories": motion.trajectories,
            "scales": motion.scales,
            "seed": seed,
            "description": motion.description,
        }
        for seed, motion in enumerate(motions(), start=1)
    ]
    return pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA.append(pa.field("description", pa.string())))


def motions() -> list[Motion]:
    """All rows, in order."""
    robot = [[82.0, 34.0, 190.0, 226.0], [28.0, 137.0, 80.0, 220.0], [191.0, 180.0, 231.0, 220.0]]
    valley = [[104.0, 130.0, 164.0, 192.0], [188.0, 144.0, 245.0, 226.0], [74.0, 202.0, 110.0, 248.0]]
    return [
        Motion(
            "ball-bounces",
            "The beach ball bounces across the room, the second time lower.",
            scenes.ball,
            [[28, 130, 104, 206]],
            [_bounces((66, 168), [(82, 96, 8), (46, 40, 5)])],
        ),
        Motion(
            "balloons-part",
            "The red balloon drifts down and nearer on the left, the blue one rises and shrinks on the right.",
            scenes.balloons,
            [[42, 72, 130, 197], [149, 52, 213, 143]],
            [_bow((86, 134), (62, 156), bend=10), _bow((181, 97), (216, 62), bend=-12)],
            [_even(1.0, 1.2), _even(1.0, 0.7)],
        ),
        Motion(
            "robot-zoom",
            "The camera moves in on the tin robot: everything grows away from the centre of the picture.",
            scenes.robot,
            robot,
            [_away(box, (134, 134), 1.3) for box in robot],
            [_even(1.0, 1.3)] * len(robot),
        ),
        Motion(
            "boat-sails",
            "The boat sails to the right, up and down over the waves.",
            scenes.boat,
            [[36, 68, 140, 198]],
            [_swell((88, 133), (166, 137), height=9, waves=2)],
        ),
        Motion(
            "valley-pan",
            "The camera pans to the right: house and trees move to the left together.",
            scenes.valley,
            valley,
            [_shift(box, (-72, 0)) for box in valley],
        ),
        Motion("valley-free", "The same picture without any control: plain image to video.", scenes.valley, [], []),
    ]


def _file_name(scene: Callable[[], scenes.Picture]) -> str:
    return f"{scene.__name__}.png"


def _points(xy_P2: Floats) -> Path2:
    """Rounded to a hundredth of a pixel."""
    points: Path2 = xy_P2.round(2).tolist()
    return points


def _even(start: float, end: float, points: int = 9) -> list[float]:
    values: list[float] = np.linspace(start, end, points).round(4).tolist()
    return values


def _bounces(start: tuple[float, float], arcs: list[tuple[float, float, int]]) -> Path2:
    """Parabolas one after the other, each of a width and a height in pixels and a number of points."""
    x, ground = start
    path = [np.array([[x, ground]])]
    for width, height, points in arcs:
        share = np.arange(1, points + 1) / points
        path.append(np.stack([x + width * share, ground - 4 * height * share * (1 - share)], axis=-1))
        x += width
    return _points(np.concatenate(path))


def _bow(start: tuple[float, float], end: tuple[float, float], bend: float, points: int = 9) -> Path2:
    """An arc whose middle lies `bend` pixels below the straight line."""
    share = np.linspace(0, 1, points)[:, None]
    straight = np.array(start) + share * (np.array(end) - start)
    return _points(straight + 4 * share * (1 - share) * np.array([0, bend]))


def _swell(start: tuple[float, float], end: tuple[float, float], height: float, waves: int, points: int = 17) -> Path2:
    """Along a straight line, `height` pixels up and down."""
    share = np.linspace(0, 1, points)[:, None]
    straight = np.array(start) + share * (np.array(end) - start)
    return _points(straight - height * np.sin(2 * np.pi * waves * share) * np.array([0, 1]))


def _centre(box: list[float]) -> Floats:
    return np.array([(box[0] + box[2]) / 2, (box[1] + box[3]) / 2])


def _away(box: list[float], fixed: tuple[float, float], zoom: float, points: int = 9) -> Path2:
    """Straight away from a fixed point, as a zoom moves things; `scales` goes with it."""
    factor = np.linspace(1, zoom, points)[:, None]
    return _points(np.array(fixed) + factor * (_centre(box) - fixed))


def _shift(box: list[float], by: tuple[float, float]) -> Path2:
    return _points(np.stack([_centre(box), _centre(box) + by]))


def main() -> None:
    parser = argparse.ArgumentParser(description=build_demo.__doc__)
    parser.add_argument("folder", type=Path)
    build_demo(parser.parse_args().folder)


if __name__ == "__main__":
    main()
