"""Which sample gets what: strata that come equally often, and the draw of one sample inside its stratum.

Axes: P path points, N boxes; 2 is xy, 4 is xyxy. Pixels of the source image.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from manifests.boxes.filters import still_boxes
from manifests.boxes.geometry import shared_areas
from manifests.boxes.proposer import Proposal
from manifests.fit import FILLED_PX, Placement, place
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
from sgi2v.errors import SGI2VError
from sgi2v.trajectory import BoxTracks

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
Bins = tuple[int, int, int]
"""0-based bins of direction, length and speed."""

CELL_PX = 8
"""Pixels of the video along one side of a latent cell, which still boxes keep away from what moves."""
ANY = -1
"""In place of a bin: any."""
ANY_TRIES = 3
"""Times `tries` that a sample is drawn outside its stratum before it is dropped."""
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
    shown_2: tuple[float, float]
    """Width and height of the part of the picture that the video shows. Boxes of one sample fit into it together."""

    @cached_property
    def size_2(self) -> Floats:
        """Width and height."""
        return np.array([self.width, self.height], np.float64)

    @cached_property
    def boxes_N4(self) -> Floats:
        """The boxes of `proposals`."""
        return np.array([each.box_xyxy for each in self.proposals], np.float64).reshape(-1, 4)

    @cached_property
    def areas_N(self) -> Floats:
        """Their areas, as shares of the picture's."""
        areas_N: Floats = np.prod(self.boxes_N4[:, 2:] - self.boxes_N4[:, :2], axis=1) / np.prod(self.size_2)
        return areas_N

    @cached_property
    def excludes_NN(self) -> list[list[bool]]:
        """Whether two of them cannot be in one sample: they overlap, or no video shows both."""
        low_NN2 = np.minimum(self.boxes_N4[:, None, :2], self.boxes_N4[None, :, :2])
        high_NN2 = np.maximum(self.boxes_N4[:, None, 2:], self.boxes_N4[None, :, 2:])
        is_wide_NN = (high_NN2 - low_NN2 > np.array(self.shown_2)).any(2)
        excludes_NN: list[list[bool]] = (is_wide_NN | (shared_areas(self.boxes_N4, self.boxes_N4) > 0)).tolist()
        return excludes_NN

    @property
    def apart(self) -> int:
        """How many of them can be in one sample; taken in their order."""
        taken: list[int] = []
        for n in range(len(self.proposals)):
            if not any(self.excludes_NN[n][other] for other in taken):
                taken.append(n)
        return len(taken)


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
    left_out: list[str] = field(default_factory=list)
    """Motions that no picture has enough boxes for."""

    def __len__(self) -> int:
        return len(self.kind)

    def part(self, which: slice | Integers) -> Plan:
        """The plan of some samples."""
        columns = {name: column[which] for name, column in self.columns.items()}
        return Plan(self.names, self.kind[which], columns, self.picture[which], self.left_out)

    def stratum(self, sample: int) -> Stratum:
        """The stratum of one sample."""
        motion, move = self.names[self.kind[sample]]
        return Stratum(motion, move, **{name: int(column[sample]) for name, column in self.columns.items()})


def make_plan(recipe: Recipe, apart: Sequence[int]) -> Plan:
    """Spread the samples of a recipe evenly over its strata and over the pictures.

    apart: how many objects each picture can have in a sample. A sample goes to a picture that has enough for it, or to
    one that has most. Motions of two boxes are left out where no picture has two. Raises NoPictureError.
    """
    rng = np.random.default_rng([recipe.sample.seed, 0])
    boxes = np.array(apart, np.int64)
    most = int(boxes.max(initial=0))
    kinds = {(motion, move): share for (motion, move), share in recipe.kinds.items() if motion not in PAIRS or most > 1}
    if not len(boxes) or not kinds or (most < 1 and any(motion for motion, _ in kinds)):
        raise NoPictureError("no picture has the boxes that the motions need")
    names, shares = list(kinds), list(kinds.values())
    count = _count(recipe, len(boxes))
    kind = np.repeat(np.arange(len(names)), _whole_numbers(shares, count))
    rng.shuffle(kind)
    has_motion = np.array([motion is not None for motion, _ in names])[kind]
    columns = {name: np.zeros(count, np.int64) for name in Stratum._fields[2:]}
    for here in (recipe.motion, recipe.camera):
        which = np.flatnonzero(has_motion == (here is recipe.motion))
        pairs = np.array(recipe.cells[here.section])
        pairs = pairs[_balanced(rng, len(pairs), len(which))]
        columns["direction"][which] = _balanced(rng, here.directions, len(which))
        columns["length"][which], columns["speed"][which] = pairs[:, 0], pairs[:, 1]
    numbers = np.array(recipe.motion.objects)
    which = np.flatnonzero(has_motion)
    columns["size"][which] = _balanced(rng, len(recipe.motion.sizes) + 1, len(which))
    columns["objects"][which] = numbers[_balanced(rng, len(numbers), len(which))]
    columns["objects"][np.array([motion in PAIRS for motion, _ in names])[kind]] = 2
    picture = _level_out(rng, boxes, np.minimum(columns["objects"], most))
    left_out = sorted({motion for motion, _ in recipe.kinds if motion} - {motion for motion, _ in kinds})
    plan = Plan(names, kind, columns, picture, left_out)
    if recipe.sample.per_image is None:
        return plan
    rank = np.empty(count, np.int64)
    order = np.argsort(picture, kind="stable")
    rank[order] = np.arange(count) - np.searchsorted(picture[order], picture[order])
    return plan.part(np.flatnonzero(rank < recipe.sample.per_image))


def _count(recipe: Recipe, pictures: int) -> int:
    samples, per_image = recipe.sample.samples, recipe.sample.per_image
    if samples is None:
        return pictures * (per_image or 1)
    return samples if per_image is None else min(samples, pictures * per_image)


def _level_out(rng: np.random.Generator, boxes: Integers, needs: Integers) -> Integers:
    """A picture with enough boxes for each sample, such that all pictures are used as equally often as can be."""
    picture, used = np.zeros(len(needs), np.int64), np.zeros(len(boxes), np.int64)
    for need in sorted(set(needs.tolist()), reverse=True):
        which, able = np.flatnonzero(needs == need), np.flatnonzero(boxes >= need)
        level = -(-(len(which) + used[able].sum()) // len(able))
        room = np.maximum(level - used[able], 0)
        slots = np.repeat(able, room)
        levels = np.arange(len(slots)) - np.repeat(np.cumsum(room) - room - used[able], room)
        picture[which] = slots[np.lexsort((rng.random(len(slots)), levels))[: len(which)]]
        used += np.bincount(picture[which], minlength=len(boxes))
    return picture


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
    wishes = _wishes(rng, stratum, recipe)
    # the speed is kept, since it can only be too slow, for the way between two boxes
    objects_bins = [(name, (ANY, ANY, ANY if name in PAIRS else bins[2])) for name, bins in wishes.objects]
    anything = replace(wishes, size=ANY, camera=(ANY, ANY, wishes.camera[2]), objects=objects_bins)
    for number in range((1 + ANY_TRIES) * tries):
        within = wishes if number < tries else anything
        camera, maps_P23 = _draw_camera(rng, picture, within, recipe)
        objects = _draw_objects(rng, picture, within, recipe, tracks, maps_P23)
        background = objects if isinstance(objects, str) else _background(picture, objects, recipe, maps_P23)
        if isinstance(objects, str) or isinstance(background, str):
            refused.draws[str(background)] += 1
            continue
        if within is anything:
            refused.moved[refused.worst] += 1
        row = _row(picture, objects, background, camera, maps_P23, recipe)
        row["recipe"]["stratum"] = list(stratum[2:]) if within is wishes else None
        return row, refused
    refused.dropped[refused.worst] += 1
    return None, refused


@dataclass(frozen=True)
class _Wishes:
    """What one sample is to be, before boxes are chosen. Draws that break a constraint do not change it."""

    move: str | None
    camera: Bins
    objects: list[tuple[str, Bins]]
    """The motion of each object; a motion of two boxes once."""
    count: int
    """Number of objects."""
    size: int


def _wishes(rng: np.random.Generator, stratum: Stratum, recipe: Recipe) -> _Wishes:
    """A sample's stratum is its first object's, or the camera's; the others' bins and motions are drawn here."""
    own: Bins = (stratum.direction, stratum.length, stratum.speed)
    if stratum.motion is None:
        return _Wishes(stratum.move, own, [], 0, ANY)
    objects = [(stratum.motion, own)]
    for _ in range(stratum.objects - 1 if stratum.motion in MOTIONS else 0):
        name = recipe.single_motions[rng.integers(len(recipe.single_motions))]
        objects.append((name, _draw_bins(rng, recipe.motion, recipe)))
    return _Wishes(stratum.move, _draw_bins(rng, recipe.camera, recipe), objects, stratum.objects, stratum.size)


def _draw_bins(rng: np.random.Generator, here: MotionRecipe | CameraRecipe, recipe: Recipe, speed: int = ANY) -> Bins:
    """Bins of direction and length, and of speed if it is ANY, that the clip has time for."""
    pairs = recipe.cells[here.section]
    if speed != ANY:
        pairs = [each for each in pairs if each[1] == speed]
    return (int(rng.integers(here.directions)), *pairs[rng.integers(len(pairs))])


def _draw_ask(
    rng: np.random.Generator,
    here: MotionRecipe | CameraRecipe,
    recipe: Recipe,
    diagonal: float,
    bins: Bins,
    tracks: tuple[Floats, ...] = (),
) -> Ask:
    """Draw evenly within bins of direction, length and speed."""
    seconds = recipe.sample.seconds
    of_direction, of_length, of_speed, of_easing, of_zoom, of_turn = rng.random(6).tolist()
    direction, length_bin, speed_bin = _draw_bins(rng, here, recipe, bins[2]) if bins[0] == ANY else bins
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
    rng: np.random.Generator, picture: Picture, wishes: _Wishes, recipe: Recipe
) -> tuple[dict[str, Any] | None, Floats | None]:
    """What the camera is asked to do, and its maps [P, 2, 3]; None for a camera that stands still."""
    if wishes.move is None:
        return None, None
    diagonal = math.hypot(picture.width, picture.height)
    ask = _draw_ask(rng, recipe.camera, recipe, diagonal, wishes.camera)
    return _asked(wishes.move, ask, diagonal), MOVES[wishes.move](rng, picture.size_2, ask)


def _draw_objects(
    rng: np.random.Generator,
    picture: Picture,
    wishes: _Wishes,
    recipe: Recipe,
    tracks: tuple[Floats, ...],
    maps_P23: Floats | None,
) -> list[_Object] | str:
    """The objects of a sample with their motions, or the name of the constraint that the draw broke."""
    if not wishes.objects:
        return []
    chosen = _choose(rng, picture, wishes.size, wishes.count, recipe)
    diagonal = math.hypot(picture.width, picture.height)
    boxes_N4 = picture.boxes_N4[chosen]
    centres_N2, sides_N2 = (boxes_N4[:, :2] + boxes_N4[:, 2:]) / 2, boxes_N4[:, 2:] - boxes_N4[:, :2]
    objects: list[_Object] = []
    for n, (name, bins) in enumerate(wishes.objects[: len(chosen)]):
        ask = _draw_ask(rng, recipe.motion, recipe, diagonal, bins, tracks)
        if name in PAIRS:
            if len(chosen) < 2:
                return "two_boxes"
            moved: tuple[Motion, ...] = PAIRS[name](rng, centres_N2, sides_N2, ask)
            lengths = [path_length(motion.path_P2) for motion in moved]
            if min(lengths) < LEAST_WAY * diagonal:
                return "hardly_moves"
            if lengths[0] > ask.speed * ask.seconds * (1 + 1e-6):
                return "too_slow"
            asks = [replace(ask, length=each, speed=ask.speed * each / lengths[0]) for each in lengths]
        else:
            moved, asks = (MOTIONS[name](rng, centres_N2[n], ask),), [ask]
        for motion, its_ask in zip(moved, asks, strict=True):
            box = boxes_N4[len(objects)]
            seen = motion if maps_P23 is None else with_camera(motion, maps_P23, picture.size_2)
            scene_P4 = boxes_P4(box, motion)
            seen_P4 = scene_P4 if maps_P23 is None else boxes_P4(box, seen)
            if recipe.motion.stay_inside and not stays_inside(seen_P4, picture.size_2):
                return "stay_inside"
            objects.append(_Object(chosen[len(objects)], seen, seen_P4, scene_P4, _asked(name, its_ask, diagonal)))
    if recipe.motion.collisions != "any" and len(objects) > 1:
        pairs = [(one, other) for n, one in enumerate(objects) for other in objects[:n]]
        collides = any(collide(one.seen_P4, other.seen_P4) for one, other in pairs)
        if collides != (recipe.motion.collisions == "wanted"):
            return f"collisions_{recipe.motion.collisions}"
    tracks_seen, placement = _placed(picture, objects, recipe)
    is_lost = next(placement.lost_boxes(tracks_seen), None) is not None
    if is_lost or (recipe.motion.stay_inside and not placement.holds_all):
        return f"fit_{placement.fit}"
    return objects


def _placed(picture: Picture, objects: list[_Object], recipe: Recipe) -> tuple[BoxTracks, Placement]:
    """The objects as they are seen, and the part of the picture that the video shows of them."""
    boxes_NP4 = np.reshape([each.seen_P4 for each in objects], (len(objects), recipe.sample.frames, 4))
    tracks = BoxTracks(boxes_NP4, picture.height, picture.width)
    return tracks, place(tracks, recipe.sample.video_size)


def _choose(rng: np.random.Generator, picture: Picture, size: int, count: int, recipe: Recipe) -> list[int]:
    """Boxes that can be in one sample, the first of the stratum of sizes that is nearest to the one asked for."""
    miss_N = np.abs(np.searchsorted(recipe.motion.sizes, picture.areas_N, side="right") - size) * (size != ANY)
    order = rng.permutation(len(miss_N))
    first = int(order[np.argmin(miss_N[order])])
    chosen = [first]
    for other in order.tolist():
        if len(chosen) == count:
            break
        if not any(picture.excludes_NN[other][index] for index in chosen):
            chosen.append(other)
    return chosen


def _background(picture: Picture, objects: list[_Object], recipe: Recipe, maps_P23: Floats | None) -> Floats | str:
    """The boxes [N, 4] of what is shown beside the objects, if the camera moves; or the constraint that they break.

    With the objects they must reach from border to border of what is shown, so that the video will show the same part.
    """
    if maps_P23 is None:
        return np.empty((0, 4))
    _, placement = _placed(picture, objects, recipe)
    shown_4, taken_M4 = np.array(placement.source_box), np.reshape([each.scene_P4 for each in objects], (-1, 4))
    most = MAX_BOXES - len(objects)
    grid_N4 = background_boxes(shown_4, recipe.camera.rows, recipe.camera.columns, taken_M4, most)
    if len(grid_N4) == 0:  # nothing would ask for the camera's move
        return "no_background"
    first_N4 = np.concatenate([grid_N4, *(each.scene_P4[:1] for each in objects)])
    reach_4 = np.concatenate([first_N4[:, :2].min(0), first_N4[:, 2:].max(0)])
    is_whole = tuple(shown_4) == (0, 0, picture.width, picture.height)
    return grid_N4 if is_whole or np.abs(reach_4 - shown_4).max() < FILLED_PX / 2 else f"fit_{placement.fit}"


def _within(proposal: Proposal, part_4: Floats, least: float) -> Proposal | None:
    """The part of a box in a part of the picture; None where a side of it is shorter than `least`."""
    x0, y0, x1, y1 = np.clip(proposal.box_xyxy, part_4[[0, 1, 0, 1]], part_4[[2, 3, 2, 3]]).tolist()
    return replace(proposal, box_xyxy=(x0, y0, x1, y1)) if min(x1 - x0, y1 - y0) >= least else None


def _asked(name: str, ask: Ask, diagonal: float) -> dict[str, Any]:
    """What was asked, for the row's recipe: lengths and speeds as shares of the diagonal. Where the places of the boxes
    decide a length, or the speed of the second box, it is the real one."""
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
    grid_N4: Floats,
    camera: dict[str, Any] | None,
    maps_P23: Floats | None,
    recipe: Recipe,
) -> dict[str, Any]:
    """The row of a sample. Boxes of objects come first, then the background's, then those that are told to stay."""
    boxes = [picture.boxes_N4[each.index] for each in objects]
    paths, scales = [each.motion.path_P2 for each in objects], [each.motion.scales_P for each in objects]
    masks = [picture.masks[each.index] for each in objects]
    held: list[Proposal] = []
    if maps_P23 is not None:
        paths_NP2, scales_P = with_camera(at_rest(grid_N4, recipe.sample.frames), maps_P23, picture.size_2)
        boxes, paths = [*boxes, *grid_N4], [*paths, *paths_NP2]
        scales += [scales_P] * len(grid_N4)
    elif recipe.sample.still == "others":
        moving_TN4 = np.stack([each.seen_P4 for each in objects], 1)
        _, placement = _placed(picture, objects, recipe)
        margin = CELL_PX / min(placement.scale)
        shown_4 = np.array(placement.source_box)
        shown = [part for each in picture.others if (part := _within(each, shown_4, margin)) is not None]
        held = still_boxes(shown, moving_TN4, margin, MAX_BOXES - len(boxes))
        for each in held:
            boxes.append(np.array(each.box_xyxy))
            paths.append(at_rest(boxes[-1], 2).path_P2)
            scales.append(np.ones(2))
    resized = any((scales_P != scales_P[0]).any() for scales_P in scales)
    asked: dict[str, Any] = {"picture": picture.key, "frame": [picture.width, picture.height]}
    asked |= {"objects": [each.ask for each in objects]} if objects else {}
    asked |= {"camera": camera} if camera else {}
    return {
        "image": picture.image,
        "boxes": np.round(boxes, 2).tolist(),
        "trajectories": [path_P2.round(2).tolist() for path_P2 in paths],
        "scales": [scales_P.round(4).tolist() for scales_P in scales] if resized else None,
        "still": [False] * (len(boxes) - len(held)) + [True] * len(held),
        "masks": masks + [None] * (len(boxes) - len(masks)),
        "recipe": asked,
    }
