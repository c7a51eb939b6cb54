"""One run: plan, then load -> generate -> commit as one Ray Data flow, then the tables."""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from manifests.io import digest_file
from pipeline.config import RunConfig
from pipeline.flow.actor_end import ends_at_once
from pipeline.flow.attempts import ROOM_PER_WORKER, LedgerActor
from pipeline.flow.commit import Commit
from pipeline.flow.generate import Generate
from pipeline.flow.load import Load
from pipeline.flow.row import FATAL
from pipeline.flow.session import cluster_errors, ray_session
from pipeline.flow.width import STAGE_CPUS, Width, worker_bytes
from pipeline.output.lease import Lease, acquire
from pipeline.output.log import RunLog
from pipeline.output.records import SampleRecord
from pipeline.output.run_file import check_output, claim_output, describe_run, renew_manifest
from pipeline.output.storage import Storage
from pipeline.output.tables import check_tables, write_tables
from pipeline.plan import Plan, check_dtype, make_plan
from sgi2v.errors import ClusterError, StorageError

TABLES_EVERY_S = 60.0
"""How often the tables are renewed while a run goes on, at most."""
TABLES_SHARE = 20
"""How much longer than a renewal takes the next one waits: a large run does not spend itself on its tables."""

LOGGED = ("sample_id", "attempts", "error_code", "message", "file_name", "seconds_guide", "seconds_denoise")
"""What the log says of a finished sample; its record says the rest."""


@dataclass
class RunResult:
    """How a run stands: what was there before, and what it added."""

    config: RunConfig
    plan: Plan
    seconds: float = 0.0
    interrupted: bool = False

    @property
    def index(self) -> pa.Table:
        """INDEX_SCHEMA of every finished sample of the output."""
        return self.plan.catalog.index

    @property
    def finished(self) -> pa.Table:
        """INDEX_SCHEMA of the samples that this run has finished."""
        index, todo = self.index, self.plan.todo
        before = todo["_attempts"].take(pc.index_in(index["sample_id"], value_set=todo["sample_id"].combine_chunks()))
        return index.filter(pc.fill_null(pc.greater(index["attempts"], before), False))


class Observer:
    """What a run tells while it goes on; this one keeps silent."""

    def waiting(self, line: str) -> None:
        """Another run seems to have died on the output, and its lease has not run out yet."""

    def planned(self, plan: Plan) -> None:
        """The plan is made."""

    def started(self, width: Width) -> None:
        """Ray is up, and the workers are being made."""

    def finished(self, record: SampleRecord) -> None:
        """A sample is final."""


def run(
    config: RunConfig,
    manifest: pa.Table,
    retry_failed: bool = False,
    limit: int | None = None,
    observer: Observer | None = None,
    take_over: bool = False,
) -> RunResult:
    """Bring every row of the manifest to a record in the output; what is there already stays.

    manifest: as `manifests.io.read_manifest` gives it. take_over: the output from another driver, even if that
    seems alive. Ctrl-C ends the run early and cleanly, with `interrupted` set.
    Raises ConfigError, LeaseError (another driver has the output), StorageError, ClusterError.
    """
    observer = observer or Observer()
    storage = Storage(config.output)
    check_output(storage, config)
    check_tables(storage)
    with acquire(storage, take_over, observer.waiting) as lease, RunLog(storage, lease.epoch) as log:
        try:
            return _run(config, manifest, retry_failed, limit, observer, storage, lease, log)
        except KeyboardInterrupt:
            lease.check()
            raise


def _run(
    config: RunConfig,
    manifest: pa.Table,
    retry_failed: bool,
    limit: int | None,
    observer: Observer,
    storage: Storage,
    lease: Lease,
    log: RunLog,
) -> RunResult:
    digest = digest_file(config.manifest)
    log.write("run_started", **describe_run(config, digest, manifest.num_rows))
    try:
        if aborted := storage.abort_uploads():
            log.write("uploads_aborted", uploads=aborted)
    except StorageError as error:  # what is left costs room, and harms no run
        log.write("uploads_not_aborted", message=str(error))
    unchanged = claim_output(storage, config, digest, manifest.num_rows)
    plan = make_plan(manifest, storage, retry_failed, limit, unchanged)
    plan.catalog.sweep(lease.epoch)
    plan.catalog.seal_if_due(lease.epoch)
    renew_manifest(storage, config, digest, manifest.num_rows, plan.others)
    observer.planned(plan)
    log.write("planned", rows=plan.total, done=plan.done, todo=plan.todo.num_rows)
    result = RunResult(config, plan)
    start = time.monotonic()
    try:
        if plan.todo.num_rows:
            session = ray_session(config.execution, plan.todo.num_rows, worker_bytes(config))
            with cluster_errors(), session as width:
                check_dtype(plan, config, on_gpu=width.gpus_per_worker > 0)
                observer.started(width)
                log.write("workers_started", workers=width.workers, note=width.note)
                _drive(flow(config, plan.todo, width, lease.epoch), plan, manifest, observer, lease, log)
    except KeyboardInterrupt:
        lease.check()
        result.interrupted = True
    result.seconds = time.monotonic() - start
    lease.check()
    plan.catalog.refresh()
    plan.catalog.sweep(lease.epoch)
    write_tables(plan.catalog, manifest, lease.epoch)
    missing = plan.todo.num_rows - result.finished.num_rows
    if missing and not result.interrupted:
        raise ClusterError(
            f"the flow has ended without a word on {missing} of {plan.todo.num_rows} rows, which have no record. "
            "What is committed is safe: the same command goes on with them."
        )
    log.write("run_interrupted" if result.interrupted else "run_finished", seconds=round(result.seconds, 3))
    return result


def flow(config: RunConfig, todo: pa.Table, width: Width, epoch: int) -> Generator[dict[str, Any], None, None]:
    """The whole dataflow: one row a block, so that each is handed on as soon as it is done.

    epoch: of the run's lease, without which nothing is committed.
    """
    import ray.data
    from ray.data import ActorPoolStrategy

    helpers = ActorPoolStrategy(min_size=1, max_size=width.helpers, max_tasks_in_flight_per_actor=2)
    # the next row waits at its worker: with one at a time a worker stands idle until the driver has heard of its last
    workers = ActorPoolStrategy(size=width.workers, max_tasks_in_flight_per_actor=2)
    device = "cuda" if width.gpus_per_worker else "cpu"
    one_row: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}
    per_helper = {"compute": helpers, "num_cpus": STAGE_CPUS, **one_row}
    per_worker = {"compute": workers, "num_cpus": width.cpus_per_worker, "num_gpus": width.gpus_per_worker, **one_row}
    attempts = LedgerActor(ROOM_PER_WORKER * width.workers)
    rows = (
        ray.data.from_arrow(todo)
        .repartition(target_num_rows_per_block=1)
        .map_batches(ends_at_once(Load), fn_constructor_args=(config, attempts), **per_helper)
        .map_batches(ends_at_once(Generate), fn_constructor_args=(config, device, attempts), **per_worker)
        .map_batches(ends_at_once(Commit), fn_constructor_args=(config, epoch, attempts), **per_helper)
    )
    # nothing is fetched ahead: a row would be told one row late
    for batch in rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from batch.to_pylist()


def _drive(
    rows: Generator[dict[str, Any], None, None],
    plan: Plan,
    manifest: pa.Table,
    observer: Observer,
    lease: Lease,
    log: RunLog,
) -> None:
    """Follow the flow to its end, sealing records and renewing the tables now and then.

    Raises what a stage calls fatal.
    """
    due_at = time.monotonic() + TABLES_EVERY_S
    with closing(rows):  # or Ray would go on with the flow, and start anew for it, once it has been shut down
        for row in rows:
            for line in json.loads(row["log"]):
                log.add(line)
            if row["fatal"] is not None:
                raise FATAL[row["fatal"]](row["message"])
            record = SampleRecord.from_json(row["record"].encode())
            if not plan.catalog.add(record):
                continue  # Ray did a row again whose outcome was lost with a node
            observer.finished(record)
            told = {name: getattr(record, name) for name in LOGGED if getattr(record, name) is not None}
            log.write(f"sample_{record.status}", **told)
            plan.catalog.seal_if_due(lease.epoch)
            if (start := time.monotonic()) > due_at:
                lease.check()
                write_tables(plan.catalog, manifest, lease.epoch)
                end = time.monotonic()
                due_at = end + max(TABLES_EVERY_S, TABLES_SHARE * (end - start))
