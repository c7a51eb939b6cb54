"""What a manifest asks for, counted and drawn: directions, lengths, speeds, sizes, starts, motions, boxes a sample.

Where the manifest has a recipe, what the recipe asks for is drawn beside it, and boxes of the background do not count.

Axes: R rows, N boxes of all rows, P points of all paths, H W cells of the heat map; 2 is xy, 4 is xyxy.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from manifests.images import load_image
from manifests.io import read_manifest
from manifests.motion import OWN_DIRECTION, OWN_LENGTH, PAIRS
from manifests.recipe import METADATA_KEY, Recipe, bin_range
from manifests.schema import MANIFEST_SCHEMA, conform, known_columns, parse_row, row_problems, rows_of
from sgi2v.errors import ConfigError, SampleError
from sgi2v.locations import open_store
from sgi2v.wording import counted, ranked

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]
RGB = tuple[int, int, int]

BATCH_ROWS = 4096
"""Rows that are in memory at a time, of a Parquet file."""
DIRECTIONS = 24
"""Petals of the rose."""
SHARES = np.linspace(0.0, 1.0, 51)
"""Borders of the bins of lengths and speeds, in picture diagonals; longer ones are in the last."""
AREAS = np.logspace(-4, 0, 33)
"""Borders of the bins of sizes, as shares of the picture; smaller ones are in the first."""
STARTS_HW = (18, 32)
"""Cells of the heat map of starts."""
LEAST_STEP = 0.05
"""Pixels from one point to the next from which a box moves; coordinates are rounded to 0.01."""
COMES_BACK = 0.2
"""A path whose end is nearer to its start than this share of its length points to its farthest point."""


@dataclass
class Stats:
    """Counts over a manifest. Shares of a picture and its diagonal count, so that pictures of all sizes go together."""

    recipe: Recipe | None = None
    rows: int = 0
    invalid: int = 0
    """Rows that `manifest validate` refuses, which do not count."""
    unmeasured: int = 0
    """Rows whose picture's size is not known, because it cannot be read. They count for motions and boxes only."""
    boxes: Counter[int] = field(default_factory=Counter)
    """Rows by their number of boxes of objects."""
    motions: Counter[str] = field(default_factory=Counter)
    """Boxes of objects by motion; of manifests without a recipe: boxes that move, rest or change their size."""
    moves: Counter[str] = field(default_factory=Counter)
    """Rows by camera move."""
    still: int = 0
    """Boxes that are told to stay."""
    masks: int = 0
    """Boxes with a mask."""
    fits: Counter[str] = field(default_factory=Counter)
    """Rows by `fit`, where they say it."""
    background: int = 0
    """Boxes of the background that follow the camera."""
    directions: Floats = field(default_factory=lambda: np.zeros(DIRECTIONS))
    lengths: Floats = field(default_factory=lambda: np.zeros(len(SHARES) - 1))
    speeds: Floats = field(default_factory=lambda: np.zeros(len(SHARES) - 1))
    sizes: Floats = field(default_factory=lambda: np.zeros(len(AREAS) - 1))
    starts: Floats = field(default_factory=lambda: np.zeros(STARTS_HW))

    def lines(self) -> Iterator[str]:
        """The counts that a person reads first."""
        numbers = [f"{rows} with {counted(number, 'object')}" for number, rows in sorted(self.boxes.items())]
        yield f"{counted(self.rows, 'row')}: {', '.join(numbers)}"
        if self.invalid:
            yield f"{counted(self.invalid, 'row')} left out: see sgi2v-batch manifest validate"
        if self.unmeasured:
            yield f"{counted(self.unmeasured, 'row')} without a picture that can be read: only counted"
        if self.motions:
            yield f"motions: {ranked(self.motions)}"
        if self.moves:
            yield f"camera moves: {ranked(self.moves)}"
        if self.still or self.background:
            yield f"{self.background} background boxes, {self.still} still boxes"
        if self.masks:
            yield f"boxes with a mask: {self.masks}"
        if self.fits:
            yield f"fit: {ranked(self.fits)}"


def measure(manifest: str) -> Stats:
    """Count what a manifest asks for. Raises what `read_manifest` raises."""
    recipe, tables = _open(manifest)
    stats = Stats(recipe)
    sizes: dict[str, tuple[int, int] | None] = {}
    for table in tables:
        _count(stats, _valid(stats, table), manifest, sizes)
    return stats


def _open(manifest: str) -> tuple[Recipe | None, Iterable[pa.Table]]:
    """The recipe of a manifest, if it has one, and its rows. A Parquet file is read in parts."""
    with suppress(Exception):  # `read_manifest` says what is wrong
        file_system, path = open_store(manifest)
        file = pq.ParquetFile(file_system.open(path, "rb"))
        text = (file.schema_arrow.metadata or {}).get(METADATA_KEY.encode())
        recipe = None
        with suppress(ConfigError, ValueError):  # of another version
            recipe = Recipe.parse(json.loads(text)) if text else None
        batches = file.iter_batches(BATCH_ROWS, use_threads=False)
        return recipe, (conform(pa.Table.from_batches([batch]), manifest) for batch in batches)
    return None, [read_manifest(manifest)]


def _valid(stats: Stats, table: pa.Table) -> pa.Table:
    """The rows that can be made; the others are counted. Rows are looked at one by one only where one is wrong."""
    if _is_clean(table):
        return table
    rows = rows_of(known_columns(table))
    keep = [next(row_problems(row), None) is None for row in rows]
    stats.invalid += keep.count(False)
    # boxes that are told to stay need no path, and get one here
    paths = [
        [path_P2.tolist() for path_P2 in parse_row(row).trajectories]
        for row, is_kept in zip(rows, keep, strict=True)
        if is_kept
    ]
    table, place = table.filter(pa.array(keep, pa.bool_())), table.column_names.index("trajectories")
    return table.set_column(place, MANIFEST_SCHEMA.field("trajectories"), [paths])


def _is_clean(table: pa.Table) -> bool:
    """Whether every box of every row has four numbers, and a path of two points or more."""
    boxes, paths = table.column("boxes").combine_chunks(), table.column("trajectories").combine_chunks()
    points = paths.flatten().flatten()
    still = table.column("still").combine_chunks() if "still" in table.column_names else boxes
    checks: Iterable[Any] = (
        boxes.null_count + paths.null_count == 0 and pc.equal(pc.list_value_length(boxes), pc.list_value_length(paths)),
        pc.equal(pc.coalesce(pc.list_value_length(still), pc.list_value_length(boxes)), pc.list_value_length(boxes)),
        pc.equal(pc.list_value_length(boxes.flatten()), 4),
        pc.greater(pc.list_value_length(paths.flatten()), 1),
        pc.equal(pc.list_value_length(points), 2),
        pc.is_finite(boxes.flatten().flatten()),
        pc.is_finite(points.flatten()),
    )
    return all(check is not False and pc.all(check, skip_nulls=False, min_count=0).as_py() for check in checks)


@dataclass(frozen=True, eq=False)
class _Boxes:
    """The boxes of some rows, one after the other."""

    row_N: Integers
    """The row that each belongs to."""
    box_N4: Floats
    way_N2: Floats
    """From the first point of the path to the last, or to the farthest of a path that comes back."""
    length_N: Floats
    """Of the path, pixels."""
    moving_N: Floats
    """Share of the clip in which the box moves."""


def _boxes_of(table: pa.Table) -> _Boxes:
    """The boxes of clean rows."""
    boxes, paths = table.column("boxes").combine_chunks(), table.column("trajectories").combine_chunks()
    boxes_R = pc.list_value_length(boxes).to_numpy(zero_copy_only=False)
    points_N = pc.list_value_length(paths.flatten()).to_numpy(zero_copy_only=False)
    point_P2 = paths.flatten().flatten().flatten().to_numpy(zero_copy_only=False).reshape(-1, 2)
    first_N = np.cumsum(points_N) - points_N
    step_P = np.hypot(*np.diff(point_P2, axis=0, append=point_P2[-1:]).T)
    step_P[first_N + points_N - 1] = 0  # to the next path
    steps_N = np.add.reduceat((step_P > LEAST_STEP).astype(np.int64), first_N)
    away_P2 = point_P2 - np.repeat(point_P2[first_N], points_N, axis=0)
    way_N2, length_N = away_P2[first_N + points_N - 1], np.add.reduceat(step_P, first_N)
    for n in np.flatnonzero(np.hypot(*way_N2.T) < COMES_BACK * length_N):
        path_P2 = away_P2[first_N[n] : first_N[n] + points_N[n]]
        way_N2[n] = path_P2[np.hypot(*path_P2.T).argmax()]
    return _Boxes(
        row_N=np.repeat(np.arange(len(boxes_R)), boxes_R),
        box_N4=boxes.flatten().flatten().to_numpy(zero_copy_only=False).reshape(-1, 4),
        way_N2=way_N2,
        length_N=length_N,
        # of the step in which it stops, half is counted
        moving_N=np.where(steps_N < points_N - 1, np.maximum(steps_N - 0.5, 0.5), steps_N) / (points_N - 1),
    )


def _count(stats: Stats, table: pa.Table, manifest: str, sizes: dict[str, tuple[int, int] | None]) -> None:
    """Add clean rows. sizes: (width, height) of the images that are known; others are read and added."""
    rows = table.num_rows
    stats.rows += rows
    if "fit" in table.column_names:
        stats.fits.update(table.column("fit").drop_null().to_pylist())
    if "masks" in table.column_names:
        stats.masks += int(pc.count(table.column("masks").combine_chunks().flatten()).as_py())
    asks: list[Any] = [None] * rows
    if stats.recipe is not None and "recipe" in table.column_names:
        asks = [_ask(text) for text in table.column("recipe").to_pylist()]
    boxes = _boxes_of(table) if pc.sum(pc.list_value_length(table.column("boxes"))).as_py() else None
    if boxes is None:
        stats.boxes[0] += rows
        return
    still_N = _still(table, len(boxes.row_N))
    place_N = np.arange(len(boxes.row_N)) - np.searchsorted(boxes.row_N, boxes.row_N)
    objects_R = np.array([rows if ask is None else len(ask.get("objects", ())) for ask in asks])
    is_known_R = np.array([ask is not None for ask in asks])
    object_N = ~still_N & (~is_known_R[boxes.row_N] | (place_N < objects_R[boxes.row_N]))
    stats.still += int(still_N.sum())
    stats.background += int((~still_N & ~object_N).sum())
    stats.boxes.update(np.bincount(boxes.row_N[object_N], minlength=rows).tolist())
    stats.moves.update(ask["camera"]["name"] for ask in asks if ask and "camera" in ask)

    at = np.flatnonzero(object_N)
    names = [_name(asks[boxes.row_N[n]], place_N[n], boxes.length_N[n]) for n in at]
    stats.motions.update(names)
    images = table.column("image").to_pylist()
    size_R2 = np.array(
        [(ask and ask["frame"]) or _image_size(name, manifest, sizes) for ask, name in zip(asks, images, strict=True)],
        float,
    )
    stats.unmeasured += int(np.isnan(size_R2[:, 0]).sum())
    measured = np.isfinite(size_R2[boxes.row_N[at], 0])
    at, names = at[measured], [name for name, is_measured in zip(names, measured, strict=True) if is_measured]
    size_N2 = size_R2[boxes.row_N[at]]
    sides_N2 = boxes.box_N4[at, 2:] - boxes.box_N4[at, :2]
    start_N2 = np.clip((boxes.box_N4[at, :2] + sides_N2 / 2) / size_N2, 0, 1 - 1e-9)
    rows_H, columns_W = STARTS_HW
    np.add.at(stats.starts, tuple((start_N2[:, ::-1] * (rows_H, columns_W)).astype(int).T), 1)
    stats.sizes += _histogram(sides_N2.prod(1) / size_N2.prod(1), AREAS)

    # a camera that moves adds its own way, which was not asked of the object
    free = np.array([not (ask and "camera" in ask) for ask in asks])[boxes.row_N[at]]
    has_length = free & [name not in OWN_LENGTH for name in names] & (boxes.length_N[at] > LEAST_STEP)
    has_way = has_length & [name not in OWN_DIRECTION for name in names]
    angle_N = np.arctan2(*boxes.way_N2[at[has_way]].T[::-1])
    petal_N = np.round(angle_N / (2 * math.pi) * DIRECTIONS).astype(int) % DIRECTIONS
    stats.directions += np.bincount(petal_N, minlength=DIRECTIONS)
    length_N = (boxes.length_N[at] / np.hypot(*size_N2.T))[has_length]
    clip_s = (stats.recipe or Recipe()).sample.seconds
    stats.lengths += _histogram(length_N, SHARES)
    stats.speeds += _histogram(length_N / (boxes.moving_N[at][has_length] * clip_s), SHARES)


def _ask(text: Any) -> Any:
    """What a row's recipe asks for; None where it is not of `manifest make`, as after manifests were joined."""
    try:
        ask = json.loads(text)
        width, height = ask["frame"]
        names = [str(each["name"]) for each in (*ask.get("objects", ()), *([ask["camera"]] if "camera" in ask else ()))]
        return ask if width > 0 and height > 0 and all(names) else None
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return None


def _still(table: pa.Table, boxes: int) -> NDArray[np.bool_]:
    """Whether each box is told to stay."""
    if "still" not in table.column_names:
        return np.zeros(boxes, bool)
    counts = pc.list_value_length(table.column("boxes")).to_pylist()
    flags = table.column("still").to_pylist()
    return np.array([bool(flag) for row, n in zip(flags, counts, strict=True) for flag in (row or [False] * n)], bool)


def _name(ask: Any, place: int, length: float) -> str:
    if ask is not None:
        return str(ask["objects"][place]["name"])
    return "moves" if length > LEAST_STEP else "on the spot"


def _image_size(name: str, manifest: str, sizes: dict[str, tuple[int, int] | None]) -> tuple[float, float]:
    """Width and height of an image; NaN where it cannot be read."""
    if name not in sizes:
        sizes[name] = None
        with suppress(SampleError, OSError):
            height, width, _ = load_image(name, manifest).shape
            sizes[name] = width, height
    return sizes[name] or (math.nan, math.nan)


def _histogram(values: Floats, edges: Floats) -> Floats:
    """Counts in bins; what is beyond the ends counts in the first or the last bin."""
    return np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0].astype(np.float64)


@dataclass(frozen=True)
class Asked:
    """What the recipe asks for, in shares that add up to 1."""

    lengths: Floats
    speeds: Floats
    sizes: Floats
    motions: dict[str, float]
    moves: dict[str, float]
    boxes: dict[int, float]

    @classmethod
    def of(cls, recipe: Recipe) -> Asked:
        """The shares of a recipe."""
        motion, kinds = recipe.motion, recipe.kinds
        single, cells = recipe.single_motions, recipe.cells["motion"]
        motions: defaultdict[str, float] = defaultdict(float)
        moves: defaultdict[str, float] = defaultdict(float)
        boxes: defaultdict[int, float] = defaultdict(float)
        for (name, move), share in kinds.items():
            if move is not None:
                moves[move] += share
            counts = (0,) if name is None else (2,) if name in PAIRS else motion.objects
            for count in counts:
                part = share / len(counts)
                boxes[count] += part
                if name is None:
                    continue
                motions[name] += 2 * part if name in PAIRS else part
                if name not in PAIRS:
                    for other in single:
                        motions[other] += part * (count - 1) / len(single)
        borders = np.clip([recipe.filters.min_area, *motion.sizes, recipe.filters.max_area], AREAS[0], AREAS[-1])
        return cls(
            lengths=_spread([bin_range(motion.lengths, motion.length_bins, each) for each, _ in cells], SHARES),
            speeds=_spread([bin_range(motion.speeds, motion.speed_bins, each) for _, each in cells], SHARES),
            sizes=_spread(list(zip(np.log(borders[:-1]), np.log(borders[1:]), strict=True)), np.log(AREAS)),
            motions=_normed(motions),
            moves=_normed(moves),
            boxes=_normed(boxes),
        )


def _spread(ranges: Sequence[tuple[float, float]], edges: Floats) -> Floats:
    """Shares of bins, where each range has the same share, spread evenly over its width."""
    shares: Floats = np.zeros(len(edges) - 1)
    for low, high in ranges:
        overlap = np.clip(np.minimum(edges[1:], high) - np.maximum(edges[:-1], low), 0, None)
        shares += overlap / max(overlap.sum(), 1e-12)
    normed: Floats = shares / max(shares.sum(), 1e-12)
    return normed


def _normed(counts: Mapping[Any, float]) -> dict[Any, float]:
    total = sum(counts.values()) or 1.0
    return {name: count / total for name, count in counts.items()}


WIDTH, HEIGHT, MARGIN = 1640, 900, 24
"""Of the picture, and around each of its 4 x 2 panels, pixels."""
INK: RGB = (36, 39, 46)
PALE: RGB = (128, 134, 146)
MADE: RGB = (58, 124, 190)
ASKED: RGB = (235, 120, 20)


def draw_stats(stats: Stats, title: str) -> Image.Image:
    """The counts as a picture of 4 x 2 panels. What a recipe asks for is outlined in orange."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    legend = "blue: in the manifest" + ("; orange: asked for by its recipe" if stats.recipe else "")
    _text(draw, (MARGIN, MARGIN), f"{title}: {counted(stats.rows, 'row')}", 22)
    _text(draw, (WIDTH - MARGIN, MARGIN), legend, 16, anchor="ra", ink=PALE)
    asked = Asked.of(stats.recipe) if stats.recipe else None
    side = (WIDTH - 5 * MARGIN) // 4
    tall = (HEIGHT - 5 * MARGIN - 24) // 2
    panels = [
        (MARGIN + n % 4 * (side + MARGIN), 2 * MARGIN + 24 + n // 4 * (tall + MARGIN), side, tall) for n in range(8)
    ]
    _rose(draw, panels[0], stats.directions, is_even=asked is not None)
    _bins(draw, panels[1], "lengths of paths, diagonals", stats.lengths, asked.lengths if asked else None, SHARES)
    _bins(draw, panels[2], "speeds, diagonals a second", stats.speeds, asked.speeds if asked else None, SHARES)
    _bins(draw, panels[3], "sizes of boxes, share of the picture", stats.sizes, asked.sizes if asked else None, AREAS)
    _starts(draw, panels[4], stats.starts)
    _bars(draw, panels[5], "motions of objects", stats.motions, asked.motions if asked else None)
    _bars(draw, panels[6], "camera moves", stats.moves, asked.moves if asked else None)
    boxes = {str(n): stats.boxes[n] for n in sorted(stats.boxes)}
    _bars(
        draw,
        panels[7],
        "objects a sample",
        boxes,
        {str(n): share for n, share in asked.boxes.items()} if asked else None,
    )
    return picture


Panel = tuple[int, int, int, int]
"""x, y, width, height."""


def _text(
    draw: ImageDraw.ImageDraw, at: tuple[float, float], text: str, size: int, anchor: str = "la", ink: RGB = INK
) -> None:
    draw.text(at, text, font=ImageFont.load_default(size), fill=ink, anchor=anchor)


def _rose(draw: ImageDraw.ImageDraw, panel: Panel, counts: Floats, is_even: bool) -> None:
    """A petal for each direction, whose area is its count; an even distribution is a circle."""
    x, y, width, height = panel
    _text(draw, (x, y), f"directions of {int(counts.sum())} paths", 16)
    middle, radius = (x + width / 2, y + 24 + (height - 24) / 2), min(width, height - 24) / 2 - 8
    petal_N = np.sqrt(counts / max(counts.max(), 1)) * radius
    for n, size in enumerate(petal_N):
        if size >= 1:
            start = (n - 0.5) * 360 / DIRECTIONS
            draw.pieslice(_around(middle, size), start + 0.7, start + 360 / DIRECTIONS - 0.7, fill=MADE)
    if is_even and counts.any():
        even = math.sqrt(counts.mean() / counts.max()) * radius
        draw.ellipse(_around(middle, even), outline=ASKED, width=3)


def _around(middle: tuple[float, float], radius: float) -> tuple[float, float, float, float]:
    return middle[0] - radius, middle[1] - radius, middle[0] + radius, middle[1] + radius


def _bins(
    draw: ImageDraw.ImageDraw, panel: Panel, title: str, counts: Floats, asked: Floats | None, edges: Floats
) -> None:
    """A histogram of the bins that hold anything."""
    x, y, width, height = panel
    _text(draw, (x, y), title, 16)
    used = np.flatnonzero((counts > 0) | (0 if asked is None else asked > 0))
    if not len(used):
        _text(draw, (x, y + 40), "none", 16, ink=PALE)
        return
    first, last = used[0], used[-1] + 1
    share_N = counts[first:last] / max(counts.sum(), 1)
    asked_N = None if asked is None else asked[first:last]
    top = max(share_N.max(), 0 if asked_N is None else asked_N.max())
    step, bottom, tall = width / (last - first), y + height - 24, height - 56
    for n, share in enumerate(share_N):
        draw.rectangle((x + n * step + 1, bottom - share / top * tall, x + (n + 1) * step - 1, bottom), fill=MADE)
    if asked_N is not None:
        line = [
            (x + (n + end) * step, bottom - share / top * tall) for n, share in enumerate(asked_N) for end in (0, 1)
        ]
        draw.line([(x, bottom), *line, (x + width, bottom)], fill=ASKED, width=3)
    for n in sorted({0, (last - first) // 2, last - first}):
        anchor = "la" if n == 0 else "ra" if n == last - first else "ma"
        _text(draw, (x + n * step, bottom + 4), f"{edges[first + n]:.3g}", 14, anchor, PALE)


def _bars(
    draw: ImageDraw.ImageDraw, panel: Panel, title: str, counts: Mapping[str, int], asked: Mapping[str, float] | None
) -> None:
    """A bar for each name, with its count."""
    x, y, width, height = panel
    _text(draw, (x, y), title, 16)
    names = list(dict.fromkeys([*(asked or {}), *counts]))
    if not names:
        _text(draw, (x, y + 40), "none", 16, ink=PALE)
        return
    total = max(sum(counts.values()), 1)
    share = {name: counts.get(name, 0) / total for name in names}
    top = max([*share.values(), *(asked or {}).values()]) or 1
    step, left, room = min(34.0, (height - 36) / len(names)), x + 118, width - 118 - 52
    for n, name in enumerate(names):
        low = y + 34 + n * step
        _text(draw, (left - 8, low + step / 2), name, 14, "rm")
        draw.rectangle((left, low + 3, left + share[name] / top * room, low + step - 3), fill=MADE)
        _text(draw, (x + width, low + step / 2), str(counts.get(name, 0)), 14, "rm", PALE)
        if asked is not None:
            at = left + asked.get(name, 0) / top * room
            draw.line((at, low + 1, at, low + step - 1), fill=ASKED, width=3)


def _starts(draw: ImageDraw.ImageDraw, panel: Panel, counts: Floats) -> None:
    """A heat map of the middles of boxes in the first frame, over pictures of any shape."""
    x, y, width, height = panel
    _text(draw, (x, y), "middles of boxes in the first frame", 16)
    rows_H, columns_W = counts.shape
    cell = min(width / columns_W, (height - 32) / rows_H)
    share_HW = counts / max(counts.max(), 1)
    for row, column in np.ndindex(counts.shape):
        shade = tuple(round(255 + (part - 255) * math.sqrt(share_HW[row, column])) for part in MADE)
        low, left = y + 32 + row * cell, x + column * cell
        draw.rectangle((left, low, left + cell, low + cell), fill=shade)
    draw.rectangle((x, y + 32, x + columns_W * cell, y + 32 + rows_H * cell), outline=PALE)
