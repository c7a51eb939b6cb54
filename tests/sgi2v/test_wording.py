"""Counted nouns agree with their number; the word that was meant is suggested; foreign text is harmless."""

from __future__ import annotations

import pytest

from sgi2v.wording import counted, did_you_mean, escaped


@pytest.mark.parametrize(("number", "words"), [(0, "0 samples"), (1, "1 sample"), (2, "2 samples")])
def test_a_counted_noun_agrees_with_its_number(number: int, words: str) -> None:
    assert counted(number, "sample") == words


@pytest.mark.parametrize(
    ("word", "hint"),
    [("fsat", " (did you mean fast?)"), ("FAST", " (did you mean fast?)"), ("slow", ""), ("", "")],
)
def test_the_known_word_that_is_most_like_it_is_suggested(word: str, hint: str) -> None:
    assert did_you_mean(word, ["paper", "fast"]) == hint


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a.png", "a.png"),
        ("é 日本 🏳️‍🌈", "é 日本 🏳️‍🌈"),
        ("a\x1b[2Jb", "a\\x1b[2Jb"),
        ("a\n[3/3] b done\r", "a\\n[3/3] b done\\r"),
        ("\t\x00\x7f\x9b\x85", "\\t\\x00\\x7f\\x9b\\x85"),
        ("a\u2028b\u202ec\u2066", "a\\u2028b\\u202ec\\u2066"),
        ("cut \ud83d", "cut \\ud83d"),
    ],
)
def test_control_characters_are_shown_as_escapes(text: str, shown: str) -> None:
    assert escaped(text) == shown
    assert escaped(shown) == shown


def test_layout_may_pass() -> None:
    assert escaped("a\n\tb\x1bc", keep="\n\t") == "a\n\tb\\x1bc"
