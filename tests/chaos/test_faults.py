"""Faults of every kind against real runs: no row is lost, none is committed twice, no innocent one is given up.

Shortened in every test run; whole by `make chaos`. The generator is a stand-in, all else is real.
"""

from __future__ import annotations

import io
import os
import random
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import psutil
import pytest
import s3fs

from pipeline.flow.attempts import IN_FLIGHT_PER_WORKER
from pipeline.output.storage import Storage
from tests.chaos.faulty import DEATHS, JOURNAL, PART_ROWS, read_journal
from tests.chaos.flaky_proxy import flaky_proxy
from tests.chaos.outcome import IS_WHOLE, Outcome, outcome, scaled
from tests.pipeline.conftest import S3Process, S3Server
from tests.pipeline.runs import TINY, command, picture, row, until, write_rows
from tests.stand_in import SECONDS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]

WORKERS = 2
SETTINGS = (*TINY, "--workers", str(WORKERS))
SEED = 817
RUN_S = 1200.0
IMAGES = 8
FAULTS = 200
"""Of the whole suite, at least."""
Judge = Callable[[Outcome], None]


@dataclass
class Scene:
    """A manifest, an output, a journal, and the environment of their runs."""

    folder: Path
    manifest: Path
    output: str
    environment: dict[str, str]

    @property
    def journal(self) -> Path:
        return self.folder / "journal"

    def command(self, *words: str) -> list[str]:
        run = ("run", self.manifest, "--output", self.output, *SETTINGS)
        return command(*run, *words, module="tests.chaos.faulty")

    def run(self, *words: str) -> subprocess.CompletedProcess[str]:
        """A run to its end."""
        return subprocess.run(
            self.command(*words), env=self.environment, capture_output=True, text=True, timeout=RUN_S, check=False
        )

    @contextmanager
    def started(self, log: IO[bytes], *words: str) -> Iterator[subprocess.Popen[bytes]]:
        """A run that goes on; killed at the end."""
        process = subprocess.Popen(self.command(*words), env=self.environment, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def finish(self, most: int = 1) -> int:
        """Start runs until one gets through, each told to go on by nothing else; how many ended before."""
        for ended in range(most):
            done = self.run()
            if done.returncode == 0:
                return ended
            assert done.returncode == 3, done.stderr
            assert done.stderr.splitlines()[-1].startswith("error: "), done.stderr
        raise AssertionError(f"no run of {most} got through: {done.stderr}")


def made_at_least(at: Scene, number: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until so many samples have been generated."""

    def made() -> bool:
        assert process.poll() is None, (at.folder / "log").read_text()[-2000:]
        return len(read_journal(at.journal, "generated")) >= number

    until(f"{number} samples are made", made, 120)


def scene(folder: Path, rows: int, output: str | None = None, **environment: str) -> Scene:
    """The images are in the folder, or in the output's bucket."""
    place = output.rpartition("/")[0] if output and "://" in output else str(folder)
    for number in range(IMAGES):
        sink = io.BytesIO()
        picture(number).save(sink, "PNG")
        Storage(place).put(f"images/{number}.png", sink.getvalue())
    good = [row(f"s{number:04d}", image=f"{place}/images/{number % IMAGES}.png") for number in range(rows)]
    manifest = write_rows(folder / "m.parquet", good)
    own = {JOURNAL: str(folder / "journal"), PART_ROWS: "16", **environment}
    return Scene(folder, manifest, output or str(folder / "out"), {**os.environ, **own})


def judged_scene(kind: str, at: Scene, faults: int, start: float) -> Outcome:
    return outcome(kind, at.manifest, at.output, at.journal, faults, time.monotonic() - start)


@pytest.mark.parametrize("stages", ["generate", "commit"] if IS_WHOLE else ["generate,commit"])
def test_workers_killed(tmp_path: Path, judged: Judge, stages: str) -> None:
    rows = scaled(10, 100)
    at = scene(tmp_path, rows, **{DEATHS: f"{stages}:{scaled(30, 45) / 100}:{SEED}"})
    start = time.monotonic()
    at.finish()
    faults = len(read_journal(at.journal, "killed"))
    assert faults >= rows // 5
    judged(judged_scene(f"worker killed in {stages}", at, faults, start))


@pytest.mark.skipif(
    not IS_WHOLE, reason="in every test run a driver is killed by tests/pipeline/test_run_interrupted.py"
)
@pytest.mark.parametrize(("store", "kills"), [("disk", 20), ("s3", 10)])
def test_drivers_killed(tmp_path: Path, judged: Judge, store: str, kills: int, request: pytest.FixtureRequest) -> None:
    root = str(tmp_path) if store == "disk" else request.getfixturevalue("bucket")
    at = scene(tmp_path, 10 * kills, f"{root}/out", **{SECONDS: "0.2"})
    rng = random.Random(SEED)
    start = time.monotonic()
    for _ in range(kills):
        before = len(read_journal(at.journal, "generated"))
        with (tmp_path / "log").open("ab") as log, at.started(log) as process:
            made_at_least(at, before + 1, process)
            time.sleep(rng.uniform(0, 1))
            process.send_signal(signal.SIGKILL)
    at.finish()
    judged(judged_scene(f"driver killed, output on {store}", at, kills, start))


def kill_ledger() -> bool:
    """Kill the process that counts the attempts of a run on a cluster of this one's, if it is there."""
    for each in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if " ".join(each.cmdline()).startswith("ray::Ledger"):
                each.kill()
                return True
    return False


@contextmanager
def cluster_for(at: Scene, monkeypatch: pytest.MonkeyPatch, cpus: int) -> Iterator[Any]:
    """A Ray cluster of one node, whose workers have the scene's environment."""
    from ray.cluster_utils import Cluster

    for name, value in at.environment.items():
        monkeypatch.setenv(name, value)
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": cpus, "include_dashboard": False})
    try:
        yield cluster
    finally:
        cluster.shutdown()


def test_ledgers_killed(tmp_path: Path, judged: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    kills = scaled(2, 12)
    at = scene(tmp_path, scaled(12, 100), **{SECONDS: "0.3"})
    with (
        cluster_for(at, monkeypatch, cpus=4) as cluster,
        (tmp_path / "log").open("wb") as log,
        at.started(log, "--address", cluster.address) as process,
    ):
        start = time.monotonic()
        for number in range(1, kills + 1):
            made_at_least(at, 4 * number, process)
            until("the ledger is there", kill_ledger)
        assert process.wait(RUN_S) == 0, (tmp_path / "log").read_text()
    judged(judged_scene("ledger of attempts killed", at, kills, start))


def test_a_store_that_fails_one_call_in_twenty(tmp_path: Path, judged: Judge, s3_server: S3Server, bucket: str) -> None:
    with flaky_proxy(s3_server.endpoint, share=0.05, seed=SEED) as proxy:
        at = scene(tmp_path, scaled(20, 300), f"{bucket}/out", AWS_ENDPOINT_URL=proxy.address)
        start = time.monotonic()
        at.finish()
    assert sum(proxy.faults.values()) > proxy.calls / 40
    judged(judged_scene(f"S3 fails 5 % of {proxy.calls} calls", at, sum(proxy.faults.values()), start))


def test_a_store_that_is_killed_and_comes_back(tmp_path: Path, judged: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    kills = scaled(1, 4)
    (tmp_path / "s3").mkdir()
    store = S3Process(tmp_path / "s3")
    for name, value in store.server.environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # those of another test's server
    try:
        store.start()
        store.server.filesystem().mkdir("night")
        at = scene(tmp_path, scaled(16, 150), "s3://night/out", **{SECONDS: "0.3"})
        start = time.monotonic()
        with (tmp_path / "log").open("wb") as log, at.started(log) as process:
            for number in range(1, kills + 1):
                made_at_least(at, 6 * number, process)
                store.kill()
                time.sleep(2)
                store.start()
            assert process.wait(RUN_S) == 0, (tmp_path / "log").read_text()
        judged(judged_scene("S3 server killed and restarted", at, kills, start))
    finally:
        store.kill()


@pytest.mark.parametrize("what", ["output", "temporary files"] if IS_WHOLE else ["output"])
def test_a_disk_that_is_full(tmp_path: Path, judged: Judge, what: str) -> None:
    fills = scaled(1, 5) if what == "output" else 1
    disk = tmp_path / "disk"
    disk.mkdir()
    with ExitStack() as stack:
        size = 96
        # for temporary files: room to see that one can write there, and not for a folder with a video
        limit = f"size={size}k" if what == "output" else "nr_inodes=2"
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", limit, "tmpfs", str(disk)], check=False)
        if mounted.returncode:
            pytest.skip("a disk of a chosen size can be mounted by root alone")
        stack.callback(subprocess.run, ["umount", "-l", str(disk)], check=True)
        if what == "output":
            at = scene(tmp_path, scaled(20, 60), str(disk / "out"))
        else:
            at = scene(tmp_path, 20, TMPDIR=str(disk), RAY_TMPDIR=tempfile.gettempdir())
        start = time.monotonic()
        for number in range(fills):
            full = at.run()
            assert full.returncode == 3, full.stderr
            assert "No space left on device" in full.stderr
            assert "Traceback" not in full.stderr
            more = f"remount,size={size * (number + 2)}k" if number + 1 < fills else "remount,size=64m,nr_inodes=1k"
            subprocess.run(["mount", "-o", more, str(disk)], check=True)
        at.finish()
        judged(judged_scene(f"disk of {what} full", at, fills, start))


def test_a_store_that_is_slower_than_the_workers(
    tmp_path: Path, judged: Judge, s3_server: S3Server, bucket: str
) -> None:
    with flaky_proxy(s3_server.endpoint, delay_s=0.1, seed=SEED) as proxy:
        at = scene(tmp_path, scaled(12, 100), f"{bucket}/out", AWS_ENDPOINT_URL=proxy.address)
        start = time.monotonic()
        most = 0
        with (tmp_path / "log").open("wb") as log, at.started(log) as process:
            there = Storage(at.output)
            while process.poll() is None:
                most = max(most, len(read_journal(at.journal, "generated")) - len(there.keys("videos")))
                time.sleep(0.5)
        assert process.returncode == 0, (tmp_path / "log").read_text()
    assert most <= WORKERS * IN_FLIGHT_PER_WORKER, "videos wait in memory for the store"
    judged(judged_scene(f"S3 slow: {proxy.calls} calls, {most} videos waited at most", at, 0, start))


def test_nodes_killed(tmp_path: Path, judged: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    kills = scaled(1, 4)
    at = scene(tmp_path, scaled(16, 150), **{SECONDS: "0.5"})
    # the flow's own CPUs are on the head, which lives; each further node holds one worker
    with cluster_for(at, monkeypatch, cpus=2) as cluster:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(WORKERS)]
        start = time.monotonic()
        with (tmp_path / "log").open("wb") as log, at.started(log, "--address", cluster.address) as process:
            for number in range(1, kills + 1):
                made_at_least(at, 5 * number, process)
                cluster.remove_node(nodes.pop(0), allow_graceful=False)
                nodes.append(cluster.add_node(num_cpus=1))
            assert process.wait(RUN_S) == 0, (tmp_path / "log").read_text()
        judged(judged_scene("node killed", at, kills, start))


@pytest.mark.skipif(not IS_WHOLE, reason="the shortened form has few of each kind")
def test_there_were_faults_enough(outcomes: Sequence[Outcome]) -> None:
    """The last test of this file: of what those before have put in."""
    assert sum(each.faults for each in outcomes) >= FAULTS
