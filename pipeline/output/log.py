"""The log of a run: JSON Lines below the output, a folder per run. See docs/output-format.md, Logs."""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

from manifests.access import without_secrets_in
from pipeline.output.storage import Storage
from sgi2v.errors import StorageError

FOLDER = "logs"
SEGMENT_LINES = 5000
"""Lines of a full segment, which is not written again."""
FLUSH_S = 10.0
"""Between two writes of the last segment, seconds: a killed driver loses this much of the log at most."""

Line = dict[str, Any]


class RunLog:
    """The log of one run. A `with` block ends it, with the error that ended the run if there was one.

    Two threads may write to it.
    """

    def __init__(self, storage: Storage, epoch: int) -> None:
        """epoch: of the run's lease."""
        self.storage = storage
        self.epoch = epoch
        self._lines: list[str] = []
        self._segment = 0
        self._flushed_at = time.monotonic()
        self._lock = threading.RLock()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        with self._lock, suppress(StorageError):  # which may be the error that ended the run
            if isinstance(error, KeyboardInterrupt):
                self._append(log_line("run_interrupted"))
            elif error is not None:
                self._append(log_line("run_failed", message=f"{type(error).__name__}: {error}"))
            self._flush()

    def write(self, event: str, **fields: Any) -> None:
        """Add a line, and write the last segment to the store if the last write was FLUSH_S ago."""
        self.add(log_line(event, **fields))

    def write_now(self, event: str, **fields: Any) -> None:
        """Add a line, and write the last segment to the store at once: for the phases that `status` shows."""
        with self._lock:
            self._append(log_line(event, **fields))
            self._flush()

    def add(self, line: Line) -> None:
        """Add a line that another process has made, as `write` does."""
        with self._lock:
            self._append(line)
            if time.monotonic() - self._flushed_at > FLUSH_S or len(self._lines) == SEGMENT_LINES:
                self._flush()

    def _append(self, line: Line) -> None:
        plain = json.loads(json.dumps(line, default=str))
        self._lines.append(json.dumps(without_secrets_in(plain)) + "\n")

    def _flush(self) -> None:
        if self._lines:
            key = f"{FOLDER}/{self.epoch:06d}/{self._segment:04d}.jsonl"
            self.storage.put(key, "".join(self._lines).encode())
        if len(self._lines) >= SEGMENT_LINES:
            self._segment += 1
            self._lines = []
        self._flushed_at = time.monotonic()


def log_line(event: str, **fields: Any) -> Line:
    """A line of the log: time, event, fields, host and process."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return {"at": now, "event": event, **fields, "host": socket.gethostname(), "pid": os.getpid()}


def read_newest_log(storage: Storage) -> tuple[int, list[Line]]:
    """The epoch of the last run that has a log, and the first and last segment of that log, which hold its phases.

    Lines that cannot be read are left out. The epoch is 0 without any log.
    """
    runs: dict[str, list[str]] = {}
    for key in sorted(storage.keys(FOLDER)):
        runs.setdefault(key.split("/")[1], []).append(key)
    epochs = [name for name in runs if name.isdigit()]
    if not epochs:
        return 0, []
    newest = max(epochs)
    lines: list[Line] = []
    for key in dict.fromkeys((runs[newest][0], runs[newest][-1])):
        for text in (storage.get(key) or b"").splitlines():
            with suppress(ValueError):
                line = json.loads(text)
                if isinstance(line, dict) and "event" in line:
                    lines.append(line)
    return int(newest), lines


@contextmanager
def capture_log(stage: str, sample_id: str) -> Iterator[list[Line]]:
    """Collect the warnings and log records of this process, from level WARNING, as log lines of a sample."""
    lines: list[Line] = []

    def add(level: str, logger: str, message: str) -> None:
        lines.append(log_line("worker", stage=stage, sample_id=sample_id, level=level, logger=logger, message=message))

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            add(record.levelname.lower(), record.name, record.getMessage())

    def show_warning(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
        add("warning", category.__name__, str(message))

    handler, root, show_before = Collect(logging.WARNING), logging.getLogger(), warnings.showwarning
    root.addHandler(handler)
    warnings.showwarning = show_warning
    try:
        yield lines
    finally:
        root.removeHandler(handler)
        warnings.showwarning = show_before
