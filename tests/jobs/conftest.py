"""A real Ray head on this machine that lets nobody in without its token."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.pipeline.runs import until

HEAD_READY_S = 90.0
TOKEN = "the-token-of-the-cluster-that-only-tests-use"
PORTS = ("port", "dashboard-port", "dashboard-agent-listen-port", "ray-client-server-port")


@dataclass(frozen=True)
class RayHead:
    """Where the head is and how to get in."""

    address: str
    """URL of its dashboard."""
    gcs: str
    """What a driver attaches to."""
    environment: Mapping[str, str]
    """Of whoever may get in."""


@pytest.fixture(scope="session")
def ray_head() -> Iterator[RayHead]:
    """A head with four CPUs. `ray stop` would end everybody's Ray: only its own processes are ended."""
    scripts = str(Path(sys.executable).parent)
    environment = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN, "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= {f"RAY_health_check_{name}_ms": "60000" for name in ("initial_delay", "timeout")}  # a busy machine
    environment["PATH"] = os.pathsep.join([scripts, os.environ["PATH"]])
    held = [socket.create_server(("127.0.0.1", 0)) for _ in PORTS]
    ports = {name: each.getsockname()[1] for name, each in zip(PORTS, held, strict=True)}
    for each in held:
        each.close()
    folder = Path(tempfile.mkdtemp(prefix="ray", dir="/tmp"))  # the paths of its sockets must be short
    words = [
        "ray",
        "start",
        "--head",
        "--block",
        "--num-cpus=4",
        "--dashboard-host=127.0.0.1",
        f"--temp-dir={folder}/t",
    ]
    words += ["--include-dashboard=true", "--object-store-memory=200000000"]
    words += [f"--{name}={port}" for name, port in ports.items()]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            words,
            stdout=log,
            stderr=subprocess.STDOUT,
            cwd=folder,
            env={**os.environ, **environment},
            start_new_session=True,
        )
    address = f"http://127.0.0.1:{ports['dashboard-port']}"

    def ready() -> bool:
        assert process.poll() is None, (folder / "log").read_text()[-2000:]
        request = urllib.request.Request(f"{address}/api/jobs/", headers={"Authorization": f"Bearer {TOKEN}"})
        with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(request, timeout=5) as answer:
            return bool(answer.status == 200)
        return False

    try:
        until("the Ray head answers", ready, HEAD_READY_S)
        yield RayHead(address, f"127.0.0.1:{ports['port']}", environment)
    finally:
        below = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        for each in below:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()
        psutil.wait_procs(below, timeout=10)
        shutil.rmtree(folder, ignore_errors=True)
