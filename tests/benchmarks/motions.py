"""Every motion and camera move as it is asked for and as it comes out, as a table, and a sheet with a drawing of each.

    python -m tests.benchmarks.motions FOLDER [--samples 10000]

Samples are drawn by the recipe's defaults in one picture of 1024 x 576 with boxes at random places, one motion or move
at a time. Directions and lengths are measured on the coordinates in the manifest; a direction is right within half a
degree (`spin`: 3, since it is measured on a circle), a length within 5 %, a speed where the box stops in the right
frame. Motions whose direction the boxes decide have no such number, nor have `towards` and `away`.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from manifests.boxes.proposer import Proposal
from manifests.draw import draw_conditions
from manifests.motion import MOTIONS, MOVES, OWN_DIRECTION, OWN_LENGTH, PAIRS, Floats
from manifests.recipe import Recipe
from manifests.sampling import Picture, Refused, Stratum, draw_sample, make_plan
from manifests.schema import Sample
from sgi2v.trajectory import BoxTracks

WIDTH, HEIGHT = 1024, 576
PICTURES = 200
TRACK = np.array([[0, 0], [10, 2], [30, 4], [60, 10], [80, 30], [90, 60.0]])


def pictures() -> list[Picture]:
    """Pictures with up to four boxes each at random places."""
    made = []
    for number in range(PICTURES):
        rng = np.random.default_rng(number)
        boxes = []
        for width, height in rng.uniform(40, 220, (4, 2)):
            x, y = rng.uniform(6, WIDTH - width - 6), rng.uniform(6, HEIGHT - height - 6)
            boxes.append(Proposal((x, y, x + width, y + height)))
        made.append(Picture(str(number), str(number), HEIGHT, WIDTH, boxes, boxes, [None] * 4))
    return made


def recipe_of(name: str, samples: int) -> Recipe:
    """The defaults with this motion or move only."""
    sections = {"sample": {"samples": samples, "shares": {name: 1.0}}, "motion": {"objects": [1]}}
    if name == "replay":
        sections["motion"]["tracks"] = "a track of this script"
    return Recipe.parse(sections)


def sample_of(row: dict[str, Any]) -> Sample:
    paths = tuple(np.array(path) for path in row["trajectories"])
    scales = row["scales"] and tuple(np.array(scale) for scale in row["scales"])
    return Sample("s", "", np.array(row["boxes"]), paths, scales, None)


def measured(name: str, row: dict[str, Any], seconds: float) -> dict[str, float]:
    """What is right of a sample's first box: 1 or 0 each; and whether its boxes are inside in all frames."""
    tracks = sample_of(row).tracks(14, HEIGHT, WIDTH).boxes_NT4
    low, high = tracks[..., :2], tracks[..., 2:]
    path_P2 = np.array(row["trajectories"][0])
    way_2 = path_P2[-1] - path_P2[0]
    if name in MOVES:
        asked = row["recipe"]["camera"]
        if name not in {"pan", "tilt"}:
            return {}
        due_2 = np.array([math.cos(asked["direction"]), math.sin(asked["direction"])]) * (
            (1, 0) if name == "pan" else (0, 1)
        )
        length = np.linalg.norm(way_2) / math.hypot(WIDTH, HEIGHT)
        turned = math.acos(float(np.clip(way_2 @ due_2 / np.linalg.norm(way_2) / np.linalg.norm(due_2), -1, 1)))
        return {"direction": float(turned < 0.01), "length": float(abs(length / asked["length"] - 1) < 0.05)}
    found = {"inside": float((low >= -0.6).all() and (high <= np.array([WIDTH, HEIGHT]) + 0.6).all())}
    asked = row["recipe"]["objects"][0]
    if name in {"there-and-back", "spin"}:
        way_2 = path_P2[1] - path_P2[0] if name == "there-and-back" else spin_heading(path_P2)
    if name not in OWN_DIRECTION:
        turn = math.atan2(way_2[1], way_2[0]) - asked["direction"]
        found["direction"] = float(abs(math.remainder(turn, 2 * math.pi)) < math.radians(0.5 if name != "spin" else 3))
    steps_P = np.linalg.norm(np.diff(path_P2, axis=0), axis=1)
    length = steps_P.sum() / math.hypot(WIDTH, HEIGHT)
    if name in PAIRS or name not in OWN_LENGTH:  # of pairs, the recipe has the real length and speed
        found["length"] = float(abs(length / asked["length"] - 1) < 0.05)
        # a path ends between two frames; where exactly is known from its length and speed only
        frames = np.count_nonzero(steps_P > 0.02)
        due = asked["length"] / asked["speed"] / seconds * 13
        found["speed"] = float(abs(frames - due) <= 1)
    return found


def spin_heading(path_P2: Floats) -> Floats:
    """The direction in which a circle is left at its first point: across the radius of the circle that fits best."""
    moving_P2 = path_P2[: np.flatnonzero(np.linalg.norm(np.diff(path_P2, axis=0), axis=1) > 0.02)[-1] + 2] - path_P2[0]
    factors = np.column_stack([2 * moving_P2, np.ones(len(moving_P2))])
    centre_2 = np.linalg.lstsq(factors, (moving_P2**2).sum(1), rcond=None)[0][:2]
    across_2 = np.array([centre_2[1], -centre_2[0]])
    return across_2 if across_2 @ moving_P2[1] > 0 else -across_2


def drawn(name: str, row: dict[str, Any]) -> Image.Image:
    """A small drawing of a sample: each box at the start and at the end, with its path."""
    background = np.full((HEIGHT, WIDTH, 3), 70, np.uint8)
    tracks: BoxTracks = sample_of(row).tracks(14, HEIGHT, WIDTH)
    picture = draw_conditions(background, tracks, zoom=0.8, beyond=False).resize((410, 230))
    tile = Image.new("RGB", (410, 256), "white")
    tile.paste(picture, (0, 26))
    ImageDraw.Draw(tile).text((4, 3), name, font=ImageFont.load_default(17), fill="black")
    return tile


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--samples", type=int, default=10_000)
    options = parser.parse_args()
    all_pictures = pictures()
    columns = ("inside", "direction", "length", "speed")
    print("| motion | made | left stratum | draws a sample |", *(f"{each} |" for each in columns))
    print("| --- | --- | --- | --- |", "--- |" * len(columns))
    tiles = []
    for name in (*MOTIONS, *PAIRS, *MOVES):
        recipe, tracks = recipe_of(name, options.samples), (TRACK,)
        plan = make_plan(recipe, [picture.apart for picture in all_pictures])
        refused, found, last = Refused(), [], None
        for number in range(len(plan)):
            stratum: Stratum = plan.stratum(number)
            rng = np.random.default_rng([0, 1, number])
            row, its_refused = draw_sample(rng, all_pictures[plan.picture[number]], stratum, recipe, tracks)
            refused.add(its_refused)
            if row is not None:
                found.append(measured(name, row, recipe.sample.seconds))
                last = row if len(found) < 8 else last
        shares = [f"{np.mean([each[key] for each in found]):.1%}" if key in found[0] else "-" for key in columns]
        draws = 1 + refused.draws.total() / len(plan)
        numbers = (f"{len(found) / len(plan):.1%}", f"{refused.moved.total() / len(plan):.1%}", f"{draws:.2f}")
        print(f"| {name} |", *(f"{each} |" for each in (*numbers, *shares)), flush=True)
        assert last is not None
        tiles.append(drawn(name, last))
    across = 4
    sheet = Image.new("RGB", (across * 418, -(-len(tiles) // across) * 264), "white")
    for n, tile in enumerate(tiles):
        sheet.paste(tile, (n % across * 418, n // across * 264))
    options.folder.mkdir(parents=True, exist_ok=True)
    sheet.save(options.folder / "motions.png")


if __name__ == "__main__":
    main()
