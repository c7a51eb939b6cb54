"""Draw the demo's pictures and write its manifest.

    python -m tools.demo.build FOLDER

Writes `beach.png`, `dusk.png`, `lake.png`, `meadow.png` and `demo.parquet` to FOLDER. The shipped ones are in
`manifests/demo`, where `sheet.png` is added by hand: `make demo` draws it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from manifests.io import write_manifest
from manifests.schema import MANIFEST_SCHEMA
from sgi2v.trajectory import Floats
from tools.demo import scenes
from tools.demo.scenes import box, picture
from tools.tiny.world import Scene

MANIFEST = "demo.parquet"

Path2 = list[list[float]]


@dataclass(frozen=True)
class Motion:
    """One row of the manifest: a scene, and how its objects move."""

    sample_id: str
    description: str
    scene: Callable[[], Scene]
    boxes: list[list[float]]
    trajectories: list[Path2]


def build_demo(folder: Path) -> None:
    """Write one PNG per scene to the folder, and the manifest that names them."""
    folder.mkdir(parents=True, exist_ok=True)
    for scene in dict.fromkeys(motion.scene for motion in motions()):
        Image.fromarray(picture(scene())).save(folder / _file_name(scene), optimize=True)
    write_manifest(demo_table(), str(folder / MANIFEST))


def demo_table() -> pa.Table:
    """The manifest: its known columns and a `description`."""
    rows = [
        {
            "sample_id": motion.sample_id,
            "image": _file_name(motion.scene),
            "boxes": motion.boxes,
            "trajectories": motion.trajectories,
            "scales": None,
            "seed": seed,
            "description": motion.description,
        }
        for seed, motion in enumerate(motions(), start=1)
    ]
    return pa.Table.from_pylist(rows, schema=MANIFEST_SCHEMA.append(pa.field("description", pa.string())))


def motions() -> list[Motion]:
    """All rows of the manifest, in order."""
    ball, disc = box(scenes.beach(), 0), box(scenes.dusk(), 0)
    meadow, lake = ([box(scene, sprite) for sprite in (0, 1)] for scene in (scenes.meadow(), scenes.lake()))
    return [
        Motion("ball-crosses", "The ball crosses the sand.", scenes.beach, [ball], [_shift(ball, (88, -52))]),
        Motion("disc-sinks", "The disc sinks in a slight bow.", scenes.dusk, [disc], [_bow(disc, (-32, 88), bend=12)]),
        Motion(
            "two-part",
            "The tile goes down, the kite goes up.",
            scenes.meadow,
            meadow,
            [_shift(meadow[0], (-8, 64)), _shift(meadow[1], (16, -56))],
        ),
        Motion(
            "one-stays",
            "The tile goes up, the kite stays.",
            scenes.meadow,
            meadow,
            [
                _shift(meadow[0], (12, -60)),
                _shift(meadow[1], (0, 0)),
            ],
        ),
        Motion(
            "camera-pans",
            "The camera pans to the left: disc, tile and the ground behind them move to the right together.",
            scenes.lake,
            lake,
            [_shift(xyxy, (52, 0)) for xyxy in lake],
        ),
        Motion("no-control", "A picture without any control: plain image to video.", scenes.beach, [], []),
    ]


def _file_name(scene: Callable[[], Scene]) -> str:
    return f"{scene.__name__}.png"


def _points(xy_P2: Floats) -> Path2:
    """The points as a list, rounded to a hundredth of a pixel."""
    points: Path2 = xy_P2.round(2).tolist()
    return points


def _bow(xyxy: list[float], by: tuple[float, float], bend: float, points: int = 9) -> Path2:
    """A path of the box's centre by a displacement, on an arc. The arc's middle is `bend` pixels right of the line."""
    share = np.linspace(0, 1, points)[:, None]
    return _points(_centre(xyxy) + share * np.array(by) + 4 * share * (1 - share) * np.array([bend, 0]))


def _centre(xyxy: list[float]) -> Floats:
    """Centre of a box, xy."""
    return np.array([(xyxy[0] + xyxy[2]) / 2, (xyxy[1] + xyxy[3]) / 2])


def _shift(xyxy: list[float], by: tuple[float, float]) -> Path2:
    """A straight path of the box's centre by a displacement."""
    return _points(np.stack([_centre(xyxy), _centre(xyxy) + by]))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m tools.demo.build", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="folder to write to")
    build_demo(parser.parse_args().folder)


if __name__ == "__main__":
    main()
