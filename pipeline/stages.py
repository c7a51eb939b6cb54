"""The three stages of a sample: load, generate, commit. Plain callables over one-row Arrow tables."""

from __future__ import annotations

import hashlib
import socket
import time
import uuid
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from manifests.images import decode_image, read_image_bytes, resolve_uri
from manifests.schema import parse_row, row_digest, rows_of
from pipeline.attempts import Attempts, attempt, wait_for_room
from pipeline.config import RunConfig, sample_seed
from pipeline.in_flight import FATAL, InFlight, as_row, each_row, outcome_row, pixels_of, state_of
from pipeline.lease import check_epoch
from pipeline.plan import RUN_FILE
from pipeline.records import SampleRecord, commit, video_key
from pipeline.storage import Storage, with_retries
from sgi2v.config import GuidanceConfig, MemoryTier, SamplerConfig
from sgi2v.errors import (
    ClusterError,
    ConfigError,
    ErrorCode,
    ModelError,
    SampleError,
    StorageError,
    is_out_of_memory,
)
from sgi2v.trajectory import BoxTracks

if TYPE_CHECKING:
    from sgi2v.generate import Generation
    from sgi2v.model import VideoModel

FETCHES = 4
"""Tries of an image's place in a row: the rows that fail with it may be far too many to wait long for each."""


class Load:
    """Manifest row -> first frame at output size and box tracks in its pixels."""

    def __init__(self, config: RunConfig, attempts: Attempts | None = None) -> None:
        self.config = config
        self.attempts = attempts

    def __call__(self, table: pa.Table) -> pa.Table:
        return each_row(table, "load", self._load)

    def _load(self, table: pa.Table) -> pa.Table:
        start = time.perf_counter()
        # outside the attempt, as what becomes of the row is told with them; they take no more than MAX_BOXES allows
        row = rows_of(table)[0]
        seed = row["seed"] if row["seed"] is not None else sample_seed(row["sample_id"], self.config.seed)
        state = InFlight(row["sample_id"], row["_attempts"], row_digest(row), seed)
        try:
            with attempt(self.attempts, "load", state.sample_id, self.config.execution.sample_timeout_s):
                first_frame, boxes = self._first_frame_and_boxes(row)
        except (ClusterError, StorageError) as error:
            return as_row(state.ends_run(error), None, None)
        except Exception as error:
            return as_row(state.failed(error).took("load", time.perf_counter() - start), None, None)
        state = replace(state, boxes_NT4=boxes)
        return as_row(state.took("load", time.perf_counter() - start), first_frame, None)

    def _first_frame_and_boxes(self, row: dict[str, Any]) -> tuple[bytes, list[list[list[float]]]]:
        from sgi2v.video import resize_image

        sampler, access = self.config.sampler, self.config.execution.access
        sample = parse_row(row)
        uri = resolve_uri(sample.image, self.config.manifest, access)
        image_HWC = decode_image(_fetch(uri, self.config))
        height, width = image_HWC.shape[:2]
        tracks = sample.tracks(sampler.num_frames, height, width).clip_to_first_frame()
        boxes_NT4: list[list[list[float]]] = tracks.rescale(sampler.height, sampler.width).boxes_NT4.tolist()
        return resize_image(image_HWC, sampler.height, sampler.width).tobytes(), boxes_NT4


def _fetch(uri: str, config: RunConfig) -> bytes:
    """The image file's bytes; a place that does not answer fails its rows, and the others go on.

    Where the run's own objects are in the same store, it is waited for as for those, and tried once more. Raises
    StorageError if it does not come back: all rows would fail with it.
    """
    failed: Exception
    for _ in range(2):
        try:
            return with_retries(
                f"reading {uri}", lambda: read_image_bytes(uri, access=config.execution.access), FETCHES
            )
        except (StorageError, OSError) as error:
            failed = error
        own = _own_object_beside(uri, config)
        if own is None:
            break
        # waits for long where the store is down, and not for every row that names what cannot be read
        Storage(own[0]).get(own[1])
    message = f"{failed}: make it readable, then run again with --retry-failed"
    raise SampleError(ErrorCode.IMAGE_MISSING, message) from failed


def _own_object_beside(uri: str, config: RunConfig) -> tuple[str, str] | None:
    """Folder and key of the run's own in the bucket or server of an image; None where it has nothing there."""
    for own in (f"{config.output.rstrip('/')}/{RUN_FILE}", config.manifest):
        if "://" in own and own.split("/")[:3] == uri.split("/")[:3]:
            folder, _, key = own.rpartition("/")
            return folder, key
    return None


class Generate:
    """First frame and tracks -> frames. Holds one model for its life."""

    def __init__(self, config: RunConfig, device: str, attempts: Attempts | None = None) -> None:
        """device: `cuda` or `cpu`."""
        import torch

        quiet_libraries()
        from sgi2v.estimate import choose_tier
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
            else:
                share = min(1.0, config.execution.gpus_per_worker or 1.0)
                self.memory = choose_tier(config.execution.memory, self.model, config.sampler, config.guidance, share)
                if config.execution.compile:
                    self._compile(self.model)

    def _compile(self, model: VideoModel) -> None:
        """Before any sample: none is to be blamed for it, nor timed with it."""
        from sgi2v.compiled import cannot_compile, compile_blocks
        from sgi2v.trial import moving_box, shortest

        compile_blocks(model.unet)
        sampler, guidance = shortest(self.config.sampler, self.config.guidance)
        try:
            self._sample(model, *moving_box(sampler), sampler, guidance, seed=0)
        except Exception as error:
            # what befalls a sample is told by the samples
            if not isinstance(error, SampleError) and not is_out_of_memory(error):
                self.model = cannot_compile(self.config.model.source, error)

    def __call__(self, table: pa.Table) -> pa.Table:
        return each_row(table, "generate", self._generate)

    def _generate(self, table: pa.Table) -> pa.Table:
        state = state_of(table)
        if isinstance(self.model, ConfigError):
            return as_row(state.ends_run(self.model), None, None)
        if state.error_code is not None or state.fatal is not None:
            return as_row(state, None, None)
        sampler = self.config.sampler
        image_HWC = pixels_of(table, "first_frame", (sampler.height, sampler.width, 3))
        tracks = _tracks(state, sampler.num_frames, sampler.height, sampler.width)
        timeout_s = self.config.execution.sample_timeout_s
        try:
            wait_for_room(self.attempts, state.sample_id)
            # a process that cannot use its GPU again ends; the row goes to another
            with attempt(self.attempts, "generate", state.sample_id, timeout_s, breaks_worker=_device_is_lost):
                generation = self._sample(self.model, image_HWC, tracks, sampler, self.config.guidance, state.seed)
        except (ClusterError, StorageError) as error:
            return as_row(state.ends_run(error), None, None)
        except Exception as error:
            if is_out_of_memory(error):
                failure = SampleError(ErrorCode.OUT_OF_MEMORY, f"{error}: make the frames smaller or fewer")
                return as_row(state.failed(failure), None, None)
            return as_row(state.failed(error), None, None)
        state = replace(state, seconds={**state.seconds, **generation.seconds}, told=self._told(generation))
        return as_row(state, table["first_frame"][0].as_py(), generation.frames.tobytes())

    def _sample(
        self,
        model: VideoModel,
        image_HWC: NDArray[np.uint8],
        tracks: BoxTracks,
        sampler: SamplerConfig,
        guidance: GuidanceConfig | None,
        seed: int,
    ) -> Generation:
        """Make the video; where memory runs out, again in a lower tier, in which this worker then stays."""
        from sgi2v.generate import generate
        from sgi2v.memory import where_there_is_room

        def make(tier: MemoryTier) -> Generation:
            self.memory = tier
            return generate(model, image_HWC, tracks, sampler, guidance, seed, memory=tier)

        return where_there_is_room(make, self.memory, self.config.execution.memory, guidance)

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
            "memory": self.memory.value,
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
        return each_row(table, "commit", self._commit)

    def _commit(self, table: pa.Table) -> pa.Table:
        start = time.perf_counter()
        state = state_of(table)
        video = None
        if state.fatal is not None:
            return outcome_row(None, state)
        if state.error_code is None:
            try:
                with attempt(self.attempts, "commit", state.sample_id, self.config.execution.sample_timeout_s):
                    video, state = self._finish(table, state)
            except (ClusterError, StorageError) as error:
                return outcome_row(None, state.ends_run(error))
            except Exception as error:
                state = state.failed(error)
        record = self._record(state.took("commit", time.perf_counter() - start))
        try:
            return outcome_row(commit(self.storage, record, video, self._fence), state)
        except (StorageError, ConfigError) as error:
            return outcome_row(None, state.ends_run(error))
        finally:
            if self.attempts is not None:
                self.attempts.leave(state.sample_id)

    def _fence(self) -> None:
        check_epoch(self.storage, self.epoch)

    def _finish(self, table: pa.Table, state: InFlight) -> tuple[bytes, InFlight]:
        """Encode, read back what a user will get, and measure that."""
        from sgi2v.metrics import motion_fidelity, sample_quality
        from sgi2v.video import check_video, decode_mp4, encode_mp4

        sampler = self.config.sampler
        shape = (sampler.num_frames, sampler.height, sampler.width)
        video = encode_mp4(pixels_of(table, "frames", (*shape, 3)), sampler.fps)
        delivered_THWC = decode_mp4(video)
        check_video(delivered_THWC, *shape)
        tracks = _tracks(state, *shape)
        first_frame_HWC = pixels_of(table, "first_frame", (*shape[1:], 3))
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


def _tracks(state: InFlight, num_frames: int, height: int, width: int) -> BoxTracks:
    boxes_NT4 = np.array(state.boxes_NT4, np.float64).reshape(-1, num_frames, 4)  # also where there are none
    return BoxTracks(boxes_NT4, height, width)


def _device_is_lost(error: BaseException) -> bool:
    """A GPU that asserted or fell off: everything after it fails too."""
    return isinstance(error, RuntimeError) and "CUDA error" in str(error) and not is_out_of_memory(error)


def quiet_libraries() -> None:
    """Keep diffusers' and transformers' bars and notices out of a worker's log."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
