"""Fixtures for the tests of the tools."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """One CPU thread, as the trainings have."""
    torch.set_num_threads(1)


@pytest.fixture
def free_ports() -> list[int]:
    """Three TCP ports that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
        for listener in sockets:
            listener.bind(("127.0.0.1", 0))
        return [listener.getsockname()[1] for listener in sockets]
