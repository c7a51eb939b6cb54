"""The ledger of attempts: which rows are quarantined, which are innocent, and the deadline that ends a process."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pipeline.flow.attempts import MAX_ATTEMPTS, Ledger, attempt, wait_until_admitted
from pipeline.flow.notes import Note
from sgi2v.errors import ErrorCode, SampleError, StorageError
from tests.pipeline.runs import write_good

ROOT = Path(__file__).parents[3]
MAX_IN_FLIGHT = 2


class OnNode:
    """A ledger in this process, as the stages on one node see it."""

    def __init__(self, ledger: Ledger, node: str) -> None:
        self.ledger, self.node = ledger, node
        self.crash_reports: Path | None = None

    def start(self, stage: str, sample_id: str) -> list[float]:
        return self.ledger.start(stage, sample_id, self.node)

    def finish(self, stage: str, sample_id: str) -> None:
        self.ledger.finish(stage, sample_id)

    def admit(self, sample_id: str) -> bool:
        return self.ledger.admit(sample_id, self.node)

    def release(self, sample_id: str) -> None:
        self.ledger.release(sample_id)

    def note(self, note: Note) -> None:
        self.ledger.note(note)


@pytest.fixture
def alive() -> set[str]:
    """The nodes that are alive; tests remove some."""
    return {"one", "two"}


@pytest.fixture
def ledger(alive: set[str]) -> Ledger:
    return Ledger(lambda: alive, MAX_IN_FLIGHT)


@pytest.fixture
def one(ledger: Ledger) -> OnNode:
    """The ledger as node `one` sees it."""
    return OnNode(ledger, "one")


@pytest.fixture
def reporting(one: OnNode, tmp_path: Path) -> OnNode:
    """The same, with crash reports in the test's folder."""
    one.crash_reports = tmp_path / "crash"
    return one


def die(client: OnNode, times: int = 1, sample_id: str = "a") -> None:
    """Report starts of a row without an end."""
    for _ in range(times):
        client.start("generate", sample_id)


def quarantined(client: OnNode, sample_id: str = "a", timeout_s: float | None = None) -> SampleError:
    """The error of the row's next start."""
    with pytest.raises(SampleError) as raised, attempt(client, "generate", sample_id, timeout_s):
        pass
    return raised.value


def test_a_row_that_ends_its_workers_is_quarantined(one: OnNode) -> None:
    die(one, MAX_ATTEMPTS - 1)
    with attempt(one, "generate", "a"):
        pass
    die(one, MAX_ATTEMPTS)
    error = quarantined(one)
    assert error.code is ErrorCode.WORKER_DIED
    assert "the worker died in `generate` in 3 attempts of 3" in error.message


def test_rows_and_stages_are_counted_separately(one: OnNode) -> None:
    die(one, MAX_ATTEMPTS)
    with attempt(one, "commit", "a"), attempt(one, "generate", "b"):
        pass


def test_deaths_with_their_node_do_not_count_even_if_the_nodes_death_is_known_late(
    ledger: Ledger, alive: set[str]
) -> None:
    die(OnNode(ledger, "one"), MAX_ATTEMPTS)
    alive.discard("one")
    with attempt(OnNode(ledger, "two"), "generate", "a"):
        pass


def test_a_rows_own_error_is_not_a_death(one: OnNode) -> None:
    for _ in range(MAX_ATTEMPTS + 1):
        with pytest.raises(ValueError, match="its own"), attempt(one, "generate", "a"):
            raise ValueError("its own")


def test_starts_that_lasted_until_the_deadline_timed_out(one: OnNode) -> None:
    for _ in range(MAX_ATTEMPTS):
        die(one)
        time.sleep(0.05)
    error = quarantined(one, timeout_s=0.05)
    assert error.code is ErrorCode.TIMED_OUT
    assert "`generate` took more than 0.05 s in 3 attempts of 3: raise --sample-timeout" in error.message


@pytest.mark.slow
@pytest.mark.parametrize("body", ["time.sleep(60)", "re.match('(a*)*b', 'a' * 60)"], ids=["waits", "holds the lock"])
def test_the_deadline_ends_the_process(body: str) -> None:
    script = f"""
import re, time
from pipeline.flow.attempts import attempt
with attempt(None, 's', 'a', 0.5):
    {body}
"""
    start = time.monotonic()
    process = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60, cwd=ROOT
    )
    assert process.returncode == 1
    assert "Timeout" in process.stderr
    assert time.monotonic() - start < 30


def test_a_deadline_that_was_met_is_cancelled() -> None:
    with attempt(None, "generate", "a", 0.2):
        pass
    time.sleep(0.4)


def test_a_full_local_disk_is_not_the_rows_fault(tmp_path: Path, reporting: OnNode) -> None:
    with (
        pytest.raises(StorageError, match=r"No space left on device.*/dev/full"),
        attempt(reporting, "commit", "a"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/dev/full")
    assert list(tmp_path.iterdir()) == []


def test_rows_wait_while_too_many_are_in_flight(one: OnNode) -> None:
    assert [one.admit(sample_id) for sample_id in "abc"] == [True, True, False]
    assert one.admit("a"), "a row that is generated again keeps its place"
    one.release("b")
    one.release("b")
    assert one.admit("c")
    assert not one.admit("b")


def test_workers_that_start_later_bring_places(one: OnNode) -> None:
    for number in range(3):
        one.note(Note(f"host/{number}", model_seconds=1.0))
    assert [one.admit(str(number)) for number in range(13)] == [True] * 12 + [False]


@pytest.mark.slow
def test_rows_of_a_dead_node_lose_their_places(ledger: Ledger, alive: set[str]) -> None:
    dead, worker = OnNode(ledger, "one"), OnNode(ledger, "two")
    admitted = [client.admit(sample_id) for client, sample_id in ((dead, "a"), (worker, "b"), (worker, "c"))]
    assert admitted == [True, True, False]
    alive.discard("one")
    waiter = threading.Thread(target=wait_until_admitted, args=(worker, "c"), daemon=True)
    waiter.start()
    waiter.join(10)
    assert not waiter.is_alive(), "the only worker would wait for ever for a row that waits for it"
    assert not worker.admit("a"), "rows of nodes that are alive keep their places"


def test_a_worker_goes_on_when_a_place_is_free(one: OnNode) -> None:
    for sample_id in "ab":
        wait_until_admitted(one, sample_id)
    waiter = threading.Thread(target=wait_until_admitted, args=(one, "c"), daemon=True)
    waiter.start()
    waiter.join(0.3)
    assert waiter.is_alive()
    one.release("a")
    waiter.join(10)
    assert not waiter.is_alive()
    wait_until_admitted(None, "d")


@pytest.mark.slow
def test_a_killed_ledger_starts_anew_and_one_that_cannot_ends_the_run() -> None:
    script = """
import psutil, ray
from pipeline.config import resolve
from pipeline.flow.attempts import LedgerActor
from pipeline.flow.session import ray_session
from sgi2v.errors import ClusterError
config, _ = resolve("m.parquet", "out", {}, {"model": {"source": "embedded"}})
with ray_session(config, 1):
    ledger = LedgerActor(1, "")
    before = [ledger.start("load", "a"), ledger.admit("a"), ledger.admit("b")]
    (process,) = [child for child in psutil.Process().children(recursive=True) if "ray::Ledger" in child.cmdline()]
    process.kill()
    process.wait()
    print(*before, ledger.start("load", "a"), ledger.admit("b"))
    ray.kill(ledger._actor)
    for ask in (lambda: ledger.start("load", "a"), lambda: ledger.admit("b")):
        try:
            ask()
        except ClusterError as error:
            print(error)
"""
    process = subprocess.run(
        [sys.executable, "-c", script], check=True, timeout=120, cwd=ROOT, capture_output=True, text=True
    )
    answers, *errors = [line for line in process.stdout.splitlines() if "(raylet)" not in line]
    assert answers == "[] True False [] True"
    assert len(errors) == 2
    assert all(re.match(r"the Ray cluster failed: ActorDiedError: .*Run the same command again", e) for e in errors)


CRASHES = "import ctypes; ctypes.string_at(0)"
HANGS = "import time; time.sleep(60)"
DIES = "import os; os.kill(os.getpid(), 9)"


def client_code(folder: Path) -> str:
    """Code that defines `Client`: it counts no attempts, and writes its crash reports to the folder."""
    return f"""
from pathlib import Path
from pipeline.flow.attempts import attempt
class Client:
    crash_reports = Path({str(folder)!r}) / "crash"
    def start(self, stage, sample_id):
        return []
    def finish(self, stage, sample_id):
        pass"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "timeout_s", "code", "message"),
    [
        (CRASHES, None, ErrorCode.WORKER_DIED, "a library crashed\nFatal Python error: Segmentation fault"),
        (HANGS, 0.5, ErrorCode.TIMED_OUT, "in 3 attempts of 3: raise --sample-timeout .*\nTimeout .*\n.*\n.*line 11"),
        (DIES, None, ErrorCode.WORKER_DIED, "killed from outside, probably because memory ran out"),
        (DIES, 0.5, ErrorCode.WORKER_DIED, "killed from outside, probably because memory ran out"),
    ],
)
def test_the_record_says_where_a_worker_died(
    tmp_path: Path, reporting: OnNode, body: str, timeout_s: float | None, code: ErrorCode, message: str
) -> None:
    script = f"""{client_code(tmp_path)}
with attempt(Client(), "generate", "a", {timeout_s}):
    {body}
"""
    for _ in range(MAX_ATTEMPTS):
        die(reporting)
        subprocess.run([sys.executable, "-c", script], check=False, timeout=60, cwd=ROOT, stderr=subprocess.DEVNULL)
    # each start lasted longer than 0.1 s, since a process was started meanwhile
    error = quarantined(reporting, timeout_s=timeout_s and 0.1)
    assert error.code is code
    assert re.search(message, error.message), error.message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(("anew", "code"), [("set_deadline", 0), ("", 1)])
def test_each_video_of_a_row_has_the_whole_deadline(tmp_path: Path, anew: str, code: int) -> None:
    script = f"""{client_code(tmp_path)}
import time
with attempt(Client(), "generate", "a", 1.0) as set_deadline:
    for _ in range(3):
        {anew}{"()" if anew else "pass"}
        time.sleep(0.5)
"""
    done = subprocess.run([sys.executable, "-c", script], check=False, timeout=60, cwd=ROOT, stderr=subprocess.DEVNULL)
    assert done.returncode == code


@pytest.mark.slow
def test_a_row_that_costs_a_worker_its_gpu_is_counted_with_its_error(tmp_path: Path, reporting: OnNode) -> None:
    manifest = write_good(tmp_path / "in", 1)
    script = f"""{client_code(tmp_path)}
    def finish(self, stage, sample_id):
        print("finished")
    def admit(self, sample_id):
        return True
from pipeline.flow.load import Load
from tests.pipeline.flow.test_stages import config_of, rows_of
from tests.stand_in import StandIn
class LosesItsGpu(StandIn):
    def _sample(self, *arguments):
        raise RuntimeError("CUDA error: device-side assert triggered")
manifest = Path({str(manifest)!r})
config = config_of(manifest)
LosesItsGpu(config, "cpu", Client())(Load(config)(rows_of(manifest)))
"""
    process = subprocess.run(
        [sys.executable, "-c", script], check=False, timeout=120, cwd=ROOT, capture_output=True, text=True
    )
    assert (process.returncode, process.stdout) == (1, ""), process.stderr
    die(reporting, MAX_ATTEMPTS, "s00")
    error = quarantined(reporting, "s00")
    assert error.code is ErrorCode.WORKER_DIED
    assert "made it unusable\nRuntimeError: CUDA error: device-side assert triggered" in error.message


def test_a_finished_row_leaves_no_crash_report(tmp_path: Path, reporting: OnNode) -> None:
    with attempt(reporting, "generate", "a", 60):
        assert (tmp_path / "crash-generate-a.txt").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_failed_row_leaves_no_crash_report(tmp_path: Path, reporting: OnNode) -> None:
    with pytest.raises(ValueError, match="its own"), attempt(reporting, "generate", "a", 60):
        raise ValueError("its own")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_processes_on_one_node_write_different_crash_reports(tmp_path: Path) -> None:
    script = f"""{client_code(tmp_path)}
import sys
for _ in range(3000):
    with attempt(Client(), "commit", sys.argv[1]):
        pass
"""
    processes = [subprocess.Popen([sys.executable, "-c", script, name], cwd=ROOT) for name in "abc"]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert list(tmp_path.iterdir()) == []
