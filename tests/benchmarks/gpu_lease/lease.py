"""The minutes of a lease, shared out among parts, and the JSON file that is written again after every figure.

A part that fails, or a figure of it, is written down and the next one runs. Work that outlasts its part is interrupted.
"""

from __future__ import annotations

import gc
import json
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import torch

from sgi2v.errors import ConfigError

Figures = dict[str, Any]
"""Values of JSON."""


LEAST_S = 1.0
"""Seconds without which nothing is begun."""


class OutOfTimeError(Exception):
    """The time of a part is over."""


@dataclass(frozen=True)
class Part:
    """One part of a lease."""

    name: str
    run: Callable[[RunningPart], None]
    share: float
    """Its share of the minutes that are left when it starts, relative to the shares of the parts after it."""
    least_s: float
    """Seconds without which it is not started."""


class Lease:
    """Runs parts until the minutes are over, and keeps what they find in a JSON file."""

    def __init__(self, file: Path, header: Figures, minutes: float) -> None:
        self.file = file
        self.started = time.monotonic()
        self.end = self.started + 60 * minutes
        self.report: Figures = {**header, "minutes": minutes, "parts": {}}
        self.write()

    @property
    def left_s(self) -> float:
        """Seconds until the lease ends."""
        return self.end - time.monotonic()

    def write(self) -> None:
        """Write the report. A reader sees the earlier report or this one, never a part of it."""
        self.report["seconds"] = round(time.monotonic() - self.started, 1)
        partial = self.file.with_suffix(".partial")
        partial.write_text(json.dumps(_plain(self.report), indent=1, allow_nan=False) + "\n")
        partial.replace(self.file)

    def run(self, parts: list[Part]) -> None:
        """Run parts in this order."""
        for number, part in enumerate(parts):
            entry = self.report["parts"].setdefault(part.name, {"status": "running", "figures": {}})
            allotted_s = self.left_s * part.share / sum(later.share for later in parts[number:])
            if allotted_s < max(part.least_s, LEAST_S):
                entry["status"] = "skipped"
                entry["reason"] = f"{max(0.0, allotted_s):.0f} s are left for it, and it needs {part.least_s:.0f} s"
            else:
                self._run(part, entry, allotted_s)
            say(f"{part.name}: {entry['status']}{': ' + entry['reason'] if 'reason' in entry else ''}")
            self.write()

    def _run(self, part: Part, entry: Figures, allotted_s: float) -> None:
        start = time.monotonic()
        say(f"{part.name}: {allotted_s:.0f} s of {self.left_s:.0f} s")
        self.write()
        try:
            part.run(RunningPart(self, entry, start + allotted_s))
            entry["status"] = "done"
        except Exception as error:
            entry.update(status="failed", reason=_describe(error), traceback=traceback.format_exc())
        entry["seconds"] = round(time.monotonic() - start, 1)


class RunningPart:
    """A part while it runs: what it has found, and when it must end."""

    def __init__(self, lease: Lease, entry: Figures, end: float) -> None:
        self.lease = lease
        self.figures: Figures = entry["figures"]
        self.end = end

    @property
    def left_s(self) -> float:
        """Seconds until the part ends."""
        return self.end - time.monotonic()

    def figure(self, name: str, measure: Callable[[], Figures | None], needs_s: float = 0.0) -> Figures:
        """Measure something, print it and write it down. A failure is written down in place of the values.

        needs_s: seconds without which it is skipped. What outlasts the part is interrupted. Returns the values, empty
        after a failure.
        """
        start = time.monotonic()
        values: Figures = {}
        try:
            if self.left_s < max(needs_s, LEAST_S):
                left = f"{max(0.0, self.left_s):.0f} s are left of its part"
                raise OutOfTimeError(f"{left}, and it needs {needs_s:.0f} s" if needs_s else left)
            with _interrupted_after(self.left_s):
                values = measure() or {}
            found = values
        except (ConfigError, ImportError, OutOfTimeError) as error:
            found = {"skipped": str(error)}
        except Exception as error:
            found = {"error": _describe(error), "traceback": traceback.format_exc()}
        took_s = time.monotonic() - start
        self.figures[name] = {**found, "took_s": round(took_s, 2)}
        brief = {key: value for key, value in found.items() if key != "traceback"}
        say(f"  {name} ({took_s:.1f} s): {json.dumps(_plain(brief))[:500]}")
        self.lease.write()
        if not values:
            release_memory()  # a failure's traceback held it
        return values


@contextmanager
def _interrupted_after(seconds: float) -> Iterator[None]:
    """Raise OutOfTimeError in the main thread if the work inside takes longer. It ends at Python's next instruction."""

    def interrupt(*_: Any) -> None:
        raise OutOfTimeError("the time of its part is over")

    handler = signal.signal(signal.SIGALRM, interrupt)
    other_s, _ = signal.setitimer(signal.ITIMER_REAL, seconds)  # a test runner's own time limit
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, other_s)
        signal.signal(signal.SIGALRM, handler)


def release_memory() -> None:
    """Give back the memory of models that are no longer used."""
    gc.collect()
    torch.cuda.empty_cache()


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def finish(code: int) -> None:
    """End the process at once: an interrupted compiler may have left processes that would be waited for."""
    for child in active_children():  # a count that is not done
        child.terminate()
    sys.stdout.flush()
    os._exit(code)


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:2000]


def _plain(value: Any) -> Any:
    """The value with infinities and NaN as text, which JSON does not have, and with four digits."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return float(f"{value:.5g}") if math.isfinite(value) else str(value)
    return value
