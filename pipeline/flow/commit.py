"""Third stage: frames -> mp4, decoded again, checked and measured -> video and record in the output."""

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
from pipeline.flow import meters
from pipeline.flow.attempts import LedgerClient, attempt
from pipeline.flow.delivered import deliver
from pipeline.flow.row import InFlight, map_rows, outcome_row, pixels_of, sampler_of, state_of
from pipeline.output.candidates import baseline_metrics
from pipeline.output.labels import pack
from pipeline.output.lease import check_epoch
from pipeline.output.records import SampleRecord, baseline_key, commit, video_key
from pipeline.output.storage import Storage
from sgi2v.errors import (
    ClusterError,
    ConfigError,
    StorageError,
)


class Commit:
    """Frames -> video and record in the output."""

    def __init__(self, config: RunConfig, epoch: int, ledger: LedgerClient | None = None) -> None:
        """epoch: of the run's lease; an overtaken run commits nothing."""
        from sgi2v.tracking import load_tracker

        self.config = config
        meters.label_output(config.output)
        self.epoch = epoch
        self.ledger = ledger
        self.storage = Storage(config.output)
        self.tracker = load_tracker(config.metrics.tracker)

    def __call__(self, table: pa.Table) -> pa.Table:
        return map_rows(table, "commit", self._commit)

    def _commit(self, table: pa.Table) -> pa.Table:
        start = time.perf_counter()
        state = state_of(table)
        video = baseline = None
        if state.fatal is not None:
            return outcome_row(None, state)
        if state.error_code is None:
            try:
                with attempt(self.ledger, "commit", state.sample_id, self.config.execution.sample_timeout_s):
                    finished, own_state = self._finish(table, state)
                    baseline, state = self._finish_baseline(table, own_state)
                    video = finished
            except (ClusterError, StorageError) as error:
                return outcome_row(None, state.with_run_error(error))
            except Exception as error:
                state = state.with_error(error)
                if state.fatal is not None:
                    return outcome_row(None, state)
        record = self._record(state.with_seconds("commit", time.perf_counter() - start))
        try:
            committed = commit(self.storage, record, video, self._fence, baseline)
            sent = (video, baseline, record.to_json())
            meters.record("sgi2v_bytes", sum(len(each or b"") for each in sent), direction="up")
            return outcome_row(committed, state)
        except (StorageError, ConfigError) as error:
            return outcome_row(None, state.with_run_error(error))
        finally:
            if self.ledger is not None:
                self.ledger.release(state.sample_id)

    def _fence(self) -> None:
        check_epoch(self.storage, self.epoch)

    def _finish(self, table: pa.Table, state: InFlight) -> tuple[bytes, InFlight]:
        """Encode the video, and measure it as a user will decode it."""
        sampler = sampler_of(state, self.config.sampler)
        shape = (sampler.num_frames, sampler.height, sampler.width)
        delivered = deliver(pixels_of(table, "frames", (*shape, 3)), table, state, sampler)
        video, tracks = delivered.video, delivered.tracks
        metrics, labels = delivered.measure_and_label(self.tracker)
        fields = {
            **state.record_fields,
            "file_name": video_key(state.sample_id, uuid.uuid4().hex[:8]),
            "num_boxes": tracks.num_boxes,
            "num_still": 0 if tracks.still_N is None else int(tracks.still_N.sum()),
            "num_frames": sampler.num_frames,
            "height": sampler.height,
            "width": sampler.width,
            "fps": sampler.fps,
            "video_sha256": hashlib.sha256(video).hexdigest(),
            "video_bytes": len(video),
            "metrics": metrics,
            "labels": pack(labels),
        }
        return video, replace(state, record_fields=fields)

    def _finish_baseline(self, table: pa.Table, state: InFlight) -> tuple[bytes | None, InFlight]:
        """Encode the baseline and measure it likewise. state: of `_finish`. None for a row without a baseline."""
        if table["baseline_frames"].null_count:
            return None, state
        sampler = sampler_of(state, self.config.sampler)
        frames_THWC = pixels_of(table, "baseline_frames", (sampler.num_frames, sampler.height, sampler.width, 3))
        delivered = deliver(frames_THWC, table, state, sampler)
        own = state.record_fields["metrics"]
        fields = {
            **state.record_fields,
            "baseline_file_name": baseline_key(state.record_fields["file_name"]),
            "baseline_video_sha256": hashlib.sha256(delivered.video).hexdigest(),
            "baseline_video_bytes": len(delivered.video),
            "metrics": {**own, **baseline_metrics(own, delivered.measure(self.tracker))},
        }
        return delivered.video, replace(state, record_fields=fields)

    def _record(self, state: InFlight) -> SampleRecord:
        fields: dict[str, Any] = {
            "host": socket.gethostname(),
            **{f"seconds_{phase}": round(seconds, 4) for phase, seconds in state.seconds.items()},
            **state.record_fields,
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
            **fields,
        )
