"""Records: one small object per sample, whose existence is completion.

    records/<sample id>.json              of its first finish
    records/attempt-2/<sample id>.json    of its second, after a failure that was tried again

A sample's video goes up first, under a key of its own; then its record, by conditional put. Whoever loses that put
takes its video away again.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import UnionType
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pyarrow as pa

from pipeline.output.lease import LeaseError
from pipeline.output.storage import Storage
from sgi2v.metrics.objmc import Fidelity
from sgi2v.metrics.quality import SampleQuality

RECORDS = "records"
VIDEOS = "videos"
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
    memory: str | None = None
    """Tier that it was made in: `high`, `medium` or `low`."""
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
        return cls.from_row(json.loads(data))

    @classmethod
    def from_row(cls, values: Mapping[str, Any]) -> SampleRecord:
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


def record_key(sample_id: str, attempts: int) -> str:
    """Where the record of a sample's finish lies; attempts counts that finish too."""
    return f"{RECORDS}/{sample_id}.json" if attempts == 1 else f"{RECORDS}/attempt-{attempts}/{sample_id}.json"


def video_key(sample_id: str, attempt: str) -> str:
    return f"{VIDEOS}/{sample_id}.{attempt}.mp4"


def commit(
    storage: Storage, record: SampleRecord, video: bytes | None, fence: Callable[[], None] = lambda: None
) -> SampleRecord:
    """Make a sample final, exactly once. Returns the record that stands: this one or an earlier winner's.

    Where the winner's has been sealed meanwhile it cannot be told here, and this one is returned. fence: raises
    LeaseError where the run has been overtaken; asked again once the video is up, which can take long.
    """
    key = record_key(record.sample_id, record.attempts)
    fence()
    if video is not None:
        assert record.file_name is not None
        storage.put(record.file_name, video)
        try:
            fence()
        except LeaseError:
            storage.delete(record.file_name)
            raise
    if storage.put_new(key, record.to_json()):
        return record
    if video is not None:
        assert record.file_name is not None
        storage.delete(record.file_name)
    standing = storage.get(key)
    return record if standing is None else SampleRecord.from_json(standing)
