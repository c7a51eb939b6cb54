"""Runs that are killed or stopped by Ctrl-C: no sample is lost, and none is made twice."""

from __future__ import annotations

import os
import pty
import re
import signal
import threading
from pathlib import Path

import pytest

from pipeline.output.storage import Storage
from tests.pipeline.runs import STAND_IN, TINY, records, run_tiny, started, table, until, write_good
from tests.stand_in import SECONDS

pytestmark = pytest.mark.slow

ROWS = 9
GONE_WITHIN_S = 30.0
STOPPED_WITHIN_S = 20.0
LINGERING = ("ray::DashboardAgent", "ray::RuntimeEnvAgent")
"""Processes of Ray that take a minute to notice that their node is gone; they hold no model."""


def number_of_records(output: Path) -> int:
    return len(records(output))


def check_whole(output: Path, rows: int) -> None:
    """Check that every sample is committed once, and that its record names its video."""
    written = records(output)
    assert len(written) == rows
    assert {record["status"] for record in written.values()} == {"committed"}
    assert {record["attempts"] for record in written.values()} == {1}
    files = [record["file_name"] for record in written.values()]
    assert len(set(files)) == rows
    assert all(
        (output / name).stat().st_size == written[key]["video_bytes"] for key, name in zip(written, files, strict=True)
    )
    assert sorted(table(output)["file_name"].to_pylist()) == sorted(files)
    assert table(output, "failures.parquet").num_rows == 0
    storage = Storage(str(output))
    listed = [*storage.keys("records"), *storage.keys("videos")]
    assert not [key for key in listed if key.endswith(".partial")], "files of a killed writer are not listed"


def test_a_run_continues_after_a_killed_driver(tmp_path: Path) -> None:
    rows = 4
    manifest, output = write_good(tmp_path, rows), tmp_path / "out"
    words = ("run", manifest, "--output", output, *TINY, "--workers", "1")
    options = {"module": STAND_IN, "env": {**os.environ, SECONDS: "1"}}
    with (tmp_path / "log").open("ab") as log, started(*words, **options, stdout=log, stderr=log) as driver:

        def reached() -> bool:
            assert driver.process.poll() is None, (tmp_path / "log").read_text()
            driver.look()
            return number_of_records(output) >= 1

        until("a record is there", reached, 120)
        driver.process.send_signal(signal.SIGKILL)
        driver.process.wait()
        until(
            f"no process of a killed run is left: {driver.alive()}",
            lambda: all(name.startswith(LINGERING) for name in driver.alive()),
            GONE_WITHIN_S,
        )
    assert number_of_records(output) < rows
    before = records(output)
    process = run_tiny(manifest, output, "--workers", "1", module=STAND_IN)
    assert process.returncode == 0, process.stderr
    for line in process.stderr.splitlines():
        assert re.match(r"\d+ rows: |\d workers?, |\[\d+/\d+\] s\d\d done in ", line), line
    assert f"{rows} rows: {len(before)} done before, {rows - len(before)} to do" in process.stderr
    check_whole(output, rows)
    after = records(output)
    assert {name: after[name] for name in before} == before, "committed samples are not made again"


class Terminal:
    """A pseudo-terminal, and everything that was written to it."""

    def __init__(self) -> None:
        self.here, self.there = pty.openpty()
        self.text = ""
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        while True:
            try:
                data = os.read(self.here, 4096)
            except OSError:  # the process's end is closed
                return
            self.text += data.decode(errors="replace")

    @property
    def plain(self) -> str:
        """The text without control sequences."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.text)


@pytest.mark.whole
def test_ctrl_c_on_a_terminal_stops_cleanly_and_says_how_to_continue(tmp_path: Path) -> None:
    manifest, output = write_good(tmp_path, ROWS), tmp_path / "out"
    terminal = Terminal()
    words = ("run", manifest, "--output", output, *TINY, "--workers", "1")
    streams = {"stdin": terminal.there, "stdout": terminal.there, "stderr": terminal.there}
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "140", SECONDS: "0.5"}
    with started(*words, module=STAND_IN, **streams, env=environment) as driver:

        def reached() -> bool:
            driver.look()
            assert driver.process.poll() is None, terminal.plain
            return f"3/{ROWS} done, 0 failed" in terminal.plain

        until("the bar shows three samples", reached, 120)
        os.killpg(driver.process.pid, signal.SIGINT)  # what a terminal does
        until("the run has stopped", lambda: driver.process.poll() is not None, STOPPED_WITHIN_S)
    os.close(terminal.there)
    committed = number_of_records(output)
    left = ROWS - committed
    text = terminal.plain

    assert driver.process.returncode == 130, text
    assert f"Interrupted with {left} rows left. Nothing is lost: the same command goes on from here." in text
    assert table(output).num_rows == committed
    assert table(output, "failures.parquet").num_rows == 0
    assert "Traceback" not in text
    assert not re.search(r"\bray\b|raylet|INFO|WARNING|\(pid=", text, re.IGNORECASE), text
    assert re.search(rf"generating .*3/{ROWS} done, 0 failed .*\d\.\d per min, .* left", text), text[:3000]
