"""An evaluation: find the videos, measure those without a result, write the tables and the summary."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from manifests.schema import known_columns, row_digest, rows_of
from pipeline.evaluate.config import EvaluationConfig
from pipeline.evaluate.distributions import distances
from pipeline.evaluate.measure import Measure, result_of
from pipeline.evaluate.results import Results, check_free_or_evaluation
from pipeline.evaluate.sources import Source, find_videos
from pipeline.evaluate.summary import summarise
from pipeline.flow.measuring import measuring_flow, measuring_session
from pipeline.output.lease import acquire
from pipeline.output.nested import check_not_nested
from pipeline.output.storage import Storage
from sgi2v.errors import ClusterError
from sgi2v.metrics.protocols import DISTRIBUTIONS
from sgi2v.wording import counted

PART_S = 10.0
"""Seconds between two parts: what a killed evaluation measures again at most."""
DIGEST_ROWS = 5000
"""Rows that are held in memory as Python objects while they are digested."""


@dataclass
class EvaluationResult:
    """What an evaluation found."""

    config: EvaluationConfig
    summary: dict[str, Any]
    measured: int = 0
    """Videos that this call has measured."""
    failed: int = 0
    """Videos of the source that could not be measured."""
    before: int = 0
    """Videos that had a result before."""
    seconds: float = 0.0
    interrupted: bool = False


def evaluate(
    config: EvaluationConfig, say: Callable[[str], None], on_done: Callable[[int, int], None] = lambda done, all: None
) -> EvaluationResult:
    """Bring every video of the source to a result in the output; results that exist stay.

    say: called with lines that a person should see. on_done: called with the number of videos done and of all. Ctrl-C
    ends it early and cleanly, with `interrupted` set. Raises ConfigError, ManifestError, LeaseError, StorageError,
    ClusterError.
    """
    source = find_videos(config)
    for note in source.notes:
        say(note)
    storage = Storage(config.output)
    check_not_nested(storage)
    check_free_or_evaluation(storage)
    with acquire(storage, on_wait=say) as lease:
        results = Results(storage, config, lease.epoch)
        digests = list(_digests(source.rows))
        todo = results.left(source.rows, digests)
        total = source.rows.num_rows
        result = EvaluationResult(config, {}, before=total - todo.num_rows)
        say(f"{counted(total, 'video')}: {result.before} measured before, {todo.num_rows} to do -> {config.output}")
        start = time.monotonic()
        try:
            if todo.num_rows:
                _measure(config, todo, results, result, say, on_done)
        except KeyboardInterrupt:
            lease.check()
            result.interrupted = True
        finally:
            results.flush()
        result.seconds = time.monotonic() - start
        lease.check()
        result.summary = _summary(config, source, results, result, say)
        result.failed = result.summary["failed"]
        results.write_tables(source.rows, result.summary)
        return result


def _measure(
    config: EvaluationConfig,
    todo: pa.Table,
    results: Results,
    result: EvaluationResult,
    say: Callable[[str], None],
    on_done: Callable[[int, int], None],
) -> None:
    """Send the rows through the actors, and keep what comes out."""
    done, due_at = 0, time.monotonic() + PART_S
    with measuring_session(config.execution, config.trackers, todo.num_rows) as (pool, note):
        say(f"{counted(pool.size, 'worker')}, {note}")
        with closing(measuring_flow(todo, Measure, (config,), pool, config.output)) as rows:
            for row in rows:
                measured = result_of(row)
                results.add(measured)
                done += 1
                result.measured += measured["status"] == "measured"
                on_done(done, todo.num_rows)
                if time.monotonic() > due_at:
                    results.flush()
                    due_at = time.monotonic() + PART_S
    if done < todo.num_rows:
        raise ClusterError(
            f"{todo.num_rows - done} of {counted(todo.num_rows, 'video')} were never reported: the Ray pipeline ended "
            "early. Run the same command again"
        )


def _summary(
    config: EvaluationConfig, source: Source, results: Results, result: EvaluationResult, say: Callable[[str], None]
) -> dict[str, Any]:
    ids = set(source.rows["sample_id"].to_pylist())
    table = results.table
    table = table.filter(pa.array([sample_id in ids for sample_id in table["sample_id"].to_pylist()], pa.bool_()))
    summary = summarise(config, table)
    summary["left"] = source.rows.num_rows - summary["measured"] - summary["failed"]
    if not result.interrupted:
        wanted = [name for name in config.protocols if name in DISTRIBUTIONS]
        if wanted:
            summary["distributions"] = distances(config, wanted, table, say)
    return summary


def _digests(rows: pa.Table) -> Iterator[str]:
    known = known_columns(rows)
    for batch in known.to_batches(max_chunksize=DIGEST_ROWS):
        for row in rows_of(pa.Table.from_batches([batch])):
            yield row_digest(row)
