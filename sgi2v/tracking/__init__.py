"""Point trackers: they find where points of frame 0 are in every later frame. One file a tracker.

To add a tracker:

1. Write `sgi2v/tracking/<name>.py` with a class that has the members of `PointTracker` (`tracker.py`) and a constructor
   without arguments. `lucas_kanade.py` is an example. Import heavy libraries (torch, cv2) inside its methods: the
   command line imports this package when it starts.
2. Set `num_cpus` and `num_gpus` to what one tracker uses: each actor that holds one reserves that much on its node.
3. Change `version` whenever the same video would give other points: records keep the name and the version.
4. Add the class to `TRACKERS` below. The setting `metrics.tracker` then accepts its name.
5. Test it in `tests/sgi2v/tracking/test_<name>.py` on motion that is known, and state its error in its docstring, as
   `test_lucas_kanade.py` does. `test_tracker.py` checks the members of every tracker in `TRACKERS`.
"""

from __future__ import annotations

from collections.abc import Mapping

from sgi2v.errors import ConfigError
from sgi2v.tracking.lucas_kanade import LucasKanade
from sgi2v.tracking.tracker import PointTracker, PointTracks

__all__ = ["TRACKERS", "LucasKanade", "PointTracker", "PointTracks", "load_tracker"]

TRACKERS: Mapping[str, type[PointTracker]] = {tracker.name: tracker for tracker in (LucasKanade,)}
"""Every tracker's class by its name."""


def load_tracker(name: str) -> PointTracker:
    """Make the tracker of that name. Raises ConfigError, which lists the names, for any other."""
    if name not in TRACKERS:
        raise ConfigError(f"there is no tracker {name!r}: use one of {', '.join(sorted(TRACKERS))}")
    return TRACKERS[name]()
