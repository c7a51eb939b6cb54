"""A TCP proxy that cuts one connection in the middle, as a load balancer does."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass
class Proxy:
    """Where the proxy is, and what it has done."""

    address: str
    cuts: int = 0


@contextmanager
def cutting_proxy(upstream: str, request: bytes, answer: bytes) -> Iterator[Proxy]:
    """Forward to `upstream`; the first connection that asked for `request` is cut where `answer` is to come."""
    target = urlsplit(upstream)
    server = socket.create_server(("127.0.0.1", 0))
    proxy = Proxy(f"http://127.0.0.1:{server.getsockname()[1]}")

    def pump(source: socket.socket, sink: socket.socket, asked: list[bytes], answers: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if not answers:
                    asked.append(data)
                elif proxy.cuts == 0 and answer in data and request in b"".join(asked):
                    proxy.cuts += 1
                    break
                sink.sendall(data)
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def serve() -> None:
        with suppress(OSError):  # the server is closed
            while True:
                near, _ = server.accept()
                far = socket.create_connection((target.hostname, target.port))
                asked: list[bytes] = []
                threading.Thread(target=pump, args=(near, far, asked, False), daemon=True).start()
                threading.Thread(target=pump, args=(far, near, asked, True), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield proxy
    finally:
        server.close()
