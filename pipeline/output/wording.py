"""Words of messages."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """The number with its noun, which gets an `s` unless the number is one: `1 sample`, `2 samples`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
