"""A proxy in front of an object store that fails a share of the calls, or delays them."""

from __future__ import annotations

import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from urllib.parse import urlsplit

REQUEST = re.compile(rb"(GET|PUT|POST|HEAD|DELETE) \S+ HTTP/1\.1\r\n")
BUSY = b"HTTP/1.1 503 Slow Down\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
KINDS = ("busy", "reset", "unanswered")
"""A 503 answer; a connection cut before the store gets the call; one cut after the store has carried it out."""
NO_LINGER = struct.pack("ii", 1, 0)


@dataclass
class Proxy:
    """Address and settings of a proxy, and what it has done."""

    address: str
    share: float
    """Share of the calls that fail."""
    delay_s: float
    """Seconds before each call is forwarded."""
    rng: random.Random
    calls: int = 0
    faults: Counter[str] = field(default_factory=Counter)


@contextmanager
def flaky_proxy(upstream: str, share: float = 0.0, delay_s: float = 0.0, seed: int = 0) -> Iterator[Proxy]:
    """Forward to the URL `upstream`, whose server may go down and come back."""
    target = urlsplit(upstream)
    server = socket.create_server(("127.0.0.1", 0), backlog=256)
    proxy = Proxy(f"http://127.0.0.1:{server.getsockname()[1]}", share, delay_s, random.Random(seed))

    def connect(near: socket.socket) -> None:
        try:
            far = socket.create_connection((target.hostname, target.port), timeout=5)
        except OSError:
            _reset(near)
            return
        far.settimeout(None)
        lost = threading.Event()
        threading.Thread(target=_answers, args=(far, near, lost), daemon=True).start()
        _requests(proxy, near, far, lost)

    def serve() -> None:
        with suppress(OSError):  # the server is closed
            while True:
                near, _ = server.accept()
                threading.Thread(target=connect, args=(near,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield proxy
    finally:
        server.close()


def _requests(proxy: Proxy, near: socket.socket, far: socket.socket, lost: threading.Event) -> None:
    """Forward what the client sends; data that starts with a request line is a new call."""
    with suppress(OSError):
        while data := near.recv(1 << 16):
            if REQUEST.match(data):
                proxy.calls += 1
                time.sleep(proxy.delay_s)
                if proxy.rng.random() < proxy.share:
                    kind = proxy.rng.choice(KINDS)
                    proxy.faults[kind] += 1
                    if kind == "busy":
                        _say_busy(near)
                    if kind != "unanswered":
                        break
                    lost.set()  # `_answers` cuts the connection at the first bytes of the answer
            far.sendall(data)
    _reset(near)
    _reset(far)


def _say_busy(near: socket.socket) -> None:
    near.sendall(BUSY)
    near.shutdown(socket.SHUT_WR)
    while near.recv(1 << 16):  # unread data would reset the connection before the client reads the answer
        pass


def _answers(far: socket.socket, near: socket.socket, lost: threading.Event) -> None:
    with suppress(OSError):
        while data := far.recv(1 << 16):
            if lost.is_set() and not data.startswith(b"HTTP/1.1 100"):
                break
            near.sendall(data)
    _reset(near)
    _reset(far)


def _reset(connection: socket.socket) -> None:
    with suppress(OSError):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_LINGER)
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()
