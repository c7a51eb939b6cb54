"""Manifests, settings and records for tests of an output, without a run."""

from __future__ import annotations

import hashlib
from typing import Any

import pyarrow as pa

from manifests.schema import MANIFEST_SCHEMA, row_digest
from pipeline.config import RunConfig, resolve
from pipeline.output.labels import pack
from pipeline.output.records import SampleRecord, Status, commit, video_key
from pipeline.output.storage import Storage
from tests.pipeline.runs import row

METRICS = {"objmc_px": 2.0, "static_objmc_px": 8.0, "control_gain": 0.75, "objmc_px_per_box": [1.0, 3.0]}

FRAMES = 3
SEEN = {
    "box": 0,
    "still": False,
    "asked_boxes": [[1.0, 2.0, 5.0, 6.0], [2.0, 2.0, 6.0, 6.0], [3.0, 2.0, 7.0, 6.0]],
    "asked_centres": [[3.0, 4.0], [4.0, 4.0], [5.0, 4.0]],
    "measured_boxes": [[1.0, 2.0, 5.0, 6.0], None, [3.25, 2.0, 7.25, 6.0]],
    "measured_centres": [[3.0, 4.0], None, [5.25, 4.0]],
    "visible_fraction": [1.0, 0.0, 0.5],
    "points": [[[2.0, 3.0], [4.0, 5.0]], [[2.0, 3.0], [4.0, 5.0]], [[4.25, 3.0], [4.0, 5.0]]],
    "points_visible": [[True, True], [False, False], [True, False]],
    "null_reason": None,
    "tracker_error_px": 0.1,
}
UNSEEN = {
    **SEEN,
    "box": 1,
    "still": True,
    "measured_boxes": [None] * FRAMES,
    "measured_centres": [None] * FRAMES,
    **dict.fromkeys(("visible_fraction", "points", "points_visible", "tracker_error_px")),
    "null_reason": "no_texture",
}
BOXES = [SEEN, UNSEEN]
"""The labels of two boxes; the second was not measured."""


def video_of(sample_id: str, attempt: str = "one") -> str:
    """The key of a sample's video. attempt: a word, in place of eight random digits."""
    return video_key(sample_id, hashlib.sha256(attempt.encode()).hexdigest()[:8])


def committed(sample_id: str, attempt: str = "one", attempts: int = 1, **changes: Any) -> SampleRecord:
    values = {"file_name": video_of(sample_id, attempt), "loss_first": [0.5, None], "metrics": METRICS, "seed": 3}
    values |= {"num_frames": FRAMES, "labels": pack(BOXES)}
    values |= {"source_box": [0.0, 0.0, 8.0, 8.0], "picture_box": [0, 0, 16, 16]}
    return SampleRecord(sample_id, "committed", attempts, "row", "print", **{**values, **changes})


def failed(sample_id: str, code: str = "image_missing", attempts: int = 1) -> SampleRecord:
    return SampleRecord(sample_id, "failed", attempts, "row", "print", error_code=code, message=f"{sample_id}: {code}")


def manifest(*ids: str, columns: dict[str, pa.Array] | None = None, **changes: Any) -> pa.Table:
    """A manifest of good rows. columns: further ones. changes: values of every row."""
    table = pa.Table.from_pylist([row(sample_id, **changes) for sample_id in ids], schema=MANIFEST_SCHEMA)
    for name, values in (columns or {}).items():
        table = table.append_column(name, values)
    return table


def settings(**sections: dict[str, Any]) -> RunConfig:
    """The settings of a run with the embedded checkpoint, with changes by section."""
    return resolve("m.parquet", "out", {}, {"model": {"source": "embedded"}, **sections})[0]


def finish(storage: Storage, *ids: str, status: Status = "committed", attempts: int = 1) -> None:
    """Commit a record without a video for each of these rows of `manifest`."""
    for sample_id in ids:
        code = None if status == "committed" else "image_missing"
        digest = row_digest(row(sample_id))
        commit(storage, SampleRecord(sample_id, status, attempts, digest, "print", error_code=code, message=code), None)
