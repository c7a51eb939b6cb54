"""Clips of a video, each within one shot, and how the things in its boxes really moved.

Axes: T frames that were tracked, P path points, H W pixels, C the three colours, RGB, Q points; 2 is xy. Pixels of the
video as it is displayed, unless a name ends in `_small`: those are of frames shrunk for the tracker.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import Annotated, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from manifests.boxes.proposer import Proposal
from sgi2v.settings import Settings
from sgi2v.source_video import SourceVideo
from sgi2v.tracking.tracker import PointTracker, PointTracks
from sgi2v.trajectory import Floats
from sgi2v.video import Frames

TRACKED_FPS = 31.0
"""Frames a second that are tracked, at most. The smaller the step, the surer is Lucas-Kanade."""
TRACKED_SIDE = 1024
"""Longer side of the frames that are tracked, pixels, at most."""
CUT = 0.25
"""Share of the pixels whose colour (of 512) changes from one frame to the next, from which that is a cut."""
HISTOGRAM_SIDE = 64
"""Longer side of the frames whose colours are counted, pixels."""
LONGEST_GAP = 2.0
"""Time between two frames of a clip, in frames of the clip, at most."""
TIME_SLACK_S = 1e-3

GRID = 10
"""Points along each side of a box that are tracked."""
GRID_SHARE = 0.8
"""Share of the box's side that they cover. In the corners of a box there is mostly background."""
LEAST_POINTS = 8
"""Points that must be followed through the whole clip."""
RETURN_PX = 2.0
"""A point that is tracked through the clip and back ends at most this far from where it began; small pixels."""
FIT_PX, FIT_SHARE = 2.0, 0.05
"""How far from the common motion a point may be and agree with it: small pixels, and a share of the box's shorter side.
The larger one counts."""
LEAST_AGREEMENT = 0.5
"""Share of the points that must agree with the common motion in every frame."""
BORDER_PX = 12
"""Points that are lost within this distance of the border have left the picture; small pixels."""


class ClipSettings(Settings):
    """How videos are cut into clips, and which of their objects are kept."""

    section: ClassVar[str] = "videos"

    frames: Annotated[int, Field(ge=2, le=1000)] = 14
    """Path points of a clip: frames of the video that will be made."""
    fps: Annotated[float, Field(gt=0, le=120)] = 7.0
    """Frames a second of that video, so a clip lasts (frames - 1) / fps seconds of the source video."""
    clips: Annotated[int, Field(ge=1)] | None = None
    """Clips of one video, at most, spread evenly over it; None: one after the other, as many as fit."""
    objects: Annotated[int, Field(ge=1, le=256)] = 4
    """Boxes of a clip that move, at most, in the proposer's order."""
    min_path: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Smallest distance that an object gets away from its start, as a share of the picture's diagonal."""
    min_zoom: Annotated[float, Field(ge=0)] = 0.1
    """Change of size that counts as motion too: 0.1 is 10 % larger or smaller."""
    height: Annotated[int, Field(ge=1)] = 576
    """Height of the video that will be made, pixels, by which small boxes are left out."""
    width: Annotated[int, Field(ge=1)] = 1024
    """Width of that video, pixels."""

    @property
    def seconds(self) -> float:
        """From a clip's first frame to its last."""
        return (self.frames - 1) / self.fps


@dataclass(frozen=True, eq=False)
class Clip:
    """Frames of one shot."""

    start_s: float
    """Time of its first frame in the video."""
    first_HWC: Frames
    small_THWC: Frames
    times_T: Floats
    """Seconds from the first frame on. The last one is at or after the clip's end."""


class NoClip(NamedTuple):
    """A video, or a part of it, that gives no clip."""

    start_s: float
    code: str
    message: str
    end_s: float
    """Where the next clip may begin."""


def clips_of(video: SourceVideo, settings: ClipSettings) -> Iterator[Clip | NoClip]:
    """The clips of a video in order, none over a cut, and the shots that are too short for one.

    A cut is a jump of the colour histogram from one frame to the next. Dissolves are not found; the tracker loses the
    objects in them. Raises SourceVideoError.
    """
    latest = float(video.times_T[-1]) - settings.seconds + TIME_SLACK_S
    if unusable := _unusable(video, settings):
        yield unusable
        return
    starts = repeat(0.0) if settings.clips is None else _spread(video.times_T, latest, settings.clips)
    free, is_shot_start = 0.0, True  # `free` is the time of a frame
    for earliest in starts:
        if earliest > free:
            free, is_shot_start = earliest, False
        while free <= latest:
            found = _next_clip(video, free, settings)
            if isinstance(found, Clip):
                yield found
                end = found.start_s + settings.seconds - TIME_SLACK_S
                free, is_shot_start = float(video.times_T[np.searchsorted(video.times_T, end)]), False
                break
            if is_shot_start or found.code == "gap":
                yield found
            free, is_shot_start = found.end_s, True
        if free > latest:
            return


def _unusable(video: SourceVideo, settings: ClipSettings) -> NoClip | None:
    """Why no clip of a video can be used."""
    end = float(video.times_T[-1])
    if end + TIME_SLACK_S < settings.seconds:
        what = "has one frame" if len(video.times_T) == 1 else f"is {end:.2f} s long"
        return NoClip(0.0, "video_short", f"it {what}: a clip takes {settings.seconds:.2f} s", end)
    interval = float(np.median(np.diff(video.times_T)))
    if interval > LONGEST_GAP / settings.fps:
        least = settings.fps / LONGEST_GAP
        message = f"it has {1 / interval:.1f} frames a second: give videos with {least:g} or more, or a lower --fps"
        return NoClip(0.0, "video_slow", message, end)
    return None


def _spread(times_T: Floats, latest: float, clips: int) -> Iterator[float]:
    """Times of frames, evenly spread up to the latest start of a clip."""
    wanted = latest * (np.arange(clips) + 0.5) / clips
    yield from times_T[np.searchsorted(times_T, wanted, side="right") - 1].tolist()


def _next_clip(video: SourceVideo, begin: float, settings: ClipSettings) -> Clip | NoClip:
    """The clip that begins with the frame at `begin`; where a shot ends in it, the reason."""
    import cv2

    indices = _tracked_frames(video.times_T, begin, settings.seconds)
    times_T = video.times_T[indices]
    start_s = float(times_T[0])
    share = min(TRACKED_SIDE / max(video.height, video.width), 1.0)
    size = max(round(video.width * share), 1), max(round(video.height * share), 1)
    small: list[Frames] = []
    first_HWC: Frames | None = None
    colours: Floats | None = None
    for t, frame_HWC in enumerate(video.frames(indices)):
        if t and times_T[t] - times_T[t - 1] > LONGEST_GAP / settings.fps:
            message = f"no frame is shown for {times_T[t] - times_T[t - 1]:.2f} s"
            return NoClip(start_s, "gap", message, float(times_T[t]))
        before, colours = colours, _histogram(frame_HWC)
        if before is not None and np.abs(colours - before).sum() / 2 > CUT:
            message = f"the shot is {times_T[t] - start_s:.2f} s long: a clip takes {settings.seconds:.2f} s"
            return NoClip(start_s, "shot_short", message, float(times_T[t]))
        first_HWC = frame_HWC if first_HWC is None else first_HWC
        small.append(frame_HWC if share == 1 else cv2.resize(frame_HWC, size, interpolation=cv2.INTER_AREA))
    assert first_HWC is not None
    return Clip(start_s, first_HWC, np.stack(small), times_T - start_s)


def _tracked_frames(times_T: Floats, begin: float, seconds: float) -> list[int]:
    """Frames from `begin` until the first one at or after the clip's end, TRACKED_FPS at most."""
    index = int(np.searchsorted(times_T, begin - TIME_SLACK_S))
    end = times_T[index] + seconds - TIME_SLACK_S
    indices = [index]
    while times_T[indices[-1]] < end:
        later = int(np.searchsorted(times_T, times_T[indices[-1]] + 1 / TRACKED_FPS))
        indices.append(min(max(later, indices[-1] + 1), len(times_T) - 1))
    return indices


def _histogram(frame_HWC: Frames) -> Floats:
    """Share of the pixels in each of 512 colours."""
    step = max(max(frame_HWC.shape) // HISTOGRAM_SIDE, 1)
    levels_HWC = (frame_HWC[::step, ::step] >> 5).astype(np.int64)
    return np.bincount((levels_HWC @ [64, 8, 1]).ravel(), minlength=512) / levels_HWC[..., 0].size


class Moved(NamedTuple):
    """How the thing in a box moved."""

    path_P2: Floats
    """Of the box's centre, evenly spaced in time. The camera's motion is in it."""
    scale_P: Floats
    """Size relative to the first frame."""


class NotMoved(NamedTuple):
    """Why a box has no path."""

    code: str
    message: str


def follow(
    clip: Clip, proposals: Sequence[Proposal], tracker: PointTracker, settings: ClipSettings
) -> list[Moved | NotMoved]:
    """How the thing in each box moved in the clip, from points inside the box.

    A point counts if the tracker follows it to the last frame and back to where it began. In each frame the points'
    common motion is a turn, a zoom and a shift, fitted by least median of squares, so that points on the background do
    not pull the box. It is sampled at the clip's own times by linear interpolation between frames.
    """
    if not proposals:
        return []
    shrink = np.array(clip.small_THWC.shape[2:0:-1]) / np.array(clip.first_HWC.shape[1::-1])
    queries = [_points_of(proposal) * shrink for proposal in proposals]
    forth = tracker.track(clip.small_THWC, np.concatenate(queries))
    back = tracker.track(clip.small_THWC[::-1], forth.points_TQ2[-1])
    returned_Q = np.linalg.norm(back.points_TQ2[-1] - forth.points_TQ2[0], axis=-1) <= RETURN_PX
    followed_Q = forth.visible_TQ[-1] & back.visible_TQ[-1] & returned_Q
    ends = np.cumsum([len(points) for points in queries])[:-1]
    return [
        _moved(clip, proposal, forth, points_q, followed_Q, shrink, settings)
        for proposal, points_q in zip(proposals, np.split(np.arange(len(followed_Q)), ends), strict=True)
    ]


def _points_of(proposal: Proposal) -> Floats:
    """Points inside a box: a grid; those of it on the object, where there is a mask."""
    x0, y0, x1, y1 = proposal.box_xyxy
    on_mask = proposal.mask_HW is not None
    inset = 0.0 if on_mask else (1 - GRID_SHARE) / 2
    steps = inset + (1 - 2 * inset) * (np.arange(GRID) + 0.5) / GRID
    grid_Q2 = np.stack(np.meshgrid(x0 + (x1 - x0) * steps, y0 + (y1 - y0) * steps), axis=-1).reshape(-1, 2)
    if proposal.mask_HW is None:
        return grid_Q2
    x_Q, y_Q = grid_Q2.astype(np.int64).T
    return grid_Q2[proposal.mask_HW[y_Q, x_Q]]


def _moved(
    clip: Clip,
    proposal: Proposal,
    tracks: PointTracks,
    points_q: NDArray[np.int64],
    followed_Q: NDArray[np.bool_],
    shrink_2: Floats,
    settings: ClipSettings,
) -> Moved | NotMoved:
    kept_q = points_q[followed_Q[points_q]]
    if len(kept_q) < LEAST_POINTS:
        return _lost(clip, tracks, points_q)
    box = np.array(proposal.box_xyxy)
    centre_2 = (box[:2] + box[2:]) / 2
    tolerance = max(FIT_PX, FIT_SHARE * float(((box[2:] - box[:2]) * shrink_2).min()))
    centre_T2, scale_T = np.empty((len(clip.times_T), 2)), np.ones(len(clip.times_T))
    centre_T2[0] = centre_2
    points_Tq2 = tracks.points_TQ2[:, kept_q]
    for t in range(1, len(clip.times_T)):
        motion_23 = _common_motion(points_Tq2[0], points_Tq2[t])
        fitted_q2 = points_Tq2[0] @ motion_23[:, :2].T + motion_23[:, 2]
        agreement = np.mean(np.linalg.norm(fitted_q2 - points_Tq2[t], axis=-1) <= tolerance)
        if agreement < LEAST_AGREEMENT:
            message = f"after {clip.times_T[t]:.2f} s only {agreement:.0%} of its points move together"
            return NotMoved("object_not_rigid", message)
        centre_T2[t] = (motion_23[:, :2] @ (centre_2 * shrink_2) + motion_23[:, 2]) / shrink_2
        scale_T[t] = np.hypot(motion_23[0, 0], motion_23[1, 0])
    times_P = np.arange(settings.frames) / settings.fps
    path_P2 = np.stack([np.interp(times_P, clip.times_T, values_T) for values_T in centre_T2.T], axis=-1)
    scale_P = np.interp(times_P, clip.times_T, scale_T)
    return _kept(clip, path_P2, scale_P, settings)


def _common_motion(from_q2: Floats, to_q2: Floats) -> Floats:
    """[2, 3]: the turn, zoom and shift that most of the points agree on."""
    import cv2

    before, after = (np.ascontiguousarray(each_q2, np.float32) for each_q2 in (from_q2, to_q2))
    motion_23, _ = cv2.estimateAffinePartial2D(before, after, method=cv2.LMEDS)
    return np.asarray(motion_23 if motion_23 is not None else np.eye(2, 3), np.float64)


def _kept(clip: Clip, path_P2: Floats, scale_P: Floats, settings: ClipSettings) -> Moved | NotMoved:
    """The motion, unless the box's centre leaves the picture or hardly moves."""
    height, width = clip.first_HWC.shape[:2]
    if not ((path_P2 >= 0) & (path_P2 < [width, height])).all():
        return NotMoved("object_leaves", "its centre leaves the picture")
    distance = float(np.linalg.norm(path_P2 - path_P2[0], axis=-1).max())
    zoom = float(np.maximum(scale_P, 1 / scale_P).max()) - 1
    if distance < settings.min_path * np.hypot(height, width) and zoom < settings.min_zoom:
        message = f"it moves by {distance:.1f} px and changes its size by {zoom:.0%}"
        return NotMoved("object_static", message)
    return Moved(path_P2, scale_P)


def _lost(clip: Clip, tracks: PointTracks, points_q: NDArray[np.int64]) -> NotMoved:
    """Why the points of a box were not followed to the end."""
    if tracks.visible_TQ[1, points_q].sum() < LEAST_POINTS:
        return NotMoved("object_plain", "it has too little texture to be tracked")
    lost_q = points_q[~tracks.visible_TQ[-1, points_q]]
    size = np.array(clip.small_THWC.shape[2:0:-1])
    last_q2 = tracks.points_TQ2[-1, lost_q]  # where each was seen last
    at_border = ((last_q2 < BORDER_PX) | (last_q2 > size - BORDER_PX)).any(axis=-1)
    if len(lost_q) and at_border.mean() > 0.5:
        return NotMoved("object_leaves", "it leaves the picture")
    return NotMoved("object_lost", f"fewer than {LEAST_POINTS} of its points could be followed to the end and back")
