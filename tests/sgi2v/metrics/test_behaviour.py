"""Every metric on videos whose truth is known: what docs/metrics.md shows as a table."""

import numpy as np
import pytest

from tests.sgi2v.metrics.made_up import COLUMNS, STEP, T, values, videos

VIDEOS = videos()
STEP_PX = float(np.hypot(*STEP))
WAY_PX = STEP_PX * np.arange(1, T).mean()
"""How far the path is from its start, on average over the frames."""
ABOUT = {
    "control_gain": 0.02,
    "direction_cosine": 0.01,
    "track_box_iou": 0.02,
    "failure": 0.001,
    "identity": 3.0,
    "visible_fraction": 0.1,
    "background_change": 1.0,
}
"""How near a value is to its truth; others within 0.3 and 1 % of it."""
FAR = np.mean([STEP_PX * t > 30 for t in range(1, T)])
FOLLOWS = {
    "objmc_px": 0,
    "control_gain": 1,
    "endpoint_error_px": 0,
    "direction_cosine": 1,
    "track_box_iou": 1,
    "failure": 0,
    "identity": 0,
    "visible_fraction": 1,
    "round_trip_px": 0,
    "objmc_nulls_frozen_px": 0,
    "null_reason": None,
}
LOST = {"objmc_px": None, "control_gain": None, "track_box_iou": None, "objmc_nulls_frozen_px": WAY_PX}
STAYS = {"background_change": 0, "background_motion_px": 0, "still_drift_px": 0}
UNSEEN = {**LOST, "failure": None, "identity": None, "visible_fraction": None, "bg_object_distance_px": None}
TRUTH = {
    "perfect": {**FOLLOWS, **STAYS, "static_objmc_px": WAY_PX, "background_null_reason": None},
    "frozen": {
        **{"objmc_px": WAY_PX, "control_gain": 0, "endpoint_error_px": 13 * STEP_PX, "direction_cosine": None},
        **{"failure": FAR, "identity": 0, "flicker": 0, "mean_flow_px": 0, "bg_object_distance_px": 0},
        **STAYS,
        "null_reason": "no_measured_motion",
    },
    "panned along": {
        **FOLLOWS,
        **{"background_change": 0, "background_motion_px": WAY_PX, "bg_object_distance_px": 0},
        "mean_flow_px": pytest.approx(STEP_PX, rel=0.1),
    },
    "swapped x and y": {
        "objmc_px": np.hypot(8, 8) * np.arange(1, T).mean(),
        "control_gain": 1 - np.hypot(8, 8) / STEP_PX,
        "direction_cosine": 2 * 12 * 4 / STEP_PX**2,
        "failure": np.mean([np.hypot(8, 8) * t > 30 for t in range(1, T)]),
        **STAYS,
    },
    "object vanished": {
        **LOST,
        **STAYS,
        **{"failure": 1, "visible_fraction": 0, "null_reason": "too_few_visible_points"},
        "identity": pytest.approx(45, abs=15),
    },
    "cut to another scene": {
        **LOST,
        **{"failure": 1, "background_motion_px": None, "still_drift_px": None},
        "background_change": pytest.approx(30, abs=10),
        "background_null_reason": "not_a_shift, too_few_visible_points",
    },
    "2 px object": {**UNSEEN, **STAYS, "null_reason": "box_too_small"},
    "stained": {**FOLLOWS, "background_change": pytest.approx(3, abs=1), "background_motion_px": 0},
    "held one drifts": {**FOLLOWS, "still_drift_px": 21, "background_motion_px": 0},
    "smooth ground": {**FOLLOWS, **STAYS},
    "smooth ground pans": {
        **FOLLOWS,
        **{"background_change": 0, "background_motion_px": np.hypot(3, 1) * np.arange(1, T).mean()},
        "mean_flow_px": pytest.approx(0.5, abs=0.3),  # it is blind there: the truth is 3.2
    },
    "white box": {**UNSEEN, "null_reason": "no_texture"},
    "60 px a frame": {**LOST, "objmc_nulls_frozen_px": 240, "null_reason": "step_too_large"},
    "camera, as asked": {
        **FOLLOWS,
        **{"background_change": None, "background_motion_px": None, "bg_object_distance_px": None},
        "background_null_reason": "camera",
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", VIDEOS)
def test_every_metric_says_what_is_true_of_a_made_up_video(name):
    row = values(*VIDEOS[name])
    assert all(value is None or isinstance(value, str) or np.isfinite(value) for value in map(row.get, COLUMNS))
    wrong = {
        column: (row[column], truth) for column, truth in TRUTH[name].items() if row[column] != _near(column, truth)
    }
    assert not wrong


def _near(column, truth):
    is_number = isinstance(truth, int | float)
    return pytest.approx(truth, abs=ABOUT.get(column, 0.3), rel=0.01) if is_number else truth


@pytest.mark.whole
def test_the_distance_of_object_and_background_tells_a_follower_from_a_pan():
    perfect, along = (values(*VIDEOS[name])["bg_object_distance_px"] for name in ("perfect", "panned along"))
    assert perfect == pytest.approx(WAY_PX, rel=0.05)  # points of the grid that are on the object are in it
    assert along < 0.1
