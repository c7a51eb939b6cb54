"""Conforming of tables and parsing of rows: what is accepted and what is refused."""

from __future__ import annotations

import pickle
from typing import Any

import pyarrow as pa
import pytest

from manifests.schema import (
    MANIFEST_SCHEMA,
    MAX_BOXES,
    MAX_LISTED,
    MAX_POINTS,
    conform,
    parse_row,
    row_digest,
    row_problems,
    rows_of,
)
from sgi2v.errors import ErrorCode, ManifestError, SampleError, TrajectoryError
from tests.manifests.rows import row, table

NAN, INF = float("nan"), float("inf")


def recast(name: str, kind: pa.DataType, values: list[Any]) -> pa.Table:
    rows = [row(sample_id=f"s{n}") for n in range(len(values))]
    whole = table(*rows)
    return whole.set_column(whole.column_names.index(name), name, pa.array(values, kind))


def codes(broken: pa.Table) -> list[tuple[str | None, str]]:
    with pytest.raises(ManifestError) as caught:
        conform(broken, "m.parquet")
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)  # noqa: S301
    return [(problem.column, problem.code) for problem in caught.value.problems]


def test_a_conforming_table_does_not_change() -> None:
    good = table(row(), row(sample_id="dog", seed=-3, scales=[[1.0, 2.0], [1.0, 1.0, 1.0]]))
    assert conform(good, "m.parquet").equals(good)


BOX_KINDS = [
    pa.list_(pa.list_(pa.float32())),
    pa.list_(pa.list_(pa.int16())),
    pa.large_list(pa.large_list(pa.float32())),
    pa.list_(pa.list_(pa.float32(), 4)),
    pa.large_list(pa.list_(pa.int64(), 4)),
    pa.list_(pa.list_(pa.float16())),
]


@pytest.mark.parametrize("kind", BOX_KINDS, ids=str)
def test_lists_of_other_numbers_are_cast(kind: pa.DataType) -> None:
    values = [[[1, 2, 11, 12], [20, 20, 30, 40]], [], None, [[0, 0, 5, 5]]]
    conformed = conform(recast("boxes", kind, values), "m.parquet")
    assert conformed.schema.equals(MANIFEST_SCHEMA)
    assert conformed.column("boxes").to_pylist() == values
    sliced = conform(recast("boxes", kind, values).slice(3), "m.parquet")
    assert sliced.column("boxes").to_pylist() == values[3:]


@pytest.mark.parametrize(
    ("name", "kind", "values"),
    [
        ("image", pa.large_string(), ["a", None]),
        ("image", pa.dictionary(pa.int32(), pa.string()), ["a", "a"]),
        ("image", pa.string_view(), ["a", "b"]),
        ("sample_id", pa.large_string(), ["a", "b"]),
        ("image", pa.null(), [None, None]),
        ("scales", pa.null(), [None, None]),
        ("scales", pa.list_(pa.null()), [[], None]),
        ("seed", pa.int32(), [7, None]),
        ("seed", pa.uint64(), [7, 2**63 - 1]),
    ],
)
def test_related_types_are_cast(name: str, kind: pa.DataType, values: list[Any]) -> None:
    conformed = conform(recast(name, kind, values), "m.parquet")
    assert conformed.schema.equals(MANIFEST_SCHEMA)
    assert conformed.column(name).to_pylist() == values


def test_seeds_that_pandas_made_floats_are_integers_again() -> None:
    seeds = pa.chunked_array([pa.array([7.0, NAN, None, 2.0**53], pa.float64())])
    good = recast("seed", pa.int64(), [0, 0, 0, 0])
    conformed = conform(good.set_column(5, "seed", seeds), "m.parquet")
    assert conformed.column("seed").to_pylist() == [7, None, None, 2**53]


def test_optional_columns_are_added_and_unknown_ones_come_last_in_plain_types() -> None:
    labels = pa.array(["a"]).dictionary_encode()
    extended = table(row()).drop_columns(["scales", "seed"]).add_column(0, "label", labels)
    extended = extended.append_column("score", pa.array([0.5], pa.float32()))
    conformed = conform(extended, "m.parquet")
    assert conformed.column_names == [*MANIFEST_SCHEMA.names, "label", "score"]
    assert conformed.column("label").type == pa.string()
    assert conformed.column("label").to_pylist() == ["a"]
    assert conformed.column("score").type == pa.float32()
    assert conformed.column("seed").to_pylist() == [None]


@pytest.mark.parametrize(
    ("name", "kind", "values"),
    [
        ("sample_id", pa.int64(), [7]),
        ("image", pa.binary(), [b"x"]),
        ("boxes", pa.string(), ["[[1,2,3,4]]"]),
        ("boxes", pa.list_(pa.float64()), [[1, 2, 3, 4]]),
        ("boxes", pa.list_(pa.list_(pa.string())), [[["1"]]]),
        ("boxes", pa.list_view(pa.list_(pa.float64())), [[[1, 2, 3, 4]]]),
        ("boxes", pa.list_(pa.list_(pa.bool_())), [[[True]]]),
        ("trajectories", pa.list_(pa.list_(pa.float64())), [[[1.0]]]),
        ("scales", pa.float64(), [1.0]),
        ("seed", pa.string(), ["7"]),
        ("seed", pa.float64(), [7.5]),
        ("seed", pa.float64(), [None, 2.0**53 + 2]),
        ("seed", pa.float64(), [-1.2345678901234568e18]),
        ("seed", pa.float32(), [2.0**24 + 2]),
        ("seed", pa.uint64(), [2**63]),
    ],
)
def test_wrongly_typed_columns_are_refused(name: str, kind: pa.DataType, values: list[Any]) -> None:
    broken = recast(name, kind, values)
    assert codes(broken) == [(name, "column_type")]
    with pytest.raises(ManifestError) as caught:
        conform(broken, "m.parquet")
    assert f"type is {kind}, expected {MANIFEST_SCHEMA.field(name).type}" in str(caught.value)


@pytest.mark.parametrize("name", ["sample_id", "image"])
def test_text_that_is_not_utf_8_is_refused(name: str) -> None:
    letters = pa.array([b"ab", b"\xff\xfe"])
    broken = pa.Array.from_buffers(pa.string(), 2, letters.buffers())
    whole = table(row(), row(sample_id="dog"))
    with pytest.raises(ManifestError, match=rf"row 1.*: {name}: text is not UTF-8") as caught:
        conform(whole.set_column(whole.column_names.index(name), name, broken), "m.parquet")
    assert [problem.code for problem in caught.value.problems] == ["text_invalid"]


def test_all_fatal_problems_are_reported_together() -> None:
    broken = pa.table({"sample_id": ["a", "../b", "a", None], "seed": ["x"] * 4, "boxes": pa.nulls(4)})
    assert codes(broken) == [
        ("image", "column_missing"),
        ("trajectories", "column_missing"),
        ("seed", "column_type"),
        ("sample_id", "sample_id_invalid"),
        ("sample_id", "sample_id_invalid"),
        ("sample_id", "sample_id_duplicate"),
    ]


def test_empty_tables_and_duplicated_columns_are_refused() -> None:
    assert codes(table()) == [(None, "manifest_empty")]
    assert codes(table(row()).append_column("seed", pa.array([1]))) == [("seed", "column_duplicate")]


@pytest.mark.parametrize("bad", [None, "", ".hidden", "-x", "a/b", "a b", "é", "a\n", "x" * 129, "a\0"])
def test_ids_that_are_not_file_names_are_refused(bad: str | None) -> None:
    assert codes(table(row(), row(sample_id=bad))) == [("sample_id", "sample_id_invalid")]


@pytest.mark.parametrize("good", ["a", "7", "A.b_c-d", "x" * 128])
def test_ids_that_are_file_names_are_accepted(good: str) -> None:
    assert conform(table(row(sample_id=good)), "m").num_rows == 1


def test_duplicate_ids_name_their_rows_and_only_the_first_are_listed() -> None:
    with pytest.raises(ManifestError, match=r"\(dog\): sample_id: is used in 2 rows \(1, 3\)"):
        conform(table(row(), row(sample_id="dog"), row(sample_id="eel"), row(sample_id="dog")), "m")
    with pytest.raises(ManifestError, match="further rows with an invalid sample_id: 80") as caught:
        conform(table(*(row(sample_id=f"/{n}") for n in range(100))), "m")
    assert len(caught.value.problems) == MAX_LISTED + 1
    with pytest.raises(ManifestError, match="further ids that more than one row uses: 30") as caught:
        conform(table(*(row(sample_id=f"s{n // 2}") for n in range(100))), "m")
    assert len(caught.value.problems) == MAX_LISTED + 1


def test_a_row_becomes_a_sample_with_tracks() -> None:
    sample = parse_row(row(seed=3, scales=[[1.0, 2.0], [1.0, 1.0, 1.0]]))
    assert (sample.sample_id, sample.image, sample.seed) == ("cat", "cat.png", 3)
    assert sample.boxes_N4.shape == (2, 4)
    assert [path.shape for path in sample.trajectories] == [(2, 2), (3, 2)]
    tracks = sample.tracks(5, height=48, width=64)
    assert (tracks.num_boxes, tracks.num_frames, tracks.height, tracks.width) == (2, 5, 48, 64)
    assert tracks.boxes_NT4[0, -1] == pytest.approx([6.0, -3.0, 26.0, 17.0])


def test_no_boxes_is_plain_svd() -> None:
    for scales in (None, []):
        sample = parse_row(row(boxes=[], trajectories=[], scales=scales))
        assert sample.tracks(14, 48, 64).boxes_NT4.shape == (0, 14, 4)


PATH = [[6.0, 7.0], [16.0, 7.0]]
BOX_OUTSIDE, INVALID = ErrorCode.BOX_OUTSIDE, ErrorCode.TRAJECTORY_INVALID


@pytest.mark.parametrize(
    ("column", "value", "code", "message"),
    [
        ("image", None, ErrorCode.IMAGE_MISSING, "give a path"),
        ("image", " ", ErrorCode.IMAGE_MISSING, "give a path"),
        ("boxes", None, BOX_OUTSIDE, "plain SVD"),
        ("boxes", [[1.0, 2.0, 3.0]], BOX_OUTSIDE, "box 0 must be four numbers"),
        ("boxes", [None], BOX_OUTSIDE, "box 0 must be four numbers"),
        ("boxes", [[1.0, 2.0, None, 4.0]], BOX_OUTSIDE, "finite"),
        ("boxes", [[1.0, 2.0, NAN, 4.0]], BOX_OUTSIDE, "finite"),
        ("boxes", [[1.0, 2.0, INF, 4.0]], BOX_OUTSIDE, "finite"),
        ("boxes", [[1.0, 2.0, 1.0, 4.0]], BOX_OUTSIDE, "no area"),
        ("boxes", [[5.0, 2.0, 1.0, 4.0]], BOX_OUTSIDE, "reversed"),
        ("trajectories", None, INVALID, "give one list"),
        ("trajectories", [], INVALID, r"one trajectory per box \(1\), got 0"),
        ("trajectories", [PATH, PATH], INVALID, r"one trajectory per box \(1\), got 2"),
        ("trajectories", [None], INVALID, "two or more"),
        ("trajectories", [PATH[:1]], INVALID, "two or more"),
        ("trajectories", [[[1.0, 2.0], [1.0]]], INVALID, "point 1 is"),
        ("trajectories", [[[1.0, 2.0, 3.0], [1.0, 2.0, 3.0]]], INVALID, "point 0 is"),
        ("trajectories", [[[1.0, 2.0], None]], INVALID, "point 1 is None"),
        ("trajectories", [[[1.0, 2.0], [NAN, 2.0]]], INVALID, "NaN"),
        ("trajectories", [[[1.0, 2.0], [INF, 2.0]]], INVALID, "infinite"),
        ("trajectories", [[[1.0, 2.0], [None, 2.0]]], INVALID, "null"),
        ("scales", [], INVALID, r"one list of scales per box \(1\) or null, got 0"),
        ("scales", [None], INVALID, "null"),
        ("scales", [[1.0]], INVALID, "one number per point"),
        ("scales", [[1.0, 0.0]], INVALID, "positive"),
        ("scales", [[1.0, -1.0]], INVALID, "positive"),
        ("scales", [[1.0, NAN]], INVALID, "positive finite"),
        ("scales", [[1.0, None]], INVALID, "positive finite"),
        ("scales", [[1.0, 1e7]], INVALID, r"from 1e-06 to 1e\+06, not \[1.0, 10000000.0\]"),
        ("scales", [[5e-324, 1.0]], INVALID, "from 1e-06 to"),
        ("boxes", [[-1e308, 2.0, 1e308, 4.0]], BOX_OUTSIDE, "astronomic"),
        ("trajectories", [[[1.0, 2.0], [-1e16, 2.0]]], INVALID, "astronomic coordinates: point 1 is"),
    ],
)
def test_a_row_with_a_problem_is_refused(column: str, value: Any, code: ErrorCode, message: str) -> None:
    good = row(boxes=[[1.0, 2.0, 11.0, 12.0]], trajectories=[PATH])
    parse_row(good)
    broken = good | {column: value}
    problems = list(row_problems(broken))
    assert [(name, error.code) for name, error in problems if name == column] == [(column, code)]
    with pytest.raises(SampleError, match=message) as caught:
        parse_row(broken)
    assert isinstance(caught.value, TrajectoryError) is (column != "image")


BOX, POINT = [1.0, 2.0, 11.0, 12.0], [6.0, 7.0]


def large_row(boxes: int = 1, points: int = 2, **changes: Any) -> dict[str, Any]:
    return row(boxes=[BOX] * boxes, trajectories=[[POINT] * points] * boxes, scales=[[1.0] * points] * boxes) | changes


def test_a_row_of_the_largest_size_is_accepted() -> None:
    assert len(parse_row(large_row(boxes=MAX_BOXES)).boxes_N4) == MAX_BOXES
    assert len(parse_row(large_row(points=MAX_POINTS)).trajectories[0]) == MAX_POINTS


@pytest.mark.parametrize(
    ("large", "messages"),
    [
        (large_row(boxes=100_000), [(name, "more than 256") for name in ("boxes", "trajectories", "scales")]),
        (large_row(trajectories=[[POINT, POINT]] * 100_000), [("trajectories", "more than 256")]),
        (large_row(points=100_000), [("trajectories", "trajectory 0 has more than 10,000 points")]),
    ],
)
def test_a_too_large_row_is_cut_and_refused(large: dict[str, Any], messages: list[tuple[str, str]]) -> None:
    (cut,) = rows_of(table(large))
    assert len(str(cut)) < 1_000_000
    problems = list(row_problems(cut))
    assert [column for column, _ in problems] == [column for column, _ in messages]
    for (_, error), (_, message) in zip(problems, messages, strict=True):
        assert error.code is ErrorCode.TRAJECTORY_INVALID
        assert message in error.message
    assert [str(error) for _, error in row_problems(large)] == [str(error) for _, error in problems]


def test_rows_of_a_usual_size_are_not_cut() -> None:
    usual = [row(), row(boxes=None, trajectories=None), row(scales=[[1.0, 2.0], None]), row(boxes=[None, [1.0]])]
    assert rows_of(table(*usual)) == usual
    assert rows_of(table(*usual, large_row(boxes=300)))[:-1] == usual
    assert rows_of(table(large_row(points=20_000), *usual).slice(1)) == usual
    assert rows_of(table()) == []


def test_all_problems_of_a_row_are_reported() -> None:
    broken = row(
        image=None,
        boxes=[[5.0, 2.0, 1.0, 4.0], [0.0, 0.0, 1.0, 1.0], [0.0]],
        trajectories=[PATH[:1], [[NAN, 0.0], [0.0, 0.0]]],
        scales=[[0.0], [1.0]],
    )
    assert [column for column, _ in row_problems(broken)] == [
        *("image", "boxes", "boxes", "trajectories", "trajectories", "trajectories", "scales", "scales")
    ]


def test_digests_stay_the_same_between_releases() -> None:
    """Outputs hold these digests: another digest for the same row would make every finished sample again."""
    other = row(
        sample_id="dog",
        image="é/狗.png",
        boxes=[[1 / 3, 0.0, 1e20, 1e-7]],
        trajectories=[[[1.0, 2.0], [3.0, 4.5]]],
        scales=[[1.0, 0.1]],
        seed=-(2**63),
        caption="unknown columns do not count",
    )
    assert row_digest(row()) == "50743a1e667d022b621aeee855eae0363852709949d6be1fa6873cfdbb5df4a7"
    assert row_digest(other) == "3e02866fb2c63f7ad0196d85dd535dce6597798baa077dfcb20a54574d5859e6"
    assert row_digest({"sample_id": "a"}) == "b8f47c42dd7eea776d7532b49761b0bdb216e9c668baa1d26968160a1d209b68"


def test_a_digest_changes_with_known_columns_only() -> None:
    assert row_digest(row()) == row_digest(row(label="x"))
    assert row_digest(row()) == row_digest(dict(reversed(row().items())))
    changes = [{"seed": 1}, {"image": "b"}, {"boxes": []}, {"scales": [[1.0]]}, {"sample_id": "b"}]
    assert len({row_digest(row(**change)) for change in [{}, *changes]}) == 6
    assert len(row_digest(row())) == 64


@pytest.mark.parametrize(
    ("name", "levels", "value", "advice"),
    [
        ("boxes", 1, [8, 8, 40, 40], "write [[8, 8, 40, 40]], not [8, 8, 40, 40]"),
        ("trajectories", 2, [[1, 2], [3, 4]], "write [[[1, 2], [3, 4]]], not [[1, 2], [3, 4]]"),
        ("scales", 1, [1, 2], "write [[1, 2]], not [1, 2]"),
        ("boxes", 3, [[[8, 8, 40, 40]]], "it has one list too many: write [[8, 8, 40, 40]], not [[[8, 8, 40, 40]]]"),
        ("trajectories", 1, [1, 2], "convert the column"),
        ("boxes", 0, 7, "convert the column"),
        ("boxes", 1, [{"x0": 8}], "convert the column"),
    ],
)
def test_a_list_that_is_not_wrapped_is_shown_in_its_right_form(name: str, levels: int, value: Any, advice: str) -> None:
    kind = pa.struct({"x0": pa.int64()}) if isinstance(value, list) and isinstance(value[0], dict) else pa.int64()
    for _ in range(levels):
        kind = pa.list_(kind)
    with pytest.raises(ManifestError) as caught:
        conform(recast(name, kind, [None, value]), "m.parquet")
    assert advice in str(caught.value)


def test_a_missing_column_is_told_beside_the_one_that_was_meant() -> None:
    with pytest.raises(ManifestError, match=r"column is missing \(did you mean box\?\): add it as"):
        conform(table(row()).rename_columns({"boxes": "box"}), "m.parquet")


@pytest.mark.parametrize(("name", "other"), [("seed", "Seed"), ("seed", " seed"), ("scales", "SCALES ")])
def test_an_optional_column_whose_name_has_capitals_or_spaces_is_not_ignored(name: str, other: str) -> None:
    with pytest.raises(ManifestError, match=f"{other}': the column would not be used: call it '{name}'") as caught:
        conform(table(row()).rename_columns({name: other}), "m.parquet")
    assert [problem.code for problem in caught.value.problems] == ["column_name"]
    assert conform(table(row()).append_column(other, pa.array([1])), "m.parquet")[other].to_pylist() == [1]


def test_ids_that_differ_only_in_case_are_refused() -> None:
    ids = ["cat", "Dog", "CAT", "dog", "bird"]
    broken = table(*(row(sample_id=sample_id) for sample_id in ids))
    assert codes(broken) == [("sample_id", "sample_id_case")] * 2
    with pytest.raises(ManifestError, match=r"differ only in case \(cat in row 0, CAT in row 2\)"):
        conform(broken, "m.parquet")
    many = table(*(row(sample_id=f"{letter}{n}") for n in range(MAX_LISTED + 3) for letter in "aA"))
    with pytest.raises(ManifestError, match="further ids that differ only in case: 3"):
        conform(many, "m.parquet")


@pytest.mark.parametrize("make", [lambda texts: texts, lambda texts: pa.StructArray.from_arrays([texts], names=["t"])])
def test_text_of_an_own_column_that_is_not_utf_8_is_refused_with_its_row(make: Any) -> None:
    texts = make(pa.array([b"fine", b"\xed\xa0\xbd", None]).view(pa.string()))
    broken = table(row(sample_id="a"), row(sample_id="b"), row(sample_id="c")).append_column("caption", texts)
    with pytest.raises(ManifestError, match=r"row 1 \(b\): caption: text is not UTF-8") as caught:
        conform(broken, "m.parquet")
    assert [problem.code for problem in caught.value.problems] == ["text_invalid"]
