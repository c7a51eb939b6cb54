"""The manifest's own columns: plain types that every reader of the tables has, and the type that holds two columns.

A column is a list of chunks here: Arrow arrays of one type. No value is lost on the way. A cast is kept only if the
cast back gives the same values.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sgi2v.errors import ConfigError

PREFIX = "manifest_"
"""What the tables put before the name of an own column that means something else there."""
HUGGING_FACE_NAMES = frozenset({"video", "videos", "label", "__key__", "__url__"})
"""Columns that Hugging Face `datasets` makes itself when it loads the tables."""
TRIAL_ROWS = 100
"""Rows that are written as a trial."""
LARGE_BYTES = 2**30
"""Columns with more text or bytes than this get types with 64-bit offsets. Arrow cannot take rows of the others from
2 GiB on."""

LARGEST_VALUE = 2**31 - 1
"""Bytes of the longest text that Parquet holds."""

Chunks = list[Any]

_FILE_NAME = re.compile(r"(^|_)file_name(s?)\Z")
_INTEGERS = (pa.int8(), pa.int16(), pa.int32(), pa.int64())
_UNSIGNED = (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())
_DIGITS = dict(zip((*_INTEGERS, *_UNSIGNED), (3, 5, 10, 19, 3, 5, 10, 20), strict=True))
"""Decimal digits of the largest value of each type."""
_FLOATS = {pa.float16(): 11, pa.float32(): 24, pa.float64(): 53}
"""Bits of the integers that each type holds exactly."""
_UNITS = ("s", "ms", "us", "ns")
_OUT_OF_RANGE = "<value out of range"
"""What Arrow writes for a date that it cannot format."""


def stored_name(name: str, reserved: Container[str]) -> str:
    """The name of an own column in the tables: with `manifest_` in front if the name has another meaning there.

    reserved: names of the tables' other columns, in lower case. Capitals make no difference, because SQL engines take
    `Status` for `status`. `datasets` takes every `*_file_name` for the path of a media file, so `file_name` at the end
    of a name becomes `filename`.
    """
    plain_name = _FILE_NAME.sub(r"\1filename\2", name)
    original = plain_name
    # a manifest's own `manifest_seed` gets the prefix too, so that the prefixed `seed` is not taken for it
    while original.startswith(PREFIX):
        original = original.removeprefix(PREFIX)
    is_taken = original.lower() in reserved or original.lower() in HUGGING_FACE_NAMES
    return PREFIX + plain_name if is_taken or plain_name != name else name


def is_storable(name: str, reserved: Container[str]) -> bool:
    """Whether an own column can have this name in the tables. `stored_name` gives such names only."""
    return not (name.lower() in reserved or name.lower() in HUGGING_FACE_NAMES or _FILE_NAME.search(name))


def plain(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column in plain, nullable types that Parquet and `datasets` hold.

    Dictionaries are decoded, every kind of list is a list, a map is a list of structs with `key` and `value`, a UUID is
    text, a tensor is nested lists; a struct without fields is null. Fields of structs that `datasets` would take for
    media files are renamed. Raises ConfigError for a type or a value that cannot be held; it does not name the column.
    """
    try:
        is_plain = _plain([pa.nulls(0, column.type)])[0].type == column.type
        if is_plain and column.nbytes <= LARGE_BYTES and _is_valid(column):
            return column
        return pa.chunked_array(_plain(_chunks(column)))
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
        raise ConfigError(f"type {_named(column.type)} cannot be read: {error}") from error


def check_writable(column: pa.ChunkedArray) -> None:
    """Write the first rows as Parquet, in memory. Raises ConfigError as `plain` if that fails."""
    try:
        pq.write_table(pa.table({"column": column.slice(0, TRIAL_ROWS)}), pa.BufferOutputStream())
    except (pa.ArrowException, OSError) as error:
        message = f"type {_named(column.type)} cannot be written to the tables ({error})"
        raise ConfigError(f"{message}: convert it where the manifest is made") from error


def join(old: pa.ChunkedArray, new: pa.ChunkedArray) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Two plain columns in the narrowest type that holds the values of both.

    Numbers become wider numbers, times get the finer unit, lists and structs are joined inside, a column of nulls takes
    the other's type, and what is left becomes text. Raises ConfigError, which names both types, if no type holds both.
    """
    joined = _join(_chunks(old), _chunks(new))
    return pa.chunked_array(joined[0]), pa.chunked_array(joined[1])


def _chunks(column: pa.ChunkedArray) -> Chunks:
    return column.chunks or [pa.nulls(0, column.type)]


# plain types


def _is_valid(values: Any) -> bool:
    """Whether all text is UTF-8, which Parquet does not check."""
    try:
        values.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _plain(chunks: Chunks) -> Chunks:
    kind: Any = chunks[0].type
    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return _plain_extension(chunks)
    if types.is_dictionary(kind):
        return _plain([_decoded(chunk) for chunk in chunks])
    if types.is_run_end_encoded(kind):
        return _plain([pc.run_end_decode(chunk) for chunk in chunks])
    if types.is_map(kind):
        return _plain([_map_as_list(chunk) for chunk in chunks])
    if _is_list(kind):
        return _lists(_lengths(chunks), _plain([_items(chunk) for chunk in chunks]))
    if types.is_struct(kind):
        return _plain_struct(chunks)
    if _is_text(kind) and not all(map(_is_valid, chunks)):
        raise ConfigError("text is not UTF-8: write it as UTF-8")
    for candidate in _plain_types(kind):
        if (cast := _cast(chunks, candidate)) is not None:
            return _sized(cast)
    raise ConfigError(f"type {_named(kind)} cannot be written to the tables: convert it where the manifest is made")


def _plain_types(kind: Any) -> Iterator[Any]:
    """The types for a column without children, best first."""
    types = pa.types
    if _is_text(kind):
        yield pa.large_string()
    elif types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind):
        yield pa.large_binary()
    elif types.is_fixed_size_binary(kind):
        yield kind if kind.byte_width else pa.large_binary()
    elif types.is_decimal(kind):
        yield from _decimal(max(kind.precision - kind.scale, 0), max(kind.scale, 0))
        yield pa.large_string()
    elif types.is_date(kind):
        yield pa.date32()
    elif types.is_time32(kind):
        yield pa.time32("ms")
    elif types.is_timestamp(kind) and (kind.unit == "s" or not _is_known_zone(kind.tz)):
        unit = "ms" if kind.unit == "s" else kind.unit  # Parquet has no seconds
        yield pa.timestamp(unit, kind.tz if _is_known_zone(kind.tz) else "UTC")
        yield pa.large_string()
    elif (types.is_primitive(kind) and not types.is_interval(kind)) or types.is_null(kind):
        yield kind


def _is_known_zone(zone: str | None) -> bool:
    """Whether Python knows the time zone. pandas and `datasets` cannot read a table with another."""
    try:
        pa.scalar(0, pa.timestamp("s", zone)).as_py()
    except (ValueError, KeyError):
        return False
    return True


def _decoded(chunk: Any) -> Any:
    """The values of a dictionary array; text with 64-bit offsets, since a long text may repeat in every row."""
    values = chunk.dictionary
    if pa.types.is_string(values.type):
        values = values.cast(pa.large_string())
    elif pa.types.is_binary(values.type):
        values = values.cast(pa.large_binary())
    return values.take(chunk.indices)


def _map_as_list(chunk: Any) -> Any:
    """A list of structs with `key` and `value`. Arrow's cast aborts the process for some slices of nested maps."""
    entries = pa.StructArray.from_arrays([chunk.keys, chunk.items], names=["key", "value"])
    return pa.ListArray.from_arrays(_rebuilt(chunk.offsets), entries, mask=_rebuilt(chunk.is_null()))


def _rebuilt(values: Any) -> Any:
    """The array without an offset, as `from_arrays` needs it."""
    return pa.array(values.to_numpy(zero_copy_only=False))


def _plain_extension(chunks: Chunks) -> Chunks:
    kind: Any = chunks[0].type
    if isinstance(kind, pa.UuidType):
        return [_texts(chunk).cast(pa.string()) for chunk in chunks]
    storages = [chunk.storage for chunk in chunks]
    if isinstance(kind, pa.Bool8Type):
        return [pc.not_equal(storage, pa.scalar(0, pa.int8())) for storage in storages]
    if isinstance(kind, pa.FixedShapeTensorType):
        return [_tensors_as_lists(storage, kind) for storage in storages]
    return _plain(storages)


def _tensors_as_lists(storage: Any, kind: Any) -> Any:
    """Nested lists of the tensors' shape. The storage has the elements of each in the order before its permutation."""
    shape, permutation = tuple(kind.shape), kind.permutation or range(len(kind.shape))
    size = int(np.prod(shape))
    order = np.arange(size).reshape(shape).transpose(permutation)
    (values,) = _plain([_items(storage)])
    count = len(storage) - storage.null_count
    values = values.take(pa.array((np.arange(count)[:, None] * size + order.reshape(1, -1)).ravel()))
    for length in reversed(order.shape[1:]):
        (values,) = _lists([pa.array(np.full(len(values) // length if length else 0, length, np.int32))], [values])
    lengths = pc.if_else(storage.is_valid(), pa.scalar(order.shape[0], pa.int32()), pa.scalar(None, pa.int32()))
    (lists,) = _lists([lengths], [values])
    return lists


def _plain_struct(chunks: Chunks) -> Chunks:
    kind: Any = chunks[0].type
    if kind.num_fields == 0:
        return [pa.nulls(len(chunk)) for chunk in chunks]
    names = [stored_name(field.name, ()) if _FILE_NAME.search(field.name) else field.name for field in kind]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"a struct has more than one field called {repeated[0]!r}: keep one")
    parts = [chunk.flatten() for chunk in chunks]  # a field is null where its struct is
    children = [_plain([part[number] for part in parts]) for number in range(kind.num_fields)]
    return _structs([chunk.is_null() for chunk in chunks], dict(zip(names, children, strict=True)))


# one type for two columns


def _join(old: Chunks, new: Chunks) -> tuple[Chunks, Chunks]:
    old_type, new_type = old[0].type, new[0].type
    if old_type == new_type and sum(chunk.nbytes for chunk in (*old, *new)) <= LARGE_BYTES:
        return old, new
    if old_type != new_type:
        if _is_null(old):
            return [pa.nulls(len(chunk), new_type) for chunk in old], new
        if _is_null(new):
            return old, [pa.nulls(len(chunk), old_type) for chunk in new]
    if _is_list(old_type) and _is_list(new_type):
        old_items, new_items = _join([_items(chunk) for chunk in old], [_items(chunk) for chunk in new])
        return _halves(_lists(_lengths([*old, *new]), [*old_items, *new_items]), len(old))
    if pa.types.is_struct(old_type) and pa.types.is_struct(new_type):
        return _join_structs(old, new)
    if old_type == new_type:
        return _halves(_sized([*old, *new]), len(old))
    for candidate in _joined_types(old_type, new_type):
        old_cast, new_cast = _cast(old, candidate), _cast(new, candidate)
        if old_cast is not None and new_cast is not None:
            return _halves(_sized([*old_cast, *new_cast]), len(old))
    raise ConfigError(f"no type holds both {_named(old_type)} and {_named(new_type)}")


def _join_structs(old: Chunks, new: Chunks) -> tuple[Chunks, Chunks]:
    """The fields of both, those of `old` first. A field that one of them lacks is null there."""
    old_fields = _fields(old)
    new_fields = _fields(new)
    joined = {}
    for name in dict.fromkeys([*old_fields, *new_fields]):
        old_child = old_fields.get(name) or [pa.nulls(len(chunk)) for chunk in old]
        new_child = new_fields.get(name) or [pa.nulls(len(chunk)) for chunk in new]
        old_child, new_child = _join(old_child, new_child)
        joined[name] = [*old_child, *new_child]
    return _halves(_structs([chunk.is_null() for chunk in (*old, *new)], joined), len(old))


def _fields(structs: Chunks) -> dict[str, Chunks]:
    parts = [chunk.flatten() for chunk in structs]
    return {field.name: [part[number] for part in parts] for number, field in enumerate(structs[0].type)}


def _joined_types(old: Any, new: Any) -> Iterator[Any]:
    """The types to try for columns of two other types without children, best first. Text is the last."""
    types = pa.types
    kinds = (old, new)
    if _is_nested(old) or _is_nested(new):
        return
    if any(map(_is_binary, kinds)):
        if all(map(_is_binary, kinds)):
            yield pa.large_binary()
        return
    if all(map(types.is_integer, kinds)):
        same_sign = _INTEGERS if any(kind in _INTEGERS for kind in kinds) else _UNSIGNED
        yield from (kind for kind in same_sign if kind.bit_width >= max(old.bit_width, new.bit_width))
        yield pa.decimal128(20, 0)
    elif all(types.is_integer(kind) or types.is_decimal(kind) for kind in kinds):
        digits = max(_DIGITS[kind] if kind in _DIGITS else kind.precision - kind.scale for kind in kinds)
        yield from _decimal(digits, max(0 if kind in _DIGITS else kind.scale for kind in kinds))
    elif all(types.is_integer(kind) or types.is_floating(kind) for kind in kinds):
        bits = max(_FLOATS.get(kind, kind.bit_width) for kind in kinds)
        yield from (kind for kind, held in _FLOATS.items() if held >= min(bits, 53))
    elif all(map(types.is_timestamp, kinds)) and (old.tz is None) == (new.tz is None):
        time_zone = old.tz if old.tz == new.tz else "UTC"
        yield from (pa.timestamp(unit, time_zone) for unit in _finest_first(old, new))
    elif all(map(types.is_time, kinds)):
        yield from (pa.time32(unit) if unit == "ms" else pa.time64(unit) for unit in _finest_first(old, new))
    elif all(map(types.is_duration, kinds)):
        yield from (pa.duration(unit) for unit in _finest_first(old, new))
    yield pa.large_string()


def _finest_first(old: Any, new: Any) -> Iterator[str]:
    """The units between those of the two types: the finest may not reach as far as the other's values."""
    units = sorted(map(_UNITS.index, (old.unit, new.unit)))
    return (_UNITS[number] for number in range(units[1], units[0] - 1, -1))


def _decimal(digits: int, scale: int) -> Iterator[Any]:
    """The decimal type with so many digits before and behind the point, if there is one."""
    precision = max(digits + scale, 1)
    if precision <= 38:
        yield pa.decimal128(precision, scale)
    elif precision <= 76:
        yield pa.decimal256(precision, scale)


# casts


def _cast(chunks: Chunks, to_type: Any) -> Chunks | None:
    """The chunks in another type without children; None if a value would change."""
    kind = chunks[0].type
    if kind == to_type:
        return chunks
    if pa.types.is_large_string(to_type) and not _is_text(kind):
        return [_texts(chunk) for chunk in chunks]
    cast = []
    for chunk in chunks:
        try:
            cast.append(chunk.cast(to_type))
            back = cast[-1].cast(kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            return None
        if not _bits(back).equals(_bits(chunk)):
            return None
    return cast


def _bits(values: Any) -> Any:
    """Floats as integers, so that NaN equals NaN and -0.0 does not equal 0.0."""
    width: int = values.type.bit_width if pa.types.is_floating(values.type) else 0
    return values.view({16: pa.int16(), 32: pa.int32(), 64: pa.int64()}[width]) if width else values


def _texts(values: Any) -> Any:
    """The values as text: as Python writes them, but booleans as `true` and `false`."""
    kind = values.type
    if pa.types.is_boolean(kind):
        return values.cast(pa.large_string())
    if pa.types.is_temporal(kind) and getattr(kind, "unit", None) == "ns":
        return _nanoseconds_as_text(values)
    try:
        return pa.array([None if value is None else str(value) for value in values.to_pylist()], pa.large_string())
    except (OverflowError, ValueError, KeyError) as error:  # KeyError: an unknown time zone
        raise ConfigError(f"a value of type {kind} is out of range ({error}): write the column as text") from error


def _nanoseconds_as_text(values: Any) -> Any:
    """Python's own times end at microseconds, so times with more digits are written by Arrow."""
    kind = values.type
    if pa.types.is_duration(kind):
        microseconds: Any = pa.duration("us")
    else:
        microseconds = pa.timestamp("us", kind.tz) if pa.types.is_timestamp(kind) else pa.time64("us")
    if (cast := _cast([values], microseconds)) is not None:
        return _texts(cast[0])
    if pa.types.is_duration(kind):
        return pc.binary_join_element_wise(values.cast(pa.int64()).cast(pa.large_string()), "ns", " ")
    texts = values.cast(pa.large_string())
    if pc.any(pc.match_substring(texts, _OUT_OF_RANGE)).as_py():
        raise ConfigError(f"a value of type {kind} is out of range: write the column as text")
    return texts


# shapes


def _is_list(kind: Any) -> bool:
    types = pa.types
    lists = (types.is_list, types.is_large_list, types.is_fixed_size_list, types.is_list_view, types.is_large_list_view)
    return any(is_kind(kind) for is_kind in lists)


def _is_nested(kind: Any) -> bool:
    return _is_list(kind) or bool(pa.types.is_struct(kind))


def _is_text(kind: Any) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _is_binary(kind: Any) -> bool:
    types = pa.types
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind))


def _is_null(chunks: Chunks) -> bool:
    return all(chunk.null_count == len(chunk) for chunk in chunks)


def _named(kind: Any) -> str:
    """The type in a message, cut where a struct has hundreds of fields."""
    text = str(kind)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _halves(chunks: Chunks, first: int) -> tuple[Chunks, Chunks]:
    return chunks[:first], chunks[first:]


def _sized(chunks: Chunks) -> Chunks:
    """Text and bytes with 32-bit offsets, or with 64-bit ones if the column is large."""
    kind = chunks[0].type
    is_large = sum(chunk.nbytes for chunk in chunks) > LARGE_BYTES
    if _is_text(kind):
        to_type = pa.large_string() if is_large else pa.string()
    elif pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        to_type = pa.large_binary() if is_large else pa.binary()
    else:
        return chunks
    if is_large and any((pc.max(pc.binary_length(chunk)).as_py() or 0) > LARGEST_VALUE for chunk in chunks):
        raise ConfigError("a value has 2 GiB or more, which Parquet cannot hold: keep it in a file, and name that")
    return [chunk.cast(to_type) for chunk in chunks]


def _lengths(lists: Chunks) -> Chunks:
    return [pc.list_value_length(chunk) for chunk in lists]


def _items(lists: Any) -> Any:
    """The items of all lists, one after the other, without those below a null. Arrow's `flatten` lacks some types."""
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False).astype(np.int64)
    if pa.types.is_fixed_size_list(lists.type):
        starts = (np.arange(len(lists)) + lists.offset) * lists.type.list_size
    else:
        starts = lists.offsets.to_numpy()[: len(lists)].astype(np.int64)
    starts, lengths = starts[lengths > 0], lengths[lengths > 0]
    if not len(starts):
        return lists.values.slice(0, 0)
    ends = starts + lengths
    if np.array_equal(ends[:-1], starts[1:]):
        return lists.values.slice(starts[0], ends[-1] - starts[0])
    before = np.cumsum(lengths) - lengths
    return lists.values.take(pa.array(np.repeat(starts - before, lengths) + np.arange(lengths.sum())))


def _lists(lengths: Chunks, values: Chunks) -> Chunks:
    """Lists of these lengths (null for a null list) with all their values in order."""
    kind = pa.ListArray if sum(map(len, values)) <= LARGE_BYTES else pa.LargeListArray
    offset_type = pa.int32() if kind is pa.ListArray else pa.int64()
    lists = []
    for of_chunk, items in zip(lengths, values, strict=True):
        ends = np.cumsum(pc.fill_null(of_chunk, 0).to_numpy(zero_copy_only=False), dtype=np.int64)
        offsets = pa.array(np.concatenate([[0], ends])).cast(offset_type)
        lists.append(kind.from_arrays(offsets, items, mask=of_chunk.is_null()))
    return lists


def _structs(masks: Chunks, children: dict[str, Chunks]) -> Chunks:
    """Structs of these fields. masks: where a struct is null."""
    fields = [pa.field(name, chunks[0].type) for name, chunks in children.items()]
    return [
        pa.StructArray.from_arrays([chunks[number] for chunks in children.values()], fields=fields, mask=mask)
        for number, mask in enumerate(masks)
    ]
