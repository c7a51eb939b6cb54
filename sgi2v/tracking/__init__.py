"""Point trackers: where points of frame 0 are in every later frame. One file a tracker."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from sgi2v.errors import ConfigError
from sgi2v.tracking.lucas_kanade import LucasKanade
from sgi2v.tracking.tracker import PointTracker, PointTracks

__all__ = ["TRACKERS", "LucasKanade", "PointTracker", "PointTracks", "load_tracker"]

TRACKERS: Mapping[str, Callable[[], PointTracker]] = {LucasKanade.name: LucasKanade}
"""Name of each tracker -> what makes it."""


def load_tracker(name: str) -> PointTracker:
    """The tracker of that name, ready to use. Raises ConfigError, which lists the known names."""
    if name not in TRACKERS:
        raise ConfigError(f"there is no tracker {name!r}: use one of {', '.join(sorted(TRACKERS))}")
    return TRACKERS[name]()
