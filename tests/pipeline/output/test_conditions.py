"""Conditions on columns: what they take, and what they refuse."""

from __future__ import annotations

import pyarrow as pa
import pytest

from pipeline.output.conditions import parse_condition
from sgi2v.errors import ConfigError

TABLE = pa.table(
    {
        "gain": pa.array([0.9, 0.5, None, float("nan")]),
        "boxes": pa.array([1, 2, 3, 1]),
        "name": pa.array(["a", "b", None, "c"]).dictionary_encode(),
        "guided": pa.array([True, False, True, None]),
        "a name": pa.array([1, 2, 3, 4], pa.int32()),
        "per_box": pa.array([[1.0], [2.0], None, []]),
    }
)


@pytest.mark.parametrize(
    ("text", "taken"),
    [
        ("gain > 0.6", [0]),
        ("not gain > 0.6", [1]),  # a null is neither
        ("gain > 0.6 or boxes == 3", [0, 2]),
        ("0.4 < gain < 0.6", [1]),
        ("gain == None", [2, 3]),
        ("gain is not None and guided", [0]),
        ("name in ['a', 'c']", [0, 3]),
        ("name not in ['a', 'c']", [1]),
        ("name >= 'b'", [1, 3]),
        ("abs(boxes - 2) / 2 == 0.5", [0, 2, 3]),
        ("-boxes < -2", [2]),
        ('col("a name") * 2 >= 6', [2, 3]),
        ("True", [0, 1, 2, 3]),
        ("guided == False", [1]),
    ],
)
def test_takes_the_rows_that_fulfil_it(text: str, taken: list[int]) -> None:
    condition = parse_condition(text, TABLE.schema)
    assert [i for i, is_taken in enumerate(condition.mask(TABLE).to_pylist()) if is_taken] == taken
    assert [i for i, row in enumerate(TABLE.to_pylist()) if condition.holds(row)] == taken


def test_knows_its_columns_and_parts() -> None:
    condition = parse_condition("gain > 0.6 and (boxes == 1 or name == 'a') and col('a name') < 3", TABLE.schema)
    assert condition.columns == {"gain", "boxes", "name", "a name"}
    assert [part.text for part in condition.parts] == ["gain > 0.6", "boxes == 1 or name == 'a'", "col('a name') < 3"]
    assert condition.parts[0].holds({"gain": 1})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "cannot be read"),
        ("gain >", "cannot be read"),
        ("gain = 0.5", "write `==` for `=`"),
        ("gain > 0 && boxes", "write `and` for `&&`"),
        ("gian > 0.5", "there is no column 'gian'"),
        ("__import__('os').system('x')", "there is no column '__import__'"),
        ("gain.real > 0", "is not allowed"),
        ("[x for x in 'a']", "there is no column 'x'"),
        ("(lambda: 1)()", "is not allowed"),
        ("abs(gain, 2) > 0", "is not allowed"),
        ("10 ** 100 > gain", "is not allowed"),
        ("gain", "neither true nor false"),
        ("gain > 'a'", "compares a number with text"),
        ("per_box > 1", "cannot be compared"),
        ("name in name", "is not a list"),
        ("not name", "cannot be used"),
        ("guided and boxes", "cannot be used"),
        ("gain > 0 or " * 2000 + "boxes == 1", "more than 4096 characters"),
        ("(" * 900 + "gain" + ")" * 900, "cannot be"),
        (f"boxes == {10**30}", "cannot be used"),
    ],
)
def test_refuses_with_a_reason(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match="--where") as error:
        parse_condition(text, TABLE.schema)
    assert message in str(error.value)
