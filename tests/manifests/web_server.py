"""A web server on this machine that answers as a test says, and keeps what was asked for."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass
class Request:
    """One request: its target as it came over the wire, and its headers in lower case."""

    target: str
    headers: Mapping[str, str]


Body = bytes | Iterator[bytes]
Answer = tuple[int, Mapping[str, str], Body]


@dataclass
class WebServer:
    """The server's address and the requests so far."""

    url: str = ""
    requests: list[Request] = field(default_factory=list)

    @property
    def targets(self) -> list[str]:
        return [request.target for request in self.requests]


@contextmanager
def web_server(answer: Callable[[Request], Answer]) -> Iterator[WebServer]:
    """A server that answers each request with a status, headers and a body. A body in pieces has no length."""
    server = WebServer()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            target = self.rfile.readline().decode("latin-1").split(" ")[1]
            lines = [line.decode("latin-1") for line in iter(self.rfile.readline, b"\r\n")]
            headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
            request = Request(target, headers)
            server.requests.append(request)
            status, fields, body = answer(request)
            fields = dict(fields)
            if isinstance(body, bytes):
                fields.setdefault("Content-Length", str(len(body)))
                body = iter([body])
            head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
            try:
                self.wfile.write(f"HTTP/1.1 {status} Reason\r\n{head}Connection: close\r\n\r\n".encode("latin-1"))
                for piece in body:
                    self.wfile.write(piece)
            except (BrokenPipeError, ConnectionResetError):
                return  # the client has had enough

    class Threaded(socketserver.ThreadingTCPServer):
        allow_reuse_address = True
        daemon_threads = True
        block_on_close = False

    with Threaded(("127.0.0.1", 0), Handler) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        server.url = f"http://127.0.0.1:{running.server_address[1]}"
        try:
            yield server
        finally:
            running.shutdown()
            thread.join()
