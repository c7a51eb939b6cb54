"""Records: one small object per sample, whose existence is completion. See docs/output-format.md, Records."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

import pyarrow as pa

from pipeline.output.candidates import KEEPABLE, BaselineMetrics, Candidate
from pipeline.output.keys import VIDEO_COLUMNS, RecordKey, names_own_videos, parse_record_key
from pipeline.output.labels import LABELS_TYPE, are_whole, column_of, pack, unpack
from pipeline.output.lease import LeaseError
from pipeline.output.storage import ABANDONED_S, Storage
from sgi2v.errors import StorageError
from sgi2v.metrics.background import Background
from sgi2v.metrics.objmc import Fidelity
from sgi2v.metrics.quality import SampleQuality

RECORDS = "records"
VIDEOS = "videos"
RECORD_VERSION = "record/v1"

Status = Literal["committed", "failed"]
NOT_PLAIN = frozenset({"metrics", "candidates", "labels"})
"""Fields of a record whose columns are not made from their annotation."""
REQUIRED = ("sample_id", "status", "attempts", "row_digest", "fingerprint")
"""Columns that no record leaves out."""


class Video(NamedTuple):
    """A video of a record."""

    key: str
    sha256: str | None
    size: int | None
    """Bytes."""


@dataclass(frozen=True)
class SampleRecord:
    """What is known of one finished sample. A value that does not apply is None."""

    sample_id: str
    status: Status
    attempts: int
    """Runs that have finished this sample, this one included."""
    row_digest: str
    """Digest of the manifest row that it was made from."""
    fingerprint: str
    """Digest of the settings that decide the results of the run."""
    image_uri: str | None = None
    """Where its image was read, without secrets; of an inline image, what precedes its data."""
    image_sha256: str | None = None
    """Digest of the image file's bytes."""
    seed: int | None = None
    """Seed of all its noise."""
    file_name: str | None = None
    """Key of the video below the output."""
    error_code: str | None = None
    """Why the sample failed: an ErrorCode."""
    message: str | None = None
    """What happened and what to do about it."""
    image_note: str | None = None
    """What is not certain about the image's colours."""
    guided: bool | None = None
    """False: plain SVD, because the row has no boxes or guidance is off."""
    num_boxes: int | None = None
    """Boxes of the row."""
    num_still: int | None = None
    """Those of them that are told to stay: `objmc_px` and the like leave them out."""
    num_frames: int | None = None
    """Frames of the video."""
    fit: str | None = None
    """How its picture fills the video: `crop`, `pad`, `stretch` or `bucket`."""
    source_box: list[float] | None = None
    """Part of the picture that is shown: x0, y0, x1, y1, pixels of the picture. None: all of it."""
    picture_box: list[int] | None = None
    """Part of the frames that shows the picture: x0, y0, x1, y1, pixels; the rest is black. None: all of them."""
    height: int | None = None
    """Of the video, pixels."""
    width: int | None = None
    """Of the video, pixels."""
    fps: int | None = None
    """Frames per second of the video."""
    loss_first: list[float | None] | None = None
    """Guidance loss before the first update of each guided step."""
    loss_last: list[float | None] | None = None
    """Guidance loss before the last update of each guided step."""
    skipped_updates: int | None = None
    """Guidance updates thrown away because a 16-bit gradient overflowed; each was computed again."""
    latent_drift: float | None = None
    """Root mean square of what guidance added to the latents, relative to theirs."""
    seconds_load: float | None = None
    """Reading and decoding the image, seconds."""
    seconds_encode: float | None = None
    """Encoding the condition, seconds."""
    seconds_guide: float | None = None
    """Guidance updates, seconds."""
    seconds_denoise: float | None = None
    """Denoising steps, seconds."""
    seconds_decode: float | None = None
    """Decoding the latents, seconds."""
    seconds_commit: float | None = None
    """Encoding the mp4, checking and measuring it, seconds."""
    peak_gpu_bytes: int | None = None
    """Most memory that torch held on the GPU, bytes; None on a CPU."""
    memory: str | None = None
    """Memory tier that it was made in: `high`, `medium` or `low`."""
    decode_chunk: int | None = None
    """Frames decoded at once: the setting `decode_chunk_size`, or fewer where memory was short."""
    device: str | None = None
    """Name of the GPU, or `cpu`."""
    dtype: str | None = None
    """Type of the U-Net's weights."""
    kernels: str | None = None
    """What computed attention, convolutions over frames and classifier-free guidance, in words."""
    seconds_candidates: float | None = None
    """Making and measuring all candidates on the worker, seconds; None where candidates are off."""
    seconds_baseline: float | None = None
    """Generating the baseline, seconds; None without one."""
    host: str | None = None
    """Machine that generated the sample; of a failed sample, the one that recorded it."""
    frames_sha256: str | None = None
    """Digest of the generated frames, before they are encoded."""
    video_sha256: str | None = None
    """Digest of the mp4."""
    video_bytes: int | None = None
    """Size of the mp4, bytes."""
    kept_candidate: int | None = None
    """Number of the candidate that is the sample's video, from 0; None where candidates are off."""
    passed: bool | None = None
    """Whether that video passes the condition `candidates.keep`; None without one."""
    baseline_file_name: str | None = None
    """Key of the baseline's video below the output; None without one, as are the next three."""
    baseline_frames_sha256: str | None = None
    """As frames_sha256, of the baseline."""
    baseline_video_sha256: str | None = None
    """Digest of the baseline's mp4."""
    baseline_video_bytes: int | None = None
    """Size of the baseline's mp4, bytes."""
    finished_at: str | None = None
    """ISO 8601, UTC."""
    record_version: str = RECORD_VERSION
    """Version of this list of fields."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Motion fidelity, background, sample quality and the baseline's metrics, by column."""
    candidates: list[dict[str, Any]] | None = None
    """Every candidate, by its number: rows of Candidate and of the metrics KEEPABLE. None where candidates are off."""
    labels: bytes | None = None
    """Where each box was asked to be and where its object was measured, as `labels.pack` makes them."""

    @property
    def videos(self) -> list[Video]:
        """Its videos in the output."""
        named = [
            (self.file_name, self.video_sha256, self.video_bytes),
            (self.baseline_file_name, self.baseline_video_sha256, self.baseline_video_bytes),
        ]
        return [Video(key, sha256, size) for key, sha256, size in named if key is not None]

    def flat(self) -> dict[str, Any]:
        """One flat row of RECORD_SCHEMA without `labels`."""
        own = (field.name for field in dataclasses.fields(self) if field.name not in _NOT_FLAT)
        return {**{name: getattr(self, name) for name in own}, **self.metrics}

    def row(self) -> dict[str, Any]:
        """One row of RECORD_SCHEMA."""
        return {**self.flat(), "labels": unpack(self.labels)}

    def to_json(self) -> bytes:
        """The content of the record's object."""
        return json.dumps(self.row(), sort_keys=True, allow_nan=False, separators=(",", ":")).encode()

    @classmethod
    def from_json(cls, data: bytes) -> SampleRecord:
        """The record in an object's content."""
        return cls.from_row(json.loads(data))

    @classmethod
    def from_row(cls, values: Mapping[str, Any]) -> SampleRecord:
        """The record of a row of RECORD_SCHEMA, with `labels` or without. A column that is not a field is a metric."""
        own = {field.name for field in dataclasses.fields(cls)} - _NOT_FLAT
        metrics = {name: value for name, value in values.items() if name not in {*own, "labels"}}
        flat = {name: value for name, value in values.items() if name in own}
        return cls(**flat, metrics=metrics, labels=pack(values.get("labels")))


_NOT_FLAT = {"metrics", "labels"}


def _arrow_type(annotation: Any) -> pa.DataType:
    """The Arrow type for the annotation of a field. Every column is nullable, so `X | None` gives the type of X."""
    if get_origin(annotation) is UnionType:
        annotation = next(argument for argument in get_args(annotation) if argument is not type(None))
    if get_origin(annotation) in {list, tuple}:
        return pa.list_(_arrow_type(get_args(annotation)[0]))
    if get_origin(annotation) is Literal:
        return pa.string()
    scalars: dict[Any, pa.DataType] = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string()}
    return scalars[annotation]


def _columns(dataclass_type: type) -> dict[str, pa.DataType]:
    hints = get_type_hints(dataclass_type)
    names = (field.name for field in dataclasses.fields(dataclass_type) if field.name not in NOT_PLAIN)
    return {name: _arrow_type(hints[name]) for name in names}


def _record_schema() -> pa.Schema:
    fidelity = _columns(Fidelity)
    per_box = {f"{name}_per_box": pa.list_(kind) for name, kind in fidelity.items()}
    measured_by = dict.fromkeys(("tracker", "tracker_version", "metrics_version"), pa.string())
    rest = {**_columns(Background), **_columns(SampleQuality)}
    measured = {**fidelity, **rest}
    candidates = pa.list_(pa.struct({**_columns(Candidate), **{name: measured[name] for name in KEEPABLE}}))
    tried = {"candidates": candidates, **_columns(BaselineMetrics), "labels": LABELS_TYPE}
    return pa.schema({**_columns(SampleRecord), **fidelity, **per_box, **measured_by, **rest, **tried})


RECORD_SCHEMA = _record_schema()
"""The columns of every record. docs/output-format.md describes each."""
FLAT_SCHEMA = pa.schema([field for field in RECORD_SCHEMA if field.name != "labels"])
"""RECORD_SCHEMA without `labels`, which are larger than all else together."""


def table_of(records: Sequence[SampleRecord]) -> pa.Table:
    """RECORD_SCHEMA of some records."""
    table = pa.Table.from_pylist([record.flat() for record in records], FLAT_SCHEMA)
    return table.append_column(RECORD_SCHEMA.field("labels"), column_of([record.labels for record in records]))


def record_key(sample_id: str, attempts: int) -> str:
    """The key of a sample's record. attempts: as in the record, from 1."""
    return f"{RECORDS}/{sample_id}.json" if attempts == 1 else f"{RECORDS}/attempt-{attempts}/{sample_id}.json"


def video_key(sample_id: str, attempt: str) -> str:
    """The key of a sample's video. attempt: random, so that two workers never write the same key."""
    return f"{VIDEOS}/{sample_id}.{attempt}.mp4"


def baseline_key(key: str) -> str:
    """The key of the baseline beside a sample's video. key: of that video."""
    return f"{key.removesuffix('.mp4')}.baseline.mp4"


class DamagedRecordError(ValueError):
    """An object is not a record that this program writes at its key. The text is the end of a sentence about it."""


def parse_record(key: str, data: bytes) -> SampleRecord:
    """The record in an object. Raises DamagedRecordError."""
    (record,) = _parse([(key, data)])
    return record


def parse_records(objects: Sequence[tuple[str, bytes]]) -> tuple[list[tuple[str, SampleRecord]], dict[str, str]]:
    """The records in objects, each with its key; and by key what is wrong with the others. objects: keys and bytes."""
    if not objects:
        return [], {}
    try:
        return list(zip((key for key, _ in objects), _parse(objects), strict=True)), {}
    except DamagedRecordError as error:
        if len(objects) == 1:
            return [], {objects[0][0]: str(error)}
    middle = len(objects) // 2
    left, problems_left = parse_records(objects[:middle])
    right, problems_right = parse_records(objects[middle:])
    return left + right, problems_left | problems_right


def _parse(objects: Sequence[tuple[str, bytes]]) -> list[SampleRecord]:
    """The records in objects, all at once, since Arrow is slow with one. Raises DamagedRecordError if one is none."""
    rows = [_parse_json(data) for _, data in objects]
    try:
        table = pa.Table.from_pylist(rows, RECORD_SCHEMA)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise DamagedRecordError(f"has a value of another type: {error}") from error
    if not are_whole(table):
        raise DamagedRecordError("has labels that lack a frame or a coordinate")
    is_own = names_own_videos(table).to_pylist()
    for (key, _), row, names_own_video in zip(objects, rows, is_own, strict=True):
        stated = RecordKey(row["sample_id"], row["attempts"])
        if stated != parse_record_key(key) or type(stated.attempts) is not int:
            raise DamagedRecordError(f"says that it is of {stated.sample_id!r}, attempt {stated.attempts}")
        if row["status"] not in get_args(Status):
            raise DamagedRecordError(f"has the status {row['status']!r}")
        if not names_own_video:
            names = [repr(row[column]) for column in VIDEO_COLUMNS if row.get(column) is not None]
            which = "which is not a video" if len(names) == 1 else "which are not both videos"
            raise DamagedRecordError(f"names {' and '.join(names)}, {which} of this sample")
    return [SampleRecord.from_row(row) for row in rows]


def _parse_json(data: bytes) -> dict[str, Any]:
    try:
        values = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DamagedRecordError("is not JSON" if data.strip() else "is empty") from error
    if not isinstance(values, dict):
        raise DamagedRecordError("is not a JSON object")
    missing = [name for name in REQUIRED if values.get(name) is None]
    if missing:
        raise DamagedRecordError(f"lacks {', '.join(missing)}")
    return values


def commit(
    storage: Storage,
    record: SampleRecord,
    video: bytes | None,
    fence: Callable[[], None] = lambda: None,
    baseline: bytes | None = None,
) -> SampleRecord:
    """Upload a sample's videos, then its record by conditional put: a sample is committed exactly once.

    Returns the record that is in the output: this one, or the one of a worker that was faster. If that one has been
    sealed into a part meanwhile, this one is returned. fence: raises LeaseError if the run has lost its lease; called
    before the upload and after it, since an upload can take long. baseline: the baseline's video.
    """
    key = record_key(record.sample_id, record.attempts)
    named = ((record.file_name, video), (record.baseline_file_name, baseline))
    videos = {name: data for name, data in named if name is not None and data is not None}
    fence()
    start = time.time()
    _put_all(storage, videos)
    if videos:
        try:
            fence()
        except LeaseError:
            storage.delete_many(videos)
            raise
    if storage.put_new(key, record.to_json()):
        if time.time() - start > ABANDONED_S / 2:
            _put_all(storage, videos)  # `verify --repair` may have deleted them as videos without a record
        return record
    storage.delete_many(videos)
    try:
        faster = storage.get(key)
        return record if faster is None else parse_record(key, faster)
    except DamagedRecordError as error:
        raise StorageError(f"{storage.url}/{key} {error}: check the output with `sgi2v-batch verify`") from error


def _put_all(storage: Storage, videos: Mapping[str, bytes]) -> None:
    for name, data in videos.items():
        storage.put(name, data)
