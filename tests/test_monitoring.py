"""docs/monitoring.md and the Grafana dashboard name the metrics that the code exports, and no others."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from pipeline.flow import meters
from pipeline.flow.meters import METERS, BusyTime, RowCounts
from pipeline.inspect.prometheus import GAUGES, PREFIX, openmetrics
from pipeline.inspect.status import read_status
from tests.pipeline.in_process import here, run_tiny_here, without_ray
from tests.pipeline.runs import row, write_good, write_rows

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "monitoring.md").read_text()
BOARD = json.loads((ROOT / "jobs" / "grafana" / "sgi2v-batch.json").read_text())
SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
"""What Ray puts behind the name of a metric."""
EXPORTED = {f"ray_{name}{suffix}": meter for name, meter in METERS.items() for suffix in SUFFIXES[meter.kind]}
RAYS_LABELS = {"WorkerId", "NodeAddress", "le"}
Recorded = list[tuple[str, float, dict[str, str]]]


def queries() -> list[str]:
    """Every query of the dashboard."""
    of_panels = [target["expr"] for panel in BOARD["panels"] for target in panel["targets"]]
    return [*of_panels, *(each["query"]["query"] for each in BOARD["templating"]["list"] if each["type"] == "query")]


def test_every_query_of_the_dashboard_names_metrics_and_labels_that_the_code_exports() -> None:
    named = set()
    for query in queries():
        metrics = re.findall(r"\b(?:ray|sgi2v)_\w+", query)
        assert metrics, query
        assert set(metrics) <= EXPORTED.keys(), query
        labels = re.findall(r"(\w+)\s*(?:=~|!=|=)\s*\"", query)
        labels += [label for group in re.findall(r"by \(([\w, ]+)\)", query) for label in re.split(r", ?", group)]
        known = {label for metric in metrics for label in (meters.OUTPUT, *EXPORTED[metric].labels)}
        assert set(labels) <= known | RAYS_LABELS, query
        named |= set(metrics)
    assert {name for name in METERS if not any(metric.startswith(f"ray_{name}") for metric in named)} == set()


def test_a_legend_names_labels_that_its_query_keeps() -> None:
    for panel in BOARD["panels"]:
        for target in panel["targets"]:
            kept = re.findall(r"by \(([\w, ]+)\)", target["expr"])
            for label in re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]):
                assert any(label in group for group in kept), target


def test_the_page_describes_every_metric_with_its_kind_and_labels() -> None:
    rows = re.findall(r"^\| `ray_(sgi2v_\w+?)(?:_total)?` \| (\w+) \| (.*?) \|", PAGE, re.MULTILINE)
    described = {name: (kind, tuple(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}
    assert described == {name: (meter.kind, meter.labels) for name, meter in METERS.items()}
    assert all(phase in PAGE for phase in (f"`{name}`" for name in meters.PHASES))
    assert {name for name in GAUGES if f"`{name}`" not in PAGE} == set()


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """What is recorded, as a process of Ray would."""
    values: Recorded = []

    def take(name: str) -> Any:
        def add(value: float, tags: dict[str, str]) -> None:
            assert set(tags) == {meters.OUTPUT, *METERS[name].labels}
            values.append((name, value, {key: tag for key, tag in tags.items() if key != meters.OUTPUT}))

        return SimpleNamespace(inc=add, set=add, observe=add)

    monkeypatch.setitem(sys.modules, "ray", SimpleNamespace(is_initialized=lambda: True))
    monkeypatch.setattr(meters, "_metric", take)
    return values


def test_a_run_records_its_samples_its_phases_and_its_bytes(tmp_path: Path, recorded: Recorded) -> None:
    with without_ray():
        manifest = write_rows(write_good(tmp_path, 1), [row("s00"), row("nope")])
        run_tiny_here(manifest, tmp_path / "out")
    outcomes = [labels for name, _, labels in recorded if name == "sgi2v_samples"]
    assert {"outcome": "committed", "error_code": ""} in outcomes
    assert {"outcome": "failed", "error_code": "image_missing"} in outcomes
    assert [value for name, value, _ in recorded if name == "sgi2v_rows_left"] == [1, 0]
    phases = {labels["phase"] for name, _, labels in recorded if name == "sgi2v_phase_seconds"}
    assert phases == set(meters.PHASES)
    moved = {labels["direction"]: value for name, value, labels in recorded if name == "sgi2v_bytes"}
    video = next((tmp_path / "out" / "videos").iterdir())
    assert {"down", "up"} == set(moved)
    assert (tmp_path / "s00.png").stat().st_size in [value for name, value, _ in recorded if name == "sgi2v_bytes"]
    assert any(value > video.stat().st_size for name, value, _ in recorded if name == "sgi2v_bytes")
    assert sum(value for name, value, _ in recorded if name == "sgi2v_worker_busy_seconds") >= 0


def test_rows_are_counted_in_the_stage_that_they_are_in(recorded: Recorded) -> None:
    rows = RowCounts()
    for sample_id in ("a", "b"):
        rows.start("load", sample_id)
        rows.finish("load", sample_id)
    rows.start("generate", "a")
    rows.start("generate", "a")  # Ray has started it again
    rows.finish("generate", "a")
    rows.leave("a")
    rows.leave("a")
    last = {(labels["stage"], labels["state"]): value for _, value, labels in recorded}
    expected = {
        ("load", "working"): 0,
        ("generate", "waiting"): 1,
        ("generate", "working"): 0,
        ("commit", "waiting"): 0,
    }
    assert last == expected
    recorded.clear()
    rows.start("measure", "c")  # an evaluation's only stage
    rows.finish("measure", "c")
    last = {(labels["stage"], labels["state"]): value for _, value, labels in recorded}
    assert last == {("measure", "working"): 0}


def test_time_between_samples_is_not_busy(recorded: Recorded) -> None:
    busy = BusyTime()
    busy.lap()
    busy.end()
    assert recorded == []
    busy.begin()
    busy.lap()
    busy.end()
    assert [name for name, _, _ in recorded] == ["sgi2v_worker_busy_seconds"] * 2


def test_status_prints_openmetrics(tmp_path: Path) -> None:
    with without_ray():
        run_tiny_here(write_rows(write_good(tmp_path, 1), [row("s00"), row("nope")]), tmp_path / "out")
    printed = here("status", tmp_path / "out", "--prometheus").stdout
    assert printed == openmetrics(read_status(str(tmp_path / "out")))
    samples = {
        (sample.name, *(label for name, label in sample.labels.items() if name != "output")): sample.value
        for family in text_string_to_metric_families(printed)
        for sample in family.samples
    }
    assert samples[f"{PREFIX}committed",] == 1
    assert samples[f"{PREFIX}failed", "image_missing"] == 1
    assert samples[f"{PREFIX}phase", "finished"] == 1
    assert samples[f"{PREFIX}phase", "running"] == 0
    assert here("status", tmp_path / "out", "--prometheus", "--json").returncode == 2
