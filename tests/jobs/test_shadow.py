"""A job whose working folder holds packages of the user's own with the names of ours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sgi2v_batch import PACKAGES
from tests.jobs.conftest import RayHead
from tests.pipeline.runs import RUN_TIMEOUT_S, TINY, records, write_good
from tests.pipeline.test_run_shadowed import write_module


@pytest.mark.whole
@pytest.mark.slow
def test_the_users_packages_are_never_run_in_a_job(ray_head: RayHead, tmp_path: Path) -> None:
    manifest, output = write_good(tmp_path / "in", 1), tmp_path / "out"
    folder, markers = tmp_path / "folder", tmp_path / "markers"
    markers.mkdir()
    for name in PACKAGES:
        write_module(folder / name / "__init__.py", markers / name)
    run = [sys.executable, "-P", "-m", "sgi2v_batch", "run", str(manifest), "--output", str(output), *TINY]
    job = ["ray", "job", "submit", "--address", ray_head.address, "--working-dir", str(folder), "--", *run]
    process = subprocess.run(
        [*job, "--workers", "1"],
        env={**os.environ, **ray_head.environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=RUN_TIMEOUT_S,
        check=False,
    )
    assert process.returncode == 0, process.stdout + process.stderr
    assert {path.name: path.read_text() for path in markers.iterdir()} == {}
    assert set(records(output)) == {"s00"}
