"""The column `still`: boxes that are told to stay."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from manifests.io import read_manifest, write_manifest
from manifests.schema import MANIFEST_SCHEMA, conform, known_columns, parse_row, row_digest, row_problems
from sgi2v.errors import ManifestError
from tests.manifests.rows import row, table


def with_still(*values: Any, kind: pa.DataType | None = None) -> pa.Table:
    whole = table(*(row(sample_id=f"s{n}") for n in range(len(values))))
    return whole.append_column("still", pa.array(values, kind or pa.list_(pa.bool_())))


def test_a_still_box_stays_in_its_place_whatever_its_path_and_scales_say() -> None:
    for path, scale in ((None, None), ([], []), ([[5.0, 5.0]], [1.0]), ([[0.0, 0.0], [90.0, 9.0]], [1.0, 3.0])):
        moving = row()["trajectories"][1]
        values = row(trajectories=[path, moving], scales=[scale, [1.0, 2.0, 2.0]], still=[True, False])
        assert list(row_problems(values)) == []
        tracks = parse_row(values).tracks(5, 60, 80)
        np.testing.assert_array_equal(tracks.boxes_NT4[0], np.tile(row()["boxes"][0], (5, 1)))
        assert (tracks.boxes_NT4[1, -1] != tracks.boxes_NT4[1, 0]).any()
        assert tracks.rescale(30, 40).resample(3).clip_to_first_frame().still_N.tolist() == [True, False]


def test_without_still_nothing_is_known_of_it() -> None:
    assert parse_row(row()).tracks(5, 60, 80).still_N is None
    assert conform(table(row()), "m").schema.equals(MANIFEST_SCHEMA)
    assert row_digest({**row(), "still": None}) == row_digest(row())
    assert row_digest({**row(), "still": [True, False]}) != row_digest({**row(), "still": [False, False]})


@pytest.mark.parametrize(
    ("still", "message"),
    [
        ([True, True], "still tells every box to stay, so nothing would move: set false for at least one"),
        ([True], r"still must be one true or false per box \(2\), or null, not \[True\]"),
        ([True, None], r"still must be one true or false per box \(2\), or null, not \[True, None\]"),
        ([True] * 300, "still has more than 256 entries"),
    ],
)
def test_a_still_that_cannot_be_is_a_problem_of_its_row(still: Any, message: str) -> None:
    ((column, error),) = row_problems(row(still=still))
    assert column == "still"
    with pytest.raises(type(error), match=message):
        parse_row(row(still=still))


def test_the_path_of_a_box_that_moves_is_still_checked() -> None:
    values = row(trajectories=[None, None], scales=[None, None], still=[True, False])
    assert [(column, error.message[:12]) for column, error in row_problems(values)] == [
        ("trajectories", "trajectory 1"),
        ("scales", "scales of bo"),
    ]


def test_a_conformed_table_keeps_still_behind_the_other_known_columns() -> None:
    conformed = conform(with_still([True, False]).append_column("text", pa.array(["cat"])), "m")
    assert conformed.column_names == [*MANIFEST_SCHEMA.names, "still", "text"]
    assert known_columns(conformed).column_names == [*MANIFEST_SCHEMA.names, "still"]


def test_numbers_are_no_answer_to_whether_a_box_stays() -> None:
    with pytest.raises(ManifestError, match=r"type is list<.*int64>, expected list<.*bool>"):
        conform(with_still([1, 0], kind=pa.list_(pa.int64())), "m")


@pytest.mark.parametrize("ending", ["parquet", "csv", "jsonl"])
def test_every_format_holds_it(ending: str, tmp_path: Any) -> None:
    given = with_still([True, False], None)
    write_manifest(given, str(tmp_path / f"m.{ending}"))
    assert read_manifest(str(tmp_path / f"m.{ending}"))["still"].to_pylist() == [[True, False], None]
