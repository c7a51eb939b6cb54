"""What a point tracker has to offer, and what it returns.

Axes: T frames, H W pixels, C the three colours, RGB; Q query points; 2 is xy. Coordinates are those of boxes: pixel
(i, j) covers [i, i + 1) x [j, j + 1), so the centre of the first pixel is (0.5, 0.5) and of the frame (W / 2, H / 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sgi2v.trajectory import Floats
from sgi2v.video import Frames

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class PointTracks:
    """Where a tracker found its points.

    Raises ValueError for shapes that do not match and for a visible point that is not finite.
    """

    points_TQ2: Floats
    """xy per frame and query, pixels. Meaningless where the point is not visible."""
    visible_TQ: Flags
    """Whether the tracker found the point inside that frame."""
    round_trip_px_TQ: Floats | None = None
    """How far from its start a point ends that is tracked to this frame and back, pixels. None: the tracker does not
    track back. Meaningless where the point is not visible."""

    def __post_init__(self) -> None:
        if self.points_TQ2.shape != (*self.visible_TQ.shape, 2):
            message = (
                f"points of shape {list(self.points_TQ2.shape)} do not match "
                f"visibility of shape {list(self.visible_TQ.shape)}"
            )
            raise ValueError(message)
        if not np.isfinite(self.points_TQ2[self.visible_TQ]).all():
            raise ValueError("a visible point has NaN or infinite coordinates")


class Limit(StrEnum):
    """Why a tracker cannot follow what is in a box. A `NullReason` of metrics has the same text."""

    BOX_TOO_SMALL = "box_too_small"
    NO_TEXTURE = "no_texture"
    STEP_TOO_LARGE = "step_too_large"


class PointTracker(Protocol):
    """Follows points of frame 0 through a video."""

    name: str
    """The tracker's name in the settings and in the records."""
    num_cpus: float
    """CPUs that each commit actor reserves with this tracker."""
    num_gpus: float
    """GPUs that each commit actor reserves with this tracker."""
    licence: str
    """Licence of its code and weights, in words: it is shown and recorded."""

    @property
    def version(self) -> str:
        """The version of the tracker and of the libraries or weights that its points depend on."""
        ...

    def track(self, frames_THWC: Frames, queries_Q2: Floats) -> PointTracks:
        """Follow queries (xy in frame 0, pixels) through all frames. In frame 0 the points are the queries."""
        ...

    def limit(self, first_frame_HWC: Frames, boxes_T4: Floats) -> Limit | None:
        """What keeps this tracker from following an object on its path. None: nothing is known to.

        first_frame_HWC: frame 0. boxes_T4: where the object is asked to be. Nothing else of the video decides, so that
        of perfect and of failed videos the same boxes are left out.
        """
        ...
