"""Canonical JSON: one text for equal values."""

from __future__ import annotations

import pytest

from sgi2v.canonical import canonical_json


def test_equal_values_have_one_text() -> None:
    assert canonical_json({"b": (1, 2.5), "a": {"é": None, "d": True}}) == r'{"a":{"d":true,"\u00e9":null},"b":[1,2.5]}'
    assert canonical_json({"a": 1, "b": (2,)}) == canonical_json({"b": [2], "a": 1})


def test_values_without_a_json_type_are_refused() -> None:
    with pytest.raises(TypeError):
        canonical_json({"a": b"bytes"})
