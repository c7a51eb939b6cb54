"""The registry of trackers, and what they return."""

import subprocess
import sys

import numpy as np
import pytest

from sgi2v.errors import ConfigError
from sgi2v.tracking import TRACKERS, load_tracker
from sgi2v.tracking.learned import LearnedTracker
from sgi2v.tracking.tracker import PointTracks

WITHOUT_WEIGHTS = [name for name, tracker in TRACKERS.items() if not issubclass(tracker, LearnedTracker)]


@pytest.mark.parametrize("name", WITHOUT_WEIGHTS)
def test_every_tracker_has_the_members_of_the_protocol(name):
    tracker = load_tracker(name)
    assert type(tracker) is TRACKERS[name]
    assert tracker.name == name
    assert isinstance(tracker.version, str)
    assert tracker.version
    assert TRACKERS[name].licence
    assert TRACKERS[name].num_cpus > 0
    assert TRACKERS[name].num_gpus >= 0
    tracks = tracker.track(np.zeros((3, 64, 64, 3), np.uint8), np.full((2, 2), 32.0))
    assert tracks.visible_TQ.shape == (3, 2)
    np.testing.assert_array_equal(tracks.points_TQ2[0], np.full((2, 2), 32.0))


def test_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match=r"no tracker 'lucas': use one of .*lucas-kanade"):
        load_tracker("lucas")


def test_resources_of_every_tracker_are_known_without_heavy_imports():
    script = (
        "import sys\n"
        "from sgi2v.tracking import TRACKERS\n"
        "assert all(tracker.num_cpus + tracker.num_gpus > 0 for tracker in TRACKERS.values())\n"
        "print(*sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert not {"torch", "cv2", "av", "decord", "PIL"} & set(done.stdout.split())


def test_lucas_kanade_needs_a_quarter_of_a_cpu_and_no_gpu():
    tracker = TRACKERS["lucas-kanade"]
    assert (tracker.num_cpus, tracker.num_gpus) == (0.25, 0)


def test_point_tracks_of_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"shape \[3, 2, 2\] do not match visibility of shape \[3, 4\]"):
        PointTracks(np.zeros((3, 2, 2)), np.ones((3, 4), bool))


def test_point_tracks_are_finite_where_they_are_visible():
    points_TQ2 = np.zeros((3, 2, 2))
    points_TQ2[1, 0] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite"):
        PointTracks(points_TQ2, np.ones((3, 2), bool))
    PointTracks(points_TQ2, np.array([[True, True], [False, True], [True, True]]))
