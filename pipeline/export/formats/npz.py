"""`npz`: point tracks for whoever trains trackers, as TAP-Vid has them, beside the videos.

Axes: N points, T frames, B boxes. Coordinates are TAP-Vid's and this project's: x runs right, y down, and the centre of
the first pixel is (0.5, 0.5).
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.export.formats.layout import Layout, Sample, parquet_of
from pipeline.output.tables import METADATA

NO_TRACKS = "no point was tracked"


class Npz(Layout):
    """A sample is `<stem>.mp4` and `<stem>.npz`; a shard is a folder."""

    needs_labels = True

    def left_out(self, sample: Sample) -> str | None:
        return None if any(label["points"] for label in sample.labels or []) else NO_TRACKS

    def files(self, sample: Sample) -> dict[str, bytes]:
        sink = io.BytesIO()
        np.savez_compressed(sink, allow_pickle=False, **arrays_of(sample))
        return {f"{sample.stem}.mp4": sample.video, f"{sample.stem}.npz": sink.getvalue()}

    def shard_files(self, samples: Sequence[Sample]) -> dict[str, bytes]:
        rows = [{**sample.row, "file_name": f"{sample.stem}.mp4"} for sample in samples]
        return {METADATA: parquet_of(rows, self.columns)}

    def loading(self, url: str, splits: Sequence[str]) -> str:
        return """```python
from pathlib import Path
import numpy as np

for file in sorted(Path("FOLDER/train").rglob("*.npz")):
    tracks = np.load(file)  # no pickle; the video is file.with_suffix(".mp4")
    tracks["points"], tracks["occluded"], tracks["queries"]
```

N points, T frames, B boxes. `points` [N, T, 2] is x, y in pixels of the video, where the centre of the first pixel is
(0.5, 0.5), as in TAP-Vid. `occluded` [N, T]: the tracker did not find the point in that frame, and `points` is no
measurement there. `queries` [N, 3] is t, y, x, as in TAP-Vid; t is 0. `box` [N] is the box that a point belongs to.
`asked_boxes` and `measured_boxes` [B, T, 4] are x0, y0, x1, y1, half-open; NaN where a box was not
measured. The tracks are those of `tracker`, and no ground truth: `tracker_error_px` is its stated error."""


def arrays_of(sample: Sample) -> dict[str, np.ndarray]:
    """The arrays of a sample's NPZ, by name. The sample has a label with points."""
    labels = sample.labels or []
    frames = int(sample.row["num_frames"])
    tracked = [label for label in labels if label["points"]]
    points_NT2 = np.concatenate([_points_PT2(label) for label in tracked])
    visible_NT = np.concatenate([np.array(label["points_visible"], np.bool_).T for label in tracked])
    zeros_N1 = np.zeros((len(points_NT2), 1), np.float32)
    return {
        "points": points_NT2,
        "occluded": ~visible_NT,
        "queries": np.concatenate([zeros_N1, points_NT2[:, 0, ::-1]], axis=1),
        "box": np.concatenate([np.full(len(label["points"][0]), label["box"], np.int64) for label in tracked]),
        "asked_boxes": np.stack([_boxes_T4(label["asked_boxes"], frames) for label in labels]),
        "measured_boxes": np.stack([_boxes_T4(label["measured_boxes"], frames) for label in labels]),
        "still": np.array([bool(label["still"]) for label in labels]),
        "size": np.array([sample.row["height"], sample.row["width"]], np.int64),
        "fps": np.array(sample.row["fps"], np.int64),
        "sample_id": np.array(sample.row["sample_id"]),
        "tracker": np.array(f"{labels[0].get('tracker')} {labels[0].get('tracker_version')}"),
        "tracker_error_px": np.array([_number(label.get("tracker_error_px")) for label in labels], np.float32),
    }


def _points_PT2(label: dict[str, Any]) -> np.ndarray:
    return np.array(label["points"], np.float32).transpose(1, 0, 2)


def _boxes_T4(boxes: list[list[float] | None] | None, frames: int) -> np.ndarray:
    nothing = [np.nan] * 4
    return np.array([each or nothing for each in boxes or [None] * frames], np.float32)


def _number(value: float | None) -> float:
    return np.nan if value is None else value
