"""Runs whose own Ray is killed, and where that Ray listens."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path

import psutil
import pytest

from tests.pipeline.runs import STAND_IN, TINY, Driver, started, until, write_good

pytestmark = pytest.mark.slow

STOPPED_WITHIN_S = 30.0
"""Ray itself ends the driver 60 s after its GCS is gone; an idle machine needs a few seconds."""


def listeners(driver: Driver) -> set[str]:
    """The addresses at which the driver and the processes below it listen."""
    driver.look()
    addresses = set()
    for process in {psutil.Process(driver.process.pid), *driver.seen}:
        with suppress(psutil.NoSuchProcess):  # Ray starts some that end at once
            connections = process.net_connections("inet")
            addresses |= {each.laddr.ip for each in connections if each.status == psutil.CONN_LISTEN}
    return addresses


@pytest.mark.whole
def test_a_run_listens_on_this_machine_only_and_ends_soon_when_its_gcs_dies(tmp_path: Path) -> None:
    manifest, output = write_good(tmp_path, 1), tmp_path / "out"
    words = ("run", manifest, "--output", output, *TINY, "--workers", "1")
    log = tmp_path / "log"
    with log.open("wb") as stream, started(*words, module=STAND_IN, stdout=stream, stderr=stream) as driver:
        until("Ray is up", lambda: "1 worker" in log.read_text(), 120)
        addresses = listeners(driver)
        (gcs,) = (child for child in psutil.Process(driver.process.pid).children() if child.name() == "gcs_server")
        gcs.kill()
        until("the run has ended", lambda: driver.process.poll() is not None, STOPPED_WITHIN_S)
    assert addresses
    assert all(ip_address(address.removeprefix("::ffff:")).is_loopback for address in addresses), addresses
    assert driver.process.returncode == 3, log.read_text()
    assert log.read_text().splitlines()[-1] == (
        "error: the Ray cluster failed: its process gcs_server on this machine has died, perhaps killed because memory "
        "ran out (see the system's log). Committed samples are safe. Run the same command again to continue."
    )
    assert "Traceback" not in log.read_text()
    (claim,) = (output / "lease").iterdir()
    assert json.loads(claim.read_text())["released"]


SESSION = """
import time
import psutil
from pipeline.flow.session import ray_session
from sgi2v.errors import ClusterError
from tests.pipeline.flow.test_pools import config
try:
    with ray_session(config(), 1):
        next(each for each in psutil.Process().children(recursive=True) if each.name() == "raylet").kill()
        time.sleep(30)
except ClusterError as error:
    print(error)
"""


@pytest.mark.whole
def test_a_session_ends_soon_when_its_raylet_dies() -> None:
    ended = subprocess.run([sys.executable, "-c", SESSION], capture_output=True, text=True, timeout=120, check=True)
    assert ended.stdout.startswith("the Ray cluster failed: its process raylet on this machine has died")
