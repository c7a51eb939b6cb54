"""The three stages of a sample: load, generate, commit. Plain callables over one-row Arrow tables.

What travels between them is a row of IN_FLIGHT_SCHEMA: a small JSON state and two blocks of pixels. A row that
failed travels on with its error and is committed as a failed record. What must end the run (a model that does not
load, a store that refuses) travels on too and is raised by the driver: Ray would hand it over as text alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import time
import traceback
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from manifests.images import decode_image, read_image_bytes, resolve_uri
from manifests.schema import parse_row, row_digest
from pipeline.attempts import Attempts, attempt, wait_for_room
from pipeline.config import RunConfig, sample_seed
from pipeline.lease import LeaseError, check_epoch
from pipeline.records import SampleRecord, commit, video_key
from pipeline.storage import Storage, with_retries
from sgi2v.config import SamplerConfig
from sgi2v.errors import ConfigError, ErrorCode, ModelError, SampleError, SGI2VError, StorageError
from sgi2v.trajectory import BoxTracks

if TYPE_CHECKING:
    from sgi2v.generate import Generation
    from sgi2v.model import VideoModel

_IN_FLIGHT: dict[str, pa.DataType] = {
    "state": pa.string(),
    "first_frame": pa.large_binary(),
    "frames": pa.large_binary(),
}
IN_FLIGHT_SCHEMA = pa.schema(_IN_FLIGHT)
OUTCOME_SCHEMA = pa.schema([("record", pa.string()), ("fatal", pa.string()), ("message", pa.string())])
"""What comes back to the driver, without pixels: the record as JSON, or an error that ends the run.

Ray hands on as text whatever a stage raises, so that it could not be told from a bug.
"""
FATAL: dict[str, type[SGI2VError]] = {
    each.__name__: each for each in (StorageError, ConfigError, ModelError, LeaseError)
}
"""Errors that end the run, by the name under which they travel."""

FETCHES = 4
"""Tries of an image's place before its rows fail: they may be far too many to wait long for each."""
_MESSAGE_LIMIT = 4000


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
        if isinstance(error, SampleError):
            return replace(self, error_code=str(error.code), message=error.message)
        trace = "".join(traceback.format_exception(error))[-_MESSAGE_LIMIT:]
        return replace(self, error_code=str(ErrorCode.UNKNOWN), message=f"{type(error).__name__}: {error}\n{trace}")

    def ends_run(self, error: SGI2VError) -> InFlight:
        """The same sample, stopped by an error that is not its own."""
        return replace(self, fatal=type(error).__name__, message=str(error))

    def took(self, phase: str, seconds: float) -> InFlight:
        return replace(self, seconds={**self.seconds, phase: seconds})


def _table(state: InFlight, first_frame: bytes | None, frames: bytes | None) -> pa.Table:
    row = {"state": json.dumps(asdict(state)), "first_frame": first_frame, "frames": frames}
    return pa.Table.from_pylist([row], IN_FLIGHT_SCHEMA)


def _state(table: pa.Table) -> InFlight:
    return InFlight(**json.loads(table["state"][0].as_py()))


def _pixels(table: pa.Table, column: str, shape: tuple[int, ...]) -> NDArray[np.uint8]:
    return np.frombuffer(table[column][0].as_buffer(), np.uint8).reshape(shape)


def _each_row(table: pa.Table, stage: Callable[[pa.Table], pa.Table]) -> pa.Table:
    """Run a stage row by row: a batch is one row, and need not be."""
    return pa.concat_tables([stage(table.slice(row, 1)) for row in range(table.num_rows)])


class Load:
    """Manifest row -> first frame at output size and box tracks in its pixels."""

    def __init__(self, config: RunConfig, attempts: Attempts | None = None) -> None:
        self.config = config
        self.attempts = attempts

    def __call__(self, table: pa.Table) -> pa.Table:
        return _each_row(table, self._load)

    def _load(self, table: pa.Table) -> pa.Table:
        from sgi2v.model import resize_image

        start = time.perf_counter()
        row = table.to_pylist()[0]
        sampler = self.config.sampler
        seed = row["seed"] if row["seed"] is not None else sample_seed(row["sample_id"], self.config.seed)
        state = InFlight(row["sample_id"], row["_attempts"], row_digest(row), seed)
        try:
            sample = parse_row(row)
            uri = resolve_uri(sample.image, self.config.manifest, self.config.execution.access)
            with attempt(self.attempts, "load", sample.sample_id, self.config.execution.sample_timeout_s):
                image_HWC = decode_image(_fetch(uri))
                first_frame = resize_image(image_HWC, sampler.height, sampler.width).tobytes()
            height, width = image_HWC.shape[:2]
            tracks = sample.tracks(sampler.num_frames, height, width).clip_to_first_frame()
            boxes = tracks.rescale(sampler.height, sampler.width).boxes_NT4.tolist()
            state = replace(state, boxes_NT4=boxes)
        except Exception as error:
            return _table(state.failed(error).took("load", time.perf_counter() - start), None, None)
        return _table(state.took("load", time.perf_counter() - start), first_frame, None)


def _fetch(uri: str) -> bytes:
    """The image file's bytes; a place that does not answer fails its rows, and the others go on."""
    try:
        return with_retries(f"reading {uri}", lambda: read_image_bytes(uri), FETCHES)
    except (StorageError, OSError) as error:
        message = f"{error}: make it readable, then run again with --retry-failed"
        raise SampleError(ErrorCode.IMAGE_MISSING, message) from error


class Generate:
    """First frame and tracks -> frames. Holds one model for its life."""

    def __init__(self, config: RunConfig, device: str, attempts: Attempts | None = None) -> None:
        """device: `cuda` or `cpu`."""
        import torch

        quiet_libraries()
        from sgi2v.model import load_model

        self.config = config
        self.attempts = attempts
        if device == "cpu":
            torch.set_num_threads(config.execution.threads_per_worker)
        # An error is told with the first row: what a constructor raises reaches the driver as text alone.
        self.model: VideoModel | ConfigError
        try:
            self.model = load_model(config.model, device=device)
            self.device = torch.cuda.get_device_name() if device == "cuda" else device
        except ConfigError as error:
            self.model = error
        except Exception as error:
            self.model = ModelError(f"{config.model.source} cannot be held on {device}: {error}")
        else:
            found = self.model.checkpoint.revision
            if found != config.model_revision:
                message = f"{config.model.source} is {found} on {socket.gethostname()}, but {config.model_revision}"
                self.model = ModelError(f"{message} where the run was started: give every node the same weights")

    def __call__(self, table: pa.Table) -> pa.Table:
        return _each_row(table, self._generate)

    def _generate(self, table: pa.Table) -> pa.Table:
        import torch

        from sgi2v.generate import generate

        state = _state(table)
        if isinstance(self.model, ConfigError):
            return _table(state.ends_run(self.model), None, None)
        if state.error_code is not None:
            return _table(state, None, None)
        sampler = self.config.sampler
        image_HWC = _pixels(table, "first_frame", (sampler.height, sampler.width, 3))
        tracks = _tracks(state, sampler.num_frames, sampler.height, sampler.width)
        wait_for_room(self.attempts, state.sample_id)
        try:
            with attempt(self.attempts, "generate", state.sample_id, self.config.execution.sample_timeout_s):
                generation = generate(self.model, image_HWC, tracks, sampler, self.config.guidance, state.seed)
        except Exception as error:
            if _is_out_of_memory(error):
                torch.cuda.empty_cache()
                failure = SampleError(ErrorCode.OUT_OF_MEMORY, f"{error}: make the frames smaller or fewer")
                return _table(state.failed(failure), None, None)
            if _device_is_lost(error):
                os._exit(1)  # the process cannot use its GPU again; the row goes to another
            return _table(state.failed(error), None, None)
        state = replace(state, seconds={**state.seconds, **generation.seconds}, told=self._told(generation))
        return _table(state, table["first_frame"][0].as_py(), generation.frames.tobytes())

    def _told(self, generation: Generation) -> dict[str, Any]:
        def column(values: NDArray[np.float64]) -> list[float | None]:
            return [float(value) if np.isfinite(value) else None for value in values.ravel()]

        assert not isinstance(self.model, ConfigError)
        return {
            "guided": generation.is_guided,
            "loss_first": column(generation.losses[:, :1]),
            "loss_last": column(generation.losses[:, -1:]),
            "skipped_updates": generation.skipped_updates,
            "latent_drift": generation.latent_drift,
            "peak_gpu_bytes": generation.peak_gpu_bytes,
            "device": self.device,
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "host": socket.gethostname(),
            "frames_sha256": hashlib.sha256(generation.frames.tobytes()).hexdigest(),
        }


class Commit:
    """Frames -> mp4, read back and measured -> video and record in the output."""

    def __init__(self, config: RunConfig, epoch: int, attempts: Attempts | None = None) -> None:
        """epoch: of the run's lease; what was started by an overtaken run is not committed."""
        from sgi2v.tracking import load_tracker

        self.config = config
        self.epoch = epoch
        self.attempts = attempts
        self.storage = Storage(config.output)
        self.tracker = load_tracker(config.metrics.tracker)

    def __call__(self, table: pa.Table) -> pa.Table:
        return _each_row(table, self._commit)

    def _commit(self, table: pa.Table) -> pa.Table:
        start = time.perf_counter()
        state = _state(table)
        video = None
        if state.fatal is not None:
            return _outcome(None, state)
        if state.error_code is None:
            try:
                with attempt(self.attempts, "commit", state.sample_id, self.config.execution.sample_timeout_s):
                    video, state = self._finish(table, state)
            except Exception as error:
                state = state.failed(error)
        record = self._record(state.took("commit", time.perf_counter() - start))
        try:
            check_epoch(self.storage, self.epoch)
            return _outcome(commit(self.storage, record, video), state)
        except (StorageError, ConfigError) as error:
            return _outcome(None, state.ends_run(error))
        finally:
            if self.attempts is not None:
                self.attempts.leave(state.sample_id)

    def _finish(self, table: pa.Table, state: InFlight) -> tuple[bytes, InFlight]:
        """Encode, read back what a user will get, and measure that."""
        from sgi2v.metrics import motion_fidelity, sample_quality
        from sgi2v.video import check_video, decode_mp4, encode_mp4

        sampler = self.config.sampler
        shape = (sampler.num_frames, sampler.height, sampler.width)
        video = encode_mp4(_pixels(table, "frames", (*shape, 3)), sampler.fps)
        delivered_THWC = decode_mp4(video)
        check_video(delivered_THWC, *shape)
        tracks = _tracks(state, *shape)
        first_frame_HWC = _pixels(table, "first_frame", (*shape[1:], 3))
        told = {
            **state.told,
            "file_name": video_key(state.sample_id, uuid.uuid4().hex[:8]),
            "num_boxes": tracks.num_boxes,
            "num_frames": sampler.num_frames,
            "height": sampler.height,
            "width": sampler.width,
            "fps": sampler.fps,
            "video_sha256": hashlib.sha256(video).hexdigest(),
            "video_bytes": len(video),
            "metrics": {
                **motion_fidelity(delivered_THWC, tracks, self.tracker).as_dict(),
                **sample_quality(delivered_THWC, first_frame_HWC).as_dict(),
            },
        }
        return video, replace(state, told=told)

    def _record(self, state: InFlight) -> SampleRecord:
        told: dict[str, Any] = {
            "host": socket.gethostname(),
            **{f"seconds_{phase}": round(seconds, 4) for phase, seconds in state.seconds.items()},
            **state.told,
        }
        return SampleRecord(
            sample_id=state.sample_id,
            status="committed" if state.error_code is None else "failed",
            attempts=state.attempts + 1,
            row_digest=state.row_digest,
            fingerprint=self.config.fingerprint,
            seed=state.seed,
            error_code=state.error_code,
            message=state.message,
            finished_at=datetime.now(UTC).isoformat(timespec="milliseconds"),
            **told,
        )


def _outcome(record: SampleRecord | None, state: InFlight) -> pa.Table:
    written = None if record is None else record.to_json().decode()
    return pa.Table.from_pylist([{"record": written, "fatal": state.fatal, "message": state.message}], OUTCOME_SCHEMA)


def generated_frames(table: pa.Table, sampler: SamplerConfig) -> tuple[InFlight, NDArray[np.uint8] | None]:
    """What the second stage made of a row: its state, and the frames [T, H, W, 3], None where it failed.

    Raises the error of a state that would end the run.
    """
    state = _state(table)
    if state.fatal is not None:
        raise FATAL[state.fatal](state.message)
    if state.error_code is not None:
        return state, None
    return state, _pixels(table, "frames", (sampler.num_frames, sampler.height, sampler.width, 3))


def _tracks(state: InFlight, num_frames: int, height: int, width: int) -> BoxTracks:
    boxes_NT4 = np.array(state.boxes_NT4, np.float64).reshape(-1, num_frames, 4)  # also where there are none
    return BoxTracks(boxes_NT4, height, width)


def _is_out_of_memory(error: BaseException) -> bool:
    """Torch's own error, that of a CUDA library that found no room for its workspace, or that of a CPU's allocator."""
    told = ("ALLOC_FAILED", "DefaultCPUAllocator")
    named = type(error).__name__ == "OutOfMemoryError" or isinstance(error, MemoryError)
    return named or any(words in str(error) for words in told)


def _device_is_lost(error: BaseException) -> bool:
    """A GPU that asserted or fell off: everything after it fails too."""
    return isinstance(error, RuntimeError) and "CUDA error" in str(error)


def quiet_libraries() -> None:
    """Keep diffusers' and transformers' bars and notices out of a worker's log."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
