"""What a report says of a sample: its numbers, its paths and its record, all as plain values without secrets.

Axes: N boxes, T frames; 2 is xy, 4 is xyxy. Everything is in pixels of the video.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from manifests.access import without_secrets
from manifests.fit import Placement
from manifests.schema import parse_row
from pipeline.report.source import Row
from sgi2v.errors import SampleError
from sgi2v.trajectory import BoxTracks

TEXT_CHARS = 2000
"""Characters of a text in a report, at most."""
CANDIDATES = "candidates"
"""The column of a record that has its own place on a sample's page."""
MANIFEST_COLUMNS = ("sample_id", "image", "boxes", "trajectories", "scales", "seed", "still", "fit")
PHASES = ("load", "encode", "guide", "denoise", "decode", "commit")


def shown_text(text: str) -> str:
    """A text for a page: without secrets, and cut."""
    # masked before it is cut, because a cut password would still be a secret
    masked = _masked(text[: TEXT_CHARS * 4])
    if len(masked) <= TEXT_CHARS:
        return masked
    return f"{masked[:TEXT_CHARS]}…"


@lru_cache(20_000)
def _masked(text: str) -> str:
    return without_secrets(text)


def shown_value(value: Any) -> Any:
    """A value of a table for JSON: numbers, texts and null as they are, anything else as cut text."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return significant(value)
    if isinstance(value, str):
        return shown_text(value)
    if isinstance(value, (list, tuple, dict)):
        return shown_text(json.dumps(value, default=str, ensure_ascii=False))
    return shown_text(str(value))


def significant(value: float | None, digits: int = 5) -> float | None:
    """The number with few digits; None for what is not finite."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.{digits}g}")


def numbers_of(row: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a row by column."""
    return {
        name: float(value)
        for name, value in row.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
    }


def derived_numbers(record: Row, paths: Sequence[Row]) -> dict[str, float]:
    """What a record does not state itself: how far, how fast and where its boxes were asked to go, and what it took."""
    numbers: dict[str, float] = {}
    seconds = [record.get(f"seconds_{phase}") for phase in PHASES]
    if any(value is not None for value in seconds):
        numbers["seconds"] = sum(value or 0.0 for value in seconds)
    if (peak := record.get("peak_gpu_bytes")) is not None:
        numbers["gpu_gib"] = peak / 2**30
    first, last = (_mean(record.get(name)) for name in ("loss_first", "loss_last"))
    if first and last is not None:
        numbers["loss_left"] = last / first
    moving = [box for box in paths if not box["still"]]
    if not moving:
        return numbers
    numbers["moving_boxes"] = float(len(moving))
    lengths, areas, shifts = [], [], []
    for box in moving:
        boxes_T4 = np.array(box["asked"], np.float64)
        centres_T2 = (boxes_T4[:, :2] + boxes_T4[:, 2:]) / 2
        lengths.append(float(np.hypot(*np.diff(centres_T2, axis=0).T).sum()))
        areas.append(float(np.prod(boxes_T4[0, 2:] - boxes_T4[0, :2])))
        shifts.append(centres_T2[-1] - centres_T2[0])
    frames = len(moving[0]["asked"])
    numbers["path_px"] = float(np.mean(lengths))
    numbers["speed_px"] = numbers["path_px"] / max(frames - 1, 1)
    dx, dy = shifts[int(np.argmax(lengths))]
    if math.hypot(dx, dy) >= 1:
        numbers["direction_deg"] = math.degrees(math.atan2(-dy, dx)) % 360  # y runs down, and up is 90 degrees
    if record.get("height") and record.get("width"):
        numbers["box_share"] = float(np.mean(areas)) / (record["height"] * record["width"])
    return numbers


def paths_of(record: Row, own: Row, labels: Sequence[Row]) -> list[Row]:
    """Where each box was asked to be, and was measured. Without labels: only what the manifest's columns ask for."""
    if labels:
        return [_path_of(row) for row in sorted(labels, key=lambda row: row.get("box") or 0) if row.get("asked_boxes")]
    tracks = _asked_tracks(record, own)
    if tracks is None:
        return []
    still = tracks.still_N if tracks.still_N is not None else [False] * tracks.num_boxes
    return [
        {"still": bool(is_still), "asked": _rounded(boxes_T4)}
        for is_still, boxes_T4 in zip(still, tracks.boxes_NT4, strict=True)
    ]


def _path_of(row: Row) -> Row:
    asked, measured = row["asked_boxes"], row.get("measured_centres")
    path: Row = {"still": bool(row.get("still")), "asked": _rounded(asked)}
    if measured:
        path["measured"] = [None if not _is_point(centre) else _rounded(centre) for centre in measured]
        centres = row.get("asked_centres") or [
            [(x0 + x1) / 2, (y0 + y1) / 2] for x0, y0, x1, y1 in (box or [math.nan] * 4 for box in asked)
        ]
        path["error"] = [
            significant(math.dist(centre, target), 4) if _is_point(centre) and _is_point(target) else None
            for centre, target in zip(measured, centres, strict=False)
        ]
    if row.get("measured_boxes"):
        path["boxes"] = [None if not box or None in box else _rounded(box) for box in row["measured_boxes"]]
    if row.get("visible_fraction"):
        path["visible"] = [significant(value, 3) for value in row["visible_fraction"]]
    if row.get("null_reason"):
        path["reason"] = shown_text(row["null_reason"])
    return path


def _is_point(value: Any) -> bool:
    return bool(value) and all(each is not None and math.isfinite(each) for each in value)


def _asked_tracks(record: Row, own: Row) -> BoxTracks | None:
    """The boxes of a manifest row in the video's pixels; None where the record does not say how the picture fits."""
    frames, height, width = (record.get(name) for name in ("num_frames", "height", "width"))
    source_box, picture_box = record.get("source_box"), record.get("picture_box")
    if not (frames and height and width and source_box and picture_box):
        return None
    row = {name: own.get(name) for name in MANIFEST_COLUMNS}
    try:
        tracks = parse_row({**row, "sample_id": record["sample_id"], "seed": None}).tracks(frames, height, width)
        placement = Placement("crop", height, width, tuple(source_box), tuple(picture_box))
        return placement.tracks(tracks)
    except (SampleError, TypeError, ValueError, KeyError, ZeroDivisionError):
        return None  # own columns that only have the names of a manifest's


def _rounded(values: Sequence[Any] | NDArray[np.float64]) -> Any:
    return np.round(np.array(values, np.float64), 1).tolist()


def _mean(values: Sequence[float | None] | None) -> float | None:
    finite = [value for value in values or [] if value is not None and math.isfinite(value)]
    return sum(finite) / len(finite) if finite else None


def details_of(record: Row, own: Row, paths: Sequence[Row]) -> Row:
    """The part of a sample's page that comes from its row alone."""
    losses = [[significant(value) for value in record.get(name) or []] for name in ("loss_first", "loss_last")]
    candidates = record.get(CANDIDATES) or []
    return {
        "id": record["sample_id"],
        "width": record.get("width"),
        "height": record.get("height"),
        "fps": record.get("fps"),
        "frames": record.get("num_frames"),
        "boxes": list(paths),
        "losses": losses if any(losses) else None,
        "code": shown_value(record.get("error_code")),
        "message": shown_value(record.get("message")),
        "record": {
            name: shown_value(value) for name, value in record.items() if value is not None and name != CANDIDATES
        },
        "own": {shown_text(name): shown_value(value) for name, value in own.items() if value is not None},
        "candidates": [
            {name: shown_value(value) for name, value in candidate.items()}
            for candidate in candidates
            if isinstance(candidate, dict)
        ],
    }
