"""The suite's table and figures, told at the end of the test run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

import pytest

from tests.chaos.outcome import Outcome
from tests.pipeline.conftest import S3Server, bucket, s3_server

__all__ = ["S3Server", "bucket", "s3_server"]

SUITE = "tests/chaos/"
OUTCOME = "outcome"
"""Property of a test's report: it also comes from the processes of `pytest -n`."""
_outcomes: list[Outcome] = []


@pytest.fixture
def outcomes() -> Sequence[Outcome]:
    """What the table holds so far."""
    return tuple(_outcomes)


@pytest.fixture
def judged(record_property: Callable[[str, object], None]) -> Callable[[Outcome], None]:
    """Put an outcome into the table, and fail the test where something was lost, doubled or quarantined."""

    def judge(found: Outcome) -> None:
        _outcomes.append(found)
        record_property(OUTCOME, asdict(found))
        assert (found.lost, found.doubled, found.quarantined) == (0, 0, 0), found

    return judge


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The table of faults, and what else the suite's tests have printed, which is shown of failed tests alone."""
    passed = terminalreporter.stats.get("passed", [])
    for report in (each for each in passed if each.nodeid.startswith(SUITE) and each.capstdout):
        terminalreporter.section(report.nodeid.removeprefix(SUITE))
        terminalreporter.write_line(report.capstdout.strip())
    reports = [each for each in passed + terminalreporter.stats.get("failed", []) if each.when == "call"]
    outcomes = [Outcome(**value) for report in reports for name, value in report.user_properties if name == OUTCOME]
    if outcomes:
        terminalreporter.section("chaos")
        terminalreporter.write_line(Outcome.head())
        for each in outcomes:
            terminalreporter.write_line(each.line())
        terminalreporter.write_line(f"{sum(each.faults for each in outcomes)} faults in all")
