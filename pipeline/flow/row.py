"""A row as it travels between the stages: a small JSON state, two blocks of pixels, and log lines.

A row that failed travels on with its error and is committed as a failed record. An error that must end the run (a
model that does not load, a store that refuses) travels on as well, and the driver raises it: of an exception in a
stage, Ray would pass on the text only.
"""

from __future__ import annotations

import io
import json
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from manifests.access import without_secrets
from pipeline.flow.missing import missing_package
from pipeline.output.lease import LeaseError
from pipeline.output.log import capture_log
from pipeline.output.records import SampleRecord
from sgi2v.config import SamplerConfig
from sgi2v.errors import ClusterError, ConfigError, ErrorCode, ModelError, SampleError, SGI2VError, StorageError
from sgi2v.trajectory import BoxTracks

_IN_FLIGHT: dict[str, pa.DataType] = {
    "state": pa.string(),
    "first_frame": pa.large_binary(),
    "frames": pa.large_binary(),
    "baseline_frames": pa.large_binary(),
    "masks": pa.list_(pa.large_binary()),
    "log": pa.string(),
}
IN_FLIGHT_SCHEMA = pa.schema(_IN_FLIGHT)
"""A row after `load` and `generate`. state: `InFlight` as JSON; masks: PNGs of frame 0, per box; log: a JSON list."""
OUTCOME_SCHEMA = pa.schema([(name, pa.string()) for name in ("record", "fatal", "message", "log")])
"""A row after `commit`, as the driver gets it: the record as JSON, or name and message of a run's error."""
RUN_ERRORS: dict[str, type[SGI2VError]] = {
    error.__name__: error for error in (StorageError, ClusterError, ConfigError, ModelError, LeaseError)
}
"""Errors that end the run, by the name under which they travel."""

_MESSAGE_LIMIT = 4000
"""Characters of a message, and of a traceback below it."""
_TRACE_LINE_LIMIT = 500


@dataclass(frozen=True)
class InFlight:
    """The state of a sample between two stages."""

    sample_id: str
    attempts: int
    """Number of earlier runs that finished this sample."""
    row_digest: str
    seed: int
    height: int | None = None
    """Of the sample's frames, pixels; None if the row has failed."""
    width: int | None = None
    """Of the sample's frames, pixels; None if the row has failed."""
    boxes_NT4: list[list[list[float]]] | None = None
    """Boxes in output pixels; None if the row has failed."""
    still: list[bool] | None = None
    """Which boxes are told to stay; None: no box is."""
    error_code: str | None = None
    message: str | None = None
    """Message of the row's error, or of the error that ends the run."""
    fatal: str | None = None
    """Name in RUN_ERRORS of the error that ends the run; then no record is written."""
    seconds: dict[str, float] = field(default_factory=dict)
    """Seconds by phase."""
    record_fields: dict[str, Any] = field(default_factory=dict)
    """Fields of the record that the finished stages have filled."""

    @staticmethod
    def begin(rows: pa.Table) -> pa.Table:
        """Manifest rows that no run has finished yet, as the first stage takes them."""
        return rows.append_column("_attempts", pa.array([0] * rows.num_rows, pa.int64()))

    def with_error(self, error: BaseException) -> InFlight:
        """The sample with its own error: a code, and a message that says what to change.

        A package that is missing on the node is no sample's own error: it ends the run.
        """
        if isinstance(error, ModuleNotFoundError):
            return self.with_run_error(missing_package(error))
        code, text, trace = ErrorCode.UNKNOWN, f"{type(error).__name__}: {error}", ""
        if isinstance(error, SampleError):
            code, text = error.code, error.message
        elif isinstance(error, MemoryError):
            code = ErrorCode.OUT_OF_MEMORY
            text = f"{text}: make the image or the frames smaller, or start fewer workers"
        else:
            parts = map(without_secrets, traceback.format_exception(error))
            trace = "\n" + "".join(_shortened(part, _TRACE_LINE_LIMIT) for part in parts)[-_MESSAGE_LIMIT:]
        message = _shortened(without_secrets(text), _MESSAGE_LIMIT) + trace
        return replace(self, error_code=str(code), message=message)

    def with_run_error(self, error: SGI2VError) -> InFlight:
        """The sample with an error that is not its own and ends the run."""
        message = _shortened(without_secrets(str(error)), _MESSAGE_LIMIT)
        return replace(self, fatal=type(error).__name__, message=message)

    def with_seconds(self, phase: str, seconds: float) -> InFlight:
        return replace(self, seconds={**self.seconds, phase: seconds})


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"


def as_row(
    state: InFlight,
    first_frame: bytes | None,
    frames: bytes | None,
    masks: list[bytes] | None = None,
    baseline_frames: bytes | None = None,
) -> pa.Table:
    """One row of IN_FLIGHT_SCHEMA. first_frame, frames: uint8 pixels; None if the row has failed. baseline_frames:
    likewise, None without a baseline too."""
    pixels = {"first_frame": first_frame, "frames": frames, "baseline_frames": baseline_frames}
    return pa.Table.from_pylist([{"state": json.dumps(asdict(state)), **pixels, "masks": masks}], IN_FLIGHT_SCHEMA)


def state_of(row: pa.Table) -> InFlight:
    return InFlight(**json.loads(row["state"][0].as_py()))


def with_seed(row: pa.Table, seed: int) -> pa.Table:
    """The row, to be generated with another seed."""
    state = replace(state_of(row), seed=seed)
    return row.set_column(row.schema.get_field_index("state"), "state", pa.array([json.dumps(asdict(state))]))


def pixels_of(row: pa.Table, column: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    return np.frombuffer(row[column][0].as_buffer(), np.uint8).reshape(shape)


def map_rows(table: pa.Table, name: str, stage: Callable[[pa.Table], pa.Table]) -> pa.Table:
    """Run a stage on each row of a batch, and append what it logs to the row's log. name: of the stage, in the log."""
    results = []
    for number in range(table.num_rows):
        row = table.slice(number, 1)
        sample_id = row["sample_id"][0].as_py() if "sample_id" in row.column_names else state_of(row).sample_id
        with capture_log(name, sample_id) as lines:
            result = stage(row)
        if "log" in row.column_names:
            lines = [*json.loads(row["log"][0].as_py()), *lines]
        index = result.schema.get_field_index("log")
        results.append(result.set_column(index, result.schema.field(index), pa.array([json.dumps(lines)])))
    return pa.concat_tables(results)


def outcome_row(record: SampleRecord | None, state: InFlight) -> pa.Table:
    """One row of OUTCOME_SCHEMA. record: None if an error ends the run."""
    text = None if record is None else record.to_json().decode()
    return pa.Table.from_pylist([{"record": text, "fatal": state.fatal, "message": state.message}], OUTCOME_SCHEMA)


def masks_of(row: pa.Table) -> NDArray[np.uint8] | None:
    """The masks [N, H, W] of a row, as in BoxTracks; None if it has none."""
    pngs = row["masks"][0].as_py()
    return None if pngs is None else np.stack([np.asarray(Image.open(io.BytesIO(png))) for png in pngs])


def sampler_of(state: InFlight, sampler: SamplerConfig) -> SamplerConfig:
    """The run's settings with the size of this sample's frames."""
    assert state.height is not None
    assert state.width is not None
    return sampler.replace(height=state.height, width=state.width)


def tracks_of(state: InFlight, sampler: SamplerConfig) -> BoxTracks:
    """The boxes of a sample. sampler: of `sampler_of`."""
    boxes_NT4 = np.array(state.boxes_NT4, np.float64).reshape(-1, sampler.num_frames, 4)  # no boxes: an array [0, T, 4]
    still_N = None if state.still is None else np.array(state.still, bool)
    return BoxTracks(boxes_NT4, sampler.height, sampler.width, still_N)


def generated_frames(row: pa.Table, sampler: SamplerConfig) -> tuple[InFlight, NDArray[np.uint8] | None]:
    """State and frames [T, H, W, 3] of a row after `generate`; no frames if it failed. Raises a run's error."""
    state = state_of(row)
    if state.fatal is not None:
        raise RUN_ERRORS[state.fatal](state.message)
    if state.error_code is not None:
        return state, None
    own = sampler_of(state, sampler)
    return state, pixels_of(row, "frames", (own.num_frames, own.height, own.width, 3))
