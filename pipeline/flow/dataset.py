"""Rows and stages as a Ray Data pipeline: one row a block, so that each row moves on as soon as its stage is done."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from pipeline.flow.actor import in_actor
from pipeline.flow.pools import SPLITTER_CPUS, Pool

if TYPE_CHECKING:
    from ray.data import Dataset

ROWS_AT_ONCE = 100
"""Rows that the driver splits itself: that takes less time than the start of a process for it."""
TASKS_PER_ACTOR = 2
"""Rows that an actor has at once: one it works on, and one that waits. With one, an actor would idle until the driver
has noticed that its row is done, and the pool would never grow."""


def one_row_blocks(rows: pa.Table) -> Dataset:
    """The rows of a table as blocks of one row, which are made as they are needed."""
    import ray.data

    def split(table: pa.Table) -> Iterator[pa.Table]:  # inside, so that Ray pickles its code: see `in_actor`
        for number in range(table.num_rows):
            yield table.slice(number, 1)

    # `repartition` would need a whole CPU of one node, and `from_items` would change the types of all-null columns.
    # `from_arrow` would start a worker to describe the table, and wait for it.
    if rows.num_rows <= ROWS_AT_ONCE:
        return ray.data.from_blocks([rows.take([number]) for number in range(rows.num_rows)])
    blocks = ray.data.from_blocks([rows])
    return blocks.map_batches(split, batch_size=None, batch_format="pyarrow", num_cpus=SPLITTER_CPUS)


def through(rows: Dataset, stage: type, arguments: tuple[Any, ...], pool: Pool) -> Dataset:
    """Send every row through a stage, whose constructor gets the arguments once in each actor of the pool."""
    from ray.data import ActorPoolStrategy

    actor, constructor_arguments = in_actor(stage, arguments)
    actors = ActorPoolStrategy(
        min_size=pool.min_size,
        max_size=pool.max_size,
        initial_size=pool.initial_size,
        max_tasks_in_flight_per_actor=TASKS_PER_ACTOR,
    )
    return rows.map_batches(
        actor,
        fn_constructor_args=constructor_arguments,
        compute=actors,
        num_cpus=pool.num_cpus,
        num_gpus=pool.num_gpus,
        accelerator_type=pool.accelerator_type,
        batch_size=1,
        batch_format="pyarrow",
    )


def stream(rows: Dataset) -> Generator[dict[str, Any], None, None]:
    """Run the pipeline, and yield each row when its last stage is done.

    Close the generator to stop the pipeline before its end.
    """
    # prefetching would hold each row back until the next one is done
    for batch in rows.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        yield from batch.to_pylist()
