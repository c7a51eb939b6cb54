"""What is left to do: the manifest minus what is committed."""

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

DIGESTED_AT_ONCE = 5000
"""Rows as Python objects: what is held in memory."""


@dataclass(frozen=True)
class Plan:
    """The rows to do, and how the others stand."""

    todo: pa.Table
    """The known columns of manifest rows, with `_attempts`: how often they have been finished before."""
    total: int
    """Rows of the manifest, within the limit."""
    catalog: Catalog
    """The finished samples of the output; what is tried again stands there as failed until it is finished again."""
    others: int
    """Finished samples of the output that the manifest does not hold: those of another manifest."""

    @property
    def done(self) -> int:
        """Rows of the manifest that are finished."""
        return self.total - int(self.todo.num_rows)


def make_plan(
    manifest: pa.Table, storage: Storage, retry_failed: bool, limit: int | None, unchanged: bool = False
) -> Plan:
    """Subtract the finished samples. unchanged: the manifest is the one that has been planned last.

    Raises ConfigError where a finished row has since changed.
    """
    # what rides along stays here: no sample is made of it
    rows = manifest.select(MANIFEST_SCHEMA.names)
    catalog = Catalog(storage)
    index = catalog.index
    places = pc.index_in(rows["sample_id"], value_set=index["sample_id"].combine_chunks())
    again = pc.equal(index["status"], "failed").take(places) if retry_failed else pa.nulls(len(rows), pa.bool_())
    is_todo = pc.or_(pc.is_null(places), pc.fill_null(again, False))
    if not unchanged:
        _check_unchanged(rows.append_column("_digest", index["row_digest"].take(places)).filter(pc.invert(is_todo)))
    others = index.num_rows - (len(rows) - places.null_count)
    rows = rows.append_column("_attempts", pc.fill_null(index["attempts"].take(places), 0)).slice(0, limit)
    return Plan(rows.filter(is_todo.slice(0, limit)), rows.num_rows, catalog, others)


def check_dtype(plan: Plan, config: RunConfig, on_gpu: bool) -> None:
    """Raise ConfigError where `auto` would now choose another type of the weights than for the samples there."""
    if config.model.dtype != "auto":
        return  # then it is among the deciding settings
    possible = sorted({auto_dtype(on_gpu, has_bfloat16) for has_bfloat16 in (False, True)})
    found = pc.unique(plan.catalog.index["dtype"]).to_pylist()
    others = sorted({each for each in found if each is not None and each not in possible})
    if others:
        raise ConfigError(
            f"the samples in {config.output} were made in {', '.join(map(str, others))}, and these workers would make "
            f"theirs in {' or '.join(possible)}: use the same kind of worker, or another --output with "
            f"--dtype {others[0]}"
        )


def _check_unchanged(finished: pa.Table) -> None:
    """finished: rows with the digest of the row that their sample was made from, `_digest`."""
    changed = [
        row["sample_id"]
        for batch in finished.to_batches(max_chunksize=DIGESTED_AT_ONCE)
        for row in rows_of(pa.Table.from_batches([batch]))
        if row_digest(row) != row["_digest"]
    ]
    if changed:
        shown = ", ".join(changed[:5]) + (f" and {len(changed) - 5} more" if len(changed) > 5 else "")
        raise ConfigError(
            f"{len(changed)} rows have changed since their samples were made: {shown}. "
            "Give the changed rows new sample ids, or use another --output."
        )
