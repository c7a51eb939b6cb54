"""Candidates of a sample, and its baseline: what their columns hold, which candidate is kept, and what it cost.

See docs/output-format.md, Candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, get_type_hints

import pyarrow as pa

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
