"""A video with what was asked of it: what every protocol starts from.

Axes: N boxes, T frames, H W pixels, C colours; 2 is xy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from sgi2v.metrics.following import Following, follow_boxes, is_still
from sgi2v.opencv import single_opencv_thread
from sgi2v.tracking.tracker import Flags, PointTracker
from sgi2v.trajectory import BoxTracks, Floats
from sgi2v.video import Frames


@dataclass(frozen=True)
class Clip:
    """The part of a video that shows its picture, and what it was asked to do."""

    frames_THWC: Frames
    """uint8 RGB."""
    tracks: BoxTracks
    """In pixels of the frames, not yet clipped to frame 0."""
    starts_N2: Floats
    """The point of each object in frame 0 whose path is scored by protocols of points, in pixels of the frames."""
    source_size: tuple[int, int] | None = None
    """Height and width, in pixels of the picture, of what the frames show; None: the picture is not known."""
    first_frame_HWC: Frames | None = None
    """The picture at the size of the frames; None: it is not known."""
    reference_THWC: Frames | None = None
    """A real video of the same motion; None: there is none."""
    _followed: dict[str, tuple[BoxTracks, Sequence[Following]]] = field(default_factory=dict, compare=False)
    """What `followed` has given, by tracker."""

    def followed(self, tracker: PointTracker) -> tuple[BoxTracks, Sequence[Following]]:
        """The tracks clipped to frame 0, and where the object in each box went. Each tracker follows once."""
        if tracker.name not in self._followed:
            self._followed[tracker.name] = follow_boxes(self.frames_THWC, self.tracks, tracker)
        return self._followed[tracker.name]

    @property
    def moving_N(self) -> Flags:
        """Which boxes are asked to move."""
        return ~is_still(self.tracks)

    @property
    def target_NT2(self) -> Floats:
        """Where each scored point is asked to be."""
        centres_NT2 = self.tracks.centres_NT2
        return np.asarray(self.starts_N2[:, None] + centres_NT2 - centres_NT2[:, :1])

    def at_source_size(self) -> Clip:
        """The clip in pixels of the picture, the frames resized to its size. As it is if the picture is not known."""
        import cv2

        if self.source_size is None or self.source_size == self.frames_THWC.shape[1:3]:
            return self
        height, width = self.source_size
        shrinks = height < self.frames_THWC.shape[1]
        interpolation = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
        with single_opencv_thread():
            frames = [cv2.resize(frame, (width, height), interpolation=interpolation) for frame in self.frames_THWC]
        scale_2 = np.array([width, height]) / np.array(self.frames_THWC.shape[2:0:-1])
        return replace(
            self,
            frames_THWC=np.stack(frames).astype(np.uint8),
            tracks=self.tracks.rescale(height, width),
            starts_N2=self.starts_N2 * scale_2,
            first_frame_HWC=None,
            _followed={},
        )
