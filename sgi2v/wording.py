"""Numbers, suggestions and foreign text in messages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

# Control characters (line breaks and the escape of terminals among them), marks that change the direction of text, the
# two line separators of Unicode, and halves of surrogate pairs, which no stream can encode.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def counted(number: int, noun: str) -> str:
    """The number with its noun in singular or plural: `1 sample`, `2 samples`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def ranked(counts: Mapping[str, int]) -> str:
    """Names with their counts, the most frequent first: `stay_inside 12, collisions_none 3`."""
    order = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    return ", ".join(f"{name} {number}" for name, number in order)


def escaped(text: str, keep: str = "") -> str:
    """The text with its control characters, line breaks included, as escapes: `\\x1b`, `\\n`.

    Use it for text from a manifest, an output or a server where it enters a message: raw, it could move the cursor of a
    terminal or add lines that look like ours. keep: control characters that stay as they are.
    """
    return _CONTROL.sub(lambda match: match[0] if match[0] in keep else _escape(match[0]), text)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """` (did you mean fast?)` for the known word that is most like this one; empty if none is like it."""
    from difflib import get_close_matches

    by_lower = {name.lower(): name for name in known}
    close = get_close_matches(word.lower(), by_lower, n=1)
    return f" (did you mean {by_lower[close[0]]}?)" if close else ""
