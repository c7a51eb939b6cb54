"""Own columns: plain types, one type for two manifests, and no value that is lost on the way."""

from __future__ import annotations

import datetime
import decimal
import itertools
import uuid
from typing import Any

import hypothesis
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, settings

import manifests.own_columns
from manifests.own_columns import check_writable, is_storable, join, plain, stored_name
from sgi2v.errors import ConfigError
from tests.manifests.columns import array, columns, is_kept

DAY = datetime.datetime(2024, 2, 29, 12, 30)


def column(values: list[Any], kind: pa.DataType | None = None) -> pa.ChunkedArray:
    return pa.chunked_array([pa.array(values, kind)])


def joined(old: pa.ChunkedArray, new: pa.ChunkedArray) -> pa.ChunkedArray:
    """The values of both, in this order, as a table has them after it is written and read."""
    first, second = join(plain(old), plain(new))
    assert first.type == second.type
    sink = pa.BufferOutputStream()
    both = pa.chunked_array([*first.chunks, *second.chunks])
    check_writable(both)
    pq.write_table(pa.table({"x": both}), sink)
    back = pq.ParquetFile(pa.BufferReader(sink.getvalue())).read(use_threads=False)["x"]
    assert back.type == both.type
    return back


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@hypothesis.given(columns(), columns())
def test_every_value_of_two_manifests_is_kept_or_the_columns_are_refused(
    old: pa.ChunkedArray, new: pa.ChunkedArray
) -> None:
    try:
        kept = joined(old, new).to_pylist()
    except ConfigError:
        return
    for before, after in zip([*old.to_pylist(), *new.to_pylist()], kept, strict=True):
        assert is_kept(before, after), (before, after, old.type, new.type)


NUMBERS = [
    pa.int8(),
    pa.uint8(),
    pa.int32(),
    pa.uint32(),
    pa.int64(),
    pa.uint64(),
    pa.float16(),
    pa.float32(),
    pa.float64(),
]


@pytest.mark.parametrize(("old", "new"), list(itertools.combinations(NUMBERS, 2)), ids=str)
def test_small_numbers_stay_numbers(old: pa.DataType, new: pa.DataType) -> None:
    kept = joined(column([1, None], old), column([2, 3], new))
    assert kept.to_pylist() == [1, None, 2, 3]
    assert not pa.types.is_string(kept.type)
    assert kept.type == joined(column([1], new), column([2], old)).type


JOINED: dict[str, tuple[pa.ChunkedArray, pa.ChunkedArray, pa.DataType, list[Any]]] = {
    "float, then int": (column([0.5]), column([1]), pa.float64(), [0.5, 1.0]),
    "text, then int": (column(["A3"]), column([7]), pa.string(), ["A3", "7"]),
    "int beyond float": (column([2**53 + 1]), column([0.5]), pa.string(), ["9007199254740993", "0.5"]),
    "uint64 and int64": (column([2**64 - 1], pa.uint64()), column([-1]), pa.decimal128(20, 0), [2**64 - 1, -1]),
    "bool and int": (column([True]), column([1]), pa.string(), ["true", "1"]),
    "ns, then ms": (
        column([DAY], pa.timestamp("ns")),
        column([DAY], pa.timestamp("ms")),
        pa.timestamp("ns"),
        [DAY, DAY],
    ),
    "ns and the year 9000": (
        column([1], pa.timestamp("ns")),
        column([datetime.datetime(9000, 1, 1)], pa.timestamp("ms")),
        pa.string(),
        ["1970-01-01 00:00:00.000000001", "9000-01-01 00:00:00"],
    ),
    "with and without a time zone": (
        column([DAY], pa.timestamp("us", "UTC")),
        column([DAY], pa.timestamp("us")),
        pa.string(),
        ["2024-02-29 12:30:00+00:00", "2024-02-29 12:30:00"],
    ),
    "decimals of other scale": (
        column([decimal.Decimal("1.50")]),
        column([decimal.Decimal("123456.789")]),
        pa.decimal128(9, 3),
        [decimal.Decimal("1.50"), decimal.Decimal("123456.789")],
    ),
    "list, then empty list": (column([["a"]]), column([[]]), pa.list_(pa.string()), [["a"], []]),
    "list, then fixed size": (
        column([[1]]),
        column([[2, 3]], pa.list_(pa.int8(), 2)),
        pa.list_(pa.int64()),
        [[1], [2, 3]],
    ),
    "lists of other values": (
        column([[1], None]),
        column([["x", None]]),
        pa.list_(pa.string()),
        [["1"], None, ["x", None]],
    ),
    "structs of other fields": (
        column([{"a": 1, "b": "x"}]),
        column([{"c": [1.5], "a": 0.5}]),
        pa.struct({"a": pa.float64(), "b": pa.string(), "c": pa.list_(pa.float64())}),
        [{"a": 1.0, "b": "x", "c": None}, {"a": 0.5, "b": None, "c": [1.5]}],
    ),
    "nulls of a type, then another": (column([None], pa.string()), column([0.5]), pa.float64(), [None, 0.5]),
    "bytes of other width": (column([b"ab"], pa.binary(2)), column([b"a"]), pa.binary(), [b"ab", b"a"]),
}


@pytest.mark.parametrize("name", JOINED)
def test_the_joined_type_holds_both(name: str) -> None:
    old, new, kind, values = JOINED[name]
    kept = joined(old, new)
    assert (kept.type, kept.to_pylist()) == (kind, values)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (column([["a"]]), column(["a"])),
        (column([{"a": 1}]), column([1])),
        (column([{"a": 1}]), column([[1]])),
        (column([b"a"]), column(["a"])),
        (column([{"a": [b"a"]}]), column([{"a": [1]}])),
    ],
)
def test_what_no_type_holds_is_refused(old: pa.ChunkedArray, new: pa.ChunkedArray) -> None:
    with pytest.raises(ConfigError, match=r"no type holds both .* and "):
        join(old, new)


def test_minus_zero_and_nan_stay() -> None:
    kept = joined(column([-0.0, float("nan")], pa.float32()), column([1, None])).to_pylist()
    assert str(kept) == "[-0.0, nan, 1.0, None]"


TENSOR = pa.fixed_shape_tensor(pa.int8(), [2, 3], permutation=[1, 0])
ID = uuid.UUID(int=7)
PLAIN: dict[str, tuple[Any, pa.DataType, list[Any]]] = {
    "empty struct": (pa.array([{}, None], pa.struct([])), pa.null(), [None, None]),
    "empty struct inside": (pa.array([{"a": {}}]), pa.struct({"a": pa.null()}), [{"a": None}]),
    "dictionary": (pa.array(["x", None]).dictionary_encode(), pa.string(), ["x", None]),
    "map": (
        pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int8())),
        pa.list_(pa.struct({"key": pa.string(), "value": pa.int8()})),
        [[{"key": "k", "value": 1}], None],
    ),
    "uuid": (pa.array([ID.bytes, None], pa.uuid()), pa.string(), [str(ID), None]),
    "uuids": (
        pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), pa.array([ID.bytes], pa.uuid())),
        pa.list_(pa.string()),
        [[str(ID)]],
    ),
    "tensor": (
        pa.ExtensionArray.from_storage(TENSOR, pa.array([None, [1, 2, 3, 4, 5, 6]], pa.list_(pa.int8(), 6))),
        pa.list_(pa.list_(pa.int8())),
        [None, [[1, 4], [2, 5], [3, 6]]],
    ),
    "bool8": (pa.ExtensionArray.from_storage(pa.bool8(), pa.array([2, 0], pa.int8())), pa.bool_(), [True, False]),
    "list view": (pa.array([[1], None], pa.list_view(pa.int8())), pa.list_(pa.int8()), [[1], None]),
    "string view": (pa.array(["a"], pa.string_view()), pa.string(), ["a"]),
    "required child": (
        pa.array([{"q": 1}, None], pa.struct([pa.field("q", pa.int64(), nullable=False)])),
        pa.struct({"q": pa.int64()}),
        [{"q": 1}, None],
    ),
    "seconds": (pa.array([DAY], pa.timestamp("s")), pa.timestamp("ms"), [DAY]),
    "unknown time zone": (
        pa.array([DAY], pa.timestamp("us", "-0330")),
        pa.timestamp("us", "UTC"),
        [DAY.replace(tzinfo=datetime.UTC)],
    ),
    "negative scale": (pa.array([decimal.Decimal("1E+3")], pa.decimal128(1, -3)), pa.decimal128(4, 0), [1000]),
    "run ends": (pa.RunEndEncodedArray.from_arrays([2, 3], ["a", None]), pa.string(), ["a", "a", None]),
    "file_name inside": (
        pa.array([{"mask": {"file_name": "m.png", "id": 1}}]),
        pa.struct({"mask": pa.struct({"manifest_filename": pa.string(), "id": pa.int64()})}),
        [{"mask": {"manifest_filename": "m.png", "id": 1}}],
    ),
}


@pytest.mark.parametrize("name", PLAIN)
def test_types_that_readers_lack_become_plain(name: str) -> None:
    given, kind, values = PLAIN[name]
    made = plain(pa.chunked_array([given, given.slice(1)]))
    assert made.type == kind
    assert made.to_pylist() == values + values[1:]
    check_writable(made)
    assert plain(pa.chunked_array([], given.type)).type == kind


def test_values_below_a_null_list_are_left_out() -> None:
    lists = pa.ListArray.from_arrays(
        pa.array([0, 2, 4, 5], pa.int32()), pa.array([1, 2, 3, 4, 5]), mask=pa.array([False, True, False])
    )
    assert plain(pa.chunked_array([lists])).to_pylist() == [[1, 2], None, [5]]


def test_slices_of_maps_in_maps_are_read() -> None:
    """Arrow 26 aborts the process when it casts these to lists."""
    inner = pa.map_(pa.string(), pa.struct({"c": pa.binary(1), "v": pa.null()}))
    values = [None, None, [("k", None), ("l", [("m", {"c": b"x", "v": None})])], []]
    maps = array(values, pa.map_(pa.string(), inner))
    kept = [[{"key": "k", "value": None}, {"key": "l", "value": [{"key": "m", "value": {"c": b"x", "v": None}}]}], []]
    for first in range(3):
        assert plain(pa.chunked_array([maps.slice(first)])).to_pylist() == [None] * (2 - first) + kept
    lists = pa.ListArray.from_arrays(pa.array([0, 2, 4], pa.int32()), maps)
    assert plain(pa.chunked_array([lists.slice(1)])).to_pylist() == [kept]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (pa.array([pa.MonthDayNano([1, 2, 3])]), "type month_day_nano_interval cannot be written to the tables"),
        (
            pa.UnionArray.from_sparse(pa.array([0, 1], pa.int8()), [pa.array([1, 2]), pa.array(["a", "b"])]),
            "type sparse_union<.*> cannot be written",
        ),
        (pa.StructArray.from_arrays([pa.array([1])] * 2, names=["a", "a"]), "more than one field called 'a'"),
        (
            pa.StructArray.from_arrays([pa.array([1])] * 2, names=["file_name", "manifest_filename"]),
            "more than one field",
        ),
        (pa.array([10**17], pa.timestamp("s")), "out of range"),
        (pa.array([b"\xed\xa0\xbd"]).view(pa.string()), "text is not UTF-8"),
    ],
    ids=str,
)
def test_what_cannot_be_written_is_refused(values: pa.Array, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plain(pa.chunked_array([values]))


def test_large_columns_get_64_bit_offsets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifests.own_columns, "LARGE_BYTES", 40)
    small, large = column(["x"]), column(["y" * 50])
    assert (plain(small).type, plain(large).type) == (pa.string(), pa.large_string())
    for old, new in ((small, large), (large, small), (column(["x" * 20]), column(["y" * 20]))):
        assert {half.type for half in join(plain(old), plain(new))} == {pa.large_string()}
    assert joined(column([["x"]]), column([["y" * 50]])).type == pa.list_(pa.large_string())
    assert plain(column([b"y" * 50])).type == pa.large_binary()
    assert plain(column([[1] * 50])).type == pa.large_list(pa.int64())
    monkeypatch.setattr(manifests.own_columns, "LARGEST_VALUE", 49)
    with pytest.raises(ConfigError, match="a value has 2 GiB or more, which Parquet cannot hold"):
        plain(large)
    many = pa.DictionaryArray.from_arrays(pa.array([0] * 9), pa.array(["long text"]))
    assert plain(pa.chunked_array([many])).type == pa.large_string()


def test_names_are_stored_under_names_that_mean_nothing_else() -> None:
    reserved = {"seed", "file_name"}
    names = ["seed", "manifest_seed", "caption", "manifest_caption", "video", "file_name", "a_file_names", "filename"]
    stored = [stored_name(name, reserved) for name in names]
    assert stored == [
        *("manifest_seed", "manifest_manifest_seed", "caption", "manifest_caption", "manifest_video"),
        *("manifest_filename", "manifest_a_filenames", "filename"),
    ]
    assert all(is_storable(name, reserved) for name in stored)
    capitals = ["Seed", "SEED", "Video", "Caption"]
    assert [stored_name(name, reserved) for name in capitals] == [
        *("manifest_Seed", "manifest_SEED", "manifest_Video", "Caption")
    ]
    assert [is_storable(name, reserved) for name in capitals] == [False, False, False, True]
    assert [is_storable(name, reserved) for name in names] == [False, True, True, True, False, False, False, True]
