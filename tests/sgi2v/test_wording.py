"""Counted nouns agree with their number."""

from __future__ import annotations

import pytest

from sgi2v.wording import counted


@pytest.mark.parametrize(("number", "words"), [(0, "0 samples"), (1, "1 sample"), (2, "2 samples")])
def test_a_counted_noun_agrees_with_its_number(number: int, words: str) -> None:
    assert counted(number, "sample") == words
