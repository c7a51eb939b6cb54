"""Runs that are killed, and one that is stopped by Ctrl-C on a terminal: nothing is lost, nothing is done twice."""

from __future__ import annotations

import os
import pty
import re
import shutil
import signal
import socket
import threading
from pathlib import Path

import pytest

from pipeline.output.storage import Storage
from tests.pipeline.runs import STAND_IN, TINY, cli, records, run_tiny, started, table, until, write_good
from tests.stand_in import SECONDS

pytestmark = pytest.mark.slow

ROWS = 9
GONE_WITHIN_S = 30.0
STOPPED_WITHIN_S = 20.0
LINGERING = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Helpers of Ray's that notice only after a minute that their node is gone; they hold no model."""


def number_of_records(output: Path) -> int:
    return len(records(output))


def check_whole(output: Path, rows: int) -> None:
    """Every sample committed once, and its video the one that its record names."""
    found = records(output)
    assert len(found) == rows
    assert {record["status"] for record in found.values()} == {"committed"}
    assert {record["attempts"] for record in found.values()} == {1}
    files = [record["file_name"] for record in found.values()]
    assert len(set(files)) == rows
    assert all(
        (output / name).stat().st_size == found[key]["video_bytes"] for key, name in zip(found, files, strict=True)
    )
    assert sorted(table(output)["file_name"].to_pylist()) == sorted(files)
    assert table(output, "failures.parquet").num_rows == 0
    storage = Storage(str(output))
    listed = [*storage.keys("records"), *storage.keys("videos")]
    assert not [key for key in listed if key.endswith(".partial")], "a killed writer's file is no result"


def test_a_killed_driver_is_gone_on_with(tmp_path: Path) -> None:
    rows = 6
    manifest, output = write_good(tmp_path, rows), tmp_path / "out"
    words = ("run", manifest, "--output", output, *TINY, "--workers", "1")
    with (tmp_path / "log").open("ab") as log, started(*words, stdout=log, stderr=log) as driver:

        def reached() -> bool:
            assert driver.process.poll() is None, (tmp_path / "log").read_text()
            driver.look()
            return number_of_records(output) >= 2

        until("two records are there", reached, 120)
        driver.process.send_signal(signal.SIGKILL)
        driver.process.wait()
        until(
            f"no process of a killed run is left: {driver.alive()}",
            lambda: all(name.startswith(LINGERING) for name in driver.alive()),
            GONE_WITHIN_S,
        )
    assert number_of_records(output) < rows
    before = records(output)
    done = run_tiny(manifest, output, module=STAND_IN)
    assert done.returncode == 0, done.stderr
    assert f"{rows} rows: {len(before)} done before, {rows - len(before)} to do" in done.stderr
    check_whole(output, rows)
    after = records(output)
    assert {name: after[name] for name in before} == before, "what was committed is not made again"


def test_a_store_that_fails_half_way_ends_the_run_with_its_message(tmp_path: Path) -> None:
    manifest, output = write_good(tmp_path, ROWS), tmp_path / "out"
    words = ("run", manifest, "--output", output, *TINY, "--workers", "1")
    options = {"module": STAND_IN, "env": {**os.environ, SECONDS: "0.5"}}
    with (tmp_path / "log").open("wb") as log, started(*words, **options, stdout=log, stderr=log) as driver:
        until("a record is there", lambda: number_of_records(output) >= 1, 120)
        shutil.rmtree(output / "videos")
        (output / "videos").write_text("in the way")
        until("the run has ended", lambda: driver.process.poll() is not None, STOPPED_WITHIN_S)
    text = (tmp_path / "log").read_text()
    assert driver.process.returncode == 3, text
    last = text.splitlines()[-1]
    assert last.startswith(f"error: writing {output}/videos/s0"), text
    assert "Traceback" not in text
    assert number_of_records(output) < ROWS


class Terminal:
    """A pseudo-terminal, and all that was written on it."""

    def __init__(self) -> None:
        self.here, self.there = pty.openpty()
        self.text = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self.here, 4096)
            except OSError:  # the other end is closed
                return
            self.text += data.decode(errors="replace")

    @property
    def plain(self) -> str:
        """The text without what moves the cursor or colours."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.text)


def test_ctrl_c_on_a_terminal_stops_cleanly_and_says_how_to_go_on(tmp_path: Path) -> None:
    manifest, output = write_good(tmp_path, ROWS), tmp_path / "out"
    terminal = Terminal()
    words = ("run", manifest, "--output", output, *TINY, "--workers", "1")
    ends = {"stdin": terminal.there, "stdout": terminal.there, "stderr": terminal.there}
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "140"}
    with started(*words, **ends, env=environment) as driver:

        def reached() -> bool:
            driver.look()
            assert driver.process.poll() is None, terminal.plain
            return f"3/{ROWS} done, 0 failed" in terminal.plain

        until("the bar tells three samples", reached, 120)
        os.killpg(driver.process.pid, signal.SIGINT)  # what a terminal does
        until("the run has stopped", lambda: driver.process.poll() is not None, STOPPED_WITHIN_S)
    os.close(terminal.there)
    made = number_of_records(output)
    text = terminal.plain

    assert driver.process.returncode == 130, text
    assert f"Interrupted with {ROWS - made} rows left. Nothing is lost: the same command goes on from here." in text
    assert table(output).num_rows == made
    assert table(output, "failures.parquet").num_rows == 0
    assert "Traceback" not in text
    assert not re.search(r"\bray\b|raylet|INFO|WARNING|\(pid=", text, re.IGNORECASE), text
    assert re.search(rf"generating .*3/{ROWS} done, 0 failed .*\d\.\d per min, .* left", text), text[:3000]

    done = run_tiny(manifest, output, module=STAND_IN)
    assert done.returncode == 0, done.stderr
    assert f"{ROWS} rows: {made} done before, {ROWS - made} to do" in done.stderr
    check_whole(output, ROWS)
    for line in done.stderr.splitlines():
        assert re.match(r"\d+ rows: |\d workers?, |\[\d+/\d+\] s\d\d done in ", line), line


def test_a_second_driver_is_refused_and_may_take_over(tmp_path: Path) -> None:
    manifest, output = write_good(tmp_path, ROWS), tmp_path / "out"
    words = ("run", manifest, "--output", output, *TINY, "--workers", "1")
    options = {"module": STAND_IN, "env": {**os.environ, SECONDS: "2"}}
    with (tmp_path / "log").open("ab") as log, started(*words, **options, stdout=log, stderr=log) as driver:
        until("a record is there", lambda: number_of_records(output) > 0, 120)
        refused = run_tiny(manifest, output)
        assert refused.returncode == 2, refused.stderr
        assert f"is in use by another run: {socket.gethostname()}, process {driver.process.pid}" in refused.stderr
        assert number_of_records(output) < ROWS
        took = run_tiny(manifest, output, "--take-over", module=STAND_IN)
        assert took.returncode == 0, took.stderr
        assert driver.process.wait(STOPPED_WITHIN_S) == 2
    assert "has been taken over by another run" in (tmp_path / "log").read_text()
    check_whole(output, ROWS)
    assert "running" not in cli("status", output).stdout
