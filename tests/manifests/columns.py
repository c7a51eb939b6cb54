"""Columns of random Arrow types for property tests, and what it means that a value was kept."""

from __future__ import annotations

import datetime
import decimal
import math
import uuid
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from hypothesis import strategies as st

from manifests.own_columns import stored_name

ROWS = 3
"""Values of a random column."""

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=4)
_BYTES = st.binary(max_size=3)
_DAY = st.dates()
_MOMENT = st.datetimes(datetime.datetime(1800, 1, 1), datetime.datetime(2200, 1, 1))
_INTEGERS = (pa.int8(), pa.int16(), pa.int32(), pa.int64(), pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())
_STEP = {"s": 1_000_000, "ms": 1000, "us": 1, "ns": 1}
"""Microseconds of the smallest step that each unit is drawn with."""


def _integers(kind: pa.DataType) -> st.SearchStrategy[int]:
    bits = kind.bit_width
    low, high = (0, 2**bits - 1) if str(kind).startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
    return st.integers(max(low, -9), 9) | st.integers(low, high) | st.sampled_from([low, high])


def _decimals(precision: int, scale: int) -> st.SearchStrategy[decimal.Decimal]:
    with decimal.localcontext(prec=80):
        return st.integers(-(10**precision) + 1, 10**precision - 1).map(
            lambda number: decimal.Decimal(number).scaleb(-scale, decimal.Context(prec=80))
        )


def _moments(unit: str) -> st.SearchStrategy[datetime.datetime]:
    return _MOMENT.map(lambda at: at.replace(microsecond=at.microsecond - at.microsecond % _STEP[unit]))


def _durations(unit: str) -> st.SearchStrategy[datetime.timedelta]:
    return st.integers(-(10**6), 10**6).map(lambda count: datetime.timedelta(microseconds=count * _STEP[unit]))


def _times(unit: str) -> st.SearchStrategy[datetime.time]:
    return st.times().map(lambda at: at.replace(microsecond=at.microsecond - at.microsecond % _STEP[unit]))


def _leaves() -> st.SearchStrategy[tuple[pa.DataType, st.SearchStrategy[Any]]]:
    zones = st.sampled_from([None, None, "UTC", "Europe/Berlin", "+02:00"])
    units = st.sampled_from(list(_STEP))

    def moment(unit: str, zone: str | None) -> tuple[pa.DataType, st.SearchStrategy[Any]]:
        values = _moments(unit)
        return pa.timestamp(unit, zone), values if zone is None else values.map(
            lambda at: at.replace(tzinfo=datetime.UTC)
        )

    def number(precision: int, scale: int) -> tuple[pa.DataType, st.SearchStrategy[Any]]:
        make = pa.decimal128 if precision <= 38 else pa.decimal256
        return make(precision, min(scale, precision)), _decimals(precision, min(scale, precision))

    return st.one_of(
        st.just((pa.null(), st.none())),
        st.just((pa.bool_(), st.booleans())),
        st.sampled_from(_INTEGERS).map(lambda kind: (kind, _integers(kind))),
        st.sampled_from([(pa.float16(), 16), (pa.float32(), 32), (pa.float64(), 64)]).map(
            lambda pair: (pair[0], st.floats(width=pair[1]) | st.sampled_from([-0.0, 1.0, math.nan, math.inf]))
        ),
        st.builds(number, st.integers(1, 76), st.integers(0, 20)),
        st.sampled_from([pa.decimal32(5, 2), pa.decimal64(12, 3)]).map(
            lambda kind: (kind, _decimals(kind.precision, kind.scale))
        ),
        st.sampled_from([pa.string(), pa.large_string(), pa.string_view()]).map(lambda kind: (kind, _TEXT)),
        st.sampled_from([pa.binary(), pa.large_binary(), pa.binary_view()]).map(lambda kind: (kind, _BYTES)),
        st.sampled_from([1, 4]).map(lambda width: (pa.binary(width), st.binary(min_size=width, max_size=width))),
        st.sampled_from([pa.date32(), pa.date64()]).map(lambda kind: (kind, _DAY)),
        st.builds(moment, units, zones),
        units.map(lambda unit: (pa.duration(unit), _durations(unit))),
        st.sampled_from(["s", "ms"]).map(lambda unit: (pa.time32(unit), _times(unit))),
        st.just((pa.time64("us"), _times("us"))),
        st.just((pa.uuid(), st.uuids().map(lambda value: value.bytes))),
        st.just((pa.dictionary(pa.int8(), pa.string()), _TEXT)),
        st.just((pa.json_(), st.sampled_from(["{}", "[1]"]))),
        st.just((pa.fixed_shape_tensor(pa.int8(), [4]), st.lists(st.integers(-9, 9), min_size=4, max_size=4))),
    )


def _nested(
    inner: st.SearchStrategy[tuple[pa.DataType, st.SearchStrategy[Any]]],
) -> st.SearchStrategy[tuple[pa.DataType, st.SearchStrategy[Any]]]:
    def of_lists(pair: tuple[pa.DataType, st.SearchStrategy[Any]], make: Any) -> tuple[pa.DataType, Any]:
        length = 2 if make is _pairs else 0
        return make(pair[0]), st.lists(st.none() | pair[1], min_size=length, max_size=length or 3)

    def of_structs(pairs: dict[str, tuple[pa.DataType, st.SearchStrategy[Any]]]) -> tuple[pa.DataType, Any]:
        return pa.struct([(name, pair[0]) for name, pair in pairs.items()]), st.fixed_dictionaries(
            {name: st.none() | pair[1] for name, pair in pairs.items()}
        )

    def of_maps(pair: tuple[pa.DataType, st.SearchStrategy[Any]]) -> tuple[pa.DataType, Any]:
        return pa.map_(pa.string(), pair[0]), st.lists(st.tuples(_TEXT, st.none() | pair[1]), max_size=2)

    makes = st.sampled_from([pa.list_, pa.large_list, pa.list_view, pa.large_list_view, _pairs])
    names = st.sampled_from(["a", "b", "c", "file_name", "video"])
    return st.one_of(
        st.builds(of_lists, inner, makes), st.dictionaries(names, inner, max_size=3).map(of_structs), inner.map(of_maps)
    )


def _pairs(kind: pa.DataType) -> pa.DataType:
    return pa.list_(kind, 2)


_LISTS = {
    pa.list_(pa.null()).id: pa.ListArray,
    pa.large_list(pa.null()).id: pa.LargeListArray,
    pa.list_view(pa.null()).id: pa.ListViewArray,
    pa.large_list_view(pa.null()).id: pa.LargeListViewArray,
}

KINDS = st.recursive(_leaves(), _nested, max_leaves=4)
"""A random Arrow type, and a strategy of its values."""


@st.composite
def columns(draw: st.DrawFn) -> pa.ChunkedArray:
    """A column of ROWS values of a random type, in one or two chunks."""
    kind, values = draw(KINDS)
    rows = draw(st.lists(st.none() | values, min_size=ROWS, max_size=ROWS))
    column = array(rows, kind)
    if draw(st.booleans()):
        return pa.chunked_array([column.slice(0, 1), column.slice(1)])
    return pa.chunked_array([column])


def array(values: list[Any], kind: Any) -> Any:
    """The values as an array of the type; `pa.array` does not make every type."""
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, array(values, kind.storage_type))
    if pa.types.is_map(kind):
        items = [item for value in values if value is not None for item in value]
        keys, entries = (
            array([key for key, _ in items], kind.key_type),
            array([entry for _, entry in items], kind.item_type),
        )
        return pa.MapArray.from_arrays(_offsets(values), keys, entries, mask=_mask(values))
    if pa.types.is_struct(kind) and kind.num_fields:
        children = [
            array([None if value is None else value[field.name] for value in values], field.type) for field in kind
        ]
        return pa.StructArray.from_arrays(children, fields=list(kind), mask=_mask(values))
    if pa.types.is_fixed_size_list(kind):
        items = array([item for value in values for item in (value or [None] * kind.list_size)], kind.value_type)
        return pa.FixedSizeListArray.from_arrays(items, kind.list_size, mask=_mask(values))
    if make := _LISTS.get(kind.id):
        items = array([item for value in values for item in value or []], kind.value_type)
        offsets = _offsets(values, make in (pa.LargeListArray, pa.LargeListViewArray))
        if make in (pa.ListArray, pa.LargeListArray):
            return make.from_arrays(offsets, items, mask=_mask(values))
        return make.from_arrays(offsets[:-1], pc.subtract(offsets[1:], offsets[:-1]), items, mask=_mask(values))
    return pa.array(values, kind)


def _offsets(values: list[Any], is_large: bool = False) -> Any:
    ends = [0]
    for value in values:
        ends.append(ends[-1] + len(value or []))
    return pa.array(ends, pa.int64() if is_large else pa.int32())


def _mask(values: list[Any]) -> Any:
    return pa.array([value is None for value in values], pa.bool_())


def is_kept(before: Any, after: Any) -> bool:
    """Whether `after`, from a table, is the value `before` of a manifest: equal, in a wider shape, or its text."""
    if before is None or before == {}:
        return after is None or (isinstance(after, dict) and before == {} and all(map(_is_empty, after.values())))
    if hasattr(before, "to_pytimedelta"):  # of pandas, for nanoseconds
        before = before.to_pytimedelta()
    if isinstance(before, uuid.UUID):
        return bool(after == str(before))
    if isinstance(before, dict):
        return isinstance(after, dict) and all(
            is_kept(value, after[stored_name(name, ()) if name == "file_name" else name])
            for name, value in before.items()
        )
    if isinstance(before, list):
        return isinstance(after, list) and len(before) == len(after) and all(map(is_kept, before, after))
    if isinstance(before, tuple):  # of a map
        return is_kept(dict(zip(("key", "value"), before, strict=True)), after)
    if isinstance(after, str) and not isinstance(before, str):
        return after == (str(before).lower() if isinstance(before, bool) else str(before))
    if isinstance(before, float) and isinstance(after, float):
        return (math.isnan(before) and math.isnan(after)) or (
            before == after and math.copysign(1, before) == math.copysign(1, after)
        )
    if isinstance(before, bool) != isinstance(after, bool):
        return False
    return bool(before == after)


def _is_empty(value: Any) -> bool:
    return value is None
