"""The manifest's Arrow schema, and how its rows are parsed.

Axes: N boxes, P path points. Boxes are xyxy, pixels of the source image, half-open.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from manifests.fit import FITS, Fit
from manifests.masks import MASKS_TYPE, as_masks
from manifests.own_columns import check_writable, plain
from sgi2v.canonical import canonical_json
from sgi2v.errors import ConfigError, ErrorCode, ManifestError, Problem, SampleError, TrajectoryError
from sgi2v.trajectory import BoxTracks
from sgi2v.wording import did_you_mean

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
"""The known columns, in the order in which a conformed table has them."""

EXTENSION_SCHEMA = pa.schema(
    [pa.field("still", pa.list_(pa.bool_())), pa.field("masks", MASKS_TYPE), pa.field("fit", pa.string())]
)
"""Known columns that a conformed table has only if the manifest has them, so that others stay as they are."""

KNOWN = {field.name: field.type for field in (*MANIFEST_SCHEMA, *EXTENSION_SCHEMA)}
"""The type of each known column."""

REQUIRED = ("sample_id", "image", "boxes", "trajectories")
"""Columns that every manifest must have; absent ones of the others become null."""

SAMPLE_ID_PATTERN = r"\A[A-Za-z0-9][A-Za-z0-9._-]{0,127}\z"
"""Valid sample ids, as an RE2 pattern: safe as a file name and as an object key."""

MAX_BOXES = 256
"""Largest number of boxes in one row."""

MAX_POINTS = 10_000
"""Largest number of points in one trajectory."""

LARGEST_PX = 1e15
"""Coordinates beyond this are refused: their differences have no fractions of a pixel any more, and end in infinity."""

SCALE_RANGE = (1e-6, 1e6)
"""Scales outside it are refused: the metrics would be rounding errors."""

_MAX_LENGTHS = {
    "boxes": (MAX_BOXES, 4),
    "trajectories": (MAX_BOXES, MAX_POINTS, 2),
    "scales": (MAX_BOXES, MAX_POINTS),
    "still": (MAX_BOXES,),
    "masks": (MAX_BOXES,),
}
"""Largest length of a column's lists, from the outermost level inwards."""

_FLOAT_BITS = {16: 11, 32: 24, 64: 53}
"""Bits of the whole numbers that a float of each width holds exactly."""

_SHOWN_LIMIT = 80
"""Characters of a value in a message."""

MAX_LISTED = 20
"""Rows that are named one by one for each kind of problem; the rest are counted."""


@dataclass(frozen=True, eq=False)
class Sample:
    """One parsed row: everything that is known before its image is read."""

    sample_id: str
    image: str
    """As written in the manifest; `manifests.urls.resolve_uri` makes it absolute."""
    boxes_N4: Floats
    """Frame-0 boxes."""
    trajectories: tuple[Floats, ...]
    """Per box [P, 2]: xy of its centre over the clip, evenly spaced in time."""
    scales: tuple[Floats, ...] | None
    """Per box [P]: size relative to the size at the first point; None keeps all sizes."""
    seed: int | None
    still: tuple[bool, ...] | None = None
    """Per box, whether it is told to stay where it is in frame 0; its path and scales then say so. None: no box is."""

    masks: tuple[bytes | None, ...] | None = None
    """Per box its mask, as `manifests.masks.masks_of` reads it; None, of one or all, takes the whole box."""

    fit: Fit | None = None
    """How its picture fills a video of another shape; None: as the run says."""

    def tracks(self, num_frames: int, height: int, width: int) -> BoxTracks:
        """The boxes in each of `num_frames` frames, in pixels of the source image [height, width]."""
        tracks = BoxTracks.from_paths(self.boxes_N4, self.trajectories, num_frames, height, width, self.scales)
        return tracks if self.still is None else replace(tracks, still_N=np.array(self.still, bool))


def conform(table: pa.Table, source: str) -> pa.Table:
    """The table with the known columns first, in the schema's types, and the unknown columns after them.

    Casts a column where no value changes its meaning; an unknown one gets the types of `manifests.own_columns.plain`.
    Adds missing columns of MANIFEST_SCHEMA as nulls. Raises ManifestError(source) with every fatal problem: columns
    that are missing, duplicated, misspelt (`Seed`), of a wrong type or not UTF-8; no rows; sample_ids that are null,
    unsafe as a file name, or not unique, also where only their case differs.
    """
    problems: list[Problem] = []
    duplicated = {name for name in table.column_names if table.column_names.count(name) > 1}
    for name in sorted(duplicated):
        message = "the manifest has more than one column of this name: keep one"
        if not name.strip():
            message = "more than one column has no name (empty cells at the end of the header?): name or remove them"
        problems.append(Problem(None, None, name, "column_duplicate", message))
    columns: dict[str, Any] = {}
    fields = list(MANIFEST_SCHEMA)
    for field in (*MANIFEST_SCHEMA, *EXTENSION_SCHEMA):
        if field.name in duplicated:
            continue
        if field.name not in table.column_names:
            if field.name in REQUIRED:
                problems.append(_missing(field, table.column_names))
            elif other := next((name for name in table.column_names if name.strip().lower() == field.name), None):
                problems.append(_other_spelling(field, other))
            if field in MANIFEST_SCHEMA:
                columns[field.name] = pa.nulls(table.num_rows, field.type)
            continue
        if field in EXTENSION_SCHEMA:
            fields.append(field)
        try:
            column = table.column(field.name)
            columns[field.name] = as_masks(column) if field.name == "masks" else _cast(column, field.type)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            advice = _list_advice(table.column(field.name), field.type) or error
            message = f"type is {table.schema.field(field.name).type}, expected {field.type}: {advice}"
            problems.extend(_column_problems(table, field.name, message))
    for name in table.column_names:
        if name not in KNOWN and name not in duplicated:
            try:
                columns[name] = plain(table.column(name))
                check_writable(columns[name])
                fields.append(pa.field(name, columns[name].type))
            except ConfigError as error:
                problems.extend(_column_problems(table, name, str(error)))
    if table.num_rows == 0:
        problems.append(Problem(None, None, None, "manifest_empty", "there are no rows: add one row per sample"))
    elif "sample_id" in table.column_names and "sample_id" in columns:
        problems.extend(_sample_id_problems(columns["sample_id"]))
    if "fit" in columns:
        problems.extend(_fit_problems(table, columns["fit"]))
    if problems:
        raise ManifestError(source, problems)
    return pa.table(list(columns.values()), schema=pa.schema(fields))


def known_columns(table: pa.Table) -> pa.Table:
    """The columns of a conformed table that decide its samples."""
    return table.select([name for name in KNOWN if name in table.column_names])


def _column_problems(table: pa.Table, name: str, message: str) -> Iterator[Problem]:
    """The problems of a column: its rows with text that is not UTF-8, else `message`."""
    rows = list(_rows_without_text(table.column(name)))
    for row in rows[:MAX_LISTED]:
        text = "text is not UTF-8: write it as UTF-8, or leave the value out"
        yield Problem(row, sample_id_of(table, row), name, "text_invalid", text)
    if len(rows) > MAX_LISTED:
        yield Problem(None, None, name, "text_invalid", f"further rows with invalid text: {len(rows) - MAX_LISTED}")
    if not rows:
        yield Problem(None, None, name, "column_type", message)


def _rows_without_text(column: Any) -> Iterator[int]:
    for row, scalar in enumerate(column):
        try:
            scalar.as_py()
        except UnicodeDecodeError:
            yield row
        except (ValueError, OverflowError, KeyError):  # of a value that is no text
            continue


def sample_id_of(table: pa.Table, row: int) -> str | None:
    """The sample id of a row for a message, if it has one that can be shown."""
    if "sample_id" not in table.column_names or table.column_names.count("sample_id") > 1:
        return None
    try:
        value = table.column("sample_id")[row].as_py()
    except UnicodeDecodeError:
        return None
    return value[:160] if isinstance(value, str) else None


def _missing(field: pa.Field[Any], columns: list[str]) -> Problem:
    hint = did_you_mean(field.name, [name for name in columns if name not in KNOWN])
    message = f"column is missing{hint}: add it as {field.type} (columns found: {', '.join(columns) or 'none'})"
    return Problem(None, None, field.name, "column_missing", message)


def _other_spelling(field: pa.Field[Any], name: str) -> Problem:
    """The problem of an optional column whose name has capitals or spaces: it would be copied, and not obeyed."""
    message = f"the column would not be used: call it {field.name!r}, or rename it if it means something else"
    return Problem(None, None, repr(name), "column_name", message)


def _list_advice(column: Any, to_type: pa.DataType) -> str | None:
    """How to write a column whose lists are nested one level too little or too much; None for another fault."""
    missing = _depth(to_type) - _depth(column.type)
    values = column.drop_null()
    if abs(missing) != 1 or not len(values) or not _depth(column.type) or not _holds_numbers(column.type):
        return None
    value = values[0].as_py()
    if missing == 1:
        return f"a row with one object has a list of one entry: write {_shown([value])}, not {_shown(value)}"
    return f"it has one list too many: write {_shown(value[0] if value else [])}, not {_shown(value)}"


def _depth(of_type: Any) -> int:
    """Levels of lists of a type: 2 for lists of lists."""
    is_list = pa.types.is_list(of_type) or pa.types.is_large_list(of_type) or pa.types.is_fixed_size_list(of_type)
    return 1 + _depth(of_type.value_type) if is_list else 0


def _holds_numbers(of_type: Any) -> bool:
    """Whether the items of the innermost lists are numbers, or none is there."""
    while _depth(of_type):
        of_type = of_type.value_type
    types = pa.types
    kinds = (types.is_integer, types.is_floating, types.is_decimal, types.is_null)
    return any(is_kind(of_type) for is_kind in kinds)


def _shown(value: Any) -> str:
    text = str(value)
    return text if len(text) <= _SHOWN_LIMIT else f"{text[:_SHOWN_LIMIT]}..."


def _cast(column: Any, to_type: pa.DataType) -> Any:
    """The column in another type. Raises an Arrow error where a value would change its meaning."""
    if not _castable(column.type, to_type):
        raise pa.ArrowTypeError("convert the column where the manifest is made")
    if pa.types.is_floating(column.type) and pa.types.is_integer(to_type):
        # pandas turns integers with gaps into floats with NaN
        column = pc.if_else(pc.is_nan(column), pa.scalar(None, column.type), column)
        exact: Any = 2 ** _FLOAT_BITS[column.type.bit_width]
        if any(value is not None and abs(value) > exact for value in pc.min_max(column).as_py().values()):
            message = f"whole numbers above {exact:,} lose digits as floats: write the column as integers"
            raise pa.ArrowInvalid(message)
    cast = column.cast(to_type)
    if pa.types.is_string(to_type):
        cast.validate(full=True)  # Parquet does not check that its strings are UTF-8
    return cast


def _castable(from_type: Any, to_type: Any) -> bool:
    types = pa.types
    if from_type == to_type or types.is_null(from_type):
        return True
    if types.is_dictionary(from_type):
        return _castable(from_type.value_type, to_type)
    if types.is_string(to_type):
        return bool(types.is_large_string(from_type) or types.is_string_view(from_type))
    if types.is_list(to_type):
        lists = (types.is_list, types.is_large_list, types.is_fixed_size_list)  # Arrow 26 casts list views wrongly
        return any(is_list(from_type) for is_list in lists) and _castable(from_type.value_type, to_type.value_type)
    if types.is_boolean(to_type):
        return False  # Arrow casts every number to true but 0
    return bool(types.is_integer(from_type) or types.is_floating(from_type) or types.is_decimal(from_type))


def _sample_id_problems(ids: Any) -> Iterator[Problem]:
    """Problems of a string column of ids: null, unsafe as a file name, repeated."""
    safe: Any = pc.fill_null(pc.match_substring_regex(ids, SAMPLE_ID_PATTERN), False)
    if not pc.all(safe).as_py():
        rows: Any = pc.indices_nonzero(pc.invert(safe))
        for row in rows[:MAX_LISTED].to_pylist():
            value = ids[row].as_py()
            error = "is null" if value is None else f"{value[:160]!r} cannot be a file name"
            message = f"{error}: use 1 to 128 letters, digits, '.', '_' or '-', beginning with a letter or digit"
            yield Problem(row, value and value[:160], "sample_id", "sample_id_invalid", message)
        if len(rows) > MAX_LISTED:
            message = f"further rows with an invalid sample_id: {len(rows) - MAX_LISTED}"
            yield Problem(None, None, "sample_id", "sample_id_invalid", message)
    if pc.count_distinct(ids).as_py() == len(ids) - ids.null_count:
        yield from _case_problems(ids)
        return
    counts: Any = pc.value_counts(ids.drop_null())
    repeated: Any = counts.field("values").filter(pc.greater(counts.field("counts"), pa.scalar(1)))
    for value in repeated[:MAX_LISTED]:
        rows = pc.indices_nonzero(pc.equal(ids, value))
        named = ", ".join(map(str, rows[:MAX_LISTED].to_pylist())) + (", ..." if len(rows) > MAX_LISTED else "")
        message = f"is used in {len(rows)} rows ({named}): give every row its own id"
        yield Problem(None, value.as_py(), "sample_id", "sample_id_duplicate", message)
    if len(repeated) > MAX_LISTED:
        message = f"further ids that more than one row uses: {len(repeated) - MAX_LISTED}"
        yield Problem(None, None, "sample_id", "sample_id_duplicate", message)


def _case_problems(ids: Any) -> Iterator[Problem]:
    """Problems of unique ids that differ only in case: on disks of macOS and Windows they would be one file."""
    lower: Any = pc.ascii_lower(ids)
    if pc.count_distinct(lower).as_py() == len(ids) - ids.null_count:
        return
    counts: Any = pc.value_counts(lower.drop_null())
    repeated: Any = counts.field("values").filter(pc.greater(counts.field("counts"), pa.scalar(1)))
    for value in repeated[:MAX_LISTED]:
        rows: Any = pc.indices_nonzero(pc.equal(lower, value))
        named = ", ".join(f"{ids[row].as_py()} in row {row}" for row in rows[:MAX_LISTED].to_pylist())
        message = f"differ only in case ({named}): they would be one file on many disks. Give every row its own id"
        yield Problem(None, ids[rows[0].as_py()].as_py(), "sample_id", "sample_id_case", message)
    if len(repeated) > MAX_LISTED:
        message = f"further ids that differ only in case: {len(repeated) - MAX_LISTED}"
        yield Problem(None, None, "sample_id", "sample_id_case", message)


def _fit_problems(table: pa.Table, fits: Any) -> Iterator[Problem]:
    """Problems of the rows whose `fit` is not one of the known words."""
    unknown: Any = pc.and_(pc.is_valid(fits), pc.invert(pc.is_in(fits, value_set=pa.array(FITS))))
    rows: Any = pc.indices_nonzero(unknown)
    for row in rows[:MAX_LISTED].to_pylist():
        value = fits[row].as_py()
        hint = did_you_mean(value, FITS)
        message = (
            f"{_shown(value)!r} is not a fit{hint}: use {', '.join(FITS)}, null for the run's, or another name for a "
            "column that means something else"
        )
        yield Problem(row, sample_id_of(table, row), "fit", "fit_unknown", message)
    if len(rows) > MAX_LISTED:
        yield Problem(None, None, "fit", "fit_unknown", f"further rows with an unknown fit: {len(rows) - MAX_LISTED}")


def rows_of(table: pa.Table) -> list[dict[str, Any]]:
    """The rows of a conformed table as Python objects, with lists cut one item above their largest length.

    A row with more is refused, and the cut keeps a row of millions of numbers from filling the memory first.
    """
    for name, max_lengths in _MAX_LENGTHS.items():
        if name not in table.column_names:
            continue
        column = table[name].combine_chunks()
        if _is_longer(column, max_lengths):
            table = table.set_column(table.column_names.index(name), name, _cut(column, max_lengths))
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


def _is_longer(lists: Any, max_lengths: tuple[int, ...]) -> bool:
    length: Any = pc.max(pc.list_value_length(lists))
    if (length.as_py() or 0) > max_lengths[0]:
        return True
    return len(max_lengths) > 1 and _is_longer(lists.flatten(), max_lengths[1:])


def _cut(lists: Any, max_lengths: tuple[int, ...]) -> Any:
    cut: Any = pc.list_slice(lists, 0, max_lengths[0] + 1)
    if len(max_lengths) == 1:
        return cut
    return pa.ListArray.from_arrays(cut.offsets, _cut(cut.values, max_lengths[1:]), mask=cut.is_null())


def parse_row(row: Mapping[str, Any]) -> Sample:
    """A row of a conformed table as a Sample. Raises the first of `row_problems`."""
    for _, error in row_problems(row):
        raise error
    boxes_N4 = np.array(row["boxes"], np.float64).reshape(-1, 4)
    paths, scales, still = list(row["trajectories"]), row.get("scales"), row.get("still")
    scales = None if scales is None else list(scales)
    for n in np.flatnonzero(still if still is not None else []):
        paths[n] = np.tile((boxes_N4[n, :2] + boxes_N4[n, 2:]) / 2, (2, 1))
        if scales is not None:
            scales[n] = (1.0, 1.0)
    return Sample(
        sample_id=row["sample_id"],
        image=row["image"],
        boxes_N4=boxes_N4,
        trajectories=tuple(np.array(path, np.float64) for path in paths),
        scales=None if scales is None else tuple(np.array(scale, np.float64) for scale in scales),
        seed=row.get("seed"),
        still=None if still is None else tuple(still),
        masks=None if row.get("masks") is None else tuple(row["masks"]),
        fit=row.get("fit"),
    )


def row_problems(row: Mapping[str, Any]) -> Iterator[tuple[str, SampleError]]:
    """Every problem of a row that can be found without its image: the column and the error."""
    image, boxes, paths, scales = (row.get(name) for name in ("image", "boxes", "trajectories", "scales"))
    if image is None or not image.strip():
        message = "image is null or blank: give a path or a URL of the first frame"
        yield "image", SampleError(ErrorCode.IMAGE_MISSING, message)
    too_many = [name for name in _MAX_LENGTHS if len(row.get(name) or ()) > MAX_BOXES]
    for name in too_many:
        yield name, _invalid(f"{name} has more than {MAX_BOXES} entries: give the row fewer boxes")
    if too_many:
        return
    if boxes is None:
        message = "boxes is null: give one [x0, y0, x1, y1] per object, or an empty list for plain SVD"
        yield "boxes", TrajectoryError(ErrorCode.BOX_OUTSIDE, message)
    else:
        for n, box in enumerate(boxes):
            if error := box_error(n, box):
                yield "boxes", error
    still = row.get("still")
    if still is not None and (reason := _still_error(still, boxes)):
        yield "still", _invalid(reason)
        still = None
    masks = row.get("masks")
    if masks is not None and boxes is not None and len(masks) != len(boxes):
        message = f"expected one mask or null per box ({len(boxes)}), got {len(masks)}"
        yield "masks", SampleError(ErrorCode.MASK_INVALID, message)
    is_still = still or [False] * MAX_BOXES
    if paths is None:
        yield "trajectories", _invalid("trajectories is null: give one list of [x, y] points per box")
        return
    if boxes is not None and len(paths) != len(boxes):
        yield "trajectories", _invalid(f"expected one trajectory per box ({len(boxes)}), got {len(paths)}")
    for n, path in enumerate(paths):
        if not is_still[n] and (reason := _path_error(path)):
            yield "trajectories", _invalid(f"trajectory {n} {reason}")
    if scales is None:
        return
    if len(scales) != len(paths):
        yield "scales", _invalid(f"expected one list of scales per box ({len(paths)}) or null, got {len(scales)}")
    for n, (scale, path) in enumerate(zip(scales, paths, strict=False)):
        if is_still[n]:
            continue
        if scale is None or (path is not None and len(scale) != len(path)):
            reason = "are null" if scale is None else f"have length {len(scale)}"
            yield "scales", _invalid(f"scales of box {n} {reason}: give one number per point of its trajectory")
        if scale is not None and not _all_numbers(scale, *SCALE_RANGE):
            low, high = SCALE_RANGE
            kind = f"positive finite numbers from {low:g} to {high:g}"
            message = f"scales of box {n} must be {kind}, not {str(scale)[:80]}: 1 keeps the size"
            yield "scales", _invalid(message)


def box_error(n: int, box: Any) -> TrajectoryError | None:
    """The error of box `n` that does not depend on the image; None for a valid box."""
    message = None
    if not isinstance(box, list) or len(box) != 4:
        message = f"box {n} must be four numbers [x0, y0, x1, y1], not {box}"
    elif not _all_numbers(box):
        message = f"box {n} {box} has null, NaN, infinite or astronomic coordinates: give four numbers of pixels"
    elif not (box[0] < box[2] and box[1] < box[3]):
        message = (
            f"box {n} {box} has no area or reversed corners: give [x0, y0, x1, y1] with x0 < x1 and y0 < y1, "
            "not a width and a height"
        )
    return TrajectoryError(ErrorCode.BOX_OUTSIDE, message) if message else None


def _still_error(still: list[Any], boxes: list[Any] | None) -> str | None:
    """What is wrong with the column `still` of a row; None if nothing is."""
    if None in still or (boxes is not None and len(still) != len(boxes)):
        count = "" if boxes is None else f" ({len(boxes)})"
        return f"still must be one true or false per box{count}, or null, not {_shown(still)}"
    if still and all(still):
        return "still tells every box to stay, so nothing would move: set false for at least one, or leave it null"
    return None


def _path_error(path: Any) -> str | None:
    if not isinstance(path, list) or len(path) < 2:
        length = f"{len(path)}" if isinstance(path, list) else "null"
        return f"must be two or more [x, y] points, not {length}: repeat the point for a box that does not move"
    if len(path) > MAX_POINTS:
        return f"has more than {MAX_POINTS:,} points: give fewer, it is resampled to the number of frames anyway"
    for p, point in enumerate(path):
        if not isinstance(point, list) or len(point) != 2:
            return f"must be [x, y] points, but point {p} is {point}"
        if not _all_numbers(point):
            return f"has null, NaN, infinite or astronomic coordinates: point {p} is {point}"
    return None


def _all_numbers(values: list[Any], low: float = -LARGEST_PX, high: float = LARGEST_PX) -> bool:
    """Whether all values are numbers from `low` to `high`. NaN is none."""
    return all(value is not None and low <= value <= high for value in values)


def _invalid(message: str) -> TrajectoryError:
    return TrajectoryError(ErrorCode.TRAJECTORY_INVALID, message)


def row_digest(row: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of the known columns of a conformed row. Another digest means that another sample is asked for."""
    known = {name: row.get(name) for name in MANIFEST_SCHEMA.names}
    # left out if null, so that the rows of manifests without them keep their digests
    known |= {name: row[name] for name in EXTENSION_SCHEMA.names if row.get(name) is not None}
    if (masks := known.get("masks")) is not None:
        known["masks"] = [None if mask is None else hashlib.sha256(mask).hexdigest() for mask in masks]
    return hashlib.sha256(canonical_json(known).encode()).hexdigest()
