"""The plan of a run: the manifest's rows minus the finished samples."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from manifests.schema import MANIFEST_SCHEMA, row_digest, rows_of
from pipeline.config import RunConfig
from pipeline.output.catalog import Catalog
from pipeline.output.storage import Storage
from sgi2v.config import auto_dtype
from sgi2v.errors import ConfigError
from sgi2v.wording import counted

DIGEST_BATCH_ROWS = 5000
"""Rows that are held in memory as Python objects while they are digested."""
SHOWN_IDS = 5
"""Sample ids that a message names."""


@dataclass(frozen=True)
class Plan:
    """The rows that a run has to do, and the samples that are finished."""

    todo: pa.Table
    """MANIFEST_SCHEMA of the rows to do, with `_attempts`: how many runs have finished the row before."""
    total: int
    """Rows of the manifest, up to the limit."""
    catalog: Catalog
    """The finished samples of the output. A failed sample stays in it until it is finished again."""
    other_samples: int
    """Finished samples of the output that are not in the manifest: they came from another one."""

    @property
    def done(self) -> int:
        """Rows of the manifest that are finished."""
        return self.total - int(self.todo.num_rows)


def make_plan(
    manifest: pa.Table, storage: Storage, retry_failed: bool, limit: int | None, manifest_unchanged: bool = False
) -> Plan:
    """Subtract the finished samples from the manifest.

    retry_failed: failed samples are to do again. limit: only the first rows. manifest_unchanged: this manifest was
    planned before, so its rows need no comparison. Raises ConfigError if the row of a finished sample has changed.
    """
    # other columns do not decide a sample, so they do not travel through the stages
    rows = manifest.select(MANIFEST_SCHEMA.names)
    catalog = Catalog(storage)
    index = catalog.index
    positions = pc.index_in(rows["sample_id"], value_set=index["sample_id"].combine_chunks())
    is_failed = pc.equal(index["status"], "failed")
    is_retried = is_failed.take(positions) if retry_failed else pa.nulls(len(rows), pa.bool_())
    is_todo = pc.or_(pc.is_null(positions), pc.fill_null(is_retried, False))
    if not manifest_unchanged:
        digested = rows.append_column("_digest", index["row_digest"].take(positions))
        _check_unchanged(digested.filter(pc.invert(is_todo)))
    other_samples = index.num_rows - (len(rows) - positions.null_count)
    rows = rows.append_column("_attempts", pc.fill_null(index["attempts"].take(positions), 0)).slice(0, limit)
    todo = rows.filter(is_todo.slice(0, limit))
    _check_case(todo, index)
    return Plan(todo, rows.num_rows, catalog, other_samples)


def check_dtype(plan: Plan, config: RunConfig, on_gpu: bool) -> None:
    """Raise ConfigError if `dtype = auto` would give other weights than those of the finished samples."""
    if config.model.dtype != "auto":
        return  # an explicit dtype is one of the deciding settings, which are compared
    possible = sorted({auto_dtype(on_gpu, has_bfloat16) for has_bfloat16 in (False, True)})
    recorded = pc.unique(plan.catalog.index["dtype"]).to_pylist()
    others = sorted({dtype for dtype in recorded if dtype is not None and dtype not in possible})
    if others:
        raise ConfigError(
            f"the samples in {config.output} were made in {', '.join(map(str, others))}, and these workers would make "
            f"theirs in {' or '.join(possible)}: use the same kind of worker, or another --output with "
            f"--dtype {others[0]}"
        )


def _check_case(todo: pa.Table, index: pa.Table) -> None:
    """Raise ConfigError if a row to do and a finished sample differ only in the case of their ids.

    On disks of macOS and Windows they would be one file.
    """
    others = index.filter(pc.invert(pc.is_in(index["sample_id"], value_set=todo["sample_id"].combine_chunks())))
    other_ids = others["sample_id"].combine_chunks()
    found = pc.index_in(pc.ascii_lower(todo["sample_id"]), value_set=pc.ascii_lower(other_ids))
    pairs = [
        f"{new} and {other_ids[position]}"
        for new, position in zip(todo["sample_id"].to_pylist(), found.to_pylist(), strict=True)
        if position is not None
    ]
    if pairs:
        more = len(pairs) - SHOWN_IDS
        shown = ", ".join(pairs[:SHOWN_IDS]) + (f" and {more} more" if more > 0 else "")
        raise ConfigError(
            f"ids of the manifest and of finished samples differ only in case: {shown}. "
            "They would be one file on many disks: give the rows other ids, or use another --output."
        )


def _check_unchanged(finished: pa.Table) -> None:
    """Raise ConfigError if a row differs from the one its sample was made from, whose digest is in `_digest`."""
    changed = [
        row["sample_id"]
        for batch in finished.to_batches(max_chunksize=DIGEST_BATCH_ROWS)
        for row in rows_of(pa.Table.from_batches([batch]))
        if row_digest(row) != row["_digest"]
    ]
    if changed:
        more = len(changed) - SHOWN_IDS
        shown = ", ".join(changed[:SHOWN_IDS]) + (f" and {more} more" if more > 0 else "")
        raise ConfigError(
            f"{counted(len(changed), 'finished row')} changed in the manifest: {shown}. "
            "Give a changed row a new sample id, or use another --output."
        )
