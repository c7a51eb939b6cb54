"""The page on which a person draws boxes and paths, and the rows that it saves.

It is served to this machine alone: the socket is bound to 127.0.0.1; the address holds a random word that no other
page or user of the machine knows; and the Host header must be that address, so that a name that somebody else points
at 127.0.0.1 does not reach it.
"""

from __future__ import annotations

import io
import json
import re
import secrets
import sys
from collections.abc import Sequence
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path, PurePosixPath
from threading import Lock, Thread
from typing import Any, NamedTuple, cast

import pyarrow as pa
from PIL import Image

from manifests.images import load_image
from manifests.io import read_manifest, write_manifest
from manifests.schema import conform, parse_row, rows_of
from manifests.urls import relative_path
from sgi2v.errors import ConfigError, SGI2VError, StorageError
from sgi2v.locations import open_store, without_query
from sgi2v.trajectory import boxes_outside

HOST = "127.0.0.1"

MAX_BODY_BYTES = 4 * 2**20
"""Largest request, bytes: a row of 256 boxes with long paths."""

LARGEST_SHOWN = 2560
"""Longer side of the picture that the page shows, pixels. Coordinates are those of the whole picture."""

_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",  # the address is a secret
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Picture(NamedTuple):
    """A picture to draw on."""

    image: str
    """As the manifest names it."""
    height: int
    width: int


class Drawing:
    """The pictures to draw on, and the manifest that the rows are added to."""

    def __init__(self, images: Sequence[str], manifest: str) -> None:
        """Read every picture, and the manifest if it is there.

        images: local paths or URLs. Raises SampleError, ManifestError and StorageError.
        """
        self.manifest = manifest
        self.lock = Lock()
        self.rows = 0 if (table := self._read()) is None else table.num_rows
        folder = manifest if "://" in manifest else str(Path(manifest).parent)
        names = [image if "://" in image else relative_path(Path(image), folder) for image in images]
        self.pictures = [Picture(name, *load_image(name, manifest).shape[:2]) for name in names]
        self.shown = lru_cache(4)(self._shown)

    def _read(self) -> pa.Table | None:
        """The manifest as it is now; None if there is none. Another program may have added rows."""
        try:
            file_system, name = open_store(self.manifest)
            is_there = file_system.exists(name)
        except (ValueError, ImportError, OSError) as error:
            raise StorageError(f"{self.manifest} cannot be opened: {error}") from error
        return read_manifest(self.manifest) if is_there else None

    def _shown(self, number: int) -> bytes:
        """A picture as a JPEG file for the page."""
        picture = Image.fromarray(load_image(self.pictures[number].image, self.manifest))
        picture.thumbnail((LARGEST_SHOWN, LARGEST_SHOWN))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=92)
        return buffer.getvalue()

    def save(self, drawn: dict[str, Any]) -> str:
        """Add a row to the manifest and return its sample id.

        drawn: `picture` (its number), `boxes` and `trajectories` in pixels of the picture, and `still`, which boxes
        are told to stay. Raises ConfigError for what is no such row, SampleError for boxes and paths that cannot be
        used, ManifestError and StorageError.
        """
        number = drawn.get("picture")
        if not isinstance(number, int) or not 0 <= number < len(self.pictures):
            raise ConfigError(f"there is no picture {number!r}: load the page again")
        if not drawn.get("boxes"):
            raise ConfigError("there are no boxes: draw one before you save")
        still = drawn.get("still")
        if isinstance(still, list) and still and all(still):
            raise ConfigError("no box has a path, so nothing would move: draw a path for at least one")
        picture = self.pictures[number]
        with self.lock:
            table = self._read()
            taken = set() if table is None else {str(each).lower() for each in table.column("sample_id").to_pylist()}
            sample_id = free_id(picture.image, taken)
            known = {"sample_id": sample_id, "image": picture.image}
            try:
                columns = {**known, "boxes": drawn["boxes"], "trajectories": drawn.get("trajectories")}
                if still and (not isinstance(still, list) or any(still)):
                    columns["still"] = still
                row = conform(pa.Table.from_pylist([columns]), self.manifest)
            except pa.ArrowException as error:
                raise ConfigError(f"the row cannot be read ({error}): load the page again") from error
            boxes_N4 = parse_row(rows_of(row)[0]).boxes_N4
            for _, outside in boxes_outside(boxes_N4, picture.height, picture.width):
                raise outside
            table = row if table is None else pa.concat_tables([table, row], promote_options="default")
            write_manifest(table, self.manifest)
            self.rows = table.num_rows
        return sample_id


def free_id(image: str, taken: set[str]) -> str:
    """A sample id that is not taken, from the picture's name: `cat-1`, `cat-2`. taken: ids in lower case."""
    stem = PurePosixPath(without_query(image)).stem
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", stem).strip("-._")[:100] or "picture"
    return next(name for n in range(1, len(taken) + 2) if (name := f"{stem}-{n}").lower() not in taken)


class PageServer(ThreadingHTTPServer):
    """Serves the page of a drawing until somebody finishes."""

    daemon_threads = True

    def __init__(self, drawing: Drawing, port: int = 0) -> None:
        """port: 0 takes a free one. Raises ConfigError where the port cannot be used."""
        self.drawing = drawing
        self.token = secrets.token_urlsafe(32)
        self.page = files("manifests.drawing").joinpath("page.html").read_text(encoding="utf-8")
        try:
            super().__init__((HOST, port), Handler)
        except (OSError, OverflowError) as error:
            raise ConfigError(f"port {port} of {HOST} cannot be used ({error}): give another --port") from error
        self.authorities = tuple(f"{host}:{self.server_port}" for host in (HOST, "localhost"))

    @property
    def url(self) -> str:
        """The page's address, with its secret."""
        return f"http://{self.authorities[0]}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print a traceback, except where the browser has just gone away."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


class Handler(BaseHTTPRequestHandler):
    """Answers one request of the page."""

    timeout = 30

    def do_GET(self) -> None:
        """The page, the list of pictures, or a picture."""
        drawing = self._server.drawing
        match self._parts():
            case [""]:
                nonce = secrets.token_urlsafe(16)
                page = self._server.page.replace("NONCE", nonce).encode()
                policy = (
                    f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; img-src 'self' data:; "
                    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
                )
                self._send(HTTPStatus.OK, "text/html; charset=utf-8", page, {"Content-Security-Policy": policy})
            case ["pictures"]:
                known = [{"name": each.image, "width": each.width, "height": each.height} for each in drawing.pictures]
                self._send_json(HTTPStatus.OK, {"pictures": known})
            case ["pictures", number] if number.isdecimal() and int(number) < len(drawing.pictures):
                try:
                    self._send(HTTPStatus.OK, "image/jpeg", drawing.shown(int(number)))
                except (SGI2VError, OSError) as error:
                    self._send_json(HTTPStatus.INTERNAL_SERVER_ERROR, {"message": str(error)})
            case parts:
                self._refuse(parts)

    def do_POST(self) -> None:
        """Save a row, or finish."""
        drawing = self._server.drawing
        match self._parts():
            case ["rows"]:
                try:
                    state = {"sample_id": drawing.save(self._body())}
                    self._send_json(HTTPStatus.OK, {**state, "rows": drawing.rows, "manifest": drawing.manifest})
                except SGI2VError as error:
                    self._send_json(HTTPStatus.BAD_REQUEST, {"message": f"Not saved: {error}"})
            case ["finish"]:
                self._send_json(HTTPStatus.OK, {"rows": drawing.rows, "manifest": drawing.manifest})
                Thread(target=self._server.shutdown).start()  # it waits for serve_forever, which is another thread's
            case parts:
                self._refuse(parts)

    @property
    def _server(self) -> PageServer:
        return cast("PageServer", self.server)

    def _parts(self) -> list[str] | None:
        """What follows the secret in the path; None for a request that is not the page's own."""
        authorities = self._server.authorities
        origin = self.headers.get("Origin")
        if self.headers.get("Host") not in authorities:
            return None
        if origin is not None and origin not in [f"http://{each}" for each in authorities]:
            return None
        secret, *parts = self.path.partition("?")[0].removeprefix("/").split("/")
        return parts if secrets.compare_digest(secret.encode(), self._server.token.encode()) else None

    def _body(self) -> dict[str, Any]:
        """The request's JSON object. Raises ConfigError."""
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_BODY_BYTES:
            raise ConfigError(f"a row may have {MAX_BODY_BYTES:,} bytes: draw fewer boxes")
        if self.headers.get_content_type() != "application/json":
            raise ConfigError("the request is not JSON")
        try:
            content = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"the request is no valid JSON ({error})") from error
        if not isinstance(content, dict):
            raise ConfigError("the request is no JSON object")
        return content

    def _refuse(self, parts: list[str] | None) -> None:
        if parts is None:
            self._send_json(HTTPStatus.FORBIDDEN, {"message": "open the address that the program printed"})
        else:
            self._send_json(HTTPStatus.NOT_FOUND, {"message": "there is no such page"})

    def _send_json(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        self._send(status, "application/json", json.dumps(content).encode())

    def _send(self, status: HTTPStatus, kind: str, data: bytes, more: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **_HEADERS, **(more or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """No-op: the addresses of requests hold the secret."""
