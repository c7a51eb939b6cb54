"""A stand-in for the Hugging Face Hub on the loopback address: one model, and faults on request."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Literal

MODEL = "org/svd"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
LATER_COMMIT = "89abcdef0123456789abcdef0123456789abcdef"

Fault = int | Literal["cut"] | None
"""A status for every answer; `cut`: the connection ends in the middle of every weight file."""


@dataclass
class Hub:
    """What the stand-in serves, and what it was asked for."""

    root: Path
    """The model's files."""
    url: str = ""
    commit: str = COMMIT
    fault: Fault = None
    served: list[str] = field(default_factory=list)
    """Files that were downloaded."""
    requests: int = 0

    def names(self) -> list[str]:
        """The model's files."""
        return [file.relative_to(self.root).as_posix() for file in self.root.rglob("*") if file.is_file()]


@contextmanager
def hub_stand_in(root: Path) -> Iterator[Hub]:
    """A Hub that serves a folder as MODEL."""
    hub = Hub(root)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.requests += 1
            _, kind, *rest = self.path.partition("?")[0].split("/")
            if isinstance(hub.fault, int):
                self.send_error(hub.fault)
            elif kind == "api" and (rest[3:4] == ["revision"] or len(rest) == 3):
                siblings = [{"rfilename": name} for name in hub.names()]
                self.reply(json.dumps({"id": MODEL, "sha": hub.commit, "siblings": siblings}).encode())
            elif kind == "api" and rest[3:4] == ["tree"]:
                sizes = {name: (hub.root / name).stat().st_size for name in hub.names()}
                self.reply(
                    json.dumps([{"type": "file", "path": n, "size": s, "oid": "0"} for n, s in sizes.items()]).encode()
                )
            elif rest[1:2] == ["resolve"]:
                name = "/".join(rest[3:])
                if self.command == "GET":
                    hub.served.append(name)
                self.reply((hub.root / name).read_bytes(), hub.fault == "cut" and name.endswith(".safetensors"))
            else:
                self.send_error(404)

        do_HEAD = do_GET

        def reply(self, body: bytes, cut: bool = False) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("ETag", f'"{sha256(body).hexdigest()[:16]}"')
            self.send_header("X-Repo-Commit", hub.commit)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body[: len(body) // 2] if cut else body)

        def log_message(self, *_: object) -> None:
            """Keep the test's output clean."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        hub.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield hub
        finally:
            server.shutdown()
