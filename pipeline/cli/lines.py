"""Lines about progress. They go to stderr, since stdout is for results."""

from __future__ import annotations

import sys
import time

from sgi2v.wording import counted

QUIET_S = 5.0
"""Seconds between two lines about progress, at least."""


def print_progress(line: str) -> None:
    """Print a line about progress to stderr."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201


class Checked:
    """Prints how many images, or things of another name, are checked, at most once in QUIET_S."""

    def __init__(self, noun: str = "image") -> None:
        self.noun = noun
        self.said_at = time.monotonic()

    def __call__(self, done: int, total: int) -> None:
        if (now := time.monotonic()) - self.said_at >= QUIET_S:
            self.said_at = now
            print_progress(f"checked {done} of {counted(total, self.noun)}")
