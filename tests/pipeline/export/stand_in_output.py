"""An output as a finished run leaves it, without a run: tiny real videos, their table and their labels."""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import RunConfig
from pipeline.output.labels import LABEL_SCHEMA
from pipeline.output.records import RECORD_SCHEMA, video_key
from pipeline.output.run_file import describe_run
from pipeline.output.tables import METADATA, METADATA_COLUMNS
from sgi2v.video import encode_mp4
from tests.pipeline.output.outputs import settings

FRAMES, SIDE, FPS = 4, 32, 7
POINTS = 5


@cache
def mp4() -> bytes:
    """A tiny real video."""
    frames = np.random.default_rng(0).integers(0, 256, (FRAMES, SIDE, SIDE, 3), np.uint8)
    return encode_mp4(frames, FPS)


def video_of(sample_id: str) -> bytes:
    """The tiny video with the sample's id behind it, in a box of MP4 that players skip."""
    note = sample_id.encode()
    return mp4() + (8 + len(note)).to_bytes(4, "big") + b"free" + note


def ids(number: int) -> list[str]:
    return [f"s{each:05d}" for each in range(number)]


def make_output(
    folder: Path, *sample_ids: str, per_image: int = 2, labels: bool = True, columns: dict[str, Any] | None = None
) -> Path:
    """Write an output with these samples. columns: values of own columns, the same in each row, or lists of them."""
    (folder / "videos").mkdir(parents=True, exist_ok=True)
    run = describe_run(_settings(), "digest", len(sample_ids))
    (folder / "run.json").write_text(json.dumps(run))
    rows = [_row(number, sample_id, per_image) for number, sample_id in enumerate(sample_ids)]
    for row in rows:
        (folder / row["file_name"]).write_bytes(video_of(row["sample_id"]))
    schema = pa.schema([RECORD_SCHEMA.field(name) for name in METADATA_COLUMNS])
    table = pa.Table.from_pylist(rows, schema)
    for name, value in (columns or {}).items():
        values = value if isinstance(value, list | pa.Array) else [value] * len(rows)
        table = table.append_column(name, pa.array(values))
    pq.write_table(table.sort_by("sample_id"), folder / METADATA)
    if labels:
        rows = [label for row in rows for label in _labels(row)]
        pq.write_table(pa.Table.from_pylist(rows, LABEL_SCHEMA).sort_by("sample_id"), folder / "labels.parquet")
    return folder


@cache
def _settings() -> RunConfig:
    return settings()


def _row(number: int, sample_id: str, per_image: int) -> dict[str, Any]:
    video = video_of(sample_id)
    image = f"image-{number // per_image}"
    return {
        "sample_id": sample_id,
        "status": "committed",
        "attempts": 1,
        "row_digest": "row",
        "fingerprint": _settings().fingerprint,
        "image_uri": f"/images/{image}.png",
        "image_sha256": hashlib.sha256(image.encode()).hexdigest(),
        "file_name": video_key(sample_id, hashlib.sha256(sample_id.encode()).hexdigest()[:8]),
        "guided": True,
        "num_boxes": 2,
        "num_frames": FRAMES,
        "height": SIDE,
        "width": SIDE,
        "fps": FPS,
        "video_sha256": hashlib.sha256(video).hexdigest(),
        "video_bytes": len(video),
        "control_gain": (number % 10) / 10,
        "objmc_px": float(number % 7),
        "flicker": float(number % 20),
        "null_reason": None,
    }


def _labels(row: dict[str, Any]) -> list[dict[str, Any]]:
    """A box that moves and one that is held; the second is not measured in the last frame."""
    shared = {name: row[name] for name in LABEL_SCHEMA.names if name in row and name != "null_reason"}
    labels = []
    for box in range(2):
        boxes = [[8.0 + t * (1 - box), 8.0, 16.0 + t * (1 - box), 16.0] for t in range(FRAMES)]
        centres = [[(x0 + x1) / 2, (y0 + y1) / 2] for x0, y0, x1, y1 in boxes]
        points = [[[x + each, y] for each in range(POINTS)] for x, y in centres]
        visible = [[not (box and t == FRAMES - 1)] * POINTS for t in range(FRAMES)]
        seen = [boxes[t] if visible[t][0] else None for t in range(FRAMES)]
        labels.append(
            {
                **shared,
                "box": box,
                "still": bool(box),
                "source_to_video": [0.5, 0.0, 0.5, 0.0],
                "asked_boxes": boxes,
                "asked_centres": centres,
                "measured_boxes": seen,
                "measured_centres": [centres[t] if seen[t] else None for t in range(FRAMES)],
                "visible_fraction": [float(each[0]) for each in visible],
                "points": points,
                "points_visible": visible,
                "tracker": "lucas-kanade",
                "tracker_version": "1",
                "tracker_error_px": 0.1,
                "metrics_version": "objmc/v3",
            }
        )
    return labels
