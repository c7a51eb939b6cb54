"""The columns that a report's gallery sorts and filters by, held compactly while the samples stream by."""

from __future__ import annotations

import math
from array import array
from collections.abc import Mapping
from typing import Any

from pipeline.output.card import METRICS
from pipeline.output.metrics import metric
from pipeline.output.records import RECORD_SCHEMA
from pipeline.report.samples import shown_text, significant
from pipeline.report.source import Row

DERIVED: Mapping[str, tuple[str, str, str]] = {
    "path_px": ("pixels", "", "mean length of the asked paths"),
    "speed_px": ("pixels a frame", "", "mean speed of the asked paths"),
    "direction_deg": ("degrees", "", "direction of the longest asked path: 0 is right, 90 is up"),
    "box_share": ("share of the frame", "", "mean area of the boxes that are asked to move"),
    "moving_boxes": ("", "", "boxes that are asked to move"),
    "seconds": ("seconds", "", "all phases of the sample together"),
    "gpu_gib": ("GiB", "", "most memory that torch held on the GPU"),
    "loss_left": ("share", "", "guidance loss before the last update / before the first one"),
}
"""Columns that the report works out: unit, better direction, meaning."""
ASKED = frozenset(
    {
        *("path_px", "speed_px", "direction_deg", "box_share", "moving_boxes", "num_boxes", "num_still"),
        *("asked_displacement", "asked_size", "num_moving", "asks_camera"),  # of evaluations
    }
)
GROUPS = ("Metrics", "What was asked", "How it was made", "The manifest's own columns")
FACET_CHARS, FACET_VALUES = 80, 40
"""A text column is a filter if no value is longer and there are no more different values."""
MAX_OWN = 60
"""Own columns that become columns of the gallery."""


class Columns:
    """Numbers and short texts of every sample by column. 8 bytes a number."""

    def __init__(self) -> None:
        self.rows = 0
        self._numbers: dict[str, array[float]] = {}
        self._texts: dict[str, dict[int, str]] = {}
        self._own: dict[str, None] = {}
        self._too_many: set[str] = set()
        self._baselines: dict[str, str] = {}

    def add(self, record: Mapping[str, Any], own: Mapping[str, Any], numbers: Mapping[str, float]) -> None:
        """Take in the next sample. numbers: those that the report has worked out."""
        own_names = [name for name in own if name in self._own or len(self._own) < MAX_OWN]
        self._own.update(dict.fromkeys(own_names))
        for name, value in (*record.items(), *((name, own[name]) for name in own_names)):
            if isinstance(value, bool):
                self._put_text(name, "yes" if value else "no")
            elif isinstance(value, (int, float)):
                self._put_number(name, float(value))
            elif isinstance(value, str):
                self._put_text(name, value)
        for name, number in numbers.items():
            self._put_number(name, number)
        self.rows += 1

    def name_baseline(self, column: str, meaning: str) -> None:
        """Say what a column is that compares with a baseline."""
        self._baselines[column] = meaning

    def _put_number(self, name: str, value: float) -> None:
        column = self._numbers.setdefault(name, array("d"))
        column.extend([math.nan] * (self.rows - len(column)))
        column.append(value)

    def _put_text(self, name: str, value: str) -> None:
        if name in self._too_many:
            return
        column = self._texts.setdefault(name, {})
        column[self.rows] = shown_text(value) if len(value) <= FACET_CHARS else value[: FACET_CHARS + 1]
        # counted now and then only, since most columns have few values
        is_due = len(column) in {FACET_VALUES + 1, 10 * FACET_VALUES} or len(value) > FACET_CHARS
        if is_due and (len(value) > FACET_CHARS or len(set(column.values())) > FACET_VALUES):
            self._too_many.add(name)
            del self._texts[name]

    def numbers(self) -> list[Row]:
        """The columns of numbers that differ between samples, metrics first: JSON values."""
        columns: list[Row] = []
        for name, values in self._numbers.items():
            values.extend([math.nan] * (self.rows - len(values)))
            shown = [significant(value) for value in values]
            if len(set(shown)) < 2 and metric(name) is None:
                continue
            if all(value is None for value in shown):
                continue
            unit, better, meaning = metric(name) or DERIVED.get(name) or ("", "", "")
            if name in self._baselines:
                better, meaning = "higher", self._baselines[name]
            label, group = shown_text(name), self._group_of(name)
            described = {"name": label, "unit": unit, "better": better, "meaning": meaning, "group": group}
            columns.append({**described, "values": [_short(value) for value in shown]})
        order = {name: number for number, name in enumerate((*METRICS, *DERIVED))}
        columns.sort(key=lambda each: (GROUPS.index(each["group"]), order.get(each["name"], len(order))))
        return columns

    def texts(self) -> list[Row]:
        """The columns of few different texts: their values, and for each sample the number of its value, or null."""
        columns = []
        for name, by_row in self._texts.items():
            values = sorted(set(by_row.values()))
            if not 1 <= len(values) <= FACET_VALUES or name in {"sample_id", "record_version"}:
                continue
            if len(values) == 1 and len(by_row) == self.rows:
                continue
            numbers = {value: number for number, value in enumerate(values)}
            of_rows = [numbers[by_row[row]] if row in by_row else None for row in range(self.rows)]
            columns.append({"name": shown_text(name), "values": values, "of": of_rows, "group": self._group_of(name)})
        return columns

    def _group_of(self, name: str) -> str:
        if name in self._own:
            return GROUPS[3]
        if name in ASKED:
            return GROUPS[1]
        if metric(name) is not None or name in self._baselines or _is_measured(name):
            return GROUPS[0]
        return GROUPS[2]


def _is_measured(name: str) -> bool:
    """Whether a column of a record that the card does not describe is a metric: it is none of the sample's facts."""
    return name.partition("__")[0].endswith("null_reason") or (
        name in RECORD_SCHEMA.names and RECORD_SCHEMA.get_field_index(name) > RECORD_SCHEMA.get_field_index("objmc_px")
    )


def _short(value: float | None) -> float | int | None:
    """Whole numbers without `.0`, which saves a sixth of the file."""
    return int(value) if value is not None and value.is_integer() and abs(value) < 2**53 else value
