"""What the column of a metric means, whoever wrote it: a run, or `evaluate` by other protocols and trackers."""

from __future__ import annotations

from pipeline.output.card import METRICS
from sgi2v.metrics.protocols import PROTOCOLS

_OF_PROTOCOLS = {
    column.name: (column.unit, column.better, f"a value of the protocol {protocol.name}")
    for protocol in PROTOCOLS.values()
    for column in protocol.columns
}


def metric(column: str) -> tuple[str, str, str] | None:
    """Unit, which direction is better (`lower`, `higher` or empty), and meaning; None for a column that is no metric.

    `objmc_px__tapir` is `objmc_px` as the tracker TAPIR measured it.
    """
    name, _, tracker = column.partition("__")
    known = METRICS.get(name) or _OF_PROTOCOLS.get(name)
    if known is None or not tracker:
        return known
    unit, better, meaning = known
    return unit, better, f"{meaning}; measured with {tracker}"


def is_lower_better(column: str) -> bool:
    """The direction of a metric. Of a column that is no metric, the highest values are the best."""
    known = metric(column)
    return known is not None and known[1] == "lower"
