"""The ledger in the driver: asked by other processes, by nobody else, and only while there is a driver."""

from __future__ import annotations

import copy
import json
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pipeline.flow.attempts import MAX_ATTEMPTS, Attempts, attempt, wait_for_room
from pipeline.flow.driver_ledger import LINE_BYTES, LOOPBACK, AskedOfDriver, ledger_in_driver
from sgi2v.errors import ClusterError, ErrorCode, SampleError

ROOM = 2
DIES = """
import os, pickle, sys
from pipeline.attempts import attempt
with attempt(pickle.loads(bytes.fromhex(sys.argv[1])), "generate", "a"):
    os.kill(os.getpid(), 9)
"""


@pytest.fixture
def asked() -> Iterator[Attempts]:
    with ledger_in_driver(ROOM) as attempts:
        yield attempts


def test_a_row_that_ends_processes_is_given_up(asked: Attempts) -> None:
    command = [sys.executable, "-c", DIES, pickle.dumps(asked).hex()]
    for _ in range(MAX_ATTEMPTS):
        subprocess.run(command, check=False, timeout=60, cwd=Path(__file__).parents[3])
    with pytest.raises(SampleError) as caught, attempt(asked, "generate", "a"):
        pass
    assert caught.value.code is ErrorCode.WORKER_DIED
    for _ in range(MAX_ATTEMPTS + 1):
        with attempt(asked, "generate", "innocent"):
            pass


def test_processes_share_the_room(asked: Attempts) -> None:
    one, other = (copy.copy(asked) for _ in range(2))  # as pickled: each has a connection of its own
    assert [one.admit("a"), other.admit("b"), one.admit("c"), other.admit("a")] == [True, True, False, True]
    waiter = threading.Thread(target=wait_for_room, args=(one, "c"), daemon=True)
    waiter.start()
    other.leave("b")
    waiter.join(10)
    assert not waiter.is_alive()


def test_who_has_not_the_key_is_not_answered(asked: Attempts) -> None:
    assert isinstance(asked, AskedOfDriver)
    _, (port, key, _) = asked.__reduce__()
    question = json.dumps(["admit", "a"])
    for line in (f"{'0' * len(key)} {question}", question, "", key[:-1], "[" * LINE_BYTES * 2):
        with socket.create_connection((LOOPBACK, port), timeout=10) as stranger, suppress(ConnectionResetError):
            stranger.sendall(f"{line}\n".encode())
            assert stranger.recv(100) == b""
    assert [asked.admit("b"), asked.admit("c")] == [True, True], "nor was anything noted"


def test_without_a_driver_a_start_is_an_error_and_an_end_is_not() -> None:
    with ledger_in_driver(ROOM) as late:
        pass
    for ask in (lambda: late.start("load", "a"), lambda: late.admit("a")):
        with pytest.raises(ClusterError, match="the driver of this run does not answer"):
            ask()
    late.finish("load", "a")
    late.leave("a")


class WithoutRoom:
    """A connection on which there is no memory for an answer."""

    def __init__(self, stream: Any) -> None:
        self.write, self.flush = stream.write, stream.flush

    def readline(self) -> bytes:
        raise MemoryError


def test_an_answer_that_was_not_waited_for_is_not_the_next_ones(asked: Attempts) -> None:
    assert isinstance(asked, AskedOfDriver)
    assert asked.admit("a")
    asked._stream = WithoutRoom(asked._stream)
    with pytest.raises(MemoryError):
        asked.admit("a")
    assert asked.start("load", "a") == []


def test_an_answer_that_does_not_come_is_an_error() -> None:
    with socket.create_server((LOOPBACK, 0)) as listening:
        asked = AskedOfDriver(listening.getsockname()[1], "key", None)

        def hang_up() -> None:
            listening.accept()[0].close()

        threading.Thread(target=hang_up, daemon=True).start()
        with pytest.raises(ClusterError, match="the driver of this run does not answer"):
            asked.start("load", "a")
