"""What travels between the stages of a flow: a row of one small JSON state, two blocks of pixels, and a log.

A row that failed travels on with its error and is committed as a failed record. What must end the run (a model that
does not load, a store that refuses) travels on too and is raised by the driver: Ray would hand it over as text alone.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from manifests.access import without_secrets
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
    "log": pa.string(),
}
IN_FLIGHT_SCHEMA = pa.schema(_IN_FLIGHT)
OUTCOME_SCHEMA = pa.schema([(name, pa.string()) for name in ("record", "fatal", "message", "log")])
"""What comes back to the driver, without pixels: the record as JSON, or an error that ends the run.

Ray hands on as text whatever a stage raises, so that it could not be told from a bug.
"""
FATAL: dict[str, type[SGI2VError]] = {
    each.__name__: each for each in (StorageError, ClusterError, ConfigError, ModelError, LeaseError)
}
"""Errors that end the run, by the name under which they travel."""

_MESSAGE_LIMIT = 4000
"""Characters of a message, and of a traceback beside it."""
_TRACE_LINE = 500


@dataclass(frozen=True)
class InFlight:
    """What is known of a sample on its way."""

    sample_id: str
    attempts: int
    """Runs that finished it before."""
    row_digest: str
    seed: int
    boxes_NT4: list[list[list[float]]] | None = None
    """In output pixels; None once the row has failed."""
    error_code: str | None = None
    message: str | None = None
    fatal: str | None = None
    """Name of the error that ends the run, told by `message`; no record is made."""
    seconds: dict[str, float] = field(default_factory=dict)
    told: dict[str, Any] = field(default_factory=dict)
    """Fields of the record that the stages behind have filled."""

    @staticmethod
    def begin(rows: pa.Table) -> pa.Table:
        """Manifest rows that have never been finished, as the first stage takes them."""
        return rows.append_column("_attempts", pa.array([0] * rows.num_rows, pa.int64()))

    def failed(self, error: BaseException) -> InFlight:
        """The same sample with its error: a code, and a message that can be acted on."""
        code, told, trace = ErrorCode.UNKNOWN, f"{type(error).__name__}: {error}", ""
        if isinstance(error, SampleError):
            code, told = error.code, error.message
        elif isinstance(error, MemoryError):
            code = ErrorCode.OUT_OF_MEMORY
            told = f"{told}: make the image or the frames smaller, or start fewer workers"
        else:
            parts = map(without_secrets, traceback.format_exception(error))
            trace = "\n" + "".join(_shortened(part, _TRACE_LINE) for part in parts)[-_MESSAGE_LIMIT:]
        message = _shortened(without_secrets(told), _MESSAGE_LIMIT) + trace
        return replace(self, error_code=str(code), message=message)

    def ends_run(self, error: SGI2VError) -> InFlight:
        """The same sample, stopped by an error that is not its own."""
        message = _shortened(without_secrets(str(error)), _MESSAGE_LIMIT)
        return replace(self, fatal=type(error).__name__, message=message)

    def took(self, phase: str, seconds: float) -> InFlight:
        return replace(self, seconds={**self.seconds, phase: seconds})


def _shortened(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]}... ({len(text)} characters)"


def as_row(state: InFlight, first_frame: bytes | None, frames: bytes | None) -> pa.Table:
    row = {"state": json.dumps(asdict(state)), "first_frame": first_frame, "frames": frames}
    return pa.Table.from_pylist([row], IN_FLIGHT_SCHEMA)


def state_of(table: pa.Table) -> InFlight:
    return InFlight(**json.loads(table["state"][0].as_py()))


def pixels_of(table: pa.Table, column: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    return np.frombuffer(table[column][0].as_buffer(), np.uint8).reshape(shape)


def each_row(table: pa.Table, name: str, stage: Callable[[pa.Table], pa.Table]) -> pa.Table:
    """Run a stage row by row: a batch is one row, and need not be. What it logs goes along with each."""
    made = []
    for number in range(table.num_rows):
        row = table.slice(number, 1)
        sample_id = row["sample_id"][0].as_py() if "sample_id" in row.column_names else state_of(row).sample_id
        with capture_log(name, sample_id) as lines:
            done = stage(row)
        if "log" in row.column_names:
            lines = [*json.loads(row["log"][0].as_py()), *lines]
        at = done.schema.get_field_index("log")
        made.append(done.set_column(at, done.schema.field(at), pa.array([json.dumps(lines)])))
    return pa.concat_tables(made)


def outcome_row(record: SampleRecord | None, state: InFlight) -> pa.Table:
    written = None if record is None else record.to_json().decode()
    return pa.Table.from_pylist([{"record": written, "fatal": state.fatal, "message": state.message}], OUTCOME_SCHEMA)


def tracks_of(state: InFlight, num_frames: int, height: int, width: int) -> BoxTracks:
    boxes_NT4 = np.array(state.boxes_NT4, np.float64).reshape(-1, num_frames, 4)  # also where there are none
    return BoxTracks(boxes_NT4, height, width)


def generated_frames(table: pa.Table, sampler: SamplerConfig) -> tuple[InFlight, NDArray[np.uint8] | None]:
    """What the second stage made of a row: its state, and the frames [T, H, W, 3], None where it failed.

    Raises the error of a state that would end the run.
    """
    state = state_of(table)
    if state.fatal is not None:
        raise FATAL[state.fatal](state.message)
    if state.error_code is not None:
        return state, None
    return state, pixels_of(table, "frames", (sampler.num_frames, sampler.height, sampler.width, 3))
