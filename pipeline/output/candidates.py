"""Candidates of a sample, and its baseline: what their columns hold, which candidate is kept, and what it cost.

See docs/output-format.md, Candidates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.output.conditions import Condition, parse_condition
from sgi2v.metrics.background import Background
from sgi2v.metrics.objmc import MIN_TARGET_PX, Fidelity
from sgi2v.metrics.quality import SampleQuality

KEEPABLE = tuple(
    name
    for family in (Fidelity, Background, SampleQuality)
    for name, annotation in get_type_hints(family).items()
    if annotation == float | None
)
"""Metrics that are one number for a video: those that a condition may name, and that every candidate records."""
BASELINE_METRICS = ("objmc_px", "control_gain", "background_change", "background_motion_px", "null_reason")
"""Metrics of a baseline that are recorded, as `baseline_<name>`."""


@dataclass(frozen=True)
class Candidate:
    """One seed that was tried for a sample. Its metrics, KEEPABLE, are recorded beside these."""

    number: int
    """From 0, in the order in which they were made."""
    seed: int
    """Seed of all its noise."""
    seconds: float
    """Generating it, without measuring it."""
    kept: bool = False
    """Whether its video is the sample's."""
    passed: bool | None = None
    """Whether it passes the condition; None without one."""
    why_not: str | None = None
    """The parts of the condition that do not hold, with its values."""
    error_code: str | None = None
    """Why it failed: an ErrorCode. None: it is a video."""
    message: str | None = None
    """What happened."""
    frames_sha256: str | None = None
    """Digest of the generated frames, before they are encoded."""
    decode_chunk: int | None = None
    """Frames decoded at once."""


@dataclass(frozen=True)
class BaselineMetrics:
    """The metrics of a sample's baseline, and what guidance gained over it."""

    baseline_objmc_px: float | None = None
    baseline_control_gain: float | None = None
    baseline_background_change: float | None = None
    baseline_background_motion_px: float | None = None
    baseline_null_reason: str | None = None
    gain_over_baseline: float | None = None
    """1 - objmc_px / baseline_objmc_px, of the means over the boxes that are measured in both videos. None where there
    are none, and where the baseline follows the paths to less than MIN_TARGET_PX."""


def keep_condition(text: str) -> Condition:
    """The condition of `--keep`. Raises ConfigError for one that names anything but KEEPABLE."""
    return parse_condition(text, pa.schema([(name, pa.float64()) for name in KEEPABLE]), "--keep")


def why_not(condition: Condition, metrics: Mapping[str, Any]) -> str:
    """The parts of a condition that do not hold, with the values that they name."""
    failed = [part for part in condition.parts if not part.holds(metrics)]
    values = {name: metrics.get(name) for part in failed for name in sorted(part.columns)}
    shown = ", ".join(f"{name} is {'null' if value is None else f'{value:.4g}'}" for name, value in values.items())
    return f"not {' and not '.join(f'({part.text})' for part in failed)}: {shown}"


def rank(candidate: Mapping[str, Any]) -> tuple[bool, bool, float]:
    """The higher, the better: passed before not, then the higher control_gain; a null is the lowest.

    Of two equal ones the first is kept. candidate: a row of Candidate and KEEPABLE.
    """
    gain = candidate["control_gain"]
    return (bool(candidate["passed"]), gain is not None, 0.0 if gain is None else gain)


def baseline_metrics(own: Mapping[str, Any], baseline: Mapping[str, Any]) -> dict[str, Any]:
    """A row of BaselineMetrics. own, baseline: the metrics of the sample's video and of the baseline, by column."""
    pairs = zip(own["objmc_px_per_box"], baseline["objmc_px_per_box"], strict=True)
    measured = [(ours, theirs) for ours, theirs in pairs if ours is not None and theirs is not None]
    gain = None
    if measured:
        ours, theirs = (sum(values) / len(measured) for values in zip(*measured, strict=True))
        gain = 1 - ours / theirs if theirs >= MIN_TARGET_PX else None
    return {**{f"baseline_{name}": baseline[name] for name in BASELINE_METRICS}, "gain_over_baseline": gain}


@dataclass(frozen=True)
class Yield:
    """What the candidates of an output gained and cost. The first ones alone are what one seed would have given."""

    rows: int
    """Rows with candidates, those that failed among them."""
    candidates: int
    passed: int
    """Rows whose kept video passes the condition."""
    first_passed: int
    """Rows whose first candidate does."""
    gain: float | None
    """Mean control_gain of the kept videos that have it."""
    first_gain: float | None
    """The same of the first candidates."""
    seconds: float
    """Of workers, for making and measuring all candidates."""
    first_seconds: float
    """Of workers, for making the first candidates."""
    on_gpu: bool


def yield_of(tables: Iterable[pa.Table]) -> Yield | None:
    """The yield of records, as tables of RECORD_SCHEMA. None without candidates."""
    names = ("candidates", "seconds_candidates", "device")
    rows = pa.concat_tables([table.select(names).filter(pc.is_valid(table["candidates"])) for table in tables])
    if not rows.num_rows:
        return None
    tried = pa.Table.from_struct_array(pc.list_flatten(rows["candidates"]))
    kept, first = tried.filter(tried["kept"]), tried.filter(pc.equal(tried["number"], 0))
    return Yield(
        rows=rows.num_rows,
        candidates=tried.num_rows,
        passed=pc.sum(kept["passed"]).as_py() or 0,
        first_passed=pc.sum(first["passed"]).as_py() or 0,
        gain=pc.mean(kept["control_gain"]).as_py(),
        first_gain=pc.mean(first["control_gain"]).as_py(),
        seconds=pc.sum(rows["seconds_candidates"]).as_py() or 0.0,
        first_seconds=pc.sum(first["seconds"]).as_py() or 0.0,
        on_gpu=bool(pc.any(pc.not_equal(rows["device"], "cpu")).as_py()),
    )
