"""The retry policy: which errors are retried, how often, and how long it waits."""

from __future__ import annotations

import errno
import itertools
import time

import pytest

import sgi2v.retry
from sgi2v.errors import ErrorCode, SampleError, StorageError
from sgi2v.retry import ATTEMPTS, with_retries


class Failing:
    """An operation that raises these errors, one a call, and then answers."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = iter(errors)
        self.calls = 0

    def __call__(self) -> str:
        self.calls += 1
        for error in self.errors:
            raise error
        return "answer"


@pytest.fixture
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sgi2v.retry, "FIRST_DELAY_S", 0.001)


@pytest.mark.usefixtures("short_delays")
def test_a_transient_error_is_retried() -> None:
    operation = Failing(ConnectionResetError("reset by peer"), RuntimeError("503"))
    assert with_retries("reading x", operation) == "answer"
    assert operation.calls == 3


@pytest.mark.usefixtures("short_delays")
@pytest.mark.parametrize("attempts", [1, 3, ATTEMPTS])
def test_the_last_attempt_raises_a_storage_error(attempts: int) -> None:
    operation = Failing(*[TimeoutError("no answer")] * ATTEMPTS)
    with pytest.raises(StorageError, match=r"^reading x failed: TimeoutError: no answer$") as raised:
        with_retries("reading x", operation, attempts)
    assert isinstance(raised.value.__cause__, TimeoutError)
    assert operation.calls == attempts


@pytest.mark.parametrize(
    "error",
    [
        FileNotFoundError("gone"),
        FileExistsError("there"),
        PermissionError("no"),
        SampleError(ErrorCode.IMAGE_MISSING, "none"),
        StorageError("of an inner operation"),
        TypeError("a bug"),
        KeyboardInterrupt(),
    ],
    ids=repr,
)
def test_final_errors_own_errors_and_bugs_are_raised_as_they_are(error: BaseException) -> None:
    operation = Failing(error)
    with pytest.raises(type(error)) as raised:
        with_retries("reading x", operation)
    assert raised.value is error
    assert operation.calls == 1


class NoCredentialsError(Exception):
    """Named as the AWS SDK's."""


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), NoCredentialsError("Unable to locate credentials")]
)
def test_a_hopeless_error_is_a_storage_error_at_once(error: Exception) -> None:
    operation = Failing(error)
    with pytest.raises(StorageError, match=f"reading x failed: {type(error).__name__}: "):
        with_retries("reading x", operation)
    assert operation.calls == 1


def test_delays_double_up_to_the_longest_with_jitter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sgi2v.retry, "FIRST_DELAY_S", 0.04)
    monkeypatch.setattr(sgi2v.retry, "LONGEST_DELAY_S", 0.08)
    called_at: list[float] = []

    def fails() -> None:
        called_at.append(time.monotonic())
        raise TimeoutError("no answer")

    with pytest.raises(StorageError):
        with_retries("reading x", fails, attempts=4)
    delays = [after - before for before, after in itertools.pairwise(called_at)]
    for delay, mean in zip(delays, (0.04, 0.08, 0.08), strict=True):
        assert delay >= mean / 2
    assert sum(delays) < 1.5 * 0.2 + 1, "the delays have an upper limit"
