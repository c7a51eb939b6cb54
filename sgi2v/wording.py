"""Numbers in messages."""

from __future__ import annotations


def counted(number: int, noun: str) -> str:
    """The number with its noun in singular or plural: `1 sample`, `2 samples`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
