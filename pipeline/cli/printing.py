"""The one place where text leaves the process: standard output and standard error of the command line.

Whatever prints there, a message, a table, a traceback or a library, gets a stream that hides secrets, shows control
characters as escapes, and never fails.
"""

from __future__ import annotations

import errno
import io
import os
import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO, cast

from manifests.access import without_secrets
from sgi2v.wording import escaped

LAYOUT = "\n\t"
"""Control characters that pass. A message that shows text from outside escapes its line breaks itself (`escaped`)."""
_REDRAW = re.compile(r"\r|(?:\x1b\[A)+\Z")
"""How libraries (tqdm) begin to draw their progress bar again: the start of the line, or some lines up."""
_PASSING = {errno.ENOSPC, errno.EDQUOT, errno.EAGAIN}
"""Errors of a stream that may take text again later: its disk is full, or its reader is slow."""
_STREAMS = (0, 1, 2)
"""File descriptors of the standard streams."""


class SafeStream(io.TextIOBase):
    """A text stream that masks secrets, escapes control characters, and drops what nobody can read any more.

    Lines are passed on when they are whole or flushed, so that a secret is not missed because it was written in parts.
    """

    def __init__(self, stream: TextIO, draws: bool = False) -> None:
        """draws: control characters pass, for a program of ours that draws on a terminal."""
        self._stream = stream
        self._draws = draws
        self._line = ""
        self._lock = threading.RLock()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._stream.encoding or "utf-8"

    def writable(self) -> bool:
        return True

    def isatty(self) -> bool:
        try:
            return self._stream.isatty()
        except ValueError:  # closed
            return False

    def fileno(self) -> int:
        return self._stream.fileno()

    def write(self, text: str) -> int:
        """Take in text, and write the lines that are whole now."""
        with self._lock:
            lines, line_break, self._line = (self._line + self._cleaned(text)).rpartition("\n")
            if line_break:
                self._pass_on(lines + line_break)
        return len(text)

    def flush(self) -> None:
        """Write the line that has begun."""
        with self._lock:
            line, self._line = self._line, ""
            self._pass_on(line)

    def drawing(self) -> SafeStream:
        """The same stream for a program that draws on a terminal: control characters pass."""
        return SafeStream(self._stream, draws=True)

    def end(self) -> None:
        """Write what is left, and make sure that Python's own flush at its exit, whose failure is exit 120, works."""
        self.flush()
        try:
            self._stream.flush()
        except (OSError, ValueError):
            self._discard()

    def _cleaned(self, text: str) -> str:
        """The text with escapes for control characters."""
        if self._draws:
            return text
        redraw = _REDRAW.match(text)
        begin = redraw.end() if redraw else 0
        return text[:begin] + escaped(text[begin:], keep=LAYOUT)

    def _pass_on(self, text: str) -> None:
        """Write text to the stream below; its failures end nothing."""
        text = without_secrets(text).encode(self.encoding, "backslashreplace").decode(self.encoding)
        try:
            self._stream.write(text)
            self._stream.flush()
        except OSError as error:  # the reader is gone, the terminal is closed
            if error.errno not in _PASSING:
                self._discard()
        except ValueError:  # the stream was closed by somebody
            pass

    def _discard(self) -> None:
        """Let the stream below write to nowhere from now on, also what it still holds."""
        with suppress(OSError, ValueError):
            descriptor = self._stream.fileno()
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)


@contextmanager
def safe_streams() -> Iterator[None]:
    """Put SafeStreams in the place of sys.stdout and sys.stderr."""
    _open_missing()
    before = sys.stdout, sys.stderr
    safe = tuple(SafeStream(stream or open(os.devnull, "w")) for stream in before)  # noqa: PTH123, SIM115
    sys.stdout, sys.stderr = cast("tuple[TextIO, TextIO]", safe)
    try:
        yield
    finally:
        for stream in safe:
            stream.end()
        sys.stdout, sys.stderr = before


def drawing(stream: TextIO) -> TextIO:
    """The stream for a program that draws on the terminal that it leads to, such as rich."""
    return cast(TextIO, stream.drawing()) if isinstance(stream, SafeStream) else stream


def _open_missing() -> None:
    """Open standard streams that were closed when the process started.

    Else the next file that is opened gets their number, and what native code prints there ends up in it.
    """
    for descriptor in _STREAMS:
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, so this one
