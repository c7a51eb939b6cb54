"""Which sample gets what: strata that come equally often, and the draw of one sample inside its stratum.

Axes: P path points, N boxes; 2 is xy, 4 is xyxy. Pixels of the source image.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from manifests.boxes.filters import still_boxes
from manifests.boxes.proposer import Proposal
from manifests.motion import (
    MOTIONS,
    MOVES,
    PAIRS,
    Ask,
    Motion,
    at_rest,
    background_boxes,
    boxes_P4,
    collide,
    path_length,
    stays_inside,
    with_camera,
)
from manifests.recipe import CameraRecipe, MotionRecipe, Recipe, bin_range
from manifests.schema import MAX_BOXES
from sgi2v.canonical import canonical_json
from sgi2v.errors import SGI2VError

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

CELL_PX = 8
"""Pixels of the video along one side of a latent cell, which still boxes keep away from what moves."""
ANY = -1
"""In place of a bin: any."""
ANY_BINS = (ANY, ANY, ANY)
"""Of direction, length and speed."""
LEAST_WAY = 0.01
"""A path shorter than this share of the diagonal, of a box that does not change its size, does not count as motion."""


class NoPictureError(SGI2VError):
    """No picture has what the recipe asks for."""


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture whose boxes are known."""

    key: str
    image: str
    """How the manifest names it."""
    height: int
    width: int
    proposals: list[Proposal]
    """Boxes of objects that may move, without mask."""
    others: list[Proposal]
    """All proposed boxes, without mask, for those that are told to stay."""
    masks: list[bytes | None]
    """The masks of `proposals`, as PNG."""

    @cached_property
    def size_2(self) -> Floats:
        """Width and height."""
        return np.array([self.width, self.height], np.float64)

    @cached_property
    def boxes_N4(self) -> Floats:
        """The boxes of `proposals`."""
        return np.array([each.box_xyxy for each in self.proposals], np.float64)

    @cached_property
    def areas_N(self) -> Floats:
        """Their areas, as shares of the picture's."""
        areas_N: Floats = np.prod(self.boxes_N4[:, 2:] - self.boxes_N4[:, :2], axis=1) / np.prod(self.size_2)
        return areas_N

    @cached_property
    def overlaps_NN(self) -> list[list[bool]]:
        """Whether two of them overlap."""
        return [[collide(one[None], other[None]) for other in self.boxes_N4] for one in self.boxes_N4]


class Stratum(NamedTuple):
    """What one sample is asked to be."""

    motion: str | None
    """Motion of its first object, or of its first two; None for a sample of the camera alone."""
    move: str | None
    """Camera move; None for a camera that stands still."""
    direction: int
    length: int
    speed: int
    """0-based bins."""
    objects: int
    """Number of objects."""
    size: int
    """0-based bin of the first object's size."""


@dataclass
class Plan:
    """The stratum and the picture of every sample, as arrays, since there may be millions."""

    names: list[tuple[str | None, str | None]]
    """(motion, move) of each kind of sample."""
    kind: Integers
    """Per sample: index into `names`."""
    columns: dict[str, Integers]
    """Per sample: the other fields of its Stratum."""
    picture: Integers
    """Per sample: index of its picture."""

    def __len__(self) -> int:
        return len(self.kind)

    def part(self, samples: range) -> Plan:
        """The plan of some samples."""
        which = slice(samples.start, samples.stop)
        columns = {name: column[which] for name, column in self.columns.items()}
        return Plan(self.names, self.kind[which], columns, self.picture[which])

    def stratum(self, sample: int) -> Stratum:
        """The stratum of one sample."""
        motion, move = self.names[self.kind[sample]]
        return Stratum(motion, move, **{name: int(column[sample]) for name, column in self.columns.items()})


def make_plan(recipe: Recipe, has_boxes: Sequence[bool]) -> Plan:
    """Spread the samples of a recipe evenly over its strata and over the pictures.

    has_boxes: whether each picture has a box for an object. Pictures without one get samples of the camera only. The
    number of samples follows from `samples` and `per_image`. Raises NoPictureError.
    """
    rng = np.random.default_rng([recipe.sample.seed, 0])
    names, shares = list(recipe.kinds), list(recipe.kinds.values())
    moves_objects = np.array([motion is not None for motion, _ in names])
    any_picture, with_boxes = np.arange(len(has_boxes)), np.flatnonzero(has_boxes)
    if not len(any_picture) or (moves_objects.any() and not len(with_boxes)):
        raise NoPictureError("no picture has a box of an object")
    count = _count(recipe, len(any_picture), len(with_boxes), float(np.array(shares)[moves_objects].sum()))
    kind = np.repeat(np.arange(len(names)), _whole_numbers(shares, count))
    rng.shuffle(kind)
    columns = {name: np.zeros(count, np.int64) for name in Stratum._fields[2:]}
    for moves in (False, True):
        which = np.flatnonzero(moves_objects[kind] == moves)
        here = recipe.motion if moves else recipe.camera
        its_cells = np.array(recipe.cells[here.section])
        pairs = its_cells[_balanced(rng, len(its_cells), len(which))]
        columns["direction"][which] = _balanced(rng, here.directions, len(which))
        columns["length"][which], columns["speed"][which] = pairs[:, 0], pairs[:, 1]
        columns["size"][which] = _balanced(rng, len(recipe.motion.sizes) + 1, len(which))
        columns["objects"][which] = np.array(recipe.motion.objects)[
            _balanced(rng, len(recipe.motion.objects), len(which))
        ]
    of_objects = moves_objects[kind]
    picture = np.zeros(count, np.int64)
    if of_objects.any():
        picture[of_objects] = with_boxes[np.arange(of_objects.sum()) % len(with_boxes)]
    # the camera's samples level out how often each picture is used
    used = np.bincount(picture[of_objects], minlength=len(any_picture))
    left = np.repeat(any_picture, np.maximum(-(-count // len(any_picture)) - used, 0))
    picture[~of_objects] = rng.permutation(left)[: count - of_objects.sum()]
    return Plan(names, kind, columns, picture)


def _count(recipe: Recipe, pictures: int, with_boxes: int, object_share: float) -> int:
    """The number of samples, of which no picture gets more than `per_image`."""
    samples, per_image = recipe.sample.samples, recipe.sample.per_image
    if samples is not None and per_image is None:
        return samples
    most = (per_image or 1) * (pictures if object_share < 1 else with_boxes)
    if object_share > 0:
        most = min(most, int((per_image or 1) * with_boxes / object_share + 1e-9))
    return max(most if samples is None else min(samples, most), 1)


def _whole_numbers(shares: Sequence[float], count: int) -> Integers:
    """Whole numbers in these shares that add up to `count`: the largest remainders are rounded up."""
    exact = np.array(shares) / sum(shares) * count
    whole = np.floor(exact).astype(np.int64)
    whole[np.argsort(whole - exact, kind="stable")[: count - whole.sum()]] += 1
    return whole


def _balanced(rng: np.random.Generator, levels: int, count: int) -> Integers:
    """Levels 0 .. levels - 1 in random order, each as often as any other, also within every block of `levels`."""
    blocks = np.tile(np.arange(levels), (-(-count // levels), 1))
    return rng.permuted(blocks, axis=1).ravel()[:count]


@dataclass
class Refused:
    """Why draws were thrown away."""

    draws: Counter[str] = field(default_factory=Counter)
    """Draws by the constraint that they broke."""
    moved: Counter[str] = field(default_factory=Counter)
    """Samples that left their stratum, by the constraint that most of their draws broke."""
    dropped: Counter[str] = field(default_factory=Counter)
    """Samples that were not made, likewise."""

    @property
    def worst(self) -> str:
        """The constraint that most draws broke."""
        return self.draws.most_common(1)[0][0]

    def add(self, other: Refused) -> None:
        """Count another's too."""
        self.draws += other.draws
        self.moved += other.moved
        self.dropped += other.dropped


@dataclass(frozen=True, eq=False)
class _Object:
    """A box that moves, and what it was asked to do."""

    index: int
    """Of the proposal."""
    motion: Motion
    """As it is seen."""
    seen_P4: Floats
    """Where it is seen."""
    scene_P4: Floats
    """Where it would be seen if the camera stood still."""
    ask: dict[str, Any]


def draw_sample(
    rng: np.random.Generator, picture: Picture, stratum: Stratum, recipe: Recipe, tracks: tuple[Floats, ...]
) -> tuple[dict[str, Any] | None, Refused]:
    """A row of the manifest without its id, or None where the constraints cannot be met; and the draws thrown away."""
    refused, tries = Refused(), recipe.sample.tries
    anything = stratum._replace(direction=ANY, length=ANY, speed=ANY, size=ANY)
    for number in range(2 * tries):
        within = stratum if number < tries else anything
        camera, maps_P23 = _draw_camera(rng, picture, within, recipe)
        objects = _draw_objects(rng, picture, within, recipe, tracks, maps_P23)
        if isinstance(objects, str):
            refused.draws[objects] += 1
            continue
        if within is anything:
            refused.moved[refused.worst] += 1
        return _row(picture, objects, camera, maps_P23, recipe), refused
    refused.dropped[refused.worst] += 1
    return None, refused


def _draw_ask(
    rng: np.random.Generator,
    here: MotionRecipe | CameraRecipe,
    recipe: Recipe,
    diagonal: float,
    bins: tuple[int, int, int],
    tracks: tuple[Floats, ...] = (),
) -> Ask:
    """Draw evenly within bins of direction, length and speed."""
    seconds = recipe.sample.seconds
    of_direction, of_length, of_speed, of_easing, of_zoom, of_turn, of_cell, any_direction = rng.random(8).tolist()
    if bins == ANY_BINS:
        pairs = recipe.cells[here.section]
        bins = (int(any_direction * here.directions), *pairs[int(of_cell * len(pairs))])
    direction, length_bin, speed_bin = bins
    length = _between(bin_range(here.lengths, here.length_bins, length_bin), of_length)
    slowest, fastest = bin_range(here.speeds, here.speed_bins, speed_bin)
    return Ask(
        direction=(direction - 0.5 + of_direction) * 2 * math.pi / here.directions,
        length=length * diagonal,
        speed=_between((max(slowest, length / seconds), fastest), of_speed) * diagonal,
        seconds=seconds,
        points=recipe.sample.frames,
        easing=here.easings[int(of_easing * len(here.easings))],
        zoom=_between(here.zoom, of_zoom),
        turn=math.radians(_between(recipe.camera.turns, of_turn)),
        overlap=recipe.motion.collisions == "wanted",
        tracks=tracks,
    )


def _between(limits: tuple[float, float], share: float) -> float:
    return limits[0] + share * (limits[1] - limits[0])


def _draw_camera(
    rng: np.random.Generator, picture: Picture, stratum: Stratum, recipe: Recipe
) -> tuple[dict[str, Any] | None, Floats | None]:
    """What the camera is asked to do, and its maps [P, 2, 3]; None for a camera that stands still."""
    if stratum.move is None:
        return None, None
    diagonal = math.hypot(picture.width, picture.height)
    any_bin = stratum.motion is not None  # whose strata are the object's
    bins = ANY_BINS if any_bin else (stratum.direction, stratum.length, stratum.speed)
    ask = _draw_ask(rng, recipe.camera, recipe, diagonal, bins)
    return _asked(stratum.move, ask, diagonal), MOVES[stratum.move](rng, picture.size_2, ask)


def _draw_objects(
    rng: np.random.Generator,
    picture: Picture,
    stratum: Stratum,
    recipe: Recipe,
    tracks: tuple[Floats, ...],
    maps_P23: Floats | None,
) -> list[_Object] | str:
    """The objects of a sample with their motions, or the name of the constraint that the draw broke."""
    if stratum.motion is None:
        return []
    is_pair = stratum.motion in PAIRS
    chosen = _choose(rng, picture, stratum.size, 2 if is_pair else stratum.objects, recipe)
    if is_pair and len(chosen) < 2:
        return "two_boxes"
    diagonal = math.hypot(picture.width, picture.height)
    boxes_N4 = picture.boxes_N4[chosen]
    centres_N2, sides_N2 = (boxes_N4[:, :2] + boxes_N4[:, 2:]) / 2, boxes_N4[:, 2:] - boxes_N4[:, :2]
    objects: list[_Object] = []
    while len(objects) < len(chosen):
        n = len(objects)
        bins = (stratum.direction, stratum.length, stratum.speed) if n == 0 else ANY_BINS
        name = stratum.motion if n == 0 else recipe.single_motions[rng.integers(len(recipe.single_motions))]
        ask = _draw_ask(rng, recipe.motion, recipe, diagonal, bins, tracks)
        moved = (
            PAIRS[name](rng, centres_N2, sides_N2, ask) if is_pair else (MOTIONS[name](rng, centres_N2[n], ask),)
        )
        for motion in moved:
            n = len(objects)
            if is_pair and path_length(motion.path_P2) < LEAST_WAY * diagonal:
                return "hardly_moves"
            seen = motion if maps_P23 is None else with_camera(motion, maps_P23, picture.size_2)
            scene_P4 = boxes_P4(boxes_N4[n], motion)
            seen_P4 = scene_P4 if maps_P23 is None else boxes_P4(boxes_N4[n], seen)
            if recipe.motion.stay_inside and not stays_inside(seen_P4, picture.size_2):
                return "stay_inside"
            objects.append(_Object(chosen[n], seen, seen_P4, scene_P4, _asked(name, ask, diagonal)))
    if recipe.motion.collisions != "any" and len(objects) > 1:
        pairs = [(one, other) for n, one in enumerate(objects) for other in objects[:n]]
        collides = any(collide(one.seen_P4, other.seen_P4) for one, other in pairs)
        if collides != (recipe.motion.collisions == "wanted"):
            return f"collisions_{recipe.motion.collisions}"
    return objects


def _choose(rng: np.random.Generator, picture: Picture, size: int, count: int, recipe: Recipe) -> list[int]:
    """Boxes that do not overlap, the first of the stratum of sizes that is nearest to the one asked for."""
    miss_N = np.abs(np.searchsorted(recipe.motion.sizes, picture.areas_N, side="right") - size) * (size != ANY)
    order = rng.permutation(len(miss_N))
    first = int(order[np.argmin(miss_N[order])])
    chosen = [first]
    for other in order.tolist():
        if len(chosen) == count:
            break
        if not any(picture.overlaps_NN[other][index] for index in chosen):
            chosen.append(other)
    return chosen


def _asked(name: str, ask: Ask, diagonal: float) -> dict[str, Any]:
    """What was asked, for the row's recipe: lengths and speeds as shares of the diagonal."""
    return {
        "name": name,
        "direction": round(ask.direction, 4),
        "length": round(ask.length / diagonal, 4),
        "speed": round(ask.speed / diagonal, 4),
        "easing": ask.easing,
    }


def _row(
    picture: Picture,
    objects: list[_Object],
    camera: dict[str, Any] | None,
    maps_P23: Floats | None,
    recipe: Recipe,
) -> dict[str, Any]:
    """The row of a sample. Boxes of objects come first, then the background's, then those that are told to stay."""
    boxes = [picture.boxes_N4[each.index] for each in objects]
    motions = [each.motion for each in objects]
    masks = [picture.masks[each.index] for each in objects]
    still = [False] * len(objects)
    if maps_P23 is not None:
        grid_N4 = background_boxes(picture.size_2, recipe.camera.rows, recipe.camera.columns)
        paths_NP2, scales_P = with_camera(at_rest(grid_N4, recipe.sample.frames), maps_P23, picture.size_2)
        for box, path_P2 in zip(grid_N4, paths_NP2, strict=True):
            if not any(collide(box[None], each.scene_P4) for each in objects):
                boxes.append(box)
                motions.append(Motion(path_P2, scales_P))
    elif recipe.sample.still == "others":
        moving_TN4 = np.stack([each.seen_P4 for each in objects], 1)
        margin = CELL_PX / min(recipe.sample.output_scale(picture.width, picture.height))
        for held in still_boxes(picture.others, moving_TN4, margin, MAX_BOXES - len(boxes)):
            boxes.append(np.array(held.box_xyxy))
            motions.append(at_rest(boxes[-1], 2))
            still.append(True)
    resized = any((motion.scales_P != motion.scales_P[0]).any() for motion in motions)
    asked = {"picture": picture.key, "frame": [picture.width, picture.height]}
    asked |= {"objects": [each.ask for each in objects]} if objects else {}
    asked |= {"camera": camera} if camera else {}
    return {
        "image": picture.image,
        "boxes": [np.round(box, 2).tolist() for box in boxes],
        "trajectories": [np.round(motion.path_P2, 2).tolist() for motion in motions],
        "scales": [np.round(motion.scales_P, 4).tolist() for motion in motions] if resized else None,
        "still": still + [False] * (len(boxes) - len(still)),
        "masks": masks + [None] * (len(boxes) - len(masks)),
        "recipe": asked,
    }
