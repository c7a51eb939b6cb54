"""Error of measured labels, in pixels, on videos made by formula, whose tracks are known exactly.

    python -m tests.benchmarks.label_error

A square of waves goes over a ground of other waves, by fractions of a pixel and in no direction of the pixel grid, for
14 frames of 576 x 1024 px. It is measured as a user gets it: after the mp4 round trip. The table has the distance of
the measured centre from the true one over all frames but the first: mean, 95th percentile and largest, over the sizes.

Axes: T frames, H W pixels, C colours; 2 is xy, 4 is xyxy.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

import numpy as np

from pipeline.output.labels import labels_of
from sgi2v.metrics import follow_boxes
from sgi2v.tracking import load_tracker
from sgi2v.tracking.tracker import PointTracker
from sgi2v.trajectory import BoxTracks, Floats
from sgi2v.video import Frames, decode_mp4, encode_mp4

T, H, W = 14, 576, 1024
SIDES_PX = (26.0, 48.0, 96.0, 200.0)
STEPS_PX = (0.4, 1.3, 4.2, 8.7, 12.3, 20.6, 30.4, 35.0)
DIRECTION = np.deg2rad(25)
WAVES = 24


def waves(seed: int, longest_px: float) -> Callable[[Floats, Floats], Floats]:
    """A picture as a function of place: a sum of waves of 5 px to `longest_px`, in all directions, [..., C]."""
    draw = np.random.default_rng(seed)
    lengths_px = np.geomspace(5.0, longest_px, WAVES)
    angles, phases = draw.uniform(0, 2 * np.pi, WAVES), draw.uniform(0, 2 * np.pi, (WAVES, 3))
    colours = draw.uniform(0.3, 1.0, (WAVES, 3)) * np.sqrt(lengths_px)[:, None]

    def picture(x: Floats, y: Floats) -> Floats:
        total = np.zeros((*np.broadcast(x, y).shape, 3))
        for length_px, angle, phase, colour in zip(lengths_px, angles, phases, colours, strict=True):
            place = 2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / length_px
            total += colour * np.cos(place[..., None] + phase)
        return np.asarray(127 + 45 * total / np.sqrt((colours**2).sum(axis=0) / 2))

    return picture


def video(boxes_T4: Floats, height: int, width: int) -> Frames:
    """A square that lies in these boxes, uint8 [T, H, W, C]. The edges of a box may lie anywhere in a pixel."""
    y_H, x_W = np.arange(height, dtype=float), np.arange(width, dtype=float)
    ground_HWC = waves(0, 120)(x_W[None] + 0.5, y_H[:, None] + 0.5)
    thing = waves(1, 24)
    frames_THWC = np.empty((len(boxes_T4), height, width, 3), np.uint8)
    for frame_HWC, (x0, y0, x1, y1) in zip(frames_THWC, boxes_T4, strict=True):
        shown_HWC = ground_HWC.copy()
        rows = slice(max(int(y0), 0), min(int(np.ceil(y1)), height))
        columns = slice(max(int(x0), 0), min(int(np.ceil(x1)), width))
        covered_H = np.clip(np.minimum(y_H[rows] + 1, y1) - np.maximum(y_H[rows], y0), 0, 1)
        covered_W = np.clip(np.minimum(x_W[columns] + 1, x1) - np.maximum(x_W[columns], x0), 0, 1)
        share_HW1 = (covered_H[:, None] * covered_W[None])[..., None]
        thing_HWC = thing(x_W[None, columns] + 0.5 - x0, y_H[rows, None] + 0.5 - y0)
        shown_HWC[rows, columns] += share_HW1 * (thing_HWC - shown_HWC[rows, columns])
        frame_HWC[:] = np.clip(np.rint(shown_HWC), 0, 255)
    return frames_THWC


def errors_px(
    tracker: PointTracker, side_px: float, step_px: float, height: int = H, width: int = W, num_frames: int = T
) -> Floats | None:
    """Distance of each measured centre from the true one, frame 0 left out. None: the box is not measured."""
    step_2 = step_px * np.array([np.cos(DIRECTION), np.sin(DIRECTION)])
    path_T2 = np.arange(num_frames)[:, None] * step_2
    corner_2 = (np.array([width, height]) - path_T2[-1] - side_px) / 2
    box_14 = np.concatenate([corner_2, corner_2 + side_px])[None]
    tracks = BoxTracks.from_paths(box_14, [path_T2], num_frames, height, width)
    frames_THWC = decode_mp4(encode_mp4(video(tracks.boxes_NT4[0], height, width), fps=7))
    (label,) = labels_of(*follow_boxes(frames_THWC, tracks, tracker), tracker, (0, 0))
    if label["null_reason"] is not None:
        return None
    measured_T2 = np.array([centre or [np.nan] * 2 for centre in label["measured_centres"]])
    errors_T = np.linalg.norm(measured_T2 - tracks.centres_NT2[0], axis=-1)[1:]
    return np.asarray(errors_T[np.isfinite(errors_T)])


def line(step_px: float, cells: Sequence[Floats | None]) -> str:
    """A row of the table. cells: the errors of each size."""
    measured = [cell for cell in cells if cell is not None]
    pooled = np.concatenate([*measured, []])
    values = f"{pooled.mean():.3f} | {np.percentile(pooled, 95):.3f} | {pooled.max():.3f}" if len(pooled) else " | | "
    return f"| {step_px:g} | {values} | {len(measured)} of {len(cells)} |"


HEAD = "| px a frame | mean px | 95th percentile px | largest px | boxes measured |\n| --- | --- | --- | --- | --- |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tracker", nargs="?", default="lucas-kanade", help="name in sgi2v.tracking.TRACKERS")
    tracker = load_tracker(parser.parse_args().tracker)
    print(HEAD)
    for step_px in STEPS_PX:
        print(line(step_px, [errors_px(tracker, side_px, step_px) for side_px in SIDES_PX]), flush=True)


if __name__ == "__main__":
    main()
