"""The state of a run, read from its output alone: while it goes on, and after it."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.inspect.phase import Phase, phase_of, samples_per_second, value_of
from pipeline.output.catalog import Catalog, count, failed_by_code, mean_fidelity, mean_of
from pipeline.output.lease import Claim, read_claim
from pipeline.output.log import read_newest_log
from pipeline.output.run_file import require_run
from pipeline.output.storage import Storage


@dataclass(frozen=True)
class RunStatus:
    """The state of a run when it was read."""

    output: str
    """Folder or URL of its results."""
    phase: Phase
    """What the last run on it is doing, or how that ended."""
    error: str | None
    """The error that ended that run; None for another phase than `failed`."""
    workers: int | None
    """Workers of that run; None before they start."""
    samples_per_minute: float | None
    """Rate of that run while it is running; None until each worker has finished more than its first sample."""
    committed: int
    """Samples with a video, those of other manifests among them."""
    failed: int
    """Samples that failed, those of other manifests among them."""
    left: int
    """Rows of the manifest without a record."""
    rows: int
    """Rows that the last run was asked for: those of its manifest, up to its limit."""
    limit_of: int | None
    """Rows of the manifest, if the last run was asked for fewer."""
    other_samples: int
    """Finished samples that are not among those rows."""
    damaged: int
    """Records that cannot be used; the next run makes their samples again."""
    manifest: str
    """Path or URL of that manifest."""
    model: str | None
    """Checkpoint, as the user named it."""
    model_revision: str
    """Commit or digest of its weights."""
    last_finished_at: str | None
    """ISO 8601, UTC; None before the first sample."""
    lost_nodes: int
    """Nodes of the cluster that the last run has lost."""
    holder: Claim | None
    """The claim of the run that holds the output; None if none does."""
    holder_silent_s: float | None
    """Seconds since the holder's last heartbeat, at least 0."""
    index: pa.Table
    """INDEX_SCHEMA of every finished sample."""

    @property
    def seconds_left(self) -> float | None:
        """Time until the last row is finished, at this rate; None without a rate."""
        return None if not self.samples_per_minute else self.left * 60 / self.samples_per_minute

    def as_dict(self) -> dict[str, Any]:
        """The status as plain values. See docs/output-format.md, Status."""
        holder, means = self.holder, mean_fidelity(self.index)
        return {
            "output": self.output,
            "phase": self.phase.value,
            "error": self.error,
            "rows": self.rows,
            "rows_of_manifest": self.rows if self.limit_of is None else self.limit_of,
            "committed": self.committed,
            "failed": self.failed,
            "left": self.left,
            "other_samples": self.other_samples,
            "damaged": self.damaged,
            "failed_by_code": dict(failed_by_code(self.index)),
            "workers": self.workers,
            "lost_nodes": self.lost_nodes,
            "samples_per_minute": self.samples_per_minute,
            "seconds_left": self.seconds_left,
            **asdict(means),
            "background_change": mean_of(self.index, "background_change"),
            "background_motion_px": mean_of(self.index, "background_motion_px"),
            "manifest": self.manifest,
            "model": self.model,
            "model_revision": self.model_revision,
            "last_finished_at": self.last_finished_at,
            "driver": None
            if holder is None
            else {
                "host": holder.host,
                "pid": holder.pid,
                "started_at": datetime.fromtimestamp(holder.started_at, UTC).isoformat(timespec="seconds"),
                "silent_s": self.holder_silent_s,
            },
        }


def read_status(output: str, catalog: Catalog | None = None) -> RunStatus:
    """The state of the run at `output`. Raises ConfigError if there is none, StorageError.

    catalog: of the output, if it has been read already.
    """
    storage = Storage(output)
    run = require_run(storage)
    catalog = catalog or Catalog(storage)
    index = catalog.index
    claim = read_claim(storage)
    holder = claim if claim is not None and not claim.released else None
    epoch, events = read_newest_log(storage)
    if holder is not None and holder.epoch != epoch:
        events = []  # that is an earlier run's log
    left = run.rows_left(index.num_rows)
    phase = phase_of(claim, events, left)
    rate = samples_per_second(index, events, time.time()) if phase is Phase.RUNNING else None
    return RunStatus(
        output=storage.url,
        phase=phase,
        error=value_of(events, "run_failed", "message") if phase is Phase.FAILED else None,
        workers=value_of(events, "workers_started", "workers"),
        samples_per_minute=None if rate is None else rate * 60,
        committed=count(index, "committed"),
        failed=count(index, "failed"),
        left=left,
        rows=run.asked_rows,
        limit_of=run.limit_of,
        other_samples=run.other_samples,
        damaged=len(catalog.damaged),
        manifest=run.manifest,
        model=run.model.get("source"),
        model_revision=run.model_revision,
        last_finished_at=pc.max(index["finished_at"]).as_py(),
        lost_nodes=max((line.get("lost_nodes", 0) for line in events), default=0),
        holder=holder,
        holder_silent_s=None if holder is None else max(time.time() - holder.renewed_at, 0.0),
        index=index,
    )
