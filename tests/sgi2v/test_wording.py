"""Counted nouns agree with their number; the word that was meant is suggested."""

from __future__ import annotations

import pytest

from sgi2v.wording import counted, did_you_mean


@pytest.mark.parametrize(("number", "words"), [(0, "0 samples"), (1, "1 sample"), (2, "2 samples")])
def test_a_counted_noun_agrees_with_its_number(number: int, words: str) -> None:
    assert counted(number, "sample") == words


@pytest.mark.parametrize(
    ("word", "hint"),
    [("fsat", " (did you mean fast?)"), ("FAST", " (did you mean fast?)"), ("slow", ""), ("", "")],
)
def test_the_known_word_that_is_most_like_it_is_suggested(word: str, hint: str) -> None:
    assert did_you_mean(word, ["paper", "fast"]) == hint
