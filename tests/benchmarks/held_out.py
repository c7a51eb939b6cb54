"""Held-out samples of the embedded checkpoint's world, and how objects are found in its videos.

Neither the autoencoder nor the U-Net was trained on these scenes. The target path of a sample is random; it stays in
the frame and away from the other objects. Settings are tuned on the dev split and compared on the test split. Final
figures come from the final split, and those of scenes with and without a second object from the scene split, in which
every other picture has one.

Axes: T frames, H W pixels, C colours; 2 is xy, 4 is xyxy.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

import cv2
import numpy as np

from sgi2v.trajectory import BoxTracks
from sgi2v.video import Frames
from tools.tiny.architecture import NUM_FRAMES
from tools.tiny.world import SIDE, Floats, Motion, Scene, draw_scene

TARGET_PX = (8.0, 24.0)
"""Shortest and longest target path."""
TIMES_T = np.linspace(0, 1, NUM_FRAMES)
PADDING = 12
"""How far beyond the frame an object is searched for, pixels."""


class Split(IntEnum):
    """World seeds of the splits. The training uses lower ones."""

    DEV = 300
    TEST = 400
    FINAL = 500
    SCENE = 600


@dataclass(frozen=True)
class HeldOut:
    """A picture, and the path that its first object is asked to follow."""

    scene: Scene
    """The first object on its target path, all else at rest."""

    @property
    def image(self) -> Frames:
        """The first frame, [H, W, C]."""
        return self.scene.render(TIMES_T[:1])[0]

    @property
    def tracks(self) -> BoxTracks:
        """Target box of the first object in each frame."""
        return BoxTracks(self.scene.boxes_NT4(TIMES_T)[:1], SIDE, SIDE)

    @property
    def tracks_of_all(self) -> BoxTracks:
        """Target boxes of all objects. Those after the first stay in place."""
        return BoxTracks(self.scene.boxes_NT4(TIMES_T), SIDE, SIDE)

    @property
    def tracks_with_still(self) -> BoxTracks:
        """The same, in which all boxes after the first are marked as held: for metrics."""
        tracks = self.tracks_of_all
        return replace(tracks, still_N=np.arange(tracks.num_boxes) > 0)

    @property
    def displacement_2(self) -> Floats:
        """Displacement of the target path, pixels."""
        start_2, end_2 = self.scene.sprites[0].path_22
        return end_2 - start_2

    @property
    def masks_NHW(self) -> Floats:
        """How much of each pixel of the first frame each object covers."""
        return self.scene.masks_NTHW(TIMES_T[:1])[:, 0]

    @property
    def mask_HW(self) -> Floats:
        """How much of each pixel of the first frame the first object covers."""
        return self.masks_NHW[0]

    def projection(self, track: ObjectTrack) -> float:
        """The object's displacement projected on the target's: 1 if it follows, 0 if it stays."""
        target_2 = self.displacement_2
        return float(track.displacements_T2[-1] @ target_2 / (target_2 @ target_2))


def draw_held_out(split: Split, index: int) -> HeldOut:
    """The sample of a split with this index."""
    scene = draw_scene(split, index, Motion.OBJECT)
    if split is Split.SCENE and len(scene.sprites) != 1 + index % 2:
        return draw_held_out(split, index + 1_000_000)
    rng = np.random.default_rng([split, index, 1])
    start_2, radius = scene.sprites[0].path_22[0], scene.sprites[0].radius
    for _ in range(1000):
        angle, length = rng.uniform(0, 2 * np.pi), rng.uniform(*TARGET_PX)
        end_2 = start_2 + length * np.array([np.cos(angle), np.sin(angle)])
        target = scene.with_path(np.stack([start_2, end_2]))
        is_inside = (end_2 >= radius).all() and (end_2 <= SIDE - radius).all()
        if is_inside and not target.sprites_touch and has_distinct_looks(scene):
            return HeldOut(target)
    return draw_held_out(split, index + 1_000_000)


def has_distinct_looks(scene: Scene) -> bool:
    """Whether the first object's colours differ from those of all other objects."""
    first, *others = scene.sprites
    return all(np.abs(first.colours_2C - other.colours_2C).max() > 0.1 for other in others)


@dataclass(frozen=True)
class ObjectTrack:
    """Where the object of the first frame is in every frame, found by its looks."""

    displacements_T2: Floats
    """Displacement from the first frame, pixels."""
    errors_T: Floats
    """Root mean square difference to the object in the first frame, 8-bit levels."""


def find_object(frames_THWC: Frames, mask_HW: Floats) -> ObjectTrack:
    """Find the object that the mask covers in the first frame in all frames, by template matching."""
    ys, xs = np.nonzero(mask_HW > 0.5)
    y0, y1, x0, x1 = ys.min(), ys.max() + 1, xs.min(), xs.max() + 1
    template = frames_THWC[0, y0:y1, x0:x1].astype(np.float32)
    weight = np.repeat((mask_HW[y0:y1, x0:x1] > 0.5)[..., None], 3, axis=2).astype(np.float32)
    places, errors = [], []
    for frame_HWC in frames_THWC:
        wide = cv2.copyMakeBorder(frame_HWC, *[PADDING] * 4, cv2.BORDER_REPLICATE).astype(np.float32)
        cost = cv2.matchTemplate(wide, template, cv2.TM_SQDIFF, mask=weight)
        _, _, (left, top), _ = cv2.minMaxLoc(cost)
        at = np.array([left + _vertex(cost[top], left), top + _vertex(cost[:, left], top)])
        places.append(at - PADDING - np.array([x0, y0]))
        errors.append(np.sqrt(max(0.0, float(cost[top, left])) / weight.sum()))
    return ObjectTrack(np.stack(places) - places[0], np.array(errors))


def _vertex(cost: Floats, at: int) -> float:
    """Offset from the lowest value to the vertex of the parabola through it and its neighbours, pixels."""
    if not 0 < at < len(cost) - 1:
        return 0.0
    before, lowest, after = (float(value) for value in cost[at - 1 : at + 2])
    curvature = before - 2 * lowest + after
    return 0.5 * (before - after) / curvature if curvature > 0 else 0.0


def error_when_absent(scene: Scene, frame_HWC: Frames, mask_HW: Floats, time: float = 0.0) -> float:
    """The error of `find_object` in a frame without the first object, 8-bit levels.

    frame_HWC: the frame that shows the object. time: the scene's time in that frame.
    """
    without_HWC = replace(scene, sprites=scene.sprites[1:]).render(np.array([time]))[0]
    return float(find_object(np.stack([frame_HWC, without_HWC]), mask_HW).errors_T[1])
