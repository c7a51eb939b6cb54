"""Videos whose truth is known, and what every metric says of them.

    python -m tests.sgi2v.metrics.made_up

prints the table of docs/metrics.md. A patterned square is asked to go 12 px a frame to the right and 4 px down, over a
patterned ground; another one is held. The videos are as a user gets them: after the mp4 round trip.

Axes: T frames, H W pixels, C colours; 2 is xy, 4 is xyxy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sgi2v.metrics import measure
from sgi2v.tracking import load_tracker
from sgi2v.trajectory import BoxTracks
from sgi2v.video import Frames, decode_mp4, encode_mp4

T, H, W = 14, 256, 448
STEP = (12, 4)
BOX, HELD = (60, 60, 108, 108), (300, 180, 348, 228)
COLUMNS = (
    *("objmc_px", "control_gain", "endpoint_error_px", "direction_cosine", "track_box_iou", "failure", "identity"),
    *("visible_fraction", "round_trip_px", "objmc_nulls_frozen_px", "static_objmc_px", "null_reason"),
    *("background_change", "background_motion_px", "bg_object_distance_px", "still_drift_px"),
    *("background_null_reason", "first_frame_psnr_db", "flicker", "mean_flow_px"),
)


def pattern(seed: int, height: int, width: int, cell: int, low: int = 40, high: int = 220) -> Frames:
    """A smooth random pattern whose details are `cell` pixels wide."""
    coarse_HWC = np.random.default_rng(seed).integers(low, high, (height // cell, width // cell, 3), np.uint8)
    return np.asarray(cv2.resize(coarse_HWC, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8)


GROUND = pattern(0, 2 * H, 2 * W, 10, 60, 200)
"""Twice as large as the frames, so that a camera can pan over it."""
SMOOTH = pattern(3, 2 * H, 2 * W, 160, 90, 170)
OTHER = pattern(7, 2 * H, 2 * W, 16, 20, 240)
THING, HELD_THING = pattern(1, 48, 48, 8), pattern(2, 48, 48, 8)


def scene(
    step: tuple[int, int] = STEP,
    pan: tuple[int, int] = (0, 0),
    drift: tuple[int, int] = (0, 0),
    ground: Frames = GROUND,
    thing: Frames = THING,
    corner: tuple[int, int] = BOX[:2],
) -> Frames:
    """The square on its way. pan, drift: steps per frame of the ground and of the held square, pixels xy."""
    frames = []
    for t in range(T):
        left, top = W // 2 - pan[0] * t, H // 2 - pan[1] * t
        frame_HWC = ground[top : top + H, left : left + W].copy()
        _paste(frame_HWC, HELD_THING, HELD[0] + drift[0] * t, HELD[1] + drift[1] * t)
        _paste(frame_HWC, thing, corner[0] + step[0] * t, corner[1] + step[1] * t)
        frames.append(frame_HWC)
    return np.stack(frames)


def _paste(frame_HWC: Frames, thing_HWC: Frames, x: int, y: int) -> None:
    part_HWC = frame_HWC[max(y, 0) : max(y + thing_HWC.shape[0], 0), max(x, 0) : max(x + thing_HWC.shape[1], 0)]
    part_HWC[:] = thing_HWC[max(-y, 0) :, max(-x, 0) :][: part_HWC.shape[0], : part_HWC.shape[1]]


def asked(box: tuple[int, int, int, int] = BOX, step: tuple[int, int] = STEP) -> BoxTracks:
    """The square's path, and the held square."""
    path_T2 = np.arange(T)[:, None] * np.array(step, float)
    tracks = BoxTracks.from_paths(np.array([box, HELD], float), [path_T2, np.zeros((2, 2))], T, H, W)
    return BoxTracks(tracks.boxes_NT4, H, W, np.array([False, True]))


def _with(frames_THWC: Frames, start: int, frame_HWC: Frames) -> Frames:
    """The video with one picture from frame `start` on."""
    return np.concatenate([frames_THWC[:start], np.repeat(frame_HWC[None], T - start, axis=0)])


def _stained() -> Frames:
    """The square follows, and a patch of the ground slowly turns brighter."""
    frames_THWC = scene().astype(np.int16)
    for t in range(T):
        frames_THWC[t, 170:230, 40:160] += 6 * t
    return np.clip(frames_THWC, 0, 255).astype(np.uint8)


def _smooth(pan: tuple[int, int]) -> Frames:
    return scene(ground=SMOOTH, pan=pan)


def videos() -> dict[str, tuple[Frames, BoxTracks]]:
    """The videos by name, each with what was asked."""
    gone_HWC = scene(corner=(2 * W, 2 * H))[0]  # without the square
    tiny = (60, 60, 62, 62)
    wide = BoxTracks.from_paths(np.array([[0, 0, W, H]], float), [np.arange(T)[:, None] * [[6.0, 0.0]]], T, H, W)
    return {
        "perfect": (scene(), asked()),
        "frozen": (scene((0, 0)), asked()),
        "panned along": (scene(STEP, STEP, STEP), asked()),
        "swapped x and y": (scene((4, 12), corner=BOX[:2]), asked()),
        "object vanished": (_with(scene(), 1, gone_HWC), asked()),
        "cut to another scene": (_with(scene(), 7, OTHER[:H, :W]), asked()),
        "2 px object": (scene(thing=pattern(1, 4, 4, 2)[:2, :2]), asked(tiny)),
        "stained": (_stained(), asked()),
        "held one drifts": (scene(drift=(-3, 0)), asked()),
        "smooth ground": (_smooth((0, 0)), asked()),
        "smooth ground pans": (_smooth((3, 1)), asked()),
        "white box": (scene((0, 0), thing=np.full((48, 48, 3), 255, np.uint8)), asked()),
        "60 px a frame": (scene((60, 0), corner=(0, 60)), asked((0, 60, 48, 108), (60, 0))),
        "camera, as asked": (scene((6, 0), (6, 0), (6, 0)), wide),
    }


def values(frames_THWC: NDArray[np.uint8], tracks: BoxTracks) -> Mapping[str, Any]:
    """What every metric says of a video, after the mp4 round trip."""
    delivered_THWC = decode_mp4(encode_mp4(frames_THWC, fps=7))
    return measure(delivered_THWC, frames_THWC[0], tracks, load_tracker("lucas-kanade"))


def main() -> None:
    """Print the table."""
    rows = {name: values(*video) for name, video in videos().items()}
    print("| metric |", " | ".join(rows), "|")
    print("| --- |", " | ".join("---" for _ in rows), "|")
    for column in COLUMNS:
        print(f"| `{column}` |", " | ".join(_shown(row[column]) for row in rows.values()), "|")


def _shown(value: float | str | None) -> str:
    return "" if value is None else value if isinstance(value, str) else f"{value:.2f}"


if __name__ == "__main__":
    main()
