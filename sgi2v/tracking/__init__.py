"""Point trackers: they find where points of frame 0 are in every later frame. One file a tracker.

docs/contributing.md says how to add one.
"""

from __future__ import annotations

from collections.abc import Mapping

from sgi2v.errors import ConfigError
from sgi2v.tracking.alltracker import AllTracker
from sgi2v.tracking.cotracker3 import CoTracker3
from sgi2v.tracking.learned import LearnedTracker
from sgi2v.tracking.lucas_kanade import LucasKanade
from sgi2v.tracking.tapir import Tapir
from sgi2v.tracking.tapnext import TapNext
from sgi2v.tracking.tracker import Limit, PointTracker, PointTracks

__all__ = ["TRACKERS", "Limit", "LucasKanade", "PointTracker", "PointTracks", "load_tracker"]

TRACKERS: Mapping[str, type[PointTracker]] = {
    tracker.name: tracker for tracker in (LucasKanade, Tapir, TapNext, AllTracker, CoTracker3)
}
"""Every tracker's class by its name."""


def load_tracker(name: str, weights: str | None = None) -> PointTracker:
    """Make the tracker of that name. weights: file with its weights; None: the published ones.

    Raises ConfigError, which lists the names, for any other, and for weights of a tracker that has none.
    """
    if name not in TRACKERS:
        raise ConfigError(f"there is no tracker {name!r}: use one of {', '.join(sorted(TRACKERS))}")
    tracker = TRACKERS[name]
    if weights is None:
        return tracker()
    if not issubclass(tracker, LearnedTracker):
        raise ConfigError(f"--weights {name}={weights}: the tracker {name} has no weights, so leave this out")
    return tracker(weights)
