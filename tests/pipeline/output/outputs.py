"""Records and manifests to be put into an output, without a run."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from manifests.schema import MANIFEST_SCHEMA
from pipeline.output.records import SampleRecord, video_key
from tests.pipeline.runs import row

METRICS = {"objmc_px": 2.0, "static_objmc_px": 8.0, "control_gain": 0.75, "objmc_px_per_box": [1.0, 3.0]}


def made(sample_id: str, attempt: str = "one", attempts: int = 1, **changes: Any) -> SampleRecord:
    values = {"file_name": video_key(sample_id, attempt), "loss_first": [0.5, None], "metrics": METRICS, "seed": 3}
    return SampleRecord(sample_id, "committed", attempts, "row", "print", **{**values, **changes})


def failed(sample_id: str, code: str = "image_missing", attempts: int = 1) -> SampleRecord:
    return SampleRecord(sample_id, "failed", attempts, "row", "print", error_code=code, message=f"{sample_id}: {code}")


def manifest(*ids: str, **columns: pa.Array) -> pa.Table:
    table = pa.Table.from_pylist([row(sample_id) for sample_id in ids], schema=MANIFEST_SCHEMA)
    for name, values in columns.items():
        table = table.append_column(name, values)
    return table
