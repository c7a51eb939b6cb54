"""The suite's table, told at the end of the test run."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.chaos.outcome import Outcome
from tests.pipeline.conftest import S3Server, bucket, s3_server

__all__ = ["S3Server", "bucket", "s3_server"]

_outcomes: list[Outcome] = []


@pytest.fixture
def judged() -> Callable[[Outcome], None]:
    """Put an outcome into the table, and fail the test where something was lost, doubled or quarantined."""

    def judge(found: Outcome) -> None:
        _outcomes.append(found)
        assert (found.lost, found.doubled, found.quarantined) == (0, 0, 0), found

    return judge


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if _outcomes:
        terminalreporter.section("chaos")
        terminalreporter.write_line(Outcome.head())
        for each in _outcomes:
            terminalreporter.write_line(each.line())
        terminalreporter.write_line(f"{sum(each.faults for each in _outcomes)} faults in all")
