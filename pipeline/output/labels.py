"""Labels: where each box was asked to be and where its object was measured. See docs/output-format.md, Labels.

In a record they are a list, one entry a box; `labels.parquet` has one row a box. All are in pixels of the whole video.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sgi2v.metrics.following import Following, is_still
from sgi2v.tracking.tracker import PointTracker
from sgi2v.trajectory import BoxTracks, Floats

LABELS = "labels.parquet"
DECIMALS = 2
"""Coordinates are rounded to so many decimals of a pixel, a tenth of the trackers' errors."""

_PER_FRAME = pa.list_(pa.list_(pa.float64()))
_OF_BOX: Mapping[str, pa.DataType] = {
    "asked_boxes": _PER_FRAME,
    "asked_centres": _PER_FRAME,
    "measured_boxes": _PER_FRAME,
    "measured_centres": _PER_FRAME,
    "visible_fraction": pa.list_(pa.float64()),
    "points": pa.list_(_PER_FRAME),
    "points_visible": pa.list_(pa.list_(pa.bool_())),
    "null_reason": pa.string(),
}
LABELS_TYPE = pa.list_(pa.struct({"box": pa.int64(), "still": pa.bool_(), **_OF_BOX, "tracker_error_px": pa.float64()}))
"""The column `labels` of records: the entries of one sample, by box."""
OF_SAMPLE = (
    *("sample_id", "num_frames", "height", "width", "fps", "source_box", "picture_box", "tracker", "tracker_version"),
    *("metrics_version", "image_uri", "video_sha256", "file_name"),
)
"""The columns of a record that `rows_of_boxes` needs beside `labels`."""
LABEL_SCHEMA = pa.schema(
    {
        "sample_id": pa.string(),
        "box": pa.int64(),
        "still": pa.bool_(),
        **dict.fromkeys(("num_frames", "height", "width", "fps"), pa.int64()),
        "source_to_video": pa.list_(pa.float64()),
        **_OF_BOX,
        "tracker": pa.string(),
        "tracker_version": pa.string(),
        "tracker_error_px": pa.float64(),
        **dict.fromkeys(("metrics_version", "image_uri", "video_sha256", "file_name"), pa.string()),
    }
)
"""The columns of labels.parquet. docs/output-format.md describes each."""
LABEL_KEYS = ("sample_id", "box", "still", "num_frames", "video_sha256", "file_name")
"""The columns that say what a row of labels.parquet belongs to."""
_COORDINATES = {"asked_boxes": 4, "asked_centres": 2, "measured_boxes": 4, "measured_centres": 2}
_NULLABLE = {"measured_boxes", "measured_centres"}
"""Columns of these that are null in the frames in which the object was not seen."""
_COLUMN = pa.schema({"labels": LABELS_TYPE})


@runtime_checkable
class StatesError(Protocol):
    """A tracker whose error was measured."""

    def error_px(self, step_px: float) -> float:
        """Mean error of a box's centre that goes this far from frame to frame, pixels."""
        ...


def labels_of(
    tracks: BoxTracks, followed: Sequence[Following], tracker: PointTracker, corner: tuple[int, int]
) -> list[dict[str, Any]]:
    """The labels of a sample, one entry a box. tracks, followed: as `follow_boxes` gives them.

    corner: x, y in the video of the pixels that `tracks` and `followed` count from.
    """
    offset_2 = np.array(corner, np.float64)
    return [
        {
            "box": number,
            "still": bool(still),
            **_label_of(boxes_T4 + np.tile(offset_2, 2), each, offset_2),
            "tracker_error_px": _stated_error_px(tracker, boxes_T4),
        }
        for number, (still, boxes_T4, each) in enumerate(zip(is_still(tracks), tracks.boxes_NT4, followed, strict=True))
    ]


def _label_of(boxes_T4: Floats, followed: Following, offset_2: Floats) -> dict[str, Any]:
    """What is known of one box, by column. boxes_T4: asked, pixels of the video."""
    centres_T2 = (boxes_T4[:, :2] + boxes_T4[:, 2:]) / 2
    seen_T = np.zeros(len(boxes_T4), np.bool_) if followed.seen_T is None else followed.seen_T
    points = followed.points
    label = dict.fromkeys(_OF_BOX) | {
        "asked_boxes": _rounded(boxes_T4),
        "asked_centres": _rounded(centres_T2),
        "measured_boxes": _where(seen_T, boxes_T4[0] + np.tile(followed.measured_T2, 2)),
        "measured_centres": _where(seen_T, centres_T2[0] + followed.measured_T2),
        "null_reason": None if followed.null_reason is None else followed.null_reason.value,
    }
    if points is not None:
        points_TQ2 = np.where(np.isfinite(points.points_TQ2), points.points_TQ2, points.points_TQ2[0]) + offset_2
        label["points"] = _rounded(points_TQ2)
        label["points_visible"] = points.visible_TQ.tolist()
        label["visible_fraction"] = np.round(points.visible_TQ.mean(axis=1), 4).tolist()
    return label


def _rounded(pixels: Floats) -> list[Any]:
    rounded: list[Any] = np.round(pixels, DECIMALS).tolist()
    return rounded


def _where(seen_T: np.ndarray, pixels_TX: Floats) -> list[Any]:
    """The values of the frames in which the object was seen, and None in the others."""
    return [values if seen else None for seen, values in zip(seen_T.tolist(), _rounded(pixels_TX), strict=True)]


def _stated_error_px(tracker: PointTracker, boxes_T4: Floats) -> float | None:
    """The tracker's error at the largest step of a path, pixels. None: it was not measured."""
    if not isinstance(tracker, StatesError):
        return None
    centres_T2 = (boxes_T4[:, :2] + boxes_T4[:, 2:]) / 2
    return tracker.error_px(float(np.linalg.norm(np.diff(centres_T2, axis=0), axis=-1).max(initial=0.0)))


def pack(labels: list[dict[str, Any]] | None) -> bytes | None:
    """The labels of a sample in few bytes: as Python objects, those of thousands of samples take a gigabyte."""
    if labels is None:
        return None
    batch = pa.RecordBatch.from_pylist([{"labels": labels}], _COLUMN)
    return zlib.compress(batch.serialize(), level=1)


def unpack(packed: bytes | None) -> list[dict[str, Any]] | None:
    """The labels of a sample, as `labels_of` gave them."""
    labels: list[dict[str, Any]] | None = column_of([packed])[0].as_py()
    return labels


def column_of(packed: Sequence[bytes | None]) -> pa.ChunkedArray:
    """The column `labels` of samples, from what `pack` gave for each."""
    chunks = [
        pa.nulls(1, LABELS_TYPE)
        if each is None
        else pa.ipc.read_record_batch(pa.py_buffer(zlib.decompress(each)), _COLUMN)["labels"]
        for each in packed
    ]
    return pa.chunked_array([pa.concat_arrays(chunks)] if chunks else [], LABELS_TYPE)


def are_whole(records: pa.Table) -> bool:
    """Whether all labels have one entry for each frame of their video, with all its coordinates.

    records: with the columns `labels` and `num_frames`.
    """
    labels = records["labels"].combine_chunks()
    boxes = pc.list_flatten(labels)
    num_frames = records["num_frames"].take(pc.list_parent_indices(labels)).combine_chunks()
    columns = {name: pc.struct_field(boxes, name) for name in _OF_BOX if name != "null_reason"}
    is_right = [pc.is_valid(pc.struct_field(boxes, name)) for name in ("box", "still", "asked_boxes", "asked_centres")]
    is_right += [pc.fill_null(pc.equal(pc.list_value_length(each), num_frames), True) for each in columns.values()]
    inner = {name: pc.list_value_length(pc.list_flatten(columns[name])) for name in columns if name in _COORDINATES}
    is_right += [pc.fill_null(pc.equal(inner[name], _COORDINATES[name]), name in _NULLABLE) for name in inner]
    points, visible = (pc.list_flatten(columns[name]) for name in ("points", "points_visible"))
    if len(points) != len(visible):
        return False
    is_right.append(pc.fill_null(pc.equal(pc.list_value_length(points), pc.list_value_length(visible)), False))
    is_right.append(pc.fill_null(pc.equal(pc.list_value_length(pc.list_flatten(points)), 2), False))
    return all(pc.all(each, min_count=0).as_py() for each in is_right)


def rows_of_boxes(records: pa.Table) -> pa.Table:
    """LABEL_SCHEMA of the boxes of some samples, in the order of the records. records: OF_SAMPLE and `labels`."""
    labels = records["labels"].combine_chunks()
    boxes, of_box = pc.list_flatten(labels), pc.list_parent_indices(labels)
    columns = {
        **{name: records[name] for name in OF_SAMPLE},
        "source_to_video": _source_to_video(records),
    }
    columns = {name: column.take(of_box) for name, column in columns.items()}
    columns |= {field.name: pc.struct_field(boxes, field.name) for field in LABELS_TYPE.value_type}
    return pa.table([columns[name] for name in LABEL_SCHEMA.names], schema=LABEL_SCHEMA)


def _source_to_video(records: pa.Table) -> pa.Array:
    """[scale_x, shift_x, scale_y, shift_y] of each record: a point p of the picture is at scale * p + shift."""
    transforms: list[list[float] | None] = []
    for source_box, picture_box in zip(
        *(records[name].to_pylist() for name in ("source_box", "picture_box")), strict=True
    ):
        transforms.append(
            None if source_box is None or picture_box is None else source_to_video(source_box, picture_box)
        )
    return pa.array(transforms, pa.list_(pa.float64()))


def source_to_video(source_box: Sequence[float], picture_box: Sequence[int]) -> list[float]:
    """[scale_x, shift_x, scale_y, shift_y] of a picture of which `source_box` fills `picture_box` of the video."""
    (x0, y0, x1, y1), (left, top, right, bottom) = source_box, picture_box
    scale_x, scale_y = (right - left) / (x1 - x0), (bottom - top) / (y1 - y0)
    return [scale_x, left - scale_x * x0, scale_y, top - scale_y * y0]
