"""Rules for all tests."""

from __future__ import annotations

import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.s3_stand_in import Store, s3_stand_in

ROOT = Path(__file__).parents[1]


def pytest_configure(config: pytest.Config) -> None:
    """Hide GPUs from all tests but those marked `gpu`, let workers of runs import the tests, and use a new cache."""
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    if config.getoption("markexpr") != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if "PYTEST_XDIST_WORKER" not in os.environ:  # the processes of `pytest -n` share the folder of the first
        folder = tempfile.TemporaryDirectory(prefix="sgi2v-tests")
        os.environ["SGI2V_CACHE"] = folder.name
        config.add_cleanup(folder.cleanup)


@pytest.fixture(scope="session", autouse=True)
def _processes_can_be_interrupted() -> Iterator[None]:
    """Let processes that the tests start receive SIGINT and SIGHUP: background jobs and `nohup` ignore them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler), signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGINT, before[0])
    signal.signal(signal.SIGHUP, before[1])


def _left_behind(since: float) -> bool:
    """Whether an actor of a run is alive whose raylet, which started it, is gone."""
    for process in psutil.process_iter():
        try:
            name, parent = " ".join(process.cmdline()), process.parent()
            orphaned = parent is None or parent.name() != "raylet"
            if orphaned and name.startswith("ray::MapWorker") and process.create_time() >= since:
                return True
        except psutil.NoSuchProcess:
            continue
    return False


@pytest.fixture(scope="session", autouse=True)
def _runs_leave_no_process() -> Iterator[None]:
    """Check that runs leave no processes behind: each might hold a model on a GPU."""
    from tests.pipeline.runs import until

    start = time.time()
    yield
    until("no actor of a run is left", lambda: not _left_behind(start))


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """A small object store that takes keys as they are; the environment is set to reach it."""
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    with s3_stand_in() as running:
        for name, value in running.environment.items():
            monkeypatch.setenv(name, value)
        yield running
    s3fs.S3FileSystem.clear_instance_cache()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table of the chaos suite, and the output of its tests, which pytest shows for failed tests only.

    Both come from the tests' reports, since `pytest -n` runs the tests in other processes.
    """
    from tests.chaos.outcome import OUTCOME, Outcome

    suite = "tests/chaos/"
    stats = terminalreporter.stats
    for report in stats.get("passed", []):
        if report.nodeid.startswith(suite) and report.capstdout:
            terminalreporter.section(report.nodeid.removeprefix(suite))
            terminalreporter.write_line(report.capstdout.strip())
    reports = [report for report in stats.get("passed", []) + stats.get("failed", []) if report.when == "call"]
    outcomes = [Outcome(**value) for report in reports for name, value in report.user_properties if name == OUTCOME]
    if outcomes:
        terminalreporter.section("chaos")
        terminalreporter.write_line(Outcome.head())
        for outcome in outcomes:
            terminalreporter.write_line(outcome.line())
        terminalreporter.write_line(f"{sum(outcome.faults for outcome in outcomes)} faults in all")
