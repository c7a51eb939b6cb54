"""What the suite's tests find goes into its table, which the test run tells at its end."""

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
