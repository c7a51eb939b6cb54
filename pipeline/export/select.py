"""Choosing samples: conditions on columns, presets of them, and the best samples of each group."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.export.source import SELECTION, Source, write_file
from pipeline.output.conditions import Condition, parse_condition
from pipeline.output.metrics import is_lower_better
from sgi2v.errors import ConfigError
from sgi2v.wording import counted, did_you_mean

PRESETS: Mapping[str, tuple[str, ...]] = {
    "balanced": ("control_gain > 0.3", "background_change == None or background_change < 8", "flicker < 12"),
    "strict": (
        "control_gain > 0.6",
        "failure == None or failure < 0.1",
        "background_change == None or background_change < 5",
        "flicker < 8",
    ),
}
"""Conditions by preset. docs/selecting.md shows what they keep of samples of the embedded checkpoint, and why."""
COPIED_ROWS = 1000


@dataclass(frozen=True)
class Choice:
    """Which samples to keep."""

    conditions: tuple[str, ...] = ()
    """All of them must hold."""
    top: int | None = None
    """At most this many samples of each group; None: all."""
    per: tuple[str, ...] = ()
    """Columns whose values make a group. None: all samples are one group. Null is a value."""
    by: str | None = None
    """Metric whose best samples are kept."""


@dataclass(frozen=True)
class Step:
    """What one condition took away."""

    what: str
    """The condition, as it was given."""
    taken: int
    """Samples that it took of those that the conditions before it had left."""
    nulls: int
    """Those of them in which a column of the condition is null."""
    alone: int
    """Samples of all that it would take if it were the only condition."""
    left: int


@dataclass(frozen=True)
class Selected:
    """What was kept, and why the others were not."""

    of: int
    """Samples there were."""
    kept: int
    steps: tuple[Step, ...]


def choice(
    where: Sequence[str] = (),
    preset: str | None = None,
    top: int | None = None,
    per: Sequence[str] = (),
    by: str | None = None,
) -> Choice:
    """The choice of these options. Raises ConfigError for ones that do not go together."""
    if preset is not None and preset not in PRESETS:
        raise ConfigError(f"there is no preset {preset!r}{did_you_mean(preset, PRESETS)}: {', '.join(PRESETS)}")
    if (top is None) != (by is None):
        raise ConfigError("--top says how many samples are kept and --by which are the best: give both")
    if per and top is None:
        raise ConfigError("--per makes groups of which --top N are kept --by a metric: give these too")
    conditions = (*(PRESETS[preset] if preset else ()), *where)
    if not conditions and top is None:
        raise ConfigError("nothing says what to keep: give --where, --preset or --top")
    return Choice(conditions, top, tuple(per), by)


def select(source: Source, chosen: Choice, target: str) -> Selected:
    """Write the samples of an output that a choice keeps as a selection. target: path or URL of a Parquet file.

    Needs the memory of the columns that are named. Raises ConfigError for a column that is not there.
    """
    conditions = [part for text in chosen.conditions for part in parse_condition(text, source.schema).parts]
    for option, names in (("--per", chosen.per), ("--by", () if chosen.by is None else (chosen.by,))):
        for name in names:
            if name not in source.schema.names:
                raise ConfigError(f"{option}: there is no column {name!r}{did_you_mean(name, source.schema.names)}")
    columns = {"sample_id", *chosen.per, *([chosen.by] if chosen.by else [])}.union(
        *(each.columns for each in conditions)
    )
    table = pq.ParquetFile(source.metadata, pre_buffer=False).read(sorted(columns), use_threads=False)
    kept = np.ones(len(table), np.bool_)
    steps = []
    for condition in conditions:
        holds = condition.mask(table).to_numpy()
        steps.append(_step(condition.text, kept, holds, _nulls(condition, table)))
        kept &= holds
    if chosen.top is not None and chosen.by is not None:
        best = _best(table, kept, chosen.top, chosen.per, chosen.by)
        alone = _best(table, np.ones(len(table), np.bool_), chosen.top, chosen.per, chosen.by)
        nulls = table[chosen.by].is_null(nan_is_null=True).to_numpy()
        steps.append(replace(_step(describe_top(chosen), kept, best, nulls), alone=int((~alone).sum())))
        kept &= best
    selected = Selected(len(table), int(kept.sum()), tuple(steps))
    said = {**source.describe(), "conditions": list(chosen.conditions)}
    said |= {"top": chosen.top, "per": list(chosen.per), "by": chosen.by, "of": selected.of, "kept": selected.kept}
    write_file(target, partial(_write_rows, source.metadata, kept, {SELECTION: json.dumps(said)}))
    return selected


def describe_top(chosen: Choice) -> str:
    """`top 5 per category by control_gain`."""
    per = f" per {', '.join(chosen.per)}" if chosen.per else ""
    return f"top {chosen.top}{per} by {chosen.by}"


def lines(selected: Selected) -> list[str]:
    """The table of what each condition took away."""
    width = max((len(step.what) for step in selected.steps), default=0)
    head = f"  {'condition':{width}}  {'takes':>7}  {'of them null':>12}  {'left':>7}  {'takes alone':>11}"
    return [
        f"kept {selected.kept} of {counted(selected.of, 'sample')}",
        head,
        *(
            f"  {step.what:{width}}  {step.taken:>7}  {step.nulls:>12}  {step.left:>7}  {step.alone:>11}"
            for step in selected.steps
        ),
    ]


def _step(what: str, kept: np.ndarray, holds: np.ndarray, nulls: np.ndarray) -> Step:
    taken = kept & ~holds
    return Step(what, int(taken.sum()), int((taken & nulls).sum()), int((~holds).sum()), int((kept & holds).sum()))


def _nulls(condition: Condition, table: pa.Table) -> np.ndarray:
    """Which rows have a null in a column that the condition reads."""
    nulls = np.zeros(len(table), np.bool_)
    for name in condition.columns:
        nulls |= table[name].is_null(nan_is_null=True).to_numpy()
    return nulls


def _best(table: pa.Table, kept: np.ndarray, top: int, per: Sequence[str], by: str) -> np.ndarray:
    """Which rows are among the best of their group. Ties go by sample id; a row without the metric is never there."""
    try:
        values = pc.cast(table[by], pa.float64()).to_numpy()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ConfigError(f"--by {by}: it holds {table[by].type}, which has no best value") from error
    rows = np.flatnonzero(kept & ~np.isnan(values))
    ids = table["sample_id"].to_pylist()
    sign = 1.0 if is_lower_better(by) else -1.0
    groups = list(zip(*(map(repr, table[name].to_pylist()) for name in per), strict=True)) if per else [()] * len(ids)
    found: dict[tuple[str, ...], int] = {}
    best = np.zeros(len(table), np.bool_)
    for row in sorted(rows, key=lambda row: (sign * values[row], ids[row])):
        found[groups[row]] = found.get(groups[row], 0) + 1
        best[row] = found[groups[row]] <= top
    return best


def _write_rows(metadata: Path, kept: np.ndarray, said: dict[bytes, str], target: Path) -> None:
    """Write the kept rows of a table, with one more entry in the schema's metadata."""
    file = pq.ParquetFile(metadata, pre_buffer=False)
    schema = file.schema_arrow.with_metadata({**(file.schema_arrow.metadata or {}), **said})
    done = 0
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        for group in range(file.num_row_groups):
            tables = []
            for batch in file.iter_batches(COPIED_ROWS, row_groups=[group], use_threads=False):
                tables.append(pa.Table.from_batches([batch.filter(pa.array(kept[done : done + len(batch)]))]))
                done += len(batch)
            if tables:
                writer.write_table(pa.concat_tables(tables).cast(schema))
