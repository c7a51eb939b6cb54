"""What happened, line by line: one log per run, below the output, in JSON Lines.

    logs/000003/0000.jsonl    the first SEGMENT_LINES lines of the third run

An object store cannot append: the last segment is written anew now and then, full ones are left alone. Whatever a
worker logs while it has a sample in hand travels with the sample to the driver, which writes it down.
"""

from __future__ import annotations

import json
import logging
import os
import socket
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
FLUSH_S = 10.0
"""At most this much of the log is lost with a killed driver."""

Line = dict[str, Any]


class RunLog:
    """The log of one run; a `with` block ends it, with the error that ended the run if one did."""

    def __init__(self, storage: Storage, epoch: int) -> None:
        """epoch: of the run's lease."""
        self.storage = storage
        self.epoch = epoch
        self._lines: list[str] = []
        self._segment = 0
        self._flushed_at = time.monotonic()

    def __enter__(self) -> RunLog:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self._append(line_of("run_failed", message=f"{type(error).__name__}: {error}"))
        with suppress(StorageError):  # it may be what ended the run
            self._flush()

    def write(self, event: str, **values: Any) -> None:
        """Add a line, and bring what there is to the store if that has not been done for a while."""
        self.add(line_of(event, **values))

    def add(self, line: Line) -> None:
        """Add a line that was made elsewhere."""
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


def line_of(event: str, **values: Any) -> Line:
    """A line of the log: when, what, where."""
    now = datetime.now(UTC).isoformat(timespec="milliseconds")
    return {"at": now, "event": event, **values, "host": socket.gethostname(), "pid": os.getpid()}


@contextmanager
def captured(stage: str, sample_id: str) -> Iterator[list[Line]]:
    """Collect what this process logs and warns of meanwhile, as lines of that sample."""
    lines: list[Line] = []

    class Collect(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told = {"level": record.levelname.lower(), "logger": record.name, "message": record.getMessage()}
            lines.append(line_of("worker", stage=stage, sample_id=sample_id, **told))

    def warn(message: Warning | str, category: type[Warning], *place: Any, **options: Any) -> None:
        told = {"level": "warning", "logger": category.__name__, "message": str(message)}
        lines.append(line_of("worker", stage=stage, sample_id=sample_id, **told))

    handler, root, show = Collect(logging.WARNING), logging.getLogger(), warnings.showwarning
    root.addHandler(handler)
    warnings.showwarning = warn
    try:
        yield lines
    finally:
        root.removeHandler(handler)
        warnings.showwarning = show
