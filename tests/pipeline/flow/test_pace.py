"""The driver looks at its flow as often as the rows need."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.flow.pace import MOST_S, ROWS, SHARE, Pace
from tests import stand_in
from tests.pipeline.runs import write_good


@pytest.fixture(autouse=True)
def of_a_flow_of_its_own() -> Iterator[None]:
    Pace.begin()
    yield
    Pace.begin()


def test_the_pause_is_a_share_of_the_time_between_two_rows() -> None:
    assert Pace.pause_s == 0
    Pace.row_came_out(100.0)
    assert Pace.pause_s == 0  # nobody knows yet
    Pace.row_came_out(103.0)
    assert Pace.pause_s == pytest.approx(SHARE * 3)
    Pace.row_came_out(103.0)
    assert Pace.pause_s == pytest.approx(SHARE * 1.5)


def test_rows_that_come_fast_are_not_kept_waiting_by_slow_ones_before() -> None:
    for number in range(3):
        Pace.row_came_out(100.0 * number)
    assert Pace.pause_s == MOST_S
    for number in range(ROWS + 1):
        Pace.row_came_out(200.0 + 0.01 * number)
    assert Pace.pause_s == pytest.approx(SHARE * 0.01)


@pytest.mark.slow
def test_the_flow_of_a_run_is_looked_at_with_pauses_and_has_no_processes_but_its_own(tmp_path: Path) -> None:
    script = """
import json, sys
from contextlib import suppress
import psutil
from manifests.io import read_manifest
from pipeline.config import resolve
from pipeline.pace import Pace
from pipeline.run import Observer, run
from tests import stand_in

looks, rows, processes = [], [], set()
def finished(self, record):
    rows.append(record.sample_id)
    for each in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            name = " ".join(each.cmdline())
            if name and "default_worker.py" not in name:
                processes.add(name.split()[0].rpartition("/")[2].partition(".")[0])
slept = Pace.on_execution_step
Pace.on_execution_step = lambda self, executor: (looks.append(Pace.pause_s), slept(self, executor))
Observer.finished = finished
stand_in.install()
flags = {"model": {"source": "embedded"}, "run": {"workers": 1}}
run(resolve(sys.argv[1], sys.argv[2], {}, flags)[0], read_manifest(sys.argv[1]))
print(json.dumps([looks, rows, sorted(processes)]))
"""
    manifest = write_good(tmp_path, 6)
    done = subprocess.run(
        [sys.executable, "-c", script, str(manifest), str(tmp_path / "out")],
        env={**os.environ, stand_in.SECONDS: "1"},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()
    looks, rows, processes = json.loads(done.stdout)
    assert len(rows) == 6
    assert looks[0] == 0
    assert SHARE * 0.3 < max(looks) <= MOST_S  # the first few may wait for a committer, and come out together
    own = {f"ray::MapWorker(MapBatches({name}))" for name in ("Load", "StandIn", "Commit")}
    of_rays_node = {"gcs_server", "raylet", "ray::DashboardAgent", "ray::RuntimeEnvAgent", "ray::IDLE"}
    assert "ray::MapWorker(MapBatches(StandIn))" in processes
    assert set(processes) <= own | of_rays_node
