"""When a process of Ray counts as lost; Ray itself is not started."""

from __future__ import annotations

import socket

import pytest

from pipeline.flow import watch
from pipeline.flow.watch import RayProcess

HOST = "127.0.0.1"


def test_a_dead_process_of_this_machine_is_lost_at_once_and_one_elsewhere_is_given_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
        here, elsewhere = (RayProcess("gcs_server", HOST, port, is_here) for is_here in (True, False))
        assert not any([here.is_lost(), elsewhere.is_lost()])
    assert [here.is_lost() for _ in range(watch.REFUSALS)] == [False] * (watch.REFUSALS - 1) + [True]
    assert [elsewhere.is_lost() for _ in range(5)] == [False] * 5
    monkeypatch.setattr(watch, "UNREACHABLE_S", -1.0)
    assert elsewhere.is_lost()
    assert "has died" in here.describe()
    assert f"at {HOST}:{port} has not answered for" in elsewhere.describe()


def test_a_process_that_answers_again_is_not_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server((HOST, 0)) as server:
        port = server.getsockname()[1]
    process = RayProcess("raylet", HOST, port, is_here=True)
    assert not process.is_lost()
    with socket.create_server((HOST, port)):
        assert not process.is_lost()
    assert not process.is_lost(), "the refusals are counted anew"
