"""A small object store that takes keys as they are, as Amazon's does; SeaweedFS tidies them like paths."""

from __future__ import annotations

import hashlib
import html
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote

Objects = dict[tuple[str, str], bytes]


@dataclass
class Store:
    """The objects by bucket and key, and the server's address."""

    objects: Objects = field(default_factory=dict)
    endpoint: str = ""

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables that the AWS SDK reads."""
        keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
        return {"AWS_ENDPOINT_URL": self.endpoint, **keys}


@contextmanager
def s3_stand_in() -> Iterator[Store]:
    """A running store."""
    store = Store()

    class Handler(_Handler):
        objects = store.objects

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        server.block_on_close = False
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        store.endpoint = f"http://127.0.0.1:{server.server_port}"
        try:
            yield store
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    objects: Objects

    def log_message(self, format: str, *args: Any) -> None:
        """Keep the test output quiet."""

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, f"<Error><Code>{code}</Code><Message>{code}</Message></Error>".encode())

    def _request(self) -> tuple[str, str, dict[str, list[str]], bytes]:
        """Bucket, key, query and body."""
        path, _, query = self.path.partition("?")
        bucket, _, key = unquote(path.removeprefix("/")).partition("/")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if "aws-chunked" in self.headers.get("Content-Encoding", ""):
            whole, rest = b"", body
            while (size := int(rest.partition(b"\r\n")[0].partition(b";")[0], 16)) > 0:
                rest = rest.partition(b"\r\n")[2]
                whole, rest = whole + rest[:size], rest[size + 2 :]
            body = whole
        return bucket, key, parse_qs(query, keep_blank_values=True), body

    def do_PUT(self) -> None:
        bucket, key, _, body = self._request()
        if self.headers.get("If-None-Match") == "*" and (bucket, key) in self.objects:
            return self._refuse(412, "PreconditionFailed")
        if key:
            self.objects[bucket, key] = body
        return self._answer(200, ETag=f'"{hashlib.md5(body).hexdigest()}"')

    def do_DELETE(self) -> None:
        bucket, key, _, _ = self._request()
        self.objects.pop((bucket, key), None)
        self._answer(204)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        bucket, key, query, _ = self._request()
        if not key:
            return self._answer(200, self._listing(bucket, query), Content_Type="application/xml")
        data = self.objects.get((bucket, key))
        if data is None:
            return self._answer(404) if self.command == "HEAD" else self._refuse(404, "NoSuchKey")
        headers = {"ETag": f'"{hashlib.md5(data).hexdigest()}"', "Last_Modified": "Fri, 27 Nov 2026 12:00:00 GMT"}
        part = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if part is None:
            return self._answer(200, data, **headers)
        first, last = int(part[1]), min(int(part[2] or len(data)), len(data) - 1)
        headers["Content_Range"] = f"bytes {first}-{last}/{len(data)}"
        return self._answer(206, data[first : last + 1], **headers)

    def _listing(self, bucket: str, query: dict[str, list[str]]) -> bytes:
        if "uploads" in query:
            return b"<ListMultipartUploadsResult><IsTruncated>false</IsTruncated></ListMultipartUploadsResult>"
        prefix, delimiter = query.get("prefix", [""])[0], query.get("delimiter", [""])[0]
        folders, found = set(), ""
        for key in sorted(key for home, key in list(self.objects) if home == bucket and key.startswith(prefix)):
            inner, cut, _ = key[len(prefix) :].partition(delimiter) if delimiter else ("", "", "")
            if cut:
                folders.add(prefix + inner + delimiter)
                continue
            data = self.objects.get((bucket, key), b"")
            found += f"<Contents><Key>{html.escape(key)}</Key><LastModified>2026-11-27T12:00:00.000Z</LastModified>"
            found += f"<ETag>&quot;{hashlib.md5(data).hexdigest()}&quot;</ETag><Size>{len(data)}</Size></Contents>"
        found += "".join(f"<CommonPrefixes><Prefix>{html.escape(each)}</Prefix></CommonPrefixes>" for each in folders)
        return f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>".encode()
