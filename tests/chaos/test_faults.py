"""Faults of every kind in real runs: no row is lost, none is committed twice, no innocent one is quarantined.

Every test run has a shortened form; `make chaos` runs it in full. The generator is a stand-in, everything else is real.
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
"""Faults in the full suite, at least."""
Judge = Callable[[Outcome], None]


@dataclass
class Scene:
    """A manifest, an output, a journal, and the environment of the runs on them."""

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
        """A run, until it ends."""
        return subprocess.run(
            self.command(*words), env=self.environment, capture_output=True, text=True, timeout=RUN_S, check=False
        )

    @contextmanager
    def started(self, log: IO[bytes], *words: str) -> Iterator[subprocess.Popen[bytes]]:
        """A run in the background; it is killed at the end of the block."""
        process = subprocess.Popen(self.command(*words), env=self.environment, stdout=log, stderr=log)
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def finish(self, most: int = 1) -> int:
        """Repeat the command until a run succeeds; returns how many failed before."""
        for failed in range(most):
            process = self.run()
            if process.returncode == 0:
                return failed
            assert process.returncode == 3, process.stderr
            assert process.stderr.splitlines()[-1].startswith("error: "), process.stderr
        raise AssertionError(f"none of {most} runs succeeded: {process.stderr}")


def wait_for_samples(at: Scene, number: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until so many samples have been generated."""

    def generated() -> bool:
        assert process.poll() is None, (at.folder / "log").read_text()[-2000:]
        return len(read_journal(at.journal, "generated")) >= number

    until(f"{number} samples are generated", generated, 120)


def scene(folder: Path, rows: int, output: str | None = None, **environment: str) -> Scene:
    """A new scene, whose images are in the folder or in the output's bucket."""
    place = output.rpartition("/")[0] if output and "://" in output else str(folder)
    for number in range(IMAGES):
        sink = io.BytesIO()
        picture(number).save(sink, "PNG")
        Storage(place).put(f"images/{number}.png", sink.getvalue())
    good = [row(f"s{number:04d}", image=f"{place}/images/{number % IMAGES}.png") for number in range(rows)]
    manifest = write_rows(folder / "m.parquet", good)
    variables = {JOURNAL: str(folder / "journal"), PART_ROWS: "16", **environment}
    return Scene(folder, manifest, output or str(folder / "out"), {**os.environ, **variables})


def judged_scene(kind: str, at: Scene, faults: int, start: float) -> Outcome:
    return outcome(kind, at.manifest, at.output, at.journal, faults, time.monotonic() - start)


@pytest.mark.parametrize("stages", ["generate", "commit"] if IS_WHOLE else ["generate,commit"])
def test_workers_killed(tmp_path: Path, judged: Judge, stages: str) -> None:
    rows = scaled(8, 100)
    at = scene(tmp_path, rows, **{DEATHS: f"{stages}:{scaled(30, 45) / 100}:{SEED}"})
    start = time.monotonic()
    at.finish()
    faults = len(read_journal(at.journal, "killed"))
    assert faults >= rows // 5
    judged(judged_scene(f"worker killed in {stages}", at, faults, start))


@pytest.mark.skipif(not IS_WHOLE, reason="tests/pipeline/test_run_interrupted.py kills a driver in every test run")
@pytest.mark.parametrize(("store", "kills"), [("disk", 20), ("s3", 10)])
def test_drivers_killed(tmp_path: Path, judged: Judge, store: str, kills: int, request: pytest.FixtureRequest) -> None:
    root = str(tmp_path) if store == "disk" else request.getfixturevalue("bucket")
    at = scene(tmp_path, 10 * kills, f"{root}/out", **{SECONDS: "0.2"})
    rng = random.Random(SEED)
    start = time.monotonic()
    for _ in range(kills):
        before = len(read_journal(at.journal, "generated"))
        with (tmp_path / "log").open("ab") as log, at.started(log) as process:
            wait_for_samples(at, before + 1, process)
            time.sleep(rng.uniform(0, 1))
            process.send_signal(signal.SIGKILL)
    at.finish()
    judged(judged_scene(f"driver killed, output on {store}", at, kills, start))


def kill_ledger() -> bool:
    """Kill the ledger's process on a cluster that this process started; whether there was one."""
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if " ".join(process.cmdline()).startswith("ray::Ledger"):
                process.kill()
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


@pytest.mark.skipif(not IS_WHOLE, reason="tests/pipeline/flow/test_attempts.py kills one in every test run")
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
            wait_for_samples(at, 4 * number, process)
            until("the ledger is there", kill_ledger)
        assert process.wait(RUN_S) == 0, (tmp_path / "log").read_text()
    judged(judged_scene("ledger of attempts killed", at, kills, start))


@pytest.mark.whole
def test_a_store_that_fails_one_call_in_twenty(tmp_path: Path, judged: Judge, s3_server: S3Server, bucket: str) -> None:
    with flaky_proxy(s3_server.endpoint, share=0.05, seed=SEED) as proxy:
        at = scene(tmp_path, scaled(12, 300), f"{bucket}/out", AWS_ENDPOINT_URL=proxy.address)
        start = time.monotonic()
        at.finish()
    assert sum(proxy.faults.values()) > proxy.calls / 40
    judged(judged_scene(f"S3 fails 5 % of {proxy.calls} calls", at, sum(proxy.faults.values()), start))


@pytest.mark.skipif(not IS_WHOLE, reason="`make whole` has a store that fails calls")
def test_a_store_that_is_killed_and_comes_back(tmp_path: Path, judged: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    kills = scaled(1, 4)
    (tmp_path / "s3").mkdir()
    store = S3Process(tmp_path / "s3")
    for name, value in store.server.environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # instances of another test's server
    try:
        store.start()
        store.server.filesystem().mkdir("night")
        at = scene(tmp_path, scaled(16, 150), "s3://night/out", **{SECONDS: "0.3"})
        start = time.monotonic()
        with (tmp_path / "log").open("wb") as log, at.started(log) as process:
            for number in range(1, kills + 1):
                wait_for_samples(at, 6 * number, process)
                store.kill()
                time.sleep(2)
                store.start()
            assert process.wait(RUN_S) == 0, (tmp_path / "log").read_text()
        judged(judged_scene("S3 server killed and restarted", at, kills, start))
    finally:
        store.kill()


@pytest.mark.skipif(not IS_WHOLE, reason="tests/pipeline/output/test_local_disk.py fills a disk in every test run")
@pytest.mark.parametrize("what", ["output", "temporary files"])
def test_a_disk_that_is_full(tmp_path: Path, judged: Judge, what: str) -> None:
    fills = scaled(1, 5) if what == "output" else 1
    disk = tmp_path / "disk"
    disk.mkdir()
    with ExitStack() as stack:
        size = 96
        # two inodes: enough to find the disk writable, too few for a folder with a video in it
        limit = f"size={size}k" if what == "output" else "nr_inodes=2"
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", limit, "tmpfs", str(disk)], check=False)
        if mounted.returncode:
            pytest.skip("only root can mount a disk of a chosen size")
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


@pytest.mark.skipif(
    not IS_WHOLE, reason="tests/pipeline/flow/test_attempts.py limits the rows in flight in every test run"
)
def test_a_store_that_is_slower_than_the_workers(
    tmp_path: Path, judged: Judge, s3_server: S3Server, bucket: str
) -> None:
    with flaky_proxy(s3_server.endpoint, delay_s=0.1, seed=SEED) as proxy:
        at = scene(tmp_path, scaled(12, 100), f"{bucket}/out", AWS_ENDPOINT_URL=proxy.address)
        start = time.monotonic()
        most_waiting = 0
        with (tmp_path / "log").open("wb") as log, at.started(log) as process:
            storage = Storage(at.output)
            while process.poll() is None:
                most_waiting = max(
                    most_waiting, len(read_journal(at.journal, "generated")) - len(storage.keys("videos"))
                )
                time.sleep(0.5)
        assert process.returncode == 0, (tmp_path / "log").read_text()
    assert most_waiting <= WORKERS * IN_FLIGHT_PER_WORKER, "too many videos wait in memory for the store"
    judged(judged_scene(f"S3 slow: {proxy.calls} calls, {most_waiting} videos waited at most", at, 0, start))


def test_nodes_killed(tmp_path: Path, judged: Judge, monkeypatch: pytest.MonkeyPatch) -> None:
    kills = scaled(1, 4)
    at = scene(tmp_path, scaled(16, 150), **{SECONDS: "0.5"})
    # the head, which is not killed, has the CPUs of the other stages; each further node holds one worker
    with cluster_for(at, monkeypatch, cpus=2) as cluster:
        nodes = [cluster.add_node(num_cpus=1) for _ in range(WORKERS)]
        start = time.monotonic()
        with (tmp_path / "log").open("wb") as log, at.started(log, "--address", cluster.address) as process:
            for number in range(1, kills + 1):
                wait_for_samples(at, 5 * number, process)
                cluster.remove_node(nodes.pop(0), allow_graceful=False)
                nodes.append(cluster.add_node(num_cpus=1))
            assert process.wait(RUN_S) == 0, (tmp_path / "log").read_text()
        judged(judged_scene("node killed", at, kills, start))


@pytest.mark.skipif(not IS_WHOLE, reason="the shortened form has fewer")
def test_there_were_enough_faults(outcomes: Sequence[Outcome]) -> None:
    """Must be the last test of this file: it counts the faults of those before."""
    assert sum(outcome.faults for outcome in outcomes) >= FAULTS
