"""Hostile and broken rows in one untrusted manifest: each fails with its code, and good rows get their video."""

from __future__ import annotations

import base64
import io
import math
import os
import re
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.outcome import IS_WHOLE
from tests.chaos.test_faults import SETTINGS
from tests.pipeline.in_process import here, without_ray
from tests.pipeline.runs import BOX, PATH, STAND_IN, cli, picture, records, row, write_rows
from tests.pipeline.test_run_bad_rows import BAD_BOXES, BAD_IMAGES, BAD_PATHS, GOOD

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

SECRET = "hunter2"
TIMEOUT_S = 20
ROOTS = (f"https://user:{SECRET}@host/p", "https://host/pictures", "/data/pictures")


def png(*chunks: tuple[bytes, bytes], width: int = 64, height: int = 64) -> bytes:
    """A grey PNG with extra chunks before its pixels."""
    header = (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    pixels = (b"IDAT", zlib.compress(b"\0" * (width + 1) * height))
    parts = [b"\x89PNG\r\n\x1a\n"]
    for kind, data in (header, *chunks, pixels, (b"IEND", b"")):
        parts.append(struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)))
    return b"".join(parts)


def flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :]


def huge_jpeg() -> bytes:
    """A JPEG whose header claims 65 500 x 65 500 pixels."""
    sink = io.BytesIO()
    picture().save(sink, "JPEG")
    data = sink.getvalue()
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", 65_500, 65_500) + data[at + 4 :]


FILES: Mapping[str, tuple[str, Callable[[Path], object]]] = {
    **{name: image for name, image in BAD_IMAGES.items() if name != "unreachable.png"},
    "pipe.png": ("image_missing", os.mkfifo),
    "link-to-passwd.png": ("image_missing", lambda path: path.symlink_to("/etc/passwd")),
    "link-to-zeros.png": ("image_missing", lambda path: path.symlink_to("/dev/zero")),
    "link-to-itself.png": ("image_missing", lambda path: path.symlink_to(path)),
    "zero-sides.png": ("image_undecodable", lambda path: path.write_bytes(png(width=0, height=0))),
    "wrong-checksum.png": ("image_undecodable", lambda path: path.write_bytes(flipped(png(), 20))),
    "zip-bomb-in-text.png": (
        "image_undecodable",
        lambda path: path.write_bytes(png((b"zTXt", b"k\0\0" + zlib.compress(b"\0" * (80 << 20))))),
    ),
    "huge-header.jpg": ("image_too_large", lambda path: path.write_bytes(huge_jpeg())),
    "postscript.png": ("image_undecodable", lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%EOF\n")),
    "vector.png": ("image_undecodable", lambda path: path.write_text("<svg xmlns='http://www.w3.org/2000/svg'/>")),
    "pickle.png": ("image_undecodable", lambda path: path.write_bytes(b"\x80\x04cos\nsystem\n(S'id'\ntR.")),
    "html.jpg": ("image_undecodable", lambda path: path.write_text("<html>404 Not Found</html>")),
}
PLACES: Mapping[str, str] = {
    "place-absolute": "/etc/passwd",
    "place-file-url": "file:///etc/passwd",
    "place-second-scheme": "https://host/pictures/x://../../../private/a.png",
    "place-second-scheme-of-a-file": "file:///data/pictures/x://../../../../etc/passwd",
    "place-dots": "../../../../../../etc/passwd",
    "place-home": "~/.ssh/id_rsa",
    "place-chain": "simplecache::file:///etc/passwd",
    "place-archive": "zip://a.png::/tmp/a.zip",
    "place-shell": "ssh://localhost/etc/passwd",
    "place-git": "github://user:repo@main/a.png",
    "place-metadata-service": "http://169.254.169.254/latest/meta-data/",
    "place-password": f"https://user:{SECRET}@example.org/a.png?token={SECRET}",
    "place-unknown": "gopher://example.org/a.png",
    "place-long": "a" * 5000 + ".png",
    "place-nul": "a\0b.png",
    "place-blank": "  ",
}
ROWS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    **{name: ("box_outside", {"boxes": [box]}) for name, box in BAD_BOXES.items()},
    **{name: ("trajectory_invalid", {"trajectories": paths}) for name, paths in BAD_PATHS.items()},
    "boxes-null": ("box_outside", {"boxes": None}),
    "boxes-a-million": ("trajectory_invalid", {"boxes": [BOX] * 1_000_000}),
    "points-a-million": ("trajectory_invalid", {"trajectories": [[[24.0, 24.0]] * 1_000_000]}),
    "box-three-numbers": ("box_outside", {"boxes": [[1.0, 2.0, 3.0]]}),
    "box-null-inside": ("box_outside", {"boxes": [[None, 2.0, 3.0, 4.0]]}),
    "box-astronomic": ("box_outside", {"boxes": [[1e300, 1e300, 1.1e300, 1.1e300]]}),
    "paths-null": ("trajectory_invalid", {"trajectories": None}),
    "path-infinite": ("trajectory_invalid", {"trajectories": [[[24.0, 24.0], [math.inf, 24.0]]]}),
    "scale-zero": ("trajectory_invalid", {"scales": [[1.0, 0.0]]}),
    "scale-negative": ("trajectory_invalid", {"scales": [[1.0, -2.0]]}),
    "scale-counts-unequal": ("trajectory_invalid", {"scales": [[1.0]]}),
    "data-url-of-nothing": ("image_undecodable", {"image": "data:image/png;base64,"}),
    "data-url-of-text": (
        "image_undecodable",
        {"image": "data:image/png;base64," + base64.b64encode(b"no picture").decode()},
    ),
}
ODD: Mapping[str, Mapping[str, Any]] = {
    "seed-smallest": {"seed": -(2**63)},
    "seed-largest": {"seed": 2**63 - 1},
    "path-far-away": {"trajectories": [[[24.0, 24.0], [1e12, -1e12]]]},
    "path-of-ten-thousand": {"trajectories": [[[24.0 + n / 1000, 24.0] for n in range(10_000)]]},
    "scale-enormous": {"scales": [[1.0, 1e6]]},
}
"""Rows that are unusual but valid."""


def test_a_table_of_hostile_rows(tmp_path: Path) -> None:
    picture().save(tmp_path / "good.png")
    rows = [row(name, image="good.png") for name in GOOD]
    codes: dict[str, str] = {}
    for name, (code, make) in FILES.items():
        make(tmp_path / name)
        rows.append(row(name, image=name))
        codes[name] = code
    for name, image_uri in PLACES.items():
        rows.append(row(name, image=image_uri))
        codes[name] = "image_missing"
    for name, (code, changes) in ROWS.items():
        rows.append(row(name, **{"image": "good.png", "boxes": [BOX], "trajectories": [PATH], **changes}))
        codes[name] = code
    rows += [row(name, **{"image": "good.png", **changes}) for name, changes in ODD.items()]
    manifest, output = write_rows(tmp_path / "m.parquet", rows), tmp_path / "out"
    words = ("run", manifest, "--output", output, *SETTINGS, "--sample-timeout", str(TIMEOUT_S), "--untrusted")
    words += tuple(word for root in ROOTS for word in ("--root", root))
    if IS_WHOLE:
        process = cli(*words, module=STAND_IN)
    else:
        with without_ray():
            process = here(*words)
    assert process.returncode == 1, process.stderr
    written = records(output)
    print(f"\n{len(codes)} kinds of hostile or broken input")
    for name in codes:
        print(f"{name:26} {written[name]['error_code']!s:20} {str(written[name]['message']).splitlines()[0][:110]}")
    assert {name: written[name]["error_code"] for name in codes} == codes
    assert len(codes) >= 30
    assert {name for name, record in written.items() if record["status"] == "committed"} == {*GOOD, *ODD}
    text = process.stdout + process.stderr + "".join(str(record["message"]) for record in written.values())
    text += "".join(file.read_text() for file in (output / "logs").rglob("*.jsonl"))
    text += (output / "run.json").read_text()
    assert SECRET not in text
    assert not re.search(r"root:.?:0:0", text), "a file that a row must not read appears nowhere"
    assert "Traceback" not in text
