"""The state of a run, read from its output alone: while it goes on, and after it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output.catalog import Catalog, count
from pipeline.output.lease import Claim, read_claim
from pipeline.output.run_file import require_run
from pipeline.output.storage import Storage


@dataclass(frozen=True)
class RunStatus:
    """The state of a run when it was read."""

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
    holder: Claim | None
    """The claim of the run that holds the output; None if none does."""
    holder_silent_s: float | None
    """Seconds since the holder's last heartbeat, at least 0."""
    index: pa.Table
    """INDEX_SCHEMA of every finished sample."""


def read_status(output: str) -> RunStatus:
    """The state of the run at `output`. Raises ConfigError if there is none, StorageError."""
    storage = Storage(output)
    run = require_run(storage)
    catalog = Catalog(storage)
    index = catalog.index
    claim = read_claim(storage)
    holder = claim if claim is not None and not claim.released else None
    return RunStatus(
        committed=count(index, "committed"),
        failed=count(index, "failed"),
        left=max(run.asked_rows - max(index.num_rows - run.other_samples, 0), 0),
        rows=run.asked_rows,
        limit_of=run.rows if run.asked_rows < run.rows else None,
        other_samples=run.other_samples,
        damaged=len(catalog.damaged),
        manifest=run.manifest,
        model=run.model.get("source"),
        model_revision=run.model_revision,
        last_finished_at=pc.max(index["finished_at"]).as_py(),
        holder=holder,
        holder_silent_s=None if holder is None else max(time.time() - holder.renewed_at, 0.0),
        index=index,
    )
