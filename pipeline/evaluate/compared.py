"""An output or an evaluation as a comparison reads it: its metrics by sample, and what was asked of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from manifests.fit import Placement
from manifests.schema import parse_row
from pipeline.evaluate.clips import asked
from pipeline.evaluate.results import read_evaluation
from pipeline.output.run_file import RUN_FILE, read_run
from pipeline.output.storage import Storage
from pipeline.output.tables import FAILURES, METADATA
from sgi2v.errors import ConfigError, SampleError
from sgi2v.metrics.protocols import PROTOCOLS, Column

VERSIONS = ("metrics_version", "tracker", "tracker_version")
"""Columns that say what measured a sample: values of two such versions are never compared."""
ASKED = ("asked_displacement", "asked_size", "num_moving", "asks_camera")
LEFT_OUT = ("objmc_norm", "visible_fraction", "round_trip_px")
"""A copy of another metric, and what is said of the tracker rather than of the video: more tests weaken all others."""
METRICS: tuple[Column, ...] = tuple(
    column
    for protocol in PROTOCOLS.values()
    for column in protocol.columns
    if column.better and column.name not in LEFT_OUT
)
"""Values of which one is better than another."""
PATHS = ("boxes", "trajectories")


@dataclass(frozen=True)
class Compared:
    """One side of a comparison."""

    name: str
    """What it is called in the tables: the last part of its location."""
    url: str
    samples: pd.DataFrame
    """By sample id: the metrics that it has, ASKED, `image_key`, `paths`, `num_frames`."""
    versions: Mapping[str, str]
    failed: int
    """Samples without a video, or with one that could not be measured."""

    @property
    def metrics(self) -> list[Column]:
        """The metrics that it has."""
        return [column for column in METRICS if column.name in self.samples.columns]


def read_compared(urls: Sequence[str]) -> list[Compared]:
    """The sides of a comparison. Raises ConfigError for a location without metrics, and for versions that differ."""
    names = [url.rstrip("/").rpartition("/")[2] for url in urls]
    if len(set(names)) < len(names):
        names = list(urls)
    sides = [_read(name, url) for name, url in zip(names, urls, strict=True)]
    for side in sides[1:]:
        for what in VERSIONS:
            if side.versions.get(what) != sides[0].versions.get(what):
                raise ConfigError(
                    f"{side.url} and {sides[0].url} were measured differently, and such numbers are never compared: "
                    f"{what} is {side.versions.get(what)} there and {sides[0].versions.get(what)} here. Measure both "
                    "again with `sgi2v-batch evaluate`, and compare the evaluations"
                )
    return sides


def _read(name: str, url: str) -> Compared:
    storage = Storage(url)
    is_run = storage.get(RUN_FILE) is not None
    if not is_run and read_evaluation(storage) is None:
        raise ConfigError(
            f"{url} is neither an output nor an evaluation: measure its videos with `sgi2v-batch evaluate`"
        )
    if is_run:
        read_run(storage)  # refuses one of another program
    table = storage.read(METADATA, lambda stream: pq.read_table(stream, use_threads=False))
    if table is None or not table.num_rows:
        raise ConfigError(f"{url} has no measured video")
    failures = storage.read(FAILURES, lambda stream: pq.ParquetFile(stream, pre_buffer=False).metadata.num_rows)
    return Compared(name, url, _samples(table), _versions(table, url), failures or 0)


def _versions(table: pa.Table, url: str) -> dict[str, str]:
    versions: dict[str, str] = {}
    for what in VERSIONS:
        values = set(table[what].drop_null().to_pylist()) if what in table.column_names else set()
        if len(values) > 1:
            shown = " and ".join(sorted(values))
            raise ConfigError(
                f"{url} has values of several versions ({what}: {shown}): measure it again with `sgi2v-batch evaluate`"
            )
        if values:
            versions[what] = values.pop()
    return versions


def _samples(table: pa.Table) -> pd.DataFrame:
    names = table.column_names
    metrics = [column.name for column in METRICS if column.name in names]
    samples: pd.DataFrame = table.select(metrics).to_pandas().astype("float64")
    samples.index = pd.Index(table["sample_id"].to_pylist(), name="sample_id")
    samples["num_frames"] = table["num_frames"].to_pylist() if "num_frames" in names else None
    samples["image_key"] = _image_keys(table)
    rows = table.select([name for name in ROW if name in names]).to_pylist()
    samples["paths"] = [
        str([row.get(name) for name in PATHS]) if row.get("boxes") is not None else None for row in rows
    ]
    if set(ASKED) <= set(names):
        wanted = [{name: row[name] for name in ASKED} for row in table.select(list(ASKED)).to_pylist()]
    else:
        wanted = [_asked_of(row) for row in rows]
    for name in ASKED:
        samples[name] = pd.Series([row.get(name) for row in wanted], index=samples.index, dtype=object)
    return samples


ROW = (
    *("sample_id", "image", "boxes", "trajectories", "scales", "still", "fit", "source_box", "picture_box"),
    *("num_frames", "height", "width"),
)


def _image_keys(table: pa.Table) -> list[str]:
    """What tells images apart: their digest, else their name, else each sample is one of its own."""
    columns = [table[name].to_pylist() for name in ("image_sha256", "image", "sample_id") if name in table.column_names]
    return [next(str(value) for value in values if value is not None) for values in zip(*columns, strict=True)]


def _asked_of(row: Mapping[str, Any]) -> dict[str, Any]:
    """ASKED of a row of an output. Nothing for one of an earlier version, which does not say where its picture is."""
    if row.get("boxes") is None or row.get("source_box") is None or row.get("picture_box") is None:
        return {}
    try:
        sample = parse_row({**row, "image": row.get("image") or "-"})
    except SampleError:
        return {}
    x0, y0, x1, y1 = row["source_box"]
    left, top, right, bottom = row["picture_box"]
    placement = Placement("crop", row["height"], row["width"], (x0, y0, x1, y1), (left, top, right, bottom))
    tracks = sample.tracks(row["num_frames"], round(y1), round(x1))
    return asked(placement.tracks(tracks))
