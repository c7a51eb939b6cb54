"""Rows and tables for the manifest tests."""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from manifests.schema import MANIFEST_SCHEMA


def row(**changes: Any) -> dict[str, Any]:
    """A valid row with two boxes, with changes."""
    return {
        "sample_id": "cat",
        "image": "cat.png",
        "boxes": [[1.0, 2.0, 11.0, 12.0], [20.0, 20.0, 30.5, 40.0]],
        "trajectories": [[[6.0, 7.0], [16.0, 7.0]], [[25.0, 30.0], [25.0, 30.0], [26.0, 31.0]]],
        "scales": None,
        "seed": None,
    } | changes


def table(*rows: dict[str, Any]) -> pa.Table:
    """A table of rows, in the manifest's schema."""
    return pa.Table.from_pylist(list(rows), schema=MANIFEST_SCHEMA)
