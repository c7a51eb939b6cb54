"""Fixtures that collect the outcomes of the suite; tests/conftest.py prints them as a table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict

import pytest

from tests.chaos.outcome import OUTCOME, Outcome
from tests.pipeline.conftest import S3Server, bucket, s3_server

__all__ = ["S3Server", "bucket", "s3_server"]

_outcomes: list[Outcome] = []


@pytest.fixture
def outcomes() -> Sequence[Outcome]:
    """The rows of the table so far."""
    return tuple(_outcomes)


@pytest.fixture
def judged(record_property: Callable[[str, object], None]) -> Callable[[Outcome], None]:
    """Put an outcome into the table; fail the test if a row was lost, doubled or quarantined."""

    def judge(outcome: Outcome) -> None:
        _outcomes.append(outcome)
        record_property(OUTCOME, asdict(outcome))
        assert (outcome.lost, outcome.doubled, outcome.quarantined) == (0, 0, 0), outcome

    return judge
