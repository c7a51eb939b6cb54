"""One run: plan, then load -> generate -> commit for every row, then the tables."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from manifests.access import display_uri
from manifests.io import Manifest
from pipeline.config import RunConfig, cluster_address
from pipeline.flow import meters
from pipeline.flow.attempts import IN_FLIGHT_PER_WORKER, LedgerActor, OnNotes
from pipeline.flow.commit import Commit
from pipeline.flow.dataset import one_row_blocks, stream, through
from pipeline.flow.generate import Generate
from pipeline.flow.load import Load
from pipeline.flow.nodes import NodeChange, NodeWatch
from pipeline.flow.notes import Note
from pipeline.flow.pools import Pools
from pipeline.flow.row import RUN_ERRORS
from pipeline.flow.session import cluster_errors, ray_session
from pipeline.flow.stalls import StallWatch
from pipeline.output.card import CARD, write_card
from pipeline.output.keys import is_own_key, video_names
from pipeline.output.lease import Lease, acquire
from pipeline.output.log import RunLog
from pipeline.output.nested import check_not_nested
from pipeline.output.records import SampleRecord
from pipeline.output.run_file import check_output, create_run_file, describe_run, other_manifest, update_run_file
from pipeline.output.storage import Storage
from pipeline.output.tables import check_own_columns, check_tables, write_labels, write_tables
from pipeline.plan import Plan, Wanted, check_dtype, plan_of
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
    asked_ids: pa.ChunkedArray
    """Sample ids of the manifest's rows, up to the limit."""
    seconds: float = 0.0
    interrupted: bool = False
    lost_nodes: int = 0
    """Nodes of the cluster that were lost during the run."""

    @property
    def index(self) -> pa.Table:
        """INDEX_SCHEMA of every finished sample of the output."""
        return self.plan.catalog.index

    @property
    def failed_rows(self) -> int:
        """Rows of the manifest, up to the limit, that have failed in this run or in an earlier one."""
        failed = self.index.filter(pc.equal(self.index["status"], "failed"))["sample_id"]
        return int(pc.sum(pc.is_in(failed, value_set=self.asked_ids.combine_chunks())).as_py() or 0)

    @property
    def finished(self) -> pa.Table:
        """INDEX_SCHEMA of the samples that this run has finished."""
        index, todo = self.index, self.plan.todo
        before = todo["_attempts"].take(pc.index_in(index["sample_id"], value_set=todo["sample_id"].combine_chunks()))
        return index.filter(pc.fill_null(pc.greater(index["attempts"], before), False))


class Observer:
    """Callbacks of a run; these do nothing."""

    def waiting(self, line: str) -> None:
        """The run waits, for the lease of another run that seems dead or for nodes of a cluster; `line` says so."""

    def noticed(self, line: str) -> None:
        """Something is there that a person should know, and the run goes on; `line` says what."""

    def planned(self, plan: Plan) -> None:
        """The plan is made."""

    def started(self, pools: Pools) -> None:
        """Ray is up, and the workers are starting."""

    def noted(self, notes: list[Note]) -> None:
        """How far the workers are, about once a second; called from a thread of its own."""

    def finished(self, record: SampleRecord) -> None:
        """A sample is final."""

    def stuck(self, message: str) -> None:
        """Ray is lost, and the driver's main thread does not return from a call of it; its process must end."""


def run(
    config: RunConfig,
    manifest: Manifest,
    wanted: Wanted | None = None,
    observer: Observer | None = None,
    take_over: bool = False,
) -> RunResult:
    """Bring every row of the manifest to a record in the output; records that exist stay.

    manifest: as `manifests.io.load_manifest` returns it. wanted: None for the rows that are not finished. take_over:
    take the output from another driver, even if it seems alive. Ctrl-C ends the run early and cleanly, with
    `interrupted` set.
    Raises ConfigError, LeaseError (another driver has the output), StorageError, ClusterError.
    """
    observer = observer or Observer()
    storage = Storage(config.output)
    check_not_nested(storage)
    check_output(storage, config)
    check_tables(storage)
    with acquire(storage, take_over, observer.waiting) as lease, RunLog(storage, lease.epoch) as log:
        try:
            return _Run(config, manifest, observer, storage, lease, log, wanted or Wanted()).finish()
        except KeyboardInterrupt:
            lease.check()
            raise


def flow(
    config: RunConfig, todo: pa.Table, pools: Pools, epoch: int, on_notes: OnNotes
) -> Generator[dict[str, Any], None, None]:
    """The whole dataflow; yields each row, as OUTCOME_SCHEMA, when it is committed.

    epoch: of the run's lease; commits of an overtaken run are refused. on_notes: called from a thread with the
    workers' progress.
    """
    ledger = LedgerActor(IN_FLIGHT_PER_WORKER * pools.workers, config.output)
    rows = one_row_blocks(todo)
    rows = through(rows, Load, (config, ledger), pools.load)
    rows = through(rows, Generate, (config, pools.device, ledger), pools.generate)
    rows = through(rows, Commit, (config, epoch, ledger), pools.commit)
    with ledger.followed(on_notes):
        yield from stream(rows)


@dataclass
class _Renewal:
    """Tables that are renewed now and then."""

    renew: Callable[[], None]
    due_at: float = field(default_factory=lambda: time.monotonic() + TABLES_EVERY_S)

    def renew_if_due(self) -> None:
        """Renew them if it is time, and note when it is the next time."""
        if (start := time.monotonic()) > self.due_at:
            self.renew()
            end = time.monotonic()
            self.due_at = end + max(TABLES_EVERY_S, TABLES_SHARE * (end - start))


@dataclass(frozen=True)
class _Run:
    """A run that holds the lease of its output."""

    config: RunConfig
    manifest: Manifest
    observer: Observer
    storage: Storage
    lease: Lease
    log: RunLog
    wanted: Wanted
    lost_nodes: list[str] = field(default_factory=list)
    """Nodes of the cluster that were lost, by address and resources."""

    def finish(self) -> RunResult:
        """Plan, process the rows that are left, and write the tables."""
        plan = self._plan()
        result = RunResult(self.config, plan, self.manifest.table["sample_id"].slice(0, self.wanted.limit))
        start = time.monotonic()
        try:
            if plan.todo.num_rows:
                self._process(plan)
        except KeyboardInterrupt:
            self.lease.check()
            result.interrupted = True
        result.seconds = time.monotonic() - start
        result.lost_nodes = len(self.lost_nodes)
        self.lease.check()
        plan.catalog.refresh()
        plan.catalog.delete_superseded(self.lease.epoch)
        self._write_tables(plan)
        todo = plan.todo.num_rows
        if not result.interrupted and (missing := todo - result.finished.num_rows):
            raise ClusterError(
                f"{missing} of {todo} rows {'was' if missing == 1 else 'were'} never reported: "
                "the Ray pipeline ended early. Run the same command again"
            )
        self.log.write("run_interrupted" if result.interrupted else "run_finished", seconds=round(result.seconds, 3))
        return result

    def _plan(self) -> Plan:
        """Claim the output for these settings, and find the rows that are left."""
        config, storage, epoch, wanted = self.config, self.storage, self.lease.epoch, self.wanted
        manifest_sha256, rows, limit = self.manifest.sha256, self.manifest.table.num_rows, wanted.limit
        check_own_columns(storage, self.manifest.table)
        self.log.write_now("run_started", **describe_run(config, manifest_sha256, rows, limit))
        self._abort_uploads()
        recorded = create_run_file(storage, config, manifest_sha256, rows, limit)
        plan = plan_of(config, self.manifest, storage, recorded, wanted, self._say_that_it_compares)
        other = other_manifest(recorded, config.manifest)
        if other is not None:
            self.observer.noticed(f"the output has samples of another manifest too: {display_uri(other)}")
        plan.catalog.delete_superseded(epoch)
        plan.catalog.seal_if_due(epoch)
        self._update_run_file(plan, None if plan.redone.num_rows else manifest_sha256)
        if not write_card(plan.catalog, epoch):
            self.observer.noticed(
                f"{config.output}/{CARD} is not as this program wrote it, and stays: keep `configs` in it, or move it "
                "away to get a new one"
            )
        self.observer.planned(plan)
        for damage in plan.catalog.damaged:
            self.log.write("record_damaged", sample_id=damage.sample_id, key=damage.key, message=damage.problem)
        self.log.write_now("planned", rows=plan.total, done=plan.done, todo=plan.todo.num_rows)
        return plan

    def _say_that_it_compares(self) -> None:
        self.observer.noticed("reading the images of finished rows again, to compare them")

    def _update_run_file(self, plan: Plan, manifest_sha256: str | None) -> None:
        """Note the manifest of this run. manifest_sha256: None while samples are there that its rows did not give."""
        rows, limit = self.manifest.table.num_rows, self.wanted.limit
        update_run_file(self.storage, self.config, manifest_sha256, rows, plan.other_samples, limit)

    def _remove_changed(self, plan: Plan) -> None:
        """Remove the samples that are to be made again because their row or image has changed.

        Before they are made, since a sample that fails now must not keep the video of the former row. In the order
        of `verify --repair`: the tables never name a video that is deleted.
        """
        ids = plan.redone["sample_id"].to_pylist()
        if not ids:
            return
        self.log.write("changed_samples_removed", samples=ids)
        plan.catalog.remove(ids, self.lease.epoch)
        self._write_tables(plan)
        self.lease.check()
        self.storage.delete_many(video_names(plan.redone))
        self._update_run_file(plan, self.manifest.sha256)

    def _write_tables(self, plan: Plan, with_labels: bool = True) -> None:
        """Write the tables, and the card that goes with them."""
        self.lease.check()
        write_tables(plan.catalog, self.manifest.table, self.lease.epoch, with_labels)
        write_card(plan.catalog, self.lease.epoch)

    def _abort_uploads(self) -> None:
        """Abort uploads that killed runs left unfinished. A failure is only logged: such uploads merely take space."""
        try:
            if aborted := self.storage.abort_uploads(is_own_key):
                self.log.write("uploads_aborted", uploads=aborted)
        except StorageError as error:
            self.log.write("uploads_not_aborted", message=str(error))

    def _process(self, plan: Plan) -> None:
        """Send the rows that are left through the dataflow."""
        rows_left = plan.todo.num_rows
        with cluster_errors(), ray_session(self.config, rows_left, self._end_stuck, self._wait) as pools:
            check_dtype(plan, self.config, on_gpu=pools.device == "cuda")
            self._remove_changed(plan)
            self.observer.started(pools)
            self.log.write_now("workers_started", workers=pools.workers, note=pools.note)
            meters.label_output(self.config.output)
            on_cluster = cluster_address(self.config.execution) is not None
            with NodeWatch(self._note_node, on_cluster), StallWatch(pools, self._say_stalled) as stalls:
                on_notes = self._noted(stalls)
                # an open pipeline would start again when Ray shuts down
                with closing(flow(self.config, plan.todo, pools, self.lease.epoch, on_notes)) as rows:
                    self._follow(stalls.followed(rows), plan)

    def _end_stuck(self, message: str) -> None:
        """End this process although its main thread is stuck in a call of a Ray that is lost."""
        self.log.write_now("run_failed", message=message)
        self.lease.release()
        self.observer.stuck(message)

    def _wait(self, line: str) -> None:
        """Log and say for which nodes the run waits."""
        self.log.write_now("waiting_for_nodes", message=line)
        self.observer.waiting(line)

    def _say_stalled(self, line: str) -> None:
        """Log and say what keeps the rows from moving on."""
        self.log.write_now("stalled", message=line)
        self.observer.noticed(line)

    def _note_node(self, change: NodeChange) -> None:
        """Log, say and count what has happened to a node."""
        if change.kind == "lost":
            self.lost_nodes.append(change.node)
            meters.record("sgi2v_lost_nodes")
        fields = {"node": change.node, "alive": change.alive, "lost_nodes": len(self.lost_nodes)}
        self.log.write_now(f"node_{change.kind}", **fields, message=change.line)
        self.observer.noticed(change.line)

    def _noted(self, stalls: StallWatch) -> OnNotes:
        """Log once that each worker has its model, and pass the notes on to the watch and to the observer."""
        loaded: set[str] = set()

        def take(notes: list[Note]) -> None:
            for note in notes:
                if note.worker not in loaded:
                    loaded.add(note.worker)
                    self.log.write_now("model_loaded", worker=note.worker, seconds=round(note.model_seconds, 1))
            stalls.noted(notes)
            self.observer.noted(notes)

        return take

    def _follow(self, rows: Iterable[dict[str, Any]], plan: Plan) -> None:
        """Take in finished rows; seal records and renew the tables now and then.

        Raises the error of a stage that must end the run.
        """
        tables = _Renewal(lambda: self._write_tables(plan, with_labels=False))
        labels = _Renewal(lambda: write_labels(plan.catalog, self.lease.epoch))
        left = plan.todo.num_rows
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
            if self.lost_nodes:
                fields["lost_nodes"] = len(self.lost_nodes)  # on each line, since `status` reads the last ones only
            self.log.write(f"sample_{record.status}", **fields)
            left -= 1
            meters.record_sample(record, left)
            plan.catalog.seal_if_due(self.lease.epoch)
            tables.renew_if_due()
            labels.renew_if_due()
