"""Warnings about rows that are valid, but whose numbers do not look like pixels of the source image.

A warning is not an error. It names a likely mistake, which would cost hours on GPUs.

Axes: N boxes, P path points, T frames; 2 is xy, 4 is xyxy.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from manifests.fit import VideoSize, place
from manifests.schema import Sample
from sgi2v.wording import counted

Floats = NDArray[np.float64]

CELL_PX = 8
"""Pixels of the video along one side of a latent cell."""
DEFAULT_VIDEO = VideoSize(576, 1024)
"""Size of Stable Video Diffusion's videos, for boxes where the video's size is not known."""
FRAMES = 14
"""Frames in which a box is looked for beside the crop."""
STRETCHED = 1.1
"""A picture that is stretched by a larger factor is warned of."""
NORMALISED_RANGE = (-0.5, 1.5)
"""Boxes and paths that lie in it look like shares of the picture. It has room for what leaves the picture."""
NO_PIXEL = 100_000
"""Coordinates as large as this are no pixels: they are timestamps or ids."""
FAR_PX = 2000
"""A path that leaves the picture by more than this, or by more than the picture's size, is warned of."""
OUTSIDE_SHARE, OUTSIDE_WAY = 0.25, 0.25
"""Share of a box's area, and way beyond the border as a share of the picture's side, from which [y, x] is tried."""
CENTRED_PX = 3.0
"""A path that starts this near the centre of its box starts there."""
SHOWN_IDS = 5
"""Sample ids that one warning names."""


class Kind(StrEnum):
    """What looks wrong with a row."""

    NORMALISED = "normalised"
    XYWH = "xywh"
    SWAPPED = "swapped"
    ORDER = "order"
    TIMES = "times"
    FAR = "far"
    OFF_BOX = "off_box"
    SMALL_BOX = "small_box"
    CROPPED = "cropped"
    STRETCHED = "stretched"


MESSAGES = {
    Kind.NORMALISED: "boxes or paths between 0 and 1, which look like shares of the picture: "
    "multiply x by the picture's width and y by its height",
    Kind.XYWH: "boxes that look like [x, y, width, height], because only then the paths start at their centres: "
    "give [x0, y0, x1, y1]",
    Kind.SWAPPED: "boxes or paths that fit only if they are read as [y, x]: give x before y",
    Kind.ORDER: "paths that start at the centres of other boxes: give the paths in the order of the boxes",
    Kind.TIMES: "a path with frame numbers, timestamps or ids in it: give [x, y] points in pixels",
    Kind.FAR: "a path that leaves the picture by more than its size: check the units and the columns",
    Kind.OFF_BOX: "a path that starts far from its box. Only its displacement counts, but it may be the path of "
    "another box, or in pixels of another picture",
    Kind.SMALL_BOX: f"a box smaller than one latent cell ({CELL_PX} px of the video), which can hardly be steered: "
    "draw it larger, or make larger videos",
    Kind.CROPPED: "boxes or paths that are too far apart for the part of the picture that has the video's shape, "
    "so some leave the frame: use --fit pad, or bucket in place of crop (or the column `fit`), or another --height and "
    "--width",
    Kind.STRETCHED: "a picture that is stretched to the shape of the video, by the factor shown: "
    "use --fit crop, pad or bucket (or the column `fit`), or another --height and --width",
}
"""What a row of each kind has, the likely cause, and what to do."""


class RowWarning(NamedTuple):
    """One doubt about a row."""

    kind: Kind
    sample_id: str
    detail: str = ""
    """A number to show beside the id."""


def row_warnings(
    sample: Sample, image_size: tuple[int, int] | None = None, video_size: VideoSize | None = None
) -> Iterator[RowWarning]:
    """Every doubt about a row. image_size: (height, width); without it, only the row's own numbers are read.

    video_size: of the run; None if it is not known.
    """
    kinds = list(_kinds_by_numbers(sample))
    if image_size is not None and not kinds:
        kinds = list(_kinds_by_picture(sample, *image_size))
    if image_size is None:
        yield from (RowWarning(kind, sample.sample_id) for kind in kinds)
        return
    placement = place(sample.tracks(FRAMES, *image_size), video_size or DEFAULT_VIDEO, sample.fit)
    if not kinds and _has_small_box(sample, placement.scale):
        kinds = [Kind.SMALL_BOX]
    if not kinds and video_size is not None and not placement.holds_all:
        kinds = [Kind.CROPPED]
    yield from (RowWarning(kind, sample.sample_id) for kind in kinds)
    if video_size is not None and placement.fit == "stretch":
        factor = max(placement.scale) / min(placement.scale)
        if factor > STRETCHED:
            yield RowWarning(Kind.STRETCHED, sample.sample_id, f"{factor:.2f}")


def describe(warnings: list[RowWarning]) -> list[str]:
    """A line for each kind: how many rows, a few of their ids, what they have and what to do."""
    lines = []
    for kind in Kind:
        found = [warning for warning in warnings if warning.kind is kind]
        if found:
            ids = [f"{each.sample_id} x{each.detail}" if each.detail else each.sample_id for each in found[:SHOWN_IDS]]
            more = ", ..." if len(found) > SHOWN_IDS else ""
            lines.append(f"warning: {counted(len(found), 'row')} ({', '.join(ids)}{more}): {MESSAGES[kind]} [{kind}]")
    return lines


def _kinds_by_numbers(sample: Sample) -> Iterator[Kind]:
    """What a row's own numbers tell."""
    boxes, paths = sample.boxes_N4, sample.trajectories
    low, high = NORMALISED_RANGE
    doubtful = _not_centred(sample)
    largest = max(float(np.abs(numbers).max(initial=0)) for numbers in (boxes, *paths))
    if largest >= NO_PIXEL or any(_counts_time(box, path) for box, path in doubtful):
        yield Kind.TIMES
    elif ((boxes >= low) & (boxes <= high)).all(axis=1).any() or any(_is_normalised(*pair) for pair in doubtful):
        yield Kind.NORMALISED
    elif any(_is_xywh(box, path[0]) for box, path in doubtful):
        yield Kind.XYWH
    elif any(_starts_swapped(box, path[0]) for box, path in doubtful):
        yield Kind.SWAPPED
    elif doubtful and _is_reordered(boxes, paths):
        yield Kind.ORDER


def _kinds_by_picture(sample: Sample, height: int, width: int) -> Iterator[Kind]:
    """What becomes visible beside the picture's size."""
    size = np.array([width, height])
    pairs = list(zip(sample.boxes_N4, sample.trajectories, strict=True))
    if not all(_fits(box, path, size) for box, path in pairs):
        if any(_fits_badly(box, path, size) for box, path in pairs) and all(
            _fits(box[[1, 0, 3, 2]], path[:, ::-1], size) for box, path in pairs
        ):
            yield Kind.SWAPPED
            return
        if any((_way_outside(_centres(box, path), size) > np.minimum(size, FAR_PX)).any() for box, path in pairs):
            yield Kind.FAR
    if any(_starts_far_off(box, path[0], size) for box, path in _not_centred(sample)):
        yield Kind.OFF_BOX


def _not_centred(sample: Sample) -> list[tuple[Floats, Floats]]:
    """The boxes and paths of which the path does not start at the box's centre. In a usual row there are none."""
    boxes, paths = sample.boxes_N4, sample.trajectories
    middles = ((boxes[:, :2] + boxes[:, 2:]) / 2).tolist()
    starts = [path[0].tolist() for path in paths]
    return [
        (boxes[n], paths[n])
        for n, ((x, y), (start_x, start_y)) in enumerate(zip(middles, starts, strict=True))
        if abs(x - start_x) > CENTRED_PX or abs(y - start_y) > CENTRED_PX
    ]


def _is_normalised(box: Floats, path: Floats) -> bool:
    """Whether a path is one of shares: not one of offsets, which starts at 0, nor one that stands still."""
    low, high = NORMALISED_RANGE
    in_range = bool(((path >= low) & (path <= high)).all())
    return in_range and path[0].any() and bool(np.ptp(path, axis=0).any()) and not _inside(path[0], box)


def _counts_time(box: Floats, path: Floats) -> bool:
    """Whether one column counts evenly from elsewhere than the box, while the other starts at the box."""
    if len(path) < 3 or not path[0].any():
        return False
    steps = np.diff(path, axis=0)
    for column in (0, 1):
        start, step = path[0, column], steps[0, column]
        is_even = step > 0 and np.allclose(steps[:, column], step, rtol=0.02)
        counts = is_even and (start in (0, 1) or step == 1)
        if counts and not _in_extent(start, box) and _in_extent(path[0, 1 - column], box):
            return True
    return False


def _in_extent(value: float, box: Floats) -> bool:
    """Whether a coordinate is one of the box, along any axis."""
    return bool(box[0] <= value <= box[2] or box[1] <= value <= box[3])


def _is_xywh(box: Floats, start: Floats) -> bool:
    centre = box[:2] + box[2:] / 2
    near = max(1.5, 0.02 * float(box[2:].max()))
    distance, own = _distance(start, centre), _distance(start, (box[:2] + box[2:]) / 2)
    return distance <= near and own > max(3.0, 3 * distance)


def _starts_swapped(box: Floats, start: Floats) -> bool:
    """Whether the path starts at the box's centre only after x and y are swapped in one of them."""
    centre = (box[:2] + box[2:]) / 2
    return not _inside(start, box) and _distance(start[::-1], centre) <= (box[2:] - box[:2]).min() / 4


def _is_reordered(boxes_N4: Floats, paths: tuple[Floats, ...]) -> bool:
    """Whether two paths or more start at the centre of another box, and no two at the same."""
    if len(paths) < 2:
        return False
    starts_N2 = np.array([path[0] for path in paths])
    centres_N2 = (boxes_N4[:, :2] + boxes_N4[:, 2:]) / 2
    distances_NN = np.linalg.norm(starts_N2[:, None] - centres_N2[None], axis=-1)
    nearest_N = distances_NN.argmin(axis=1)
    is_near = distances_NN.min(axis=1) <= (boxes_N4[nearest_N, 2:] - boxes_N4[nearest_N, :2]).min(axis=1) / 4
    moved = [n for n, other in enumerate(nearest_N) if other != n and not _inside(starts_N2[n], boxes_N4[n])]
    return len(moved) >= 2 and bool(is_near.all()) and len(set(nearest_N.tolist())) == len(paths)


def _fits(box: Floats, path: Floats, size: Floats) -> bool:
    """Whether the box, in frame 0, and its centre, in every frame, are inside the picture; a pixel over is inside."""
    ends = np.concatenate([box.reshape(2, 2), _centres(box, path)])
    return bool((_way_outside(ends, size) <= 1).all())


def _fits_badly(box: Floats, path: Floats, size: Floats) -> bool:
    """Whether a good part of the box is outside in frame 0, or its centre goes far beyond the border."""
    inside = np.clip(box, 0, np.tile(size, 2))
    share = np.prod(inside[2:] - inside[:2]) / np.prod(box[2:] - box[:2])
    way = _way_outside(_centres(box, path), size).max(axis=0)
    return bool(share < 1 - OUTSIDE_SHARE or (way > np.maximum(box[2:] - box[:2], OUTSIDE_WAY * size)).any())


def _centres(box: Floats, path: Floats) -> Floats:
    """[P, 2]: the box's centre at each point of its path."""
    centres: Floats = (box[:2] + box[2:]) / 2 + path - path[0]
    return centres


def _way_outside(points_P2: Floats, size: Floats) -> Floats:
    """[P, 2]: pixels beyond the border, in x and in y; 0 inside."""
    outside: Floats = np.maximum(np.maximum(-points_P2, points_P2 - size), 0)
    return outside


def _starts_far_off(box: Floats, start: Floats, size: Floats) -> bool:
    """Whether a path starts at another place of the picture than its box. Offsets, which start at 0, do not count."""
    distance = _distance(start, (box[:2] + box[2:]) / 2)
    diagonal, box_diagonal = float(np.hypot(*size)), float(np.hypot(*(box[2:] - box[:2])))
    return bool(start.any()) and distance > max(diagonal / 4, 2 * box_diagonal)


def _has_small_box(sample: Sample, scale: tuple[float, float]) -> bool:
    """scale: pixels of the video for one of the picture, in x and in y."""
    sides_N2 = (sample.boxes_N4[:, 2:] - sample.boxes_N4[:, :2]) * np.array(scale)
    return bool((sides_N2 < CELL_PX).any())


def _inside(point: Floats, box: Floats) -> bool:
    return bool((point >= box[:2]).all() and (point <= box[2:]).all())


def _distance(one: Floats, other: Floats) -> float:
    return float(np.linalg.norm(one - other))
