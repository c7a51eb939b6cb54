"""What travels between the stages: errors as codes and messages of a bounded size."""

from __future__ import annotations

import pytest

from pipeline.flow.row import InFlight
from sgi2v.errors import ErrorCode, SampleError, StorageError

LONG = "a long story " * 100_000
SECRET = "hunter2"
STATE = InFlight("a", attempts=0, row_digest="", seed=1)


def failure_of(error: Exception) -> InFlight:
    """The state after an error that was raised."""
    try:
        raise error
    except Exception as raised:
        return STATE.failed(raised)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SampleError(ErrorCode.IMAGE_MISSING, f"https://user:{SECRET}@host/a.png {LONG}"), "image_missing"),
        (ValueError(f"https://host/a.png?sig={SECRET} {LONG}"), "unknown"),
        (MemoryError(f"Unable to allocate https://host/?{SECRET}"), "out_of_memory"),
        (MemoryError(), "out_of_memory"),
    ],
)
def test_an_error_is_a_code_and_a_message_that_is_not_too_long(error: Exception, code: str) -> None:
    failed = failure_of(error)
    assert failed.error_code == code
    message = failed.message or ""
    assert 20 < len(message) < 10_000
    assert SECRET not in message
    assert ("in failure_of" in message) == (code == "unknown"), "a bug is told with its place, whatever it says"


def test_what_ends_a_run_is_told_as_shortly() -> None:
    message = STATE.ends_run(StorageError(f"s3://key:{SECRET}@bucket {LONG}")).message or ""
    assert message.startswith("s3://***@bucket a long story")
    assert len(message) < 10_000
