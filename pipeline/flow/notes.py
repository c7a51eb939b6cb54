"""What a worker tells the driver before its sample is finished: that its model is loaded, and the step it is at."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass

NOTE_EVERY_S = 1.0
"""Seconds between two notes of a worker about its steps, at least."""


@dataclass(frozen=True)
class Note:
    """How far a worker is."""

    worker: str
    """`host/pid`."""
    model_seconds: float
    """Seconds that its start took: imports, weights, and compilation if there is any."""
    sample_id: str | None = None
    """The sample it works on; None before the first one."""
    step: int = 0
    """0-based index of the denoising step."""
    steps: int = 0
    """Denoising steps of the video."""
    video: str = ""
    """Which of the sample's videos it makes, such as `candidate 2 of 4`; empty if it makes one."""


SendNote = Callable[[Note], None]


class Reporter:
    """Sends notes of this process, not more often than NOTE_EVERY_S. The first one says that the model is loaded."""

    def __init__(self, send: SendNote, model_seconds: float, steps: int) -> None:
        """steps: denoising steps of every video."""
        self._send = send
        self._worker = f"{socket.gethostname()}/{os.getpid()}"
        self._model_seconds = model_seconds
        self._steps = steps
        self._sample_id: str | None = None
        self._video = ""
        self._sent_at = -NOTE_EVERY_S
        send(Note(self._worker, model_seconds))

    def begin(self, sample_id: str, video: str = "") -> None:
        """Note which sample the next steps belong to, and which of its videos."""
        self._sample_id, self._video = sample_id, video

    def step(self, step: int) -> None:
        """A denoising step begins. step: its 0-based index."""
        now = time.monotonic()
        if now - self._sent_at >= NOTE_EVERY_S:
            self._sent_at = now
            self._send(Note(self._worker, self._model_seconds, self._sample_id, step, self._steps, self._video))
