"""Point trackers: they find where points of frame 0 are in every later frame. One file a tracker.

docs/contributing.md says how to add one.
"""

from __future__ import annotations

from collections.abc import Mapping

from sgi2v.errors import ConfigError
from sgi2v.tracking.lucas_kanade import LucasKanade
from sgi2v.tracking.tracker import Limit, PointTracker, PointTracks

__all__ = ["TRACKERS", "Limit", "LucasKanade", "PointTracker", "PointTracks", "load_tracker"]

TRACKERS: Mapping[str, type[PointTracker]] = {tracker.name: tracker for tracker in (LucasKanade,)}
"""Every tracker's class by its name."""


def load_tracker(name: str) -> PointTracker:
    """Make the tracker of that name. Raises ConfigError, which lists the names, for any other."""
    if name not in TRACKERS:
        raise ConfigError(f"there is no tracker {name!r}: use one of {', '.join(sorted(TRACKERS))}")
    return TRACKERS[name]()
