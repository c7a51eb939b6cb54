"""What travels between the stages: errors as codes, with messages of a limited size and without secrets."""

from __future__ import annotations

import pytest

from pipeline.flow.row import InFlight
from sgi2v.errors import ErrorCode, SampleError, StorageError

LONG = "a long story " * 100_000
SECRET = "hunter2"
STATE = InFlight("a", attempts=0, row_digest="", seed=1)


def state_after(error: Exception) -> InFlight:
    """The state of a row after an error that was raised."""
    try:
        raise error
    except Exception as raised:
        return STATE.with_error(raised)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SampleError(ErrorCode.IMAGE_MISSING, f"https://user:{SECRET}@host/a.png {LONG}"), "image_missing"),
        (ValueError(f"https://host/a.png?sig={SECRET} {LONG}"), "unknown"),
        (MemoryError(f"Unable to allocate https://host/?{SECRET}"), "out_of_memory"),
        (MemoryError(), "out_of_memory"),
    ],
)
def test_a_rows_error_is_a_code_and_a_short_message(error: Exception, code: str) -> None:
    state = state_after(error)
    assert state.error_code == code
    message = state.message or ""
    assert 20 < len(message) < 10_000
    assert SECRET not in message
    assert ("in state_after" in message) == (code == "unknown"), "only a bug comes with a traceback"


def test_the_message_of_an_error_that_ends_the_run_is_short_too() -> None:
    message = STATE.with_run_error(StorageError(f"s3://key:{SECRET}@bucket {LONG}")).message or ""
    assert message.startswith("s3://***@bucket a long story")
    assert len(message) < 10_000
