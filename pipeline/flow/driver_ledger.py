"""The ledger of a run on one machine, in its driver: an actor would be one more process at the cost of its workers.

Where the driver ends, so does all of its run, and nobody needs a ledger. Stages ask over a socket of this machine, a
line each way: the run's key and, as JSON, what is asked and of whom; then the answer, as JSON.
"""

from __future__ import annotations

import hmac
import json
import secrets
import socket
import socketserver
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from pipeline.flow.attempts import Attempts, Ledger, traces_of_a_run
from sgi2v.errors import ClusterError

LOOPBACK = "127.0.0.1"
KEY_BYTES = 32
LINE_BYTES = 4096
"""Of a question, at most: a key, two words and a sample's id."""
END_POLL_S = 0.25
"""Between two looks for the end of the run, which waits for one."""
HERE = "here"
"""The one node."""


@contextmanager
def ledger_in_driver(room: int) -> Iterator[Attempts]:
    """Keep a ledger in this process, for all who are handed what is yielded. room: as the ledger's."""
    ledger, key = Ledger(lambda: {HERE}, room), secrets.token_hex(KEY_BYTES)
    answers: Mapping[str, Callable[..., Any]] = {
        "start": lambda stage, sample_id: ledger.start(stage, sample_id, HERE),
        "finish": ledger.finish,
        "admit": lambda sample_id: ledger.admit(sample_id, HERE),
        "leave": ledger.leave,
    }
    with _Server(answers, key) as server:
        threading.Thread(target=server.serve_forever, args=(END_POLL_S,), daemon=True).start()
        try:
            yield AskedOfDriver(server.server_address[1], key, traces_of_a_run())
        finally:
            server.shutdown()  # returns when the thread serves no more


class _Server(socketserver.ThreadingTCPServer):
    """A thread for every process that asks; one question is answered at a time."""

    daemon_threads = True
    block_on_close = False

    def __init__(self, answers: Mapping[str, Callable[..., Any]], key: str) -> None:
        super().__init__((LOOPBACK, 0), _Asker)
        self.answers = answers
        self.key = key
        self.lock = threading.Lock()


class _Asker(socketserver.StreamRequestHandler):
    """One process, for as long as it is there."""

    server: _Server

    def handle(self) -> None:
        with suppress(OSError):
            # a process that is killed may leave half a line, and a stranger may send anything
            while (line := self.rfile.readline(LINE_BYTES)).endswith(b"\n"):
                key, _, question = line.partition(b" ")
                if not hmac.compare_digest(key, self.server.key.encode()):
                    return
                asked, *of = json.loads(question)
                with self.server.lock:
                    answer = self.server.answers[asked](*of)
                self.wfile.write(json.dumps(answer).encode() + b"\n")


class AskedOfDriver:
    """The ledger of a driver of this machine, for its stages: pickled to their processes, connected in each.

    Raises ClusterError where the driver does not answer any more.
    """

    def __init__(self, port: int, key: str, traces: Path | None) -> None:
        self.traces = traces
        self._port, self._key = port, key
        self._stream: Any = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        return AskedOfDriver, (self._port, self._key, self.traces)

    def start(self, stage: str, sample_id: str) -> list[float]:
        """As the ledger's."""
        lasted: list[float] = self._ask("start", stage, sample_id)
        return lasted

    def finish(self, stage: str, sample_id: str) -> None:
        """As the ledger's; without a driver there is nobody to know of it."""
        with suppress(ClusterError):
            self._ask("finish", stage, sample_id)

    def admit(self, sample_id: str) -> bool:
        """As the ledger's."""
        admitted: bool = self._ask("admit", sample_id)
        return admitted

    def leave(self, sample_id: str) -> None:
        """As the ledger's; without a driver there is nobody to know of it."""
        with suppress(ClusterError):
            self._ask("leave", sample_id)

    def _ask(self, *question: str) -> Any:
        with self._lock:
            # kept for the next question once it has answered this one: else that would get this one's answer
            stream, self._stream = self._stream, None
            try:
                stream = stream or socket.create_connection((LOOPBACK, self._port)).makefile("rwb")
                stream.write(f"{self._key} {json.dumps(question)}\n".encode())
                stream.flush()
                line = stream.readline()
            except OSError as error:
                raise ClusterError(f"the driver of this run does not answer: {error}") from error
            if not line:
                raise ClusterError("the driver of this run does not answer: it has closed the connection")
            answer = json.loads(line)
            self._stream = stream
        return answer
