"""The state of a run as OpenMetrics text, for Prometheus without Ray's exporter. See docs/monitoring.md."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from prometheus_client.core import GaugeMetricFamily, Metric, StateSetMetricFamily
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.registry import Collector, CollectorRegistry

from manifests.access import display_uri
from pipeline.inspect.phase import Phase
from pipeline.inspect.status import RunStatus
from pipeline.output.catalog import failed_by_code

PREFIX = "sgi2v_output_"
GAUGES = {
    "rows": "Rows that the last run was asked for.",
    "left": "Asked rows without a record.",
    "committed": "Samples with a video.",
    "damaged": "Records that cannot be used.",
    "workers": "Workers of the last run at its start.",
    "lost_nodes": "Nodes of the cluster that the last run has lost.",
    "samples_per_minute": "Rate of a run that is running.",
    "seconds_left": "Time until the last row is finished, at this rate.",
    "objmc_px": "Mean distance between measured and asked centres, pixels.",
    "control_gain": "Mean of 1 - objmc_px / static_objmc_px.",
    "background_motion_px": "Mean distance of backgrounds from their place, pixels.",
}
"""Keys of `status --json` that are metrics, each with its meaning. One that has no value now is left out."""


class _Status(Collector):
    def __init__(self, status: RunStatus) -> None:
        self._status = status

    def collect(self) -> Iterator[Metric]:
        status, output = self._status, display_uri(self._status.output)
        values = status.as_dict()
        for name, meaning in GAUGES.items():
            if values[name] is not None:
                gauge = GaugeMetricFamily(PREFIX + name, meaning, labels=["output"])
                gauge.add_metric([output], values[name])
                yield gauge
        failed = GaugeMetricFamily(f"{PREFIX}failed", "Samples that failed.", labels=["output", "error_code"])
        for code, number in failed_by_code(status.index).items():
            failed.add_metric([output, code], number)
        yield failed
        phase = StateSetMetricFamily(
            f"{PREFIX}phase", "What the last run is doing, or how it ended.", labels=["output"]
        )
        phase.add_metric([output], {each.value: each is status.phase for each in Phase})
        yield phase
        if status.last_finished_at is not None:
            name = f"{PREFIX}last_finished_timestamp_seconds"
            last = GaugeMetricFamily(name, "When the last sample was finished, seconds since 1970.", labels=["output"])
            last.add_metric([output], datetime.fromisoformat(status.last_finished_at).timestamp())
            yield last


def openmetrics(status: RunStatus) -> str:
    """The state as OpenMetrics text."""
    registry = CollectorRegistry()
    registry.register(_Status(status))
    text: bytes = generate_latest(registry)  # type: ignore[no-untyped-call]
    return text.decode()
