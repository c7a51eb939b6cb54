"""A run in a folder with modules of the user's own whose names are those of our packages or of libraries."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sgi2v.checkpoint import open_checkpoint
from sgi2v.config import ModelConfig
from sgi2v_batch import PACKAGES
from tests.pipeline.runs import RUN_TIMEOUT_S, TINY, records, write_good

LIBRARIES = ("torch", "numpy", "pandas", "pyarrow", "random", "calendar")


def write_module(path: Path, marker: Path) -> None:
    """A module that writes a marker file when it is run, with the stack that imports it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"import traceback\ntraceback.print_stack(file=open({str(marker)!r}, 'w'))\n")


@pytest.mark.whole
def test_the_users_modules_are_never_run(tmp_path: Path) -> None:
    manifest = write_good(tmp_path / "in", 1)
    folder, markers = tmp_path / "folder", tmp_path / "markers"
    markers.mkdir()
    for name in (*PACKAGES, *LIBRARIES):
        write_module(folder / f"{name}.py", markers / name)
    shutil.copytree(open_checkpoint(ModelConfig(source="embedded")).path, folder / "model")
    # as the console script: the current folder is not on the driver's path
    command = [sys.executable, "-P", "-m", "sgi2v_batch", "run", str(manifest), "--output", "out", *TINY]
    process = subprocess.run(
        [*command, "--workers", "1", "--model", "./model"],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
    )
    assert process.returncode == 0, process.stderr
    assert {path.name: path.read_text() for path in markers.iterdir()} == {}
    assert set(records(folder / "out")) == {"s00"}, "relative paths mean the driver's folder in every worker"
