"""Third stage: frames -> a video that has been read back and measured -> video and record in the output."""

from __future__ import annotations

import hashlib
import socket
import time
import uuid
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from pipeline.config import RunConfig
from pipeline.flow.attempts import Attempts, attempt
from pipeline.flow.row import InFlight, each_row, outcome_row, pixels_of, state_of, tracks_of
from pipeline.output.lease import check_epoch
from pipeline.output.records import SampleRecord, commit, video_key
from pipeline.output.storage import Storage
from sgi2v.errors import (
    ClusterError,
    ConfigError,
    StorageError,
)


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
        from sgi2v.metrics.objmc import motion_fidelity
        from sgi2v.metrics.quality import sample_quality
        from sgi2v.video import check_video, decode_mp4, encode_mp4

        sampler = self.config.sampler
        shape = (sampler.num_frames, sampler.height, sampler.width)
        video = encode_mp4(pixels_of(table, "frames", (*shape, 3)), sampler.fps)
        delivered_THWC = decode_mp4(video)
        check_video(delivered_THWC, *shape)
        tracks = tracks_of(state, *shape)
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
