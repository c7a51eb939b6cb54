"""The command line as a process: its signals, its standard streams, and its exit code; without Ray."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.output.lease import acquire, read_claim
from pipeline.output.storage import Storage
from tests.pipeline.in_process import here, run_tiny_here, without_ray
from tests.pipeline.runs import RUN_TIMEOUT_S, TINY, records, table, until, write_good
from tests.stand_in import SECONDS

pytestmark = pytest.mark.slow

BARE = """
from pipeline.cli.main import main
from pipeline.output import lease
from tests.pipeline.in_process import without_ray
lease.HEARTBEAT_S = 0.2
with without_ray():
    main()
"""
ROWS = 40
"""Rows of a run that is stopped before it ends; each takes 0.2 s."""


@contextmanager
def bare_run(
    folder: Path, rows: int, prepare: Callable[[], object] | None = None, **streams: Any
) -> Iterator[subprocess.Popen[str]]:
    """`sgi2v-batch run` with a bare loop in place of Ray. prepare: called in the new process before it starts."""
    words = [sys.executable, "-c", BARE, "run", str(write_good(folder, rows)), "--output", str(folder / "out"), *TINY]
    environment = {**os.environ, SECONDS: "0.2"}
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **streams}
    process = subprocess.Popen(words, text=True, env=environment, preexec_fn=prepare, **streams)  # noqa: PLW1509
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def ignoring(number: signal.Signals) -> Callable[[], object]:
    """Lets a process start with a signal ignored, as a shell does for `command &`, and nohup for SIGHUP."""
    return lambda: signal.signal(number, signal.SIG_IGN)


def is_released(folder: Path) -> bool:
    claim = read_claim(Storage(str(folder / "out")))
    assert claim is not None
    return claim.released


@pytest.mark.parametrize(
    ("number", "ignored"),
    [
        (signal.SIGINT, signal.SIGINT),
        (signal.SIGTERM, signal.SIGHUP),
        pytest.param(signal.SIGHUP, signal.SIGINT, marks=pytest.mark.whole),
    ],
)
def test_a_signal_ends_a_run_cleanly_also_where_a_shell_ignores_sigint(
    number: signal.Signals, ignored: signal.Signals, tmp_path: Path
) -> None:
    with bare_run(tmp_path, ROWS, ignoring(ignored)) as process:
        until("a record is there", lambda: (tmp_path / "out").exists() and len(records(tmp_path / "out")) > 0)
        process.send_signal(number)
        text, _ = process.communicate(timeout=RUN_TIMEOUT_S)
    assert process.returncode == 130, text
    assert "Nothing is lost: the same command goes on from here." in text
    assert 0 < len(records(tmp_path / "out")) < ROWS
    assert is_released(tmp_path)


@pytest.mark.whole
def test_a_run_under_nohup_outlives_its_terminal(tmp_path: Path) -> None:
    with bare_run(tmp_path, 3, ignoring(signal.SIGHUP)) as process:
        until("a record is there", lambda: (tmp_path / "out").exists() and len(records(tmp_path / "out")) > 0)
        process.send_signal(signal.SIGHUP)
        text, _ = process.communicate(timeout=RUN_TIMEOUT_S)
    assert process.returncode == 0, text
    assert len(records(tmp_path / "out")) == 3


def test_a_second_driver_is_refused_and_may_take_over(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with bare_run(tmp_path, ROWS) as process:
        until("a record is there", lambda: output.exists() and len(records(output)) > 0)
        with without_ray():
            refused = run_tiny_here(tmp_path / "m.parquet", output)
            assert refused.returncode == 2, refused.stderr
            assert f"is in use by another run: {socket.gethostname()}, process {process.pid}" in refused.stderr
            taken_over = run_tiny_here(tmp_path / "m.parquet", output, "--take-over")
        assert taken_over.returncode == 0, taken_over.stderr
        text, _ = process.communicate(timeout=RUN_TIMEOUT_S)
    assert process.returncode == 2, text
    assert "has been taken over by another run" in text
    assert len(table(output)) == len(set(table(output)["file_name"].to_pylist())) == ROWS
    assert "running" not in here("status", output).stdout


def test_a_store_that_fails_during_a_run_ends_it_with_a_message(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with bare_run(tmp_path, ROWS) as process:
        until("a record is there", lambda: output.exists() and len(records(output)) > 0)
        shutil.rmtree(output / "videos")
        (output / "videos").write_text("in the way")
        text, _ = process.communicate(timeout=RUN_TIMEOUT_S)
    assert process.returncode == 3, text
    assert text.splitlines()[-1].startswith(f"error: writing {output}/videos/s"), text
    assert "Traceback" not in text
    assert len(records(output)) < ROWS


@pytest.mark.whole
def test_a_run_in_the_background_of_a_script_stops_when_it_is_overtaken(tmp_path: Path) -> None:
    with bare_run(tmp_path, ROWS, ignoring(signal.SIGINT)) as process:
        until("a record is there", lambda: (tmp_path / "out").exists() and len(records(tmp_path / "out")) > 0)
        with acquire(Storage(str(tmp_path / "out")), take_over=True):
            text, _ = process.communicate(timeout=RUN_TIMEOUT_S)
    assert process.returncode == 2, text
    assert "has been taken over by another run" in text
    assert len(records(tmp_path / "out")) < ROWS


def test_a_run_goes_on_when_the_reader_of_its_output_has_gone(tmp_path: Path) -> None:
    with bare_run(tmp_path, 3) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("3 rows")
        process.stdout.close()
        assert process.wait(RUN_TIMEOUT_S) == 0
    assert len(records(tmp_path / "out")) == 3


def test_a_run_needs_no_room_for_its_output_and_no_streams(tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full, bare_run(tmp_path / "full", 1, stdout=full, stderr=full) as process:
        assert process.wait(RUN_TIMEOUT_S) == 0
    closed: Callable[[], object] = lambda: [os.close(descriptor) for descriptor in (0, 1, 2)]  # noqa: E731
    with bare_run(tmp_path / "closed", 1, closed) as process:
        assert process.wait(RUN_TIMEOUT_S) == 0
    for name in ("full", "closed"):
        assert len(records(tmp_path / name / "out")) == 1
