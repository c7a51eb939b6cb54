"""Records: one small object per sample, whose existence is completion; and the tables made of them.

A sample's video goes up first, under a key of its own attempt; then its record, by conditional put. Whoever
loses that put takes its video away again.
"""

from __future__ import annotations

import dataclasses
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.storage import Storage
from sgi2v.errors import ConfigError
from sgi2v.metrics import Fidelity, SampleQuality

RECORDS = "records"
VIDEOS = "videos"
METADATA = "metadata.parquet"
FAILURES = "failures.parquet"
RECORD_VERSION = "record/v1"

Status = Literal["committed", "failed"]


@dataclass(frozen=True)
class SampleRecord:
    """All that is known of one finished sample; what does not apply is None."""

    sample_id: str
    status: Status
    attempts: int
    """Runs that finished this sample, this one included."""
    row_digest: str
    """Of the manifest row that it was made from."""
    fingerprint: str
    """Of the run's deciding settings."""
    seed: int | None = None
    """Of all its noise."""
    file_name: str | None = None
    """Key of the video below the output."""
    error_code: str | None = None
    message: str | None = None
    guided: bool | None = None
    """False: plain SVD, because the row has no boxes or guidance is off."""
    num_boxes: int | None = None
    num_frames: int | None = None
    height: int | None = None
    width: int | None = None
    fps: int | None = None
    loss_first: list[float | None] | None = None
    """Guidance loss before the first update of each guided step."""
    loss_last: list[float | None] | None = None
    """Guidance loss before the last update of each guided step."""
    skipped_updates: int | None = None
    latent_drift: float | None = None
    seconds_load: float | None = None
    seconds_encode: float | None = None
    seconds_guide: float | None = None
    seconds_denoise: float | None = None
    seconds_decode: float | None = None
    seconds_commit: float | None = None
    peak_gpu_bytes: int | None = None
    device: str | None = None
    dtype: str | None = None
    """Of the U-Net's weights."""
    host: str | None = None
    frames_sha256: str | None = None
    """Of the generated frames, before they are encoded."""
    video_sha256: str | None = None
    video_bytes: int | None = None
    finished_at: str | None = None
    """ISO 8601, UTC."""
    record_version: str = RECORD_VERSION
    metrics: dict[str, Any] = field(default_factory=dict)
    """Motion fidelity and sample quality, by column."""

    def row(self) -> dict[str, Any]:
        """One flat row of RECORD_SCHEMA."""
        values = {each.name: getattr(self, each.name) for each in dataclasses.fields(self) if each.name != "metrics"}
        return {**values, **self.metrics}

    def to_json(self) -> bytes:
        return json.dumps(self.row(), sort_keys=True, allow_nan=False).encode()

    @classmethod
    def from_json(cls, data: bytes) -> SampleRecord:
        values = json.loads(data)
        own = {each.name for each in dataclasses.fields(cls)} - {"metrics"}
        metrics = {name: value for name, value in values.items() if name not in own}
        return cls(**{name: value for name, value in values.items() if name in own}, metrics=metrics)


def _arrow_type(annotation: Any) -> pa.DataType:
    """The Arrow type of a field's annotation; optional ones are their type, since every column is nullable."""
    if get_origin(annotation) is UnionType:
        annotation = next(each for each in get_args(annotation) if each is not type(None))
    if get_origin(annotation) in {list, tuple}:
        return pa.list_(_arrow_type(get_args(annotation)[0]))
    if get_origin(annotation) is Literal:
        return pa.string()
    scalars: dict[Any, pa.DataType] = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
    return scalars[annotation]


def _columns(of: type) -> dict[str, pa.DataType]:
    hints = get_type_hints(of)
    return {each.name: _arrow_type(hints[each.name]) for each in dataclasses.fields(of) if each.name != "metrics"}


def _record_schema() -> pa.Schema:
    fidelity = _columns(Fidelity)
    per_box = {f"{name}_per_box": pa.list_(kind) for name, kind in fidelity.items()}
    measured_by = dict.fromkeys(("tracker", "tracker_version", "metrics_version"), pa.string())
    return pa.schema({**_columns(SampleRecord), **fidelity, **per_box, **measured_by, **_columns(SampleQuality)})


RECORD_SCHEMA = _record_schema()
"""The columns of every record, whatever is null in it."""
FAILURE_COLUMNS = ("sample_id", "error_code", "message", "attempts", "finished_at", "host", "row_digest", "seed")


def record_key(sample_id: str) -> str:
    return f"{RECORDS}/{sample_id}.json"


def video_key(sample_id: str, attempt: str) -> str:
    return f"{VIDEOS}/{sample_id}.{attempt}.mp4"


def commit(storage: Storage, record: SampleRecord, video: bytes | None) -> SampleRecord:
    """Make a sample final, exactly once. Returns the record that stands: this one or an earlier winner's."""
    if video is not None:
        assert record.file_name is not None
        storage.put(record.file_name, video)
    if storage.put_new(record_key(record.sample_id), record.to_json()):
        return record
    if video is not None:
        assert record.file_name is not None
        storage.delete(record.file_name)
    standing = storage.get(record_key(record.sample_id))
    return record if standing is None else SampleRecord.from_json(standing)


def read_record(storage: Storage, sample_id: str) -> SampleRecord | None:
    """The record of one sample, or None where it has none."""
    data = storage.get(record_key(sample_id))
    return None if data is None else SampleRecord.from_json(data)


def read_records(storage: Storage) -> list[SampleRecord]:
    """Every record below an output, by sample id."""
    keys = [key for key in storage.keys(RECORDS) if key.endswith(".json")]
    return [SampleRecord.from_json(data) for _, data in sorted(storage.get_many(keys).items())]


def write_tables(storage: Storage, records: Iterable[SampleRecord], manifest: pa.Table) -> None:
    """Write metadata.parquet and failures.parquet, each whole, with the manifest's own columns, by sample id.

    A sample that this manifest does not hold keeps the manifest columns that it has in the tables there. A failed
    sample whose record has made way stays a failure until it has a record again.
    """
    every = sorted(records, key=lambda record: record.sample_id)
    committed = [record.row() for record in every if record.status == "committed"]
    metadata = _with_manifest(pa.Table.from_pylist(committed, RECORD_SCHEMA), manifest, storage, METADATA)
    first = ["file_name", "sample_id"]
    metadata = metadata.select(first + [name for name in metadata.column_names if name not in first])
    storage.put(METADATA, _parquet(metadata.drop_columns(["error_code", "message"])))
    finished = {record.sample_id for record in every}
    failed = [record.row() for record in every if record.status == "failed"]
    failed += [row for row in read_failures(storage) if row["sample_id"] not in finished]
    failed.sort(key=lambda row: str(row["sample_id"]))
    failures = pa.Table.from_pylist(failed, RECORD_SCHEMA).select(list(FAILURE_COLUMNS))
    storage.put(FAILURES, _parquet(_with_manifest(failures, manifest, storage, FAILURES)))


def read_failures(storage: Storage) -> list[dict[str, Any]]:
    """The rows of failures.parquet, without the manifest's columns. Raises ConfigError for a foreign file."""
    table = _read_table(storage, FAILURES)
    return [] if table is None else table.select(list(FAILURE_COLUMNS)).to_pylist()


def read_metadata_ids(storage: Storage) -> set[str]:
    """The samples of metadata.parquet. Raises ConfigError for a foreign file."""
    table = _read_table(storage, METADATA)
    return set() if table is None else {str(sample_id) for sample_id in table["sample_id"].to_pylist()}


def _read_table(storage: Storage, name: str) -> pa.Table | None:
    """The table that is there, or None. Raises ConfigError for a file that is none of ours."""
    data = storage.get(name)
    if data is None:
        return None
    try:
        # Arrow's threads can abort a process that ends right after a read
        table = pq.read_table(io.BytesIO(data), use_threads=False, pre_buffer=False)
        table.select(["sample_id", "attempts", "row_digest"])
    except (pa.ArrowException, KeyError, OSError) as error:
        raise ConfigError(f"{storage.url}/{name} is not a table of this program: move it away") from error
    return table


def _with_manifest(records: pa.Table, manifest: pa.Table, storage: Storage, name: str) -> pa.Table:
    """Records with the columns of their manifest rows behind them; a name that is taken gets `manifest_` before it.

    Records without a row in the manifest get what the table `name` has of them.
    """
    rows = pc.index_in(records["sample_id"], value_set=manifest["sample_id"].combine_chunks())
    columns: dict[str, pa.ChunkedArray] = {}
    for each in manifest.column_names:
        if each != "sample_id":
            stored = each
            while stored in records.column_names or stored in columns:
                stored = f"manifest_{stored}"
            columns[stored] = manifest[each]
    earlier = _read_table(storage, name) if rows.null_count else None
    if earlier is None:
        earlier = records.schema.empty_table()
    # places in the manifest's rows with the earlier table's behind them
    places = pc.index_in(records["sample_id"], value_set=earlier["sample_id"].combine_chunks())
    places = pc.coalesce(rows, pc.add(places, manifest.num_rows))
    for stored in dict.fromkeys([*columns, *earlier.column_names]):
        if stored not in RECORD_SCHEMA.names if name == METADATA else stored not in FAILURE_COLUMNS:
            old = earlier[stored] if stored in earlier.column_names else None
            column = _joined(columns.get(stored), manifest.num_rows, old, earlier.num_rows)
            taken = column.take(places) if len(column) else pa.nulls(records.num_rows, column.type)
            records = records.append_column(stored, taken)
    return records


def _joined(new: pa.ChunkedArray | None, new_rows: int, old: pa.ChunkedArray | None, old_rows: int) -> pa.ChunkedArray:
    """One column of the other below it, nulls for one that is missing; of two types the new one."""
    if new is None or (old is not None and pa.types.is_null(new.type)):
        assert old is not None
        new = pa.chunked_array([pa.nulls(new_rows, old.type)])
    try:
        old = pa.chunked_array([pa.nulls(old_rows, new.type)]) if old is None else old.cast(new.type)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        old = pa.chunked_array([pa.nulls(old_rows, new.type)])
    return pa.chunked_array([*new.chunks, *old.chunks], new.type)


def _parquet(table: pa.Table) -> bytes:
    sink = io.BytesIO()
    pq.write_table(table, sink, compression="zstd")
    return sink.getvalue()


def mean_of(records: Sequence[SampleRecord], column: str) -> float | None:
    """Mean of a metric over the records that have it; None where none has."""
    values = [record.metrics[column] for record in records if record.metrics.get(column) is not None]
    return sum(values) / len(values) if values else None


def by_code(records: Iterable[SampleRecord]) -> Mapping[str, int]:
    """Failed records per error code, most first."""
    counts: dict[str, int] = {}
    for record in records:
        if record.status == "failed":
            code = record.error_code or "unknown"
            counts[code] = counts.get(code, 0) + 1
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
