"""`status`: the state of a run, once or until the run is over."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator

from pipeline.cli.summary import status_line, status_text
from pipeline.inspect.status import RunStatus, read_status

WATCH_EVERY_S = 2.0
"""Seconds between two readings of an output."""


def print_status(output: str, as_json: bool) -> None:
    """Print the state of the run at `output`. Raises ConfigError if there is none."""
    status = read_status(output)
    print(json.dumps(status.as_dict(), indent=2) if as_json else status_text(status))  # noqa: T201


def print_openmetrics(output: str) -> None:
    """Print the state of the run at `output` for Prometheus. Raises ConfigError if there is none."""
    from pipeline.inspect.prometheus import openmetrics

    print(openmetrics(read_status(output)), end="")  # noqa: T201


def watch_status(output: str, as_json: bool) -> None:
    """Print the state of the run until it is over. Raises ConfigError if there is none.

    A terminal shows the newest state in place; elsewhere each change is one line. JSON is one line in both.
    """
    if as_json:
        for status in _statuses(output):
            print(json.dumps(status.as_dict()), flush=True)  # noqa: T201
    elif sys.stdout.isatty():
        _watch_on_terminal(output)
    else:
        _watch_as_lines(output)


def _statuses(output: str) -> Iterator[RunStatus]:
    """The state of the run, read again and again until the run is over."""
    while True:
        status = read_status(output)
        yield status
        if status.phase.is_over:
            return
        time.sleep(WATCH_EVERY_S)


def _watch_on_terminal(output: str) -> None:
    from rich.live import Live
    from rich.text import Text

    with Live(auto_refresh=False) as live:
        for status in _statuses(output):
            live.update(Text(status_text(status)), refresh=True)


def _watch_as_lines(output: str) -> None:
    shown = None
    for status in _statuses(output):
        state = (status.phase, status.committed, status.failed, status.left)
        if state != shown:
            print(status_line(status), flush=True)  # noqa: T201
            shown = state
