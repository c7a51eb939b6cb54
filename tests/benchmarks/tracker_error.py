"""Error of a point tracker, in pixels, on photographs that move by a known amount.

    python -m tests.benchmarks.tracker_error

A photograph is resized to the frame's size plus a margin, with sides that are multiples of 64 for a fast transform. It
is shifted by phase in the Fourier domain, which is exact for fractions of a pixel. The frame is its middle. Queries are
a grid over the frame. A point counts while its true position is well inside the frame. `delivered` measures the same
frames after encoding to mp4 and decoding.

Axes: T frames, H W pixels, C colours, Q query points; 2 is xy.
"""

from __future__ import annotations

import argparse
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sgi2v.tracking import load_tracker
from sgi2v.tracking.tracker import PointTracker
from sgi2v.video import decode_mp4, encode_mp4

NUM_FRAMES = 14
SIZES = ((576, 1024), (128, 192), (64, 64))
PHOTOGRAPHS = ("chelsea", "astronaut")
STEPS_PX = ((0.37, 0.21), (1.3, -0.45), (-2.7, 1.1), (3.6, 2.2))
"""Shifts per frame, xy."""


class TrackerError(NamedTuple):
    """Errors over all counted points and frames, and the share of them that the tracker lost."""

    mean_px: float
    p95_px: float
    lost: float


@cache
def moving_photograph(name: str, height: int, width: int, step_px: tuple[float, float]) -> NDArray[np.uint8]:
    """A scikit-image photograph that shifts by `step_px` each frame, uint8 [T, H, W, 3]."""
    import cv2
    import skimage.data

    photograph = getattr(skimage.data, name)()
    travel = int(np.ceil(np.abs(step_px).max() * (NUM_FRAMES - 1)))
    margin = travel + 16
    scale = max((height + 2 * margin) / photograph.shape[0], (width + 2 * margin) / photograph.shape[1])
    still_height, still_width = (int(np.ceil(side * scale / 64)) * 64 for side in photograph.shape[:2])
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    still_HWC = cv2.resize(photograph, (still_width, still_height), interpolation=interpolation)
    spectrum = np.fft.rfft2(still_HWC.astype(np.float32), axes=(0, 1))
    frequency_y = np.fft.fftfreq(still_HWC.shape[0])[:, None, None]
    frequency_x = np.fft.rfftfreq(still_HWC.shape[1])[None, :, None]
    top, left = (still_HWC.shape[0] - height) // 2, (still_HWC.shape[1] - width) // 2
    frames = []
    for t in range(NUM_FRAMES):
        phase = np.exp(-2j * np.pi * t * (frequency_x * step_px[0] + frequency_y * step_px[1])).astype(np.complex64)
        shifted = np.fft.irfft2(spectrum * phase, s=still_HWC.shape[:2], axes=(0, 1))
        frames.append(shifted[top : top + height, left : left + width])
    return np.clip(np.rint(np.stack(frames)), 0, 255).astype(np.uint8)


def measure(tracker: PointTracker, height: int, width: int, *, delivered: bool) -> TrackerError:
    """Error of a tracker at one frame size, over all photographs and steps. delivered: after the mp4 round trip."""
    grid_x, grid_y = np.meshgrid(np.linspace(0.1, 0.9, 12) * width, np.linspace(0.1, 0.9, 12) * height)
    queries_Q2 = np.stack([grid_x.ravel(), grid_y.ravel()], axis=-1)
    errors, lost = [], []
    for name in PHOTOGRAPHS:
        for step_px in STEPS_PX:
            frames_THWC = moving_photograph(name, height, width, step_px)
            if delivered:
                frames_THWC = decode_mp4(encode_mp4(frames_THWC, fps=7))
            truth_TQ2 = queries_Q2 + np.arange(NUM_FRAMES)[:, None, None] * np.array(step_px)
            tracks = tracker.track(frames_THWC, queries_Q2)
            border = 4
            counted_TQ = ((truth_TQ2 >= border) & (truth_TQ2 <= np.array([width, height]) - border)).all(axis=-1)
            counted_TQ[0] = False
            error_TQ = np.linalg.norm(tracks.points_TQ2 - truth_TQ2, axis=-1)
            errors.append(error_TQ[counted_TQ & tracks.visible_TQ])
            lost.append(~tracks.visible_TQ[counted_TQ])
    pooled = np.concatenate(errors)
    return TrackerError(pooled.mean(), np.percentile(pooled, 95), np.concatenate(lost).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tracker", nargs="?", default="lucas-kanade", help="name in sgi2v.tracking.TRACKERS")
    tracker = load_tracker(parser.parse_args().tracker)
    print(f"{tracker.name} {tracker.version}")
    print(f"{'frame':>10}  {'video':>9}  {'mean px':>7}  {'p95 px':>7}  {'lost':>6}")
    for height, width in SIZES:
        for delivered in (False, True):
            error = measure(tracker, height, width, delivered=delivered)
            video = "delivered" if delivered else "exact"
            size = f"{height}x{width}"
            print(f"{size:>10}  {video:>9}  {error.mean_px:7.3f}  {error.p95_px:7.3f}  {error.lost:6.1%}")


if __name__ == "__main__":
    main()
