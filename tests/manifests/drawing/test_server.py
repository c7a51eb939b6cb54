"""What the drawing page's server answers, to its page and to others."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from manifests.drawing.server import MAX_BODY_BYTES, Drawing, PageServer, free_id
from manifests.io import read_manifest, write_manifest
from sgi2v.errors import ConfigError, ManifestError, SampleError
from tests.manifests.rows import row, table

BOX = [10.0, 10.0, 40.0, 30.0]
PATH = [[25.0, 20.0], [60.0, 40.0]]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    Image.new("RGB", (100, 80), (10, 200, 30)).save(tmp_path / "cat.png")
    return tmp_path


@pytest.fixture
def server(folder: Path) -> Iterator[PageServer]:
    with PageServer(Drawing([str(folder / "cat.png")], str(folder / "m.parquet"))) as server:
        thread = Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(
    server: PageServer, path: str, body: Any = None, headers: dict[str, str] | None = None, secret: str | None = None
) -> tuple[int, Any, dict[str, str]]:
    """Status, content and headers of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port, timeout=30)
    sent = {"Content-Type": "application/json", **(headers or {})}
    data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    target = f"/{server.token if secret is None else secret}/{path}"
    connection.request("GET" if body is None else "POST", target, data, sent)
    answer = connection.getresponse()
    content = answer.read()
    is_json = answer.headers["Content-Type"] == "application/json"
    return answer.status, json.loads(content) if is_json else content, dict(answer.headers)


def test_the_page_its_pictures_and_their_list(server: PageServer) -> None:
    status, page, headers = ask(server, "")
    assert status == 200
    assert b"Save as a row" in page
    nonce = page.split(b'<script nonce="')[1].split(b'"')[0].decode()
    assert f"script-src 'nonce-{nonce}'" in headers["Content-Security-Policy"]
    assert headers["Referrer-Policy"] == "no-referrer"
    assert ask(server, "pictures")[1] == {"pictures": [{"name": "cat.png", "width": 100, "height": 80}]}
    status, picture, headers = ask(server, "pictures/0")
    assert (status, headers["Content-Type"], picture[:2]) == (200, "image/jpeg", b"\xff\xd8")
    for path in ("pictures/1", "pictures/-1", "pictures/x", "other", "pictures/0/x"):
        assert ask(server, path)[0] == 404


def test_only_the_page_itself_is_answered(server: PageServer, folder: Path) -> None:
    drawn = {"picture": 0, "boxes": [BOX], "trajectories": [PATH]}
    assert server.server_address[0] == "127.0.0.1"
    for options in (
        {"secret": "wrong"},
        {"secret": ""},
        {"secret": "sch%C3%B6n"},
        {"headers": {"Host": f"evil.example:{server.server_port}"}},
        {"headers": {"Host": "127.0.0.1"}},
        {"headers": {"Origin": "http://evil.example"}},
        {"headers": {"Origin": "null"}},
    ):
        status, answer, _ = ask(server, "rows", drawn, **options)  # type: ignore[arg-type]
        assert (status, answer) == (403, {"message": "open the address that the program printed"})
    assert not (folder / "m.parquet").exists()
    own = {"Host": f"localhost:{server.server_port}", "Origin": f"http://localhost:{server.server_port}"}
    assert ask(server, "rows", drawn, own)[0] == 200


def test_rows_are_added_to_a_manifest_that_is_there(server: PageServer, folder: Path) -> None:
    own = table(row(sample_id="CAT-1")).append_column("split", pa.array(["train"]))
    write_manifest(own, str(folder / "m.parquet"))
    status, answer, _ = ask(server, "rows", {"picture": 0, "boxes": [BOX], "trajectories": [PATH]})
    assert (status, answer["sample_id"], answer["rows"]) == (200, "cat-2", 2)
    first, second = read_manifest(str(folder / "m.parquet")).to_pylist()
    assert (first["sample_id"], first["split"]) == ("CAT-1", "train")
    assert (second["image"], second["boxes"], second["trajectories"]) == ("cat.png", [BOX], [PATH])
    assert second["split"] is None


def test_a_box_without_a_path_is_told_to_stay(server: PageServer, folder: Path) -> None:
    drawn = {"picture": 0, "boxes": [BOX, [60, 10, 90, 30]], "trajectories": [PATH, [[75, 20], [75, 20]]]}
    assert ask(server, "rows", {"picture": 0, "boxes": [BOX], "trajectories": [PATH], "still": [False]})[0] == 200
    assert "still" not in read_manifest(str(folder / "m.parquet")).column_names
    assert ask(server, "rows", drawn | {"still": [False, True]})[0] == 200
    assert read_manifest(str(folder / "m.parquet"))["still"].to_pylist() == [None, [False, True]]


@pytest.mark.parametrize(
    ("drawn", "message"),
    [
        (b"{", "the request is no valid JSON"),
        (b"[]", "the request is no JSON object"),
        ({"picture": 1, "boxes": [BOX], "trajectories": [PATH]}, "there is no picture 1: load the page again"),
        ({"picture": 0, "boxes": [], "trajectories": []}, "there are no boxes: draw one before you save"),
        ({"picture": 0, "boxes": [BOX], "trajectories": []}, "expected one trajectory per box (1), got 0"),
        ({"picture": 0, "boxes": [BOX]}, "trajectories is null"),
        (
            {"picture": 0, "boxes": [BOX], "trajectories": [PATH], "still": [True]},
            "no box has a path, so nothing would move: draw a path for at least one",
        ),
        ({"picture": 0, "boxes": [BOX], "trajectories": [PATH], "still": [True, False]}, "still must be one true"),
        ({"picture": 0, "boxes": [BOX], "trajectories": [PATH], "still": "all"}, "still: type is string"),
        (
            {"picture": 0, "boxes": [[200, 10, 300, 30]], "trajectories": [PATH]},
            "has no area inside the first frame (100 x 80 px)",
        ),
        ({"picture": 0, "boxes": "all", "trajectories": [PATH]}, "boxes"),
        ({"picture": 0, "boxes": [[1, "x"]], "trajectories": [PATH]}, "the row cannot be read"),
    ],
)
def test_what_cannot_be_saved_is_told_and_nothing_is_written(
    drawn: Any, message: str, server: PageServer, folder: Path
) -> None:
    status, answer, _ = ask(server, "rows", drawn)
    assert status == 400
    assert answer["message"].startswith("Not saved: ")
    assert message in answer["message"]
    assert not (folder / "m.parquet").exists()


def test_a_request_that_is_too_large_is_not_read(server: PageServer) -> None:
    status, answer, _ = ask(server, "rows", b"{}", {"Content-Length": str(MAX_BODY_BYTES + 1)})
    assert (status, answer) == (400, {"message": "Not saved: a row may have 4,194,304 bytes: draw fewer boxes"})


@pytest.mark.parametrize(("error", "printed"), [(ConnectionResetError(), False), (KeyError("bug"), True)])
def test_a_browser_that_goes_away_is_no_fault(
    error: Exception, printed: bool, server: PageServer, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        raise error
    except type(error):
        server.handle_error(None, ("127.0.0.1", 1))
    assert ("Traceback" in capsys.readouterr().err) == printed


def test_finish_ends_the_server(folder: Path) -> None:
    with PageServer(Drawing([str(folder / "cat.png")], str(folder / "m.parquet"))) as server:
        thread = Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        assert ask(server, "finish", {})[1] == {"rows": 0, "manifest": str(folder / "m.parquet")}
        thread.join(timeout=30)
        assert not thread.is_alive()


def test_pictures_and_manifests_that_cannot_be_read_are_told_at_the_start(folder: Path) -> None:
    with pytest.raises(SampleError, match="image_missing"):
        Drawing([str(folder / "dog.png")], str(folder / "m.parquet"))
    (folder / "bad.parquet").write_text("x")
    with pytest.raises(ManifestError):
        Drawing([str(folder / "cat.png")], str(folder / "bad.parquet"))
    with (
        PageServer(Drawing([str(folder / "cat.png")], str(folder / "m.csv"))) as server,
        pytest.raises(ConfigError, match=f"port {server.server_port} of 127.0.0.1 cannot be used"),
    ):
        PageServer(server.drawing, server.server_port)


@pytest.mark.parametrize(
    ("image", "taken", "expected"),
    [
        ("a/cat.jpg", set(), "cat-1"),
        ("cat.jpg", {"cat-1", "cat-2", "dog-3"}, "cat-3"),
        ("http://x/two words.jpg?key=3", set(), "two-words-1"),
        ("../§§.png", set(), "picture-1"),
        ("x" * 300 + ".png", set(), "x" * 100 + "-1"),
    ],
)
def test_sample_ids_come_from_the_pictures_names(image: str, taken: set[str], expected: str) -> None:
    assert free_id(image, taken) == expected


def test_large_pictures_are_shown_smaller_and_keep_their_coordinates(folder: Path) -> None:
    Image.fromarray(np.zeros((40, 4000, 3), np.uint8)).save(folder / "wide.png")
    drawing = Drawing([str(folder / "wide.png")], str(folder / "m.parquet"))
    assert drawing.pictures[0].width == 4000
    (folder / "shown.jpg").write_bytes(drawing.shown(0))
    assert Image.open(folder / "shown.jpg").size == (2560, 26)
