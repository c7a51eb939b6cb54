"""Work in several processes, one of which dies."""

from __future__ import annotations

import os
import signal

import pytest

from manifests.sources.processes import in_processes


def tenfold(number: int) -> int:
    """Ten times the number; 1 kills the process, -1 raises."""
    if number == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    if number == -1:
        raise ValueError("negative")
    return 10 * number


@pytest.mark.slow
def test_only_the_item_that_kills_its_process_is_lost() -> None:
    assert dict(in_processes(tenfold, range(4), 2)) == {0: 0, 1: None, 2: 20, 3: 30}


@pytest.mark.slow
def test_errors_of_the_function_are_raised() -> None:
    with pytest.raises(ValueError, match="negative"):
        list(in_processes(tenfold, [-1], 1))


def test_nothing_to_do_starts_no_process() -> None:
    assert list(in_processes(tenfold, [], 4)) == []
