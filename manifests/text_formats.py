"""Manifests as text: CSV and JSONL.

In CSV, list columns are JSON text and an empty cell is null. CSV has no types: an unknown column is read as integers,
floats or booleans where that keeps every character of its text, and as text otherwise.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.csv

from manifests.schema import KNOWN, MAX_LISTED, REQUIRED
from sgi2v.errors import ManifestError, Problem

_CSV_BLOCK_BYTES = 64 * 2**20
"""Longest row that Arrow reads."""
_SPREADSHEET_LETTERS = 32767
"""Longest text of a cell in Excel and other spreadsheets."""
_SURROGATE = re.compile("[\ud800-\udfff]")
_WIDE_INTEGERS = (pa.uint64(), pa.decimal128(38, 0), pa.decimal256(76, 0))
"""Types for whole numbers that int64 cannot hold."""
_EXACT_TEXTS: dict[pa.DataType, Callable[[str], tuple[str, ...]]] = {
    pa.bool_(): lambda text: ("true", "false"),
    pa.int64(): lambda text: (str(int(text)),),
    pa.float64(): lambda text: (repr(float(text)), repr(float(text)).removesuffix(".0")),
}
"""For each type, the exact ways to write the value of a text. ValueError if the text is no such value."""


def parse_jsonl(text: str, uri: str) -> pa.Table:
    """The table of JSON objects, one per line. Raises ManifestError (row_unreadable, column_type) for bad lines."""
    rows: list[Mapping[str, Any]] = []
    problems = []
    for number, line in enumerate(io.StringIO(text), start=1):
        if not line.strip():
            continue
        message = None
        try:
            value = json.loads(line, object_pairs_hook=_object)
            if isinstance(value, dict):
                rows.append(value)
            else:
                message = f"line {number} is not a JSON object: write one object with the columns per line"
        except ValueError as error:
            message = f"line {number} is not JSON ({error}): write one JSON object per line"
        except RecursionError:
            message = f"line {number} is nested too deeply: write lists as [[1, 2], [3, 4]]"
        if message:
            problems.append(Problem(None, None, None, "row_unreadable", message))
    if problems:
        _fail_on_rows(uri, problems)
    names = dict.fromkeys(name for row in rows for name in row)
    columns = {name: [row.get(name) for row in rows] for name in names}
    try:
        return _table(columns, uri)
    except UnicodeEncodeError:
        ids = columns.get("sample_id", [None] * len(rows))
        _fail_on_rows(uri, [problem for name in columns for problem in _text_problems(name, columns[name], ids)])


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object. Raises ValueError for a name that it has twice, since Python would drop the first value."""
    value = dict(pairs)
    if len(value) < len(pairs):
        names = [name for name, _ in pairs]
        repeated = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"an object has {json.dumps(repeated)} more than once: keep one")
    return value


def _text_problems(name: str, values: list[Any], ids: list[Any]) -> Iterator[Problem]:
    """The values that hold half of a surrogate pair, which is no Unicode text, or the name of the column if it does."""
    message = (
        "has half a character (\\u{:04x}, one of a surrogate pair), because it was cut in the middle: "
        "write the whole character, or remove the half"
    )
    if lone := _lone_surrogate(name):
        yield Problem(None, None, ascii(name)[1:-1], "text_invalid", f"the name {message.format(ord(lone))}")
        return
    for row, value in enumerate(values):
        if lone := _lone_surrogate(value):
            sample_id = ids[row][:160] if isinstance(ids[row], str) and not _lone_surrogate(ids[row]) else None
            yield Problem(row, sample_id, name, "text_invalid", f"the text {message.format(ord(lone))}")


def _lone_surrogate(value: Any) -> str | None:
    """The first half of a surrogate pair in a JSON value."""
    if isinstance(value, str):
        match = _SURROGATE.search(value)
        return match and match[0]
    parts = [*value, *value.values()] if isinstance(value, dict) else value if isinstance(value, list) else ()
    return next((half for part in parts if (half := _lone_surrogate(part))), None)


def parse_csv(text: str, uri: str) -> pa.Table:
    """The table of comma-separated rows below a header.

    Raises ManifestError (manifest_unreadable, row_unreadable, column_type).
    """
    try:
        names = _header(text)
        raw = pyarrow.csv.read_csv(
            io.BytesIO(text.encode()),
            # with one thread, Arrow's messages name the row
            pyarrow.csv.ReadOptions(use_threads=False, block_size=_CSV_BLOCK_BYTES),
            pyarrow.csv.ParseOptions(newlines_in_values=True),
            pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
    except (pa.ArrowInvalid, pa.ArrowKeyError, csv.Error) as error:
        message = f"the CSV cannot be parsed: {error}{_separator_advice(text)}"
        raise ManifestError(uri, [Problem(None, None, None, "manifest_unreadable", message)]) from error
    lists = {name for name, kind in KNOWN.items() if pa.types.is_list(kind)}
    problems: list[Problem] = []
    columns: list[Any] = []
    for name, column in zip(raw.column_names, raw.columns, strict=True):
        if name in lists:
            values = _parse_cells(name, column, problems)
            columns.append(_array(name, values, uri))
        elif name == "seed":
            columns.append(column.cast(pa.int64()) if column.null_count == len(column) else _infer(column))
        else:
            columns.append(column if name in KNOWN else _infer(column))
    if problems:
        _fail_on_rows(uri, problems)
    return pa.table(columns, names=raw.column_names)


def _header(text: str) -> list[str]:
    """The names of the columns. Raises csv.Error for a quote that is not doubled, of which Arrow drops some letters."""
    names: list[str] = []
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    usual = csv.field_size_limit(len(text) + 1)
    try:
        for cells in rows:
            names = names or cells
    except csv.Error as error:
        message = f"line {rows.line_num}: {error}; inside a quoted cell, write each quote twice"
        raise csv.Error(message) from error
    finally:
        csv.field_size_limit(usual)
    return names


def _separator_advice(text: str) -> str:
    """What to do about a table that a spreadsheet has separated by something else than commas alone."""
    header, _, _ = text.lstrip().partition("\n")
    if header.lower().startswith("sep="):
        return ". Remove the first line (`sep=`)"
    for separator, name in {";": "semicolons", "\t": "tabs"}.items():
        if set(REQUIRED) <= {cell.strip().strip('"') for cell in header.split(separator)}:
            return f". Its columns are separated by {name}: save it with commas"
    return ". Write no space between a comma and a quote" if ', "' in text else ""


def _parse_cells(name: str, column: Any, problems: list[Problem]) -> list[Any]:
    """The JSON values of a CSV column. A cell that is not JSON becomes null, and is added to `problems`."""
    values: list[Any] = []
    for row, cell in enumerate(column.to_pylist()):
        try:
            values.append(json.loads(cell) if cell else None)
        except ValueError as error:
            values.append(None)
            advice = "write lists as [[1, 2], [3, 4]]"
            if len(cell) == _SPREADSHEET_LETTERS:
                advice = f"spreadsheets cut cells after {_SPREADSHEET_LETTERS} letters, as here: use JSONL or Parquet"
            message = f"{cell[:80]!r} is not JSON ({error}): {advice}"
            problems.append(Problem(row, None, name, "row_unreadable", message))
        except RecursionError:
            values.append(None)
            message = f"{cell[:80]!r} is nested too deeply: write lists as [[1, 2], [3, 4]]"
            problems.append(Problem(row, None, name, "row_unreadable", message))
    return values


def _infer(column: Any) -> Any:
    """The column as booleans, integers or floats where every text is exactly how such a value is written."""
    texts = column.drop_null().to_pylist()
    for kind, exact_texts in _EXACT_TEXTS.items():
        try:
            if texts and all(text in exact_texts(text) for text in texts):
                return column.cast(kind)
        except (ValueError, pa.ArrowInvalid):
            continue
    return column


def _table(columns: Mapping[str, list[Any]], uri: str) -> pa.Table:
    arrays = [_array(name, values, uri) for name, values in columns.items()]
    return pa.table(arrays, names=list(columns))


def _array(name: str, values: list[Any], uri: str) -> Any:
    """The values of a column in the schema's type if they fit it, else in the type that Arrow infers."""
    schema_types = [KNOWN[name]] if name in KNOWN else []
    all_integers = all(value is None or type(value) is int for value in values)
    # Arrow makes 7.5 in a column of integers a 7; `conform` casts what is inferred, and checks it
    first_types = [kind for kind in schema_types if not pa.types.is_integer(kind)]
    for kind in [*first_types, None, *(_WIDE_INTEGERS if all_integers and not schema_types else [])]:
        try:
            array = pa.array(values, kind)
            if all(_fits(value, array.type) for value in values):
                return array
        except UnicodeEncodeError:
            raise
        except (ValueError, TypeError, OverflowError):
            continue
    if schema_types:
        rows = "; ".join(f"row {row} has {str(values[row])[:80]}" for row in _misfits(values, schema_types[0]))
        message = f"not all values are {schema_types[0]}: {rows}"
    else:
        message = f"{_difference(values)}: give the column one type, or write its values as text"
    raise ManifestError(uri, [Problem(None, None, name, "column_type", message)])


def _difference(values: list[Any]) -> str:
    """Why no type holds the values of an unknown column."""
    first, *others = [(row, value) for row, value in enumerate(values) if value is not None]
    other = next((pair for pair in others if type(pair[1]) is not type(first[1])), None)
    if other is None:
        return "its lists, objects or numbers are not all of one type"
    (row, value), (other_row, other_value) = first, other
    shown = f"row {row} has {json.dumps(value)[:80]} and row {other_row} has {json.dumps(other_value)[:80]}"
    return f"values have more than one type ({shown})"


def _fits(value: Any, kind: pa.DataType) -> bool:
    """Whether the value has no boolean where numbers belong: Arrow makes `true` beside 2.5 a 1.0."""
    if isinstance(value, list) and pa.types.is_list(kind):
        return all(_fits(part, kind.value_type) for part in value)
    if isinstance(value, dict) and pa.types.is_struct(kind):
        return all(_fits(part, kind.field(name).type) for name, part in value.items())
    return not (isinstance(value, bool) and pa.types.is_floating(kind))


def _misfits(values: list[Any], kind: pa.DataType) -> list[int]:
    """The first rows, at most MAX_LISTED, whose values do not fit the type."""
    rows: list[int] = []
    for row, value in enumerate(values):
        try:
            pa.array([value], kind)
            fits = _fits(value, kind)
        except (ValueError, TypeError, OverflowError):
            fits = False
        if not fits:
            rows.append(row)
        if len(rows) == MAX_LISTED:
            break
    return rows


def format_jsonl(table: pa.Table) -> bytes:
    """One JSON object per line. Raises TypeError for a value that JSON has no type for."""
    rows = (json.dumps(row, ensure_ascii=False, default=_as_text) for row in table.to_pylist())
    return "".join(f"{row}\n" for row in rows).encode()


def format_csv(table: pa.Table) -> bytes:
    """A header and one line per row. Raises TypeError or an Arrow error for a value that CSV cannot hold."""
    sink = io.BytesIO()
    pyarrow.csv.write_csv(_as_csv(table), sink)
    return sink.getvalue()


def _as_csv(table: pa.Table) -> pa.Table:
    """The table as Arrow can write it: nested columns as JSON text, dictionaries decoded."""
    columns: list[Any] = []
    for column in table.columns:
        if pa.types.is_nested(column.type):
            texts = [None if value is None else json.dumps(value, default=_as_text) for value in column.to_pylist()]
            columns.append(pa.array(texts, pa.string()))
        elif pa.types.is_floating(column.type):
            # Arrow writes 1.0 as 1, which would be read as an integer
            texts = [None if value is None else repr(value) for value in column.to_pylist()]
            columns.append(pa.array(texts, pa.string()))
        else:
            columns.append(column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column)
    return pa.table(columns, names=table.column_names)


def _as_text(value: Any) -> str:
    """Text for dates, times and decimals, which JSON has no type for. Raises TypeError for bytes."""
    if isinstance(value, bytes):
        raise TypeError("JSON cannot hold bytes")
    return str(value)


def _fail_on_rows(uri: str, problems: list[Problem]) -> NoReturn:
    further = len(problems) - MAX_LISTED
    if further > 0:
        message = f"further rows that cannot be read: {further}"
        problems = [*problems[:MAX_LISTED], Problem(None, None, None, "row_unreadable", message)]
    raise ManifestError(uri, problems)
