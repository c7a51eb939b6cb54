"""What of a scene the boxes leave alone: whether the camera is asked to move, and the latent cells clear of all paths.

Axes: N boxes, T frames, h w latent cells; 2 is xy, 4 is xyxy.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sgi2v.trajectory import BoxTracks

CAMERA_AREA = 0.5
"""A box that covers this share of the frame or more asks the camera to move."""
CAMERA_SHARE = 0.05
"""Boxes share one path, the camera's, where their displacements differ by less than this share of it, or by 1 px."""
CLEAR_SHARE = 0.25
"""The boxes cover the scene where less than this share of its cells is clear of their paths."""
MARGIN = 1
"""Cells around a path that are not clear of it."""


def asked(tracks: BoxTracks) -> BoxTracks:
    """The boxes that are asked to follow their paths, without those that are only held."""
    if tracks.still_N is None:
        return tracks
    masks_NHW = None if tracks.masks_NHW is None else tracks.masks_NHW[~tracks.still_N]
    return replace(tracks, boxes_NT4=tracks.boxes_NT4[~tracks.still_N], still_N=None, masks_NHW=masks_NHW)


def asks_camera(tracks: BoxTracks) -> bool:
    """Whether the paths ask the camera to move: by a box of half the frame, or by several boxes that share one path."""
    moving = asked(tracks)
    moving_NT2 = moving.centres_NT2 - moving.centres_NT2[:, :1]
    length_px = float(np.linalg.norm(moving_NT2, axis=-1).max(initial=0.0))
    sides_N2 = moving.boxes_NT4[:, 0, 2:] - moving.boxes_NT4[:, 0, :2]
    if (sides_N2.prod(axis=-1) >= CAMERA_AREA * tracks.height * tracks.width).any():
        return True
    if len(moving_NT2) < 2 or length_px < 1:
        return False
    spread_px = float(np.linalg.norm(moving_NT2 - moving_NT2[:1], axis=-1).max())
    return spread_px <= max(1.0, CAMERA_SHARE * length_px)


def clear_cells(tracks: BoxTracks, height: int, width: int, cell_px: int) -> NDArray[np.bool_]:
    """[h, w]: the latent cells that no asked box comes near on its way; none where the scene itself is asked to move.

    tracks: boxes in pixels, clipped to frame 0. height, width: latent cells of `cell_px` pixels a side. The scene
    itself moves where the camera does, and where the boxes leave less than CLEAR_SHARE of the cells clear.
    """
    boxes_NT4 = asked(tracks).cells(cell_px)
    is_clear_hw = np.ones((height, width), np.bool_)
    # between two frames a box covers what lies between its places, too
    low_M2 = np.minimum(boxes_NT4[:, :-1, :2], boxes_NT4[:, 1:, :2]).reshape(-1, 2) - MARGIN
    high_M2 = np.maximum(boxes_NT4[:, :-1, 2:], boxes_NT4[:, 1:, 2:]).reshape(-1, 2) + MARGIN
    for (x0, y0), (x1, y1) in zip(low_M2.clip(0), high_M2.clip(0), strict=True):
        is_clear_hw[y0:y1, x0:x1] = False
    if asks_camera(tracks) or not len(boxes_NT4) or is_clear_hw.mean() < CLEAR_SHARE:
        return np.zeros_like(is_clear_hw)
    return is_clear_hw
