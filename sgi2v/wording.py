"""Numbers in messages."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str = "") -> str:
    """`1 sample`, `2 samples`. plural: only where it is not the noun with an s."""
    return f"{number} {noun if number == 1 else plural or noun + 's'}"
