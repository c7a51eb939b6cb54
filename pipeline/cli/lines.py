"""Lines about progress. They go to stderr, since stdout is for results."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial

from sgi2v.wording import counted

QUIET_S = 5.0
"""Seconds between two lines about progress, at least."""


def print_progress(line: str) -> None:
    """Print a line about progress to stderr."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201


class Counting:
    """Prints how many things are done, at most once in QUIET_S: `3 of 8 pictures`."""

    def __init__(self, verb: str = "") -> None:
        """verb: opens the line, such as `checked `."""
        self.verb = verb
        self.said_at = time.monotonic()

    def __call__(self, noun: str, done: int, total: int) -> None:
        if (now := time.monotonic()) - self.said_at >= QUIET_S:
            self.said_at = now
            print_progress(f"{self.verb}{done} of {counted(total, noun)}")


def checked(noun: str = "image") -> Callable[[int, int], None]:
    """Prints how many images, or things of another name, are checked: a function of the number done and of all."""
    return partial(Counting("checked "), noun)
