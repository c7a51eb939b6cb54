"""`manifest draw`, run as a user runs it."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from manifests.io import read_manifest

ROOT = Path(__file__).parents[3]


@pytest.mark.slow
def test_draw_prints_its_address_saves_rows_and_ends(tmp_path: Path) -> None:
    Image.new("RGB", (100, 80)).save(tmp_path / "cat.png")
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pipeline.cli.main import main; main()"
    command = [sys.executable, "-c", program, "manifest", "draw", "cat.png", "-o", "m.parquet"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().removeprefix("open ").strip()

        def post(path: str, content: object) -> None:
            request = urllib.request.Request(url + path, json.dumps(content).encode())
            request.add_header("Content-Type", "application/json")
            urllib.request.urlopen(request, timeout=60).close()

        post("rows", {"picture": 0, "boxes": [[10, 10, 40, 30]], "trajectories": [[[25, 20], [60, 40]]]})
        post("finish", {})
        lines = process.stdout.read().splitlines()
        assert process.wait() == 0
    assert lines == [
        "press Finish in the page, or Ctrl-C here, to end",
        "m.parquet has 1 row",
        "next: sgi2v-batch manifest validate m.parquet",
    ]
    assert read_manifest(str(tmp_path / "m.parquet")).column("image").to_pylist() == ["cat.png"]
