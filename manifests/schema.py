"""The manifest: its Arrow schema, and rows in and out of it.

Axes: N boxes, P path points. Boxes are xyxy, pixels of the source image, half-open.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from sgi2v.canonical import canonical_json
from sgi2v.errors import ErrorCode, ManifestError, Problem, SampleError, TrajectoryError
from sgi2v.trajectory import BoxTracks

Floats = NDArray[np.float64]

MANIFEST_SCHEMA = pa.schema(
    [
        pa.field("sample_id", pa.string()),
        pa.field("image", pa.string()),
        pa.field("boxes", pa.list_(pa.list_(pa.float64()))),
        pa.field("trajectories", pa.list_(pa.list_(pa.list_(pa.float64())))),
        pa.field("scales", pa.list_(pa.list_(pa.float64()))),
        pa.field("seed", pa.int64()),
    ]
)
"""The known columns, in the order in which a conformed table holds them."""

REQUIRED = ("sample_id", "image", "boxes", "trajectories")
"""Columns without which a manifest cannot be run; the others are null where absent."""

SAMPLE_ID_PATTERN = r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,127}\z"
"""What a sample_id may look like (RE2): safe as a file name and as an object key."""

MAX_BOXES = 256
"""Boxes of one row."""

MAX_POINTS = 10_000
"""Points of one trajectory."""

_LONGEST = {"boxes": (MAX_BOXES, 4), "trajectories": (MAX_BOXES, MAX_POINTS, 2), "scales": (MAX_BOXES, MAX_POINTS)}
"""How long the lists of a column may be, from the outermost in."""

LISTED = 20
"""Rows named one by one for each kind of problem; further ones are counted."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One row, parsed: everything about it that can be known without its image."""

    sample_id: str
    image: str
    """As the manifest has it; `manifests.images.resolve_uri` makes it absolute."""
    boxes_N4: Floats
    """Frame-0 boxes."""
    trajectories: tuple[Floats, ...]
    """Per box [P, 2]: xy of its centre over the clip, evenly spaced in time."""
    scales: tuple[Floats, ...] | None
    """Per box [P]: size relative to the first point's; None keeps sizes."""
    seed: int | None

    def tracks(self, num_frames: int, height: int, width: int) -> BoxTracks:
        """The boxes over `num_frames` frames, in pixels of the source image of [height, width]."""
        return BoxTracks.from_paths(self.boxes_N4, self.trajectories, num_frames, height, width, self.scales)


def conform(table: pa.Table, source: str) -> pa.Table:
    """The table with the known columns first and in the schema's types, unknown columns unchanged behind.

    Casts where no value changes its meaning; adds optional columns as nulls. Raises ManifestError(source)
    with every fatal problem: columns that are missing, doubled or of a wrong type, no rows, and
    sample_ids that are null, unsafe as a file name, or not unique.
    """
    problems: list[Problem] = []
    doubled = {name for name in table.column_names if table.column_names.count(name) > 1}
    for name in sorted(doubled):
        problems.append(Problem(None, None, name, "column_duplicate", "stands there more than once: keep one"))
    columns: dict[str, Any] = {}
    for field in MANIFEST_SCHEMA:
        if field.name in doubled:
            continue
        if field.name not in table.column_names:
            if field.name in REQUIRED:
                problems.append(_missing(field, table.column_names))
            columns[field.name] = pa.nulls(table.num_rows, field.type)
            continue
        try:
            columns[field.name] = _cast(table.column(field.name), field.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            message = f"is {table.schema.field(field.name).type}, wanted {field.type}: {error}"
            problems.append(Problem(None, None, field.name, "column_type", message))
    if table.num_rows == 0:
        problems.append(Problem(None, None, None, "manifest_empty", "there are no rows: add one row per sample"))
    elif "sample_id" in table.column_names and "sample_id" in columns:
        problems.extend(_sample_id_problems(columns["sample_id"]))
    if problems:
        raise ManifestError(source, problems)
    fields = list(MANIFEST_SCHEMA)
    for field in table.schema:
        if field.name not in columns:
            fields.append(field)
            columns[field.name] = table.column(field.name)
    return pa.table(list(columns.values()), schema=pa.schema(fields))


def _missing(field: pa.Field[Any], found: list[str]) -> Problem:
    message = f"column is missing: add it as {field.type} (found: {', '.join(found) or 'no columns'})"
    return Problem(None, None, field.name, "column_missing", message)


def _cast(column: Any, wanted: pa.DataType) -> Any:
    """The column in the wanted type; ArrowInvalid and its siblings where a value would change its meaning."""
    if not _castable(column.type, wanted):
        raise pa.ArrowTypeError("convert the column where the manifest is made")
    if pa.types.is_floating(column.type) and pa.types.is_integer(wanted):
        # pandas turns integers with gaps into floats with NaN
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
    cast = column.cast(wanted)
    if pa.types.is_string(wanted):
        cast.validate(full=True)  # Parquet's bytes are taken for UTF-8 until somebody reads them
    return cast


def _castable(found: Any, wanted: Any) -> bool:
    is_a = pa.types
    if found == wanted or is_a.is_null(found):
        return True
    if is_a.is_dictionary(found):
        return _castable(found.value_type, wanted)
    if is_a.is_string(wanted):
        return bool(is_a.is_large_string(found) or is_a.is_string_view(found))
    if is_a.is_list(wanted):
        lists = (is_a.is_list, is_a.is_large_list, is_a.is_fixed_size_list)  # Arrow 26 casts list views wrongly
        return any(is_list(found) for is_list in lists) and _castable(found.value_type, wanted.value_type)
    return bool(is_a.is_integer(found) or is_a.is_floating(found) or is_a.is_decimal(found))


def _sample_id_problems(ids: Any) -> Iterator[Problem]:
    """Null, unsafe and repeated ids of a string column."""
    safe: Any = pc.fill_null(pc.match_substring_regex(ids, SAMPLE_ID_PATTERN), False)
    if not pc.all(safe).as_py():
        rows: Any = pc.indices_nonzero(pc.invert(safe))
        for row in rows[:LISTED].to_pylist():
            value = ids[row].as_py()
            found = "is null" if value is None else f"{value[:160]!r} cannot be a file name"
            message = f"{found}: use 1 to 128 letters, digits, '.', '_' or '-', beginning with a letter or digit"
            yield Problem(row, value and value[:160], "sample_id", "sample_id_invalid", message)
        if len(rows) > LISTED:
            message = f"{len(rows) - LISTED} further rows have such a sample_id"
            yield Problem(None, None, "sample_id", "sample_id_invalid", message)
    if pc.count_distinct(ids).as_py() == len(ids) - ids.null_count:
        return
    counts: Any = pc.value_counts(ids.drop_null())
    repeated: Any = counts.field("values").filter(pc.greater(counts.field("counts"), pa.scalar(1)))
    for value in repeated[:LISTED]:
        rows = pc.indices_nonzero(pc.equal(ids, value))
        named = ", ".join(map(str, rows[:LISTED].to_pylist())) + (", ..." if len(rows) > LISTED else "")
        message = f"stands in {len(rows)} rows ({named}): every sample needs an id of its own"
        yield Problem(None, value.as_py(), "sample_id", "sample_id_duplicate", message)
    if len(repeated) > LISTED:
        message = f"{len(repeated) - LISTED} further ids stand in more than one row"
        yield Problem(None, None, "sample_id", "sample_id_duplicate", message)


def rows_of(table: pa.Table) -> list[dict[str, Any]]:
    """The rows of a conformed table as Python objects, their lists cut after the first item too many.

    So that a row of millions of numbers, which is refused, costs no more than the largest that is not.
    """
    for name, longest in _LONGEST.items():
        column = table[name].combine_chunks()
        if _is_longer(column, longest):
            table = table.set_column(table.column_names.index(name), name, _cut(column, longest))
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _is_longer(lists: Any, longest: tuple[int, ...]) -> bool:
    lengths: Any = pc.max(pc.list_value_length(lists))
    return (lengths.as_py() or 0) > longest[0] or (len(longest) > 1 and _is_longer(lists.flatten(), longest[1:]))


def _cut(lists: Any, longest: tuple[int, ...]) -> Any:
    cut: Any = pc.list_slice(lists, 0, longest[0] + 1)
    if len(longest) == 1:
        return cut
    return pa.ListArray.from_arrays(cut.offsets, _cut(cut.values, longest[1:]), mask=cut.is_null())


def parse_row(row: Mapping[str, Any]) -> Sample:
    """The row of a conformed table as a Sample; raises the first of `row_problems`."""
    for _, error in row_problems(row):
        raise error
    scales = row.get("scales")
    return Sample(
        sample_id=row["sample_id"],
        image=row["image"],
        boxes_N4=np.array(row["boxes"], np.float64).reshape(-1, 4),
        trajectories=tuple(np.array(path, np.float64) for path in row["trajectories"]),
        scales=None if scales is None else tuple(np.array(scale, np.float64) for scale in scales),
        seed=row.get("seed"),
    )


def row_problems(row: Mapping[str, Any]) -> Iterator[tuple[str, SampleError]]:
    """Everything that is wrong with a row as far as it can be told without its image, by column."""
    image, boxes, paths, scales = (row.get(name) for name in ("image", "boxes", "trajectories", "scales"))
    if image is None or not image.strip():
        yield "image", SampleError(ErrorCode.IMAGE_MISSING, "there is none: give a path or a URL of the first frame")
    too_many = [name for name in _LONGEST if len(row.get(name) or ()) > MAX_BOXES]
    for name in too_many:
        yield name, _invalid(f"there are more than {MAX_BOXES}: give a row fewer boxes")
    if too_many:
        return
    if boxes is None:
        message = "there are none: give one [x0, y0, x1, y1] per object, or an empty list for plain SVD"
        yield "boxes", TrajectoryError(ErrorCode.BOX_OUTSIDE, message)
    else:
        for n, box in enumerate(boxes):
            if error := box_error(n, box):
                yield "boxes", error
    if paths is None:
        yield "trajectories", _invalid("there are none: give one list of [x, y] points per box")
        return
    if boxes is not None and len(paths) != len(boxes):
        yield "trajectories", _invalid(f"{len(boxes)} boxes but {len(paths)} trajectories: give one trajectory per box")
    for n, path in enumerate(paths):
        if trouble := _path_trouble(path):
            yield "trajectories", _invalid(f"trajectory {n} {trouble}")
    if scales is None:
        return
    if len(scales) != len(paths):
        message = f"{len(paths)} trajectories but {len(scales)} lists of scales: give one list per box, or null"
        yield "scales", _invalid(message)
    for n, (scale, path) in enumerate(zip(scales, paths, strict=False)):
        if scale is None or (path is not None and len(scale) != len(path)):
            found = "are null" if scale is None else f"are {len(scale)} numbers"
            yield "scales", _invalid(f"scales of box {n} {found}: give one number per point of its trajectory")
        if scale is not None and not _all_numbers(scale, lambda value: value > 0):
            yield (
                "scales",
                _invalid(f"scales of box {n} must be positive finite numbers, not {str(scale)[:80]}: 1 keeps the size"),
            )


def box_error(n: int, box: Any) -> TrajectoryError | None:
    """What is wrong with box `n` whatever its image."""
    message = None
    if not isinstance(box, list) or len(box) != 4:
        message = f"box {n} must be four numbers [x0, y0, x1, y1], not {box}"
    elif not _all_numbers(box):
        message = f"box {n} {box} holds null, NaN or infinite coordinates: give four finite numbers"
    elif not (box[0] < box[2] and box[1] < box[3]):
        message = f"box {n} {box} has no area or reversed corners: give [x0, y0, x1, y1] with x0 < x1 and y0 < y1"
    return TrajectoryError(ErrorCode.BOX_OUTSIDE, message) if message else None


def _path_trouble(path: Any) -> str | None:
    if not isinstance(path, list) or len(path) < 2:
        found = f"{len(path)}" if isinstance(path, list) else "null"
        return f"must be two or more [x, y] points, not {found}: repeat the point for a box that stands still"
    if len(path) > MAX_POINTS:
        return f"has more than {MAX_POINTS:,} points: it is resampled to the frames, so give fewer"
    for at, point in enumerate(path):
        if not isinstance(point, list) or len(point) != 2:
            return f"must be [x, y] points, but point {at} is {point}"
        if not _all_numbers(point):
            return f"holds null, NaN or infinite coordinates: point {at} is {point}"
    return None


def _all_numbers(values: list[Any], also: Callable[[float], bool] = lambda value: True) -> bool:
    return all(value is not None and math.isfinite(value) and also(value) for value in values)


def _invalid(message: str) -> TrajectoryError:
    return TrajectoryError(ErrorCode.TRAJECTORY_INVALID, message)


def row_digest(row: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of the known columns of a conformed row. Another digest means that another sample is asked for."""
    known = {name: row.get(name) for name in MANIFEST_SCHEMA.names}
    return hashlib.sha256(canonical_json(known).encode()).hexdigest()
