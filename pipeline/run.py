"""One run: plan, then load -> generate -> commit as one Ray Data flow, then the tables."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from manifests.io import digest_file
from pipeline.attempts import LedgerActor
from pipeline.cluster import STAGE_CPUS, Width, cluster_errors, ray_session, worker_bytes
from pipeline.config import RunConfig
from pipeline.lease import Lease, acquire
from pipeline.plan import Plan, check_dtype, check_output, claim_output, make_plan, make_way, renew_manifest
from pipeline.records import SampleRecord, read_records, write_tables
from pipeline.stages import FATAL, Commit, Generate, Load
from pipeline.storage import Storage

TABLES_EVERY_S = 60.0
"""How often the tables are renewed while a run goes on, at most."""
TABLES_SHARE = 20
"""How much longer than a renewal takes the next one waits: a large run does not spend itself on its tables."""


@dataclass
class RunResult:
    """How a run stands: what was there before, and what it added."""

    config: RunConfig
    plan: Plan
    finished: list[SampleRecord] = field(default_factory=list)
    """By this run, in the order of their commit; after an interruption, as the storage has them."""
    seconds: float = 0.0
    interrupted: bool = False

    @property
    def records(self) -> list[SampleRecord]:
        """Of every finished sample of the output; a failed one stands until it is finished again."""
        finished = {record.sample_id for record in self.finished}
        waiting = [record for record in self.plan.retried if record.sample_id not in finished]
        return [*self.plan.records, *waiting, *self.finished]


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
    with acquire(storage, take_over, observer.waiting) as lease:
        try:
            return _run(config, manifest, retry_failed, limit, observer, storage, lease)
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
) -> RunResult:
    digest = digest_file(config.manifest)
    claim_output(storage, config, digest, manifest.num_rows)
    plan = make_plan(manifest, storage, retry_failed, limit)
    renew_manifest(storage, config, digest, manifest.num_rows, plan.others)
    observer.planned(plan)
    result = RunResult(config, plan)
    start = time.monotonic()
    try:
        if plan.todo.num_rows:
            session = ray_session(config.execution, plan.todo.num_rows, worker_bytes(config))
            with cluster_errors(), session as width:
                check_dtype(plan, config, on_gpu=width.gpus_per_worker > 0)
                if plan.retried:
                    write_tables(storage, result.records, manifest)  # which keeps their attempts
                    make_way(storage, plan)
                observer.started(width)
                _drive(flow(config, plan.todo, width, lease.epoch), result, storage, manifest, observer, lease)
    except KeyboardInterrupt:
        lease.check()
        result.interrupted = True
        known = {record.sample_id: record for record in (*plan.records, *plan.retried)}
        result.finished = [record for record in read_records(storage) if record != known.get(record.sample_id)]
    result.seconds = time.monotonic() - start
    lease.check()
    write_tables(storage, result.records, manifest)
    return result


def flow(config: RunConfig, todo: pa.Table, width: Width, epoch: int) -> Generator[dict[str, Any], None, None]:
    """The whole dataflow: one row a block, so that each is handed on as soon as it is done.

    epoch: of the run's lease, without which nothing is committed.
    """
    import ray.data
    from ray.data import ActorPoolStrategy

    attempts = LedgerActor()
    helpers = ActorPoolStrategy(min_size=1, max_size=width.helpers, max_tasks_in_flight_per_actor=2)
    workers = ActorPoolStrategy(size=width.workers, max_tasks_in_flight_per_actor=1)
    device = "cuda" if width.gpus_per_worker else "cpu"
    one_row: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow"}
    per_helper = {"compute": helpers, "num_cpus": STAGE_CPUS, **one_row}
    per_worker = {"compute": workers, "num_cpus": width.cpus_per_worker, "num_gpus": width.gpus_per_worker, **one_row}
    rows = (
        ray.data.from_arrow(todo)
        .repartition(target_num_rows_per_block=1)
        .map_batches(Load, fn_constructor_args=(config, attempts), **per_helper)
        .map_batches(Generate, fn_constructor_args=(config, device, attempts), **per_worker)
        .map_batches(Commit, fn_constructor_args=(config, epoch, attempts), **per_helper)
    )
    # nothing is fetched ahead: a row would be told one row late
    batches = rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0)
    return (row for batch in batches for row in batch.to_pylist())


def _drive(
    rows: Generator[dict[str, Any], None, None],
    result: RunResult,
    storage: Storage,
    manifest: pa.Table,
    observer: Observer,
    lease: Lease,
) -> None:
    """Follow the flow to its end, renewing the tables now and then. Raises what a stage calls fatal."""
    due_at = time.monotonic() + TABLES_EVERY_S
    with closing(rows):  # or Ray would go on with the flow, and start anew for it, once it has been shut down
        for row in rows:
            if row["fatal"] is not None:
                raise FATAL[row["fatal"]](row["message"])
            record = SampleRecord.from_json(row["record"].encode())
            result.finished.append(record)
            observer.finished(record)
            if (start := time.monotonic()) > due_at:
                lease.check()
                write_tables(storage, result.records, manifest)
                end = time.monotonic()
                due_at = end + max(TABLES_EVERY_S, TABLES_SHARE * (end - start))
