"""What every test relies on."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator

import psutil
import pytest


def pytest_configure(config: pytest.Config) -> None:
    """What is not marked `gpu` is about the CPU, also on a machine that has a GPU."""
    if config.getoption("markexpr") != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session", autouse=True)
def _processes_can_be_interrupted() -> Iterator[None]:
    """Processes that the tests start get Ctrl-C as a terminal's do, also where the tests run in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def _left_behind(since: float) -> bool:
    """Whether there is an actor of a flow that has lost the daemon that started it."""
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
    """Behind a run none of its processes stays, each of which might have a model on a GPU."""
    from tests.pipeline.runs import until

    start = time.time()
    yield
    until("no actor of a run is left", lambda: not _left_behind(start))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of the chaos suite, and what else its tests have printed, which is shown of failed tests alone.

    From their reports: `pytest -n` makes them in other processes, where the suite's own conftest is.
    """
    from tests.chaos.outcome import OUTCOME, Outcome

    suite = "tests/chaos/"
    stats = terminalreporter.stats
    for report in stats.get("passed", []):
        if report.nodeid.startswith(suite) and report.capstdout:
            terminalreporter.section(report.nodeid.removeprefix(suite))
            terminalreporter.write_line(report.capstdout.strip())
    reports = [each for each in stats.get("passed", []) + stats.get("failed", []) if each.when == "call"]
    outcomes = [Outcome(**value) for report in reports for name, value in report.user_properties if name == OUTCOME]
    if outcomes:
        terminalreporter.section("chaos")
        terminalreporter.write_line(Outcome.head())
        for each in outcomes:
            terminalreporter.write_line(each.line())
        terminalreporter.write_line(f"{sum(each.faults for each in outcomes)} faults in all")
