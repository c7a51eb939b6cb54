"""What a point tracker is, and what it measures.

Axes: T frames, H W pixels, C the three colours, RGB; Q query points; 2 is xy. Coordinates are those of boxes: pixel
(i, j) covers [i, i + 1) x [j, j + 1), so the centre of the first pixel is (0.5, 0.5) and of the frame (W / 2, H / 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sgi2v.trajectory import Floats
from sgi2v.video import Frames

Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class PointTracks:
    """What a tracker measured; raises ValueError for shapes that differ or a visible point that is not finite."""

    points_TQ2: Floats
    """xy per frame and query, pixels; means nothing where the point is not visible."""
    visible_TQ: Flags
    """Whether the point was found in that frame, inside it."""

    def __post_init__(self) -> None:
        if self.points_TQ2.shape != (*self.visible_TQ.shape, 2):
            message = f"points {list(self.points_TQ2.shape)} do not go with visibility {list(self.visible_TQ.shape)}"
            raise ValueError(message)
        if not np.isfinite(self.points_TQ2[self.visible_TQ]).all():
            raise ValueError("a visible point has no finite place")


class PointTracker(Protocol):
    """Follows points of frame 0; `name` and `version` together say which numbers it gives."""

    @property
    def name(self) -> str: ...

    @property
    def version(self) -> str: ...

    def track(self, frames_THWC: Frames, queries_Q2: Floats) -> PointTracks:
        """Follow queries (xy in frame 0, pixels) through all frames; frame 0 of the result is the queries."""
        ...
