"""One run: plan, then load -> generate -> commit for every row, then the tables."""

from __future__ import annotations

import json
import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from manifests.io import Manifest
from pipeline.config import RunConfig
from pipeline.flow.attempts import IN_FLIGHT_PER_WORKER, LedgerActor
from pipeline.flow.commit import Commit
from pipeline.flow.dataset import one_row_blocks, stream, through
from pipeline.flow.generate import Generate
from pipeline.flow.load import Load
from pipeline.flow.pools import Pools
from pipeline.flow.row import RUN_ERRORS
from pipeline.flow.session import cluster_errors, ray_session
from pipeline.output.lease import Lease, acquire
from pipeline.output.log import RunLog
from pipeline.output.records import SampleRecord
from pipeline.output.run_file import check_output, create_run_file, describe_run, update_run_file
from pipeline.output.storage import Storage
from pipeline.output.tables import check_own_columns, check_tables, write_tables
from pipeline.plan import Plan, check_dtype, make_plan
from sgi2v.errors import ClusterError, StorageError

TABLES_EVERY_S = 60.0
"""Seconds between two renewals of the tables during a run, at least."""
TABLES_SHARE = 20
"""After a renewal the next one waits this many times as long as it took, so a large run does not only write tables."""

LOGGED = ("sample_id", "attempts", "error_code", "message", "file_name", "seconds_guide", "seconds_denoise")
"""Record fields that the log repeats for each finished sample."""


@dataclass
class RunResult:
    """What was there before a run, and what the run added."""

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
    """Callbacks of a run; these do nothing."""

    def waiting(self, line: str) -> None:
        """The run waits for the lease of another run that seems dead; `line` says so."""

    def planned(self, plan: Plan) -> None:
        """The plan is made."""

    def started(self, pools: Pools) -> None:
        """Ray is up, and the workers are starting."""

    def finished(self, record: SampleRecord) -> None:
        """A sample is final."""


def run(
    config: RunConfig,
    manifest: Manifest,
    retry_failed: bool = False,
    limit: int | None = None,
    observer: Observer | None = None,
    take_over: bool = False,
) -> RunResult:
    """Bring every row of the manifest to a record in the output; records that exist stay.

    manifest: as `manifests.io.load_manifest` returns it. take_over: take the output from another driver, even if it
    seems alive. Ctrl-C ends the run early and cleanly, with `interrupted` set.
    Raises ConfigError, LeaseError (another driver has the output), StorageError, ClusterError.
    """
    observer = observer or Observer()
    storage = Storage(config.output)
    check_output(storage, config)
    check_tables(storage)
    with acquire(storage, take_over, observer.waiting) as lease, RunLog(storage, lease.epoch) as log:
        try:
            return _Run(config, manifest.table, manifest.sha256, observer, storage, lease, log).finish(
                retry_failed, limit
            )
        except KeyboardInterrupt:
            lease.check()
            raise


def flow(config: RunConfig, todo: pa.Table, pools: Pools, epoch: int) -> Generator[dict[str, Any], None, None]:
    """The whole dataflow; yields each row, as OUTCOME_SCHEMA, when it is committed.

    epoch: of the run's lease; commits of an overtaken run are refused.
    """
    ledger = LedgerActor(IN_FLIGHT_PER_WORKER * pools.workers)
    rows = one_row_blocks(todo)
    rows = through(rows, Load, (config, ledger), pools.load)
    rows = through(rows, Generate, (config, pools.device, ledger), pools.generate)
    rows = through(rows, Commit, (config, epoch, ledger), pools.commit)
    return stream(rows)


@dataclass(frozen=True)
class _Run:
    """A run that holds the lease of its output."""

    config: RunConfig
    manifest: pa.Table
    digest: str
    observer: Observer
    storage: Storage
    lease: Lease
    log: RunLog

    def finish(self, retry_failed: bool, limit: int | None) -> RunResult:
        """Plan, process the rows that are left, and write the tables."""
        plan = self._plan(retry_failed, limit)
        result = RunResult(self.config, plan)
        start = time.monotonic()
        try:
            if plan.todo.num_rows:
                self._process(plan)
        except KeyboardInterrupt:
            self.lease.check()
            result.interrupted = True
        result.seconds = time.monotonic() - start
        self.lease.check()
        plan.catalog.refresh()
        plan.catalog.delete_superseded(self.lease.epoch)
        write_tables(plan.catalog, self.manifest, self.lease.epoch)
        todo = plan.todo.num_rows
        if not result.interrupted and (missing := todo - result.finished.num_rows):
            raise ClusterError(
                f"{missing} of {todo} rows {'was' if missing == 1 else 'were'} never reported: "
                "the Ray pipeline ended early. Run the same command again"
            )
        self.log.write("run_interrupted" if result.interrupted else "run_finished", seconds=round(result.seconds, 3))
        return result

    def _plan(self, retry_failed: bool, limit: int | None) -> Plan:
        """Claim the output for these settings, and find the rows that are left."""
        config, storage, epoch, rows = self.config, self.storage, self.lease.epoch, self.manifest.num_rows
        digest = self.digest
        check_own_columns(storage, self.manifest)
        self.log.write("run_started", **describe_run(config, digest, rows))
        self._abort_uploads()
        unchanged = create_run_file(storage, config, digest, rows)
        plan = make_plan(self.manifest, storage, retry_failed, limit, unchanged)
        plan.catalog.delete_superseded(epoch)
        plan.catalog.seal_if_due(epoch)
        update_run_file(storage, config, digest, rows, plan.other_samples)
        self.observer.planned(plan)
        self.log.write("planned", rows=plan.total, done=plan.done, todo=plan.todo.num_rows)
        return plan

    def _abort_uploads(self) -> None:
        """Abort uploads that killed runs left unfinished. A failure is only logged: such uploads merely take space."""
        try:
            if aborted := self.storage.abort_uploads():
                self.log.write("uploads_aborted", uploads=aborted)
        except StorageError as error:
            self.log.write("uploads_not_aborted", message=str(error))

    def _process(self, plan: Plan) -> None:
        """Send the rows that are left through the dataflow."""
        with cluster_errors(), ray_session(self.config, plan.todo.num_rows) as pools:
            check_dtype(plan, self.config, on_gpu=pools.device == "cuda")
            self.observer.started(pools)
            self.log.write("workers_started", workers=pools.workers, note=pools.note)
            # an open pipeline would start again when Ray shuts down
            with closing(flow(self.config, plan.todo, pools, self.lease.epoch)) as rows:
                self._follow(rows, plan)

    def _follow(self, rows: Generator[dict[str, Any], None, None], plan: Plan) -> None:
        """Take in finished rows; seal records and renew the tables now and then.

        Raises the error of a stage that must end the run.
        """
        due_at = time.monotonic() + TABLES_EVERY_S
        for row in rows:
            for line in json.loads(row["log"]):
                self.log.add(line)
            if row["fatal"] is not None:
                raise RUN_ERRORS[row["fatal"]](row["message"])
            record = SampleRecord.from_json(row["record"].encode())
            if not plan.catalog.add(record):
                continue  # Ray repeated a row whose outcome was lost with a node
            self.observer.finished(record)
            fields = {name: getattr(record, name) for name in LOGGED if getattr(record, name) is not None}
            self.log.write(f"sample_{record.status}", **fields)
            plan.catalog.seal_if_due(self.lease.epoch)
            if (start := time.monotonic()) > due_at:
                self.lease.check()
                write_tables(plan.catalog, self.manifest, self.lease.epoch)
                end = time.monotonic()
                due_at = end + max(TABLES_EVERY_S, TABLES_SHARE * (end - start))
