"""What an evaluation says of all its videos together."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from itertools import combinations
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.evaluate.config import EvaluationConfig, suffix_of
from pipeline.evaluate.ranks import kendall, spearman
from sgi2v.metrics.protocols import PROTOCOLS, Column
from sgi2v.metrics.quality import SampleQuality

LEAST_RANKED = 3
"""Two lists of fewer numbers have no rank agreement that says anything."""
WITHOUT_TRACKER = {field.name for field in fields(SampleQuality)} | {
    *("background_change", "background_motion_px", "static_objmc_px")
}
"""Columns that no tracker decides: two trackers agree on them always."""


def summarise(config: EvaluationConfig, table: pa.Table) -> dict[str, Any]:
    """Counts, and each value's mean with its nulls. table: results of one evaluation."""
    measured = table.filter(pc.equal(table["status"], "measured"))
    failed = table.filter(pc.equal(table["status"], "failed"))
    frames = Counter(measured["num_frames"].to_pylist())
    return {
        "measured": measured.num_rows,
        "failed": failed.num_rows,
        "failed_by_code": dict(Counter(failed["error_code"].to_pylist()).most_common()),
        "videos_by_frames": {str(number): count for number, count in sorted(frames.items())},
        "metrics": {
            tracker: {name: _of_protocol(config, name, tracker, measured, frames) for name in config.per_video}
            for tracker in config.trackers
        },
        "rank_agreement": rank_agreement(config, measured),
    }


def _of_protocol(
    config: EvaluationConfig, name: str, tracker: str, measured: pa.Table, frames: Counter[int]
) -> dict[str, Any]:
    protocol, suffix = PROTOCOLS[name], suffix_of(config.trackers, tracker)
    reasons = Counter(reason for reason in measured[f"{protocol.reason}{suffix}"].to_pylist() if reason)
    here = f"here with {tracker}, on videos of {' and '.join(str(number) for number in sorted(frames))} frames"
    return {
        "values": {column.name: mean_of(measured, f"{column.name}{suffix}") for column in protocol.columns},
        "null_reasons": dict(reasons.most_common()),
        "note": f"{protocol.published}; {here}" if protocol.published else here,
    }


def mean_of(table: pa.Table, name: str) -> dict[str, Any]:
    """The mean and median of a column over the videos that have it, and how many have it and have not."""
    values = np.array(table[name].drop_null().to_pylist(), np.float64)
    return {
        "mean": float(values.mean()) if len(values) else None,
        "median": float(np.median(values)) if len(values) else None,
        "videos": len(values),
        "nulls": table.num_rows - len(values),
    }


def rank_agreement(config: EvaluationConfig, measured: pa.Table) -> list[dict[str, Any]]:
    """For each pair of trackers and each metric: whether both put the videos in the same order."""
    found = []
    for first, second in combinations(config.trackers, 2):
        for column in _ranked_columns(config):
            names = [f"{column.name}{suffix_of(config.trackers, tracker)}" for tracker in (first, second)]
            both = measured.filter(pc.and_(pc.is_valid(measured[names[0]]), pc.is_valid(measured[names[1]])))
            a, b = (np.array(both[name].to_pylist(), np.float64) for name in names)
            enough = len(a) >= LEAST_RANKED
            found.append(
                {
                    "trackers": [first, second],
                    "metric": column.name,
                    "videos": len(a),
                    "spearman": spearman(a, b) if enough else None,
                    "kendall": kendall(a, b) if enough else None,
                }
            )
    return found


def _ranked_columns(config: EvaluationConfig) -> list[Column]:
    columns = [column for name in config.per_video for column in PROTOCOLS[name].columns]
    return [column for column in columns if column.better and column.name not in WITHOUT_TRACKER]
