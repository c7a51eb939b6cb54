"""Which followers a tracker loses: objects that follow their paths exactly, by size and speed.

    python -m tests.benchmarks.followers

A patterned square goes over a patterned ground of 576 x 1024 px, exactly on its path, for 14 frames, as a user gets it:
after the mp4 round trip. Each cell of the map: `right` if its error is at most 5 % of the path's length or 1 px and the
frozen video's gain is 0; else `wrong`; or the reason for which it is null. Below: the tracker's error in pixels, over
the objects that are measured at each speed.

Axes: T frames, H W pixels, C colours; 2 is xy, 4 is xyxy.
"""

from __future__ import annotations

import argparse
from typing import NamedTuple

import cv2
import numpy as np

from sgi2v.metrics import MotionFidelity, motion_fidelity
from sgi2v.tracking import load_tracker
from sgi2v.tracking.tracker import PointTracker
from sgi2v.trajectory import BoxTracks
from sgi2v.video import Frames, decode_mp4, encode_mp4

T, H, W = 14, 576, 1024
SIDES_PX = (4, 8, 12, 16, 24, 32, 48, 96, 200)
STEPS_PX = (1, 4, 8, 12, 20, 30, 40)


class Cell(NamedTuple):
    """What was measured of one size and speed."""

    follows: MotionFidelity
    frozen: MotionFidelity
    length_px: float
    """Of the path."""

    @property
    def text(self) -> str:
        """How it looks in the map."""
        if self.follows.objmc_px is None:
            return str(self.follows.null_reason)
        is_right = self.follows.objmc_px <= max(0.05 * self.length_px, 1.0)
        frozen_gain = self.frozen.control_gain
        return "right" if is_right and (frozen_gain is None or abs(frozen_gain) < 0.1) else "wrong"


def measure(tracker: PointTracker, side_px: int, step_px: int) -> Cell:
    """Draw one follower and its frozen video, and measure them."""
    way_px = step_px * (T - 1)
    start = ((W - way_px - side_px) // 2, (H - side_px) // 2)
    ground_HWC, thing_HWC = _pattern(0, H, W, 8, 60, 200), _pattern(1, side_px, side_px, min(8, max(2, side_px // 4)))
    frames_THWC = np.repeat(ground_HWC[None], T, axis=0)
    for t, frame_HWC in enumerate(frames_THWC):
        x, y = start[0] + step_px * t, start[1]
        frame_HWC[y : y + side_px, x : x + side_px] = thing_HWC
    box_14 = np.array([[*start, start[0] + side_px, start[1] + side_px]], float)
    tracks = BoxTracks.from_paths(box_14, [np.array([[0, 0], [way_px, 0]], float)], T, H, W)
    videos = (frames_THWC, np.repeat(frames_THWC[:1], T, axis=0))
    delivered = (decode_mp4(encode_mp4(video, fps=7)) for video in videos)
    return Cell(*(motion_fidelity(video, tracks, tracker) for video in delivered), way_px)


def _pattern(seed: int, height: int, width: int, cell: int, low: int = 40, high: int = 220) -> Frames:
    shape = (max(height // cell, 2), max(width // cell, 2), 3)
    coarse_HWC = np.random.default_rng(seed).integers(low, high, shape, np.uint8)
    return np.asarray(cv2.resize(coarse_HWC, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


def main() -> None:
    """Print the map and the errors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tracker", nargs="?", default="lucas-kanade", help="name in sgi2v.tracking.TRACKERS")
    tracker = load_tracker(parser.parse_args().tracker)
    cells = {(side, step): measure(tracker, side, step) for side in SIDES_PX for step in STEPS_PX}
    print("| side | " + " | ".join(f"{step} px a frame" for step in STEPS_PX) + " |")
    print("| --- |" + " --- |" * len(STEPS_PX))
    for side in SIDES_PX:
        print(f"| {side} px | " + " | ".join(cells[side, step].text for step in STEPS_PX) + " |")
    errors = [[px for side in SIDES_PX if (px := cells[side, step].follows.objmc_px) is not None] for step in STEPS_PX]
    print("| error | " + " | ".join(f"{np.mean(px):.2f}, at most {max(px):.2f}" if px else "" for px in errors) + " |")


if __name__ == "__main__":
    main()
