"""The folder of an evaluation: finished videos in parts, and the tables that are made of them.

evaluation.json     the choice of videos, protocols and trackers that decides the values; and the summary
parts/              results as they came in, in small files: what is there is not measured again
metadata.parquet    one row a video: `file_name`, ids, metrics, and the manifest's own columns
labels.parquet      one row a box, as in an output
failures.parquet    videos that could not be measured, and why
lease/              one evaluation at a time writes here
"""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from manifests.own_columns import plain, stored_name
from pipeline.config import differences
from pipeline.evaluate.config import EvaluationConfig, suffix_of
from pipeline.evaluate.sources import EVALUATION_FILE, VIDEO_COLUMNS
from pipeline.output.labels import LABELS, LABELS_TYPE, rows_of_boxes
from pipeline.output.lease import check_epoch
from pipeline.output.records import RECORD_SCHEMA, VIDEOS
from pipeline.output.run_file import RUN_FILE
from pipeline.output.storage import Storage
from pipeline.output.tables import FAILURES, METADATA
from sgi2v.errors import ConfigError
from sgi2v.locations import local_path
from sgi2v.metrics.objmc import METRICS_VERSION
from sgi2v.metrics.protocols import PROTOCOLS

PARTS = "parts"
PROGRAM = "sgi2v-batch evaluate"
BASE = pa.schema(
    [
        pa.field("file_name", pa.string()),
        pa.field("sample_id", pa.string()),
        pa.field("video_uri", pa.string()),
        pa.field("status", pa.string()),
        pa.field("error_code", pa.string()),
        pa.field("message", pa.string()),
        pa.field("row_digest", pa.string()),
        *(
            RECORD_SCHEMA.field(name)
            for name in (
                *("image_uri", "image_sha256", "image_note", "video_sha256", "num_boxes", "num_still", "num_frames"),
                *("height", "width", "fps", "fit", "source_box", "picture_box"),
            )
        ),
        pa.field("asked_displacement", pa.float64()),
        pa.field("asked_size", pa.float64()),
        pa.field("num_moving", pa.int64()),
        pa.field("asks_camera", pa.bool_()),
        pa.field("seconds_measure", pa.float64()),
        *(pa.field(name, pa.string()) for name in ("tracker", "tracker_version", "metrics_version")),
    ]
)
"""Columns of every result. `video_uri`: where the video lies. `file_name`: the link to it, or else the same."""


def result_schema(config: EvaluationConfig) -> pa.Schema:
    """The columns of a result: BASE, then those of every protocol by every tracker."""
    fields: list[pa.Field[Any]] = []
    for tracker in config.trackers:
        suffix = suffix_of(config.trackers, tracker)
        for name in config.per_video:
            fields += [pa.field(f"{field.name}{suffix}", field.type) for field in protocol_fields(name)]
    return pa.schema([*BASE, *(field for field in fields if field.name not in BASE.names)])


def protocol_fields(name: str) -> list[pa.Field[Any]]:
    """The columns of a protocol."""
    protocol = PROTOCOLS[name]
    if name == METRICS_VERSION:
        names = {column.name for column in protocol.columns} | {"null_reason", "background_null_reason"}
        by = ("tracker", "tracker_version", "metrics_version")
        return [
            field
            for field in RECORD_SCHEMA
            if field.name in names or field.name.removesuffix("_per_box") in names or field.name in by
        ]
    floats = [pa.field(column.name, pa.float64()) for column in protocol.columns]
    return [*floats, pa.field(protocol.reason, pa.string())]


class Results:
    """The finished videos of an evaluation, whose lease is held."""

    def __init__(self, storage: Storage, config: EvaluationConfig, epoch: int) -> None:
        """Claim the folder for this choice, and read what is there. Raises ConfigError for another choice's folder."""
        self.storage, self.config, self.epoch = storage, config, epoch
        self.schema = result_schema(config)
        self._part_schema = self.schema.append(pa.field("labels", LABELS_TYPE))
        self.deciding = config.deciding()
        self._check()
        self._parts = [self._read_part(key) for key in sorted(storage.keys(PARTS)) if key.endswith(".parquet")]
        self._written = sum(key.startswith(f"{PARTS}/{epoch:06d}-") for key in storage.keys(PARTS))
        self._waiting: list[dict[str, Any]] = []

    def _check(self) -> None:
        url = self.storage.url
        recorded = read_evaluation(self.storage)
        if recorded is None:
            self.storage.put(EVALUATION_FILE, self._to_json({}))
            return
        if lines := differences(recorded["deciding"], self.deciding | {"metrics_version": METRICS_VERSION}):
            raise ConfigError(
                f"{url} has an evaluation with other settings, which are never mixed:\n"
                + "\n".join(f"  {line}" for line in lines)
                + "\nGive the same settings, or another --output."
            )

    def _to_json(self, summary: Mapping[str, Any]) -> bytes:
        licences = {tracker.name: tracker.licence for tracker in self.config.load_trackers()}
        content = {
            "program": PROGRAM,
            "deciding": self.deciding | {"metrics_version": METRICS_VERSION},
            "tracker_licences": licences,
            "summary": summary,
        }
        return json.dumps(content, indent=2, sort_keys=True, allow_nan=False).encode()

    def _read_part(self, key: str) -> pa.Table:
        data = self.storage.get(key)
        try:
            part = pq.read_table(io.BytesIO(data or b""), use_threads=False)
            return part.cast(self._part_schema)
        except (pa.ArrowException, OSError, ValueError) as error:
            raise ConfigError(
                f"{self.storage.url}/{key} is damaged ({error}): delete it, and the same command measures its videos "
                "again"
            ) from error

    @property
    def table(self) -> pa.Table:
        """Every result, the newest one of each sample, in the order of sample ids."""
        waiting = pa.Table.from_pylist(self._waiting, self._part_schema)
        rows = pa.concat_tables([*self._parts, waiting])
        last = {sample_id: number for number, sample_id in enumerate(rows["sample_id"].to_pylist())}
        return rows.take(pa.array([last[sample_id] for sample_id in sorted(last)], pa.int64()))

    def left(self, rows: pa.Table, digests: Sequence[str]) -> pa.Table:
        """The rows that have no result yet, or whose video or row is another one now, or could not be measured."""
        table = self.table
        done = table.filter(pc.equal(table["status"], "measured"))
        known = set(zip(*(done[name].to_pylist() for name in ("sample_id", "video_uri", "row_digest")), strict=True))
        asked = zip(rows["sample_id"].to_pylist(), rows["_video"].to_pylist(), digests, strict=True)
        return rows.filter(pa.array([each not in known for each in asked], pa.bool_()))

    def add(self, result: dict[str, Any]) -> None:
        """Take in a result; `flush` makes it durable."""
        self._waiting.append(result)

    def flush(self) -> None:
        """Write the results that came in since the last call as one part."""
        if not self._waiting:
            return
        check_epoch(self.storage, self.epoch)
        part = pa.Table.from_pylist(self._waiting, self._part_schema)
        self.storage.put_new(f"{PARTS}/{self.epoch:06d}-{self._written:05d}.parquet", _parquet(part))
        self._written += 1
        self._parts.append(part)
        self._waiting = []

    def write_tables(self, rows: pa.Table, summary: Mapping[str, Any]) -> None:
        """Write the tables of the videos that the source has now, and the summary."""
        table = self.table
        table = table.filter(pc.is_in(table["sample_id"], value_set=rows["sample_id"].combine_chunks()))
        measured = table.filter(pc.equal(table["status"], "measured"))
        failed = table.filter(pc.equal(table["status"], "failed"))
        own = [name for name in rows.column_names if name != "sample_id" and name not in VIDEO_COLUMNS.names]
        reserved = frozenset([*self.schema.names, *RECORD_SCHEMA.names])
        positions = pc.index_in(measured["sample_id"], value_set=rows["sample_id"].combine_chunks())
        check_epoch(self.storage, self.epoch)
        measured = measured.set_column(0, BASE.field("file_name"), pa.array(self._links(measured), pa.string()))
        metadata = measured.drop_columns(["labels", "status", "error_code", "message"])
        for name in own:
            stored = stored_name(name, reserved) if name not in PASSED else name
            if stored not in metadata.column_names:
                metadata = metadata.append_column(stored, plain(rows[name]).take(positions))
        self.storage.put(METADATA, _parquet(metadata))
        self.storage.put(LABELS, _parquet(rows_of_boxes(measured)))
        self.storage.put(FAILURES, _parquet(failed.select(["sample_id", "error_code", "message", "video_uri"])))
        self.storage.put(EVALUATION_FILE, self._to_json(summary))

    def _links(self, measured: pa.Table) -> list[str]:
        """The `file_name` of each video: a link in this folder, so that whoever reads it finds the video below it."""
        names = []
        for sample_id, uri in zip(measured["sample_id"].to_pylist(), measured["video_uri"].to_pylist(), strict=True):
            target = local_path(uri)
            name = f"{VIDEOS}/{sample_id}.mp4"
            if target is None or not self.storage.is_local or not _link(Path(self.storage.root) / name, target):
                name = uri
            names.append(name)
        return names


def check_free_or_evaluation(storage: Storage) -> None:
    """Raise ConfigError if something else than an evaluation is there: its tables could have the names of ours."""
    if storage.get(RUN_FILE) is not None:
        raise ConfigError(
            f"{storage.url} is the output of a run: give the evaluation a folder of its own with --output"
        )
    if storage.get(EVALUATION_FILE) is not None:
        return
    others = [name for name in storage.names("") if name != "lease" and not name.startswith(".")]
    if others:
        raise ConfigError(
            f"{storage.url} holds {others[0]} and is no evaluation: give an empty or a new folder with --output"
        )


def _link(link: Path, target: Path) -> bool:
    """Make a link to a file, unless it is there. Returns False on a disk that has no links."""
    try:
        link.parent.mkdir(parents=True, exist_ok=True)
        wanted = os.path.relpath(target, link.parent.resolve())
        if not link.is_symlink() or str(link.readlink()) != wanted:
            link.unlink(missing_ok=True)
            link.symlink_to(wanted)
    except OSError:
        return False
    return True


PASSED = ("image", "boxes", "trajectories", "scales", "still", "masks", "seed", "drag_starts")
"""Columns of the manifest that keep their name, so that an evaluation can be measured again."""


def read_evaluation(storage: Storage) -> dict[str, Any] | None:
    """The content of evaluation.json; None if there is none. Raises ConfigError for a file of another program."""
    data = storage.get(EVALUATION_FILE)
    if data is None:
        return None
    try:
        content: dict[str, Any] = json.loads(data)
        if content["program"] != PROGRAM or not isinstance(content["deciding"], dict):
            raise KeyError("program")
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{storage.url}/{EVALUATION_FILE} is not of this program: give another --output") from error
    return content


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()
