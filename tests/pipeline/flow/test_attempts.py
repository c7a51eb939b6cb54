"""The ledger of starts: who is given up, who is innocent, and the deadline that ends a process."""

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

from pipeline.flow.attempts import MAX_ATTEMPTS, Ledger, attempt, wait_for_room
from sgi2v.errors import ErrorCode, SampleError, StorageError
from tests.pipeline.runs import write_good

ROOM = 2


class OnNode:
    """Attempts on one node, told to a ledger in this process."""

    def __init__(self, ledger: Ledger, node: str) -> None:
        self.ledger, self.node = ledger, node
        self.traces: Path | None = None

    def start(self, stage: str, sample_id: str) -> list[float]:
        return self.ledger.start(stage, sample_id, self.node)

    def finish(self, stage: str, sample_id: str) -> None:
        self.ledger.finish(stage, sample_id)

    def admit(self, sample_id: str) -> bool:
        return self.ledger.admit(sample_id, self.node)

    def leave(self, sample_id: str) -> None:
        self.ledger.leave(sample_id)


@pytest.fixture
def nodes() -> set[str]:
    return {"one", "two"}


@pytest.fixture
def ledger(nodes: set[str]) -> Ledger:
    return Ledger(lambda: nodes, ROOM)


def die(attempts: OnNode, times: int = 1, sample_id: str = "a") -> None:
    """Start, and never come back."""
    for _ in range(times):
        attempts.start("generate", sample_id)


def given_up(attempts: OnNode, timeout_s: float | None = None) -> SampleError:
    """What the next start of the row is refused with."""
    with pytest.raises(SampleError) as caught, attempt(attempts, "generate", "a", timeout_s):
        pass
    return caught.value


def test_a_row_that_ends_its_worker_is_given_up_in_time(ledger: Ledger) -> None:
    attempts = OnNode(ledger, "one")
    die(attempts, MAX_ATTEMPTS - 1)
    with attempt(attempts, "generate", "a"):
        pass
    die(attempts, MAX_ATTEMPTS)
    with (
        pytest.raises(SampleError, match="died in `generate` in 3 attempts of 3") as caught,
        attempt(attempts, "generate", "a"),
    ):
        pass
    assert caught.value.code is ErrorCode.WORKER_DIED


def test_rows_and_stages_are_counted_apart(ledger: Ledger) -> None:
    attempts = OnNode(ledger, "one")
    die(attempts, MAX_ATTEMPTS)
    with attempt(attempts, "commit", "a"), attempt(attempts, "generate", "b"):
        pass


def test_deaths_with_their_node_do_not_count_even_if_that_is_known_late(ledger: Ledger, nodes: set[str]) -> None:
    die(OnNode(ledger, "one"), MAX_ATTEMPTS)
    nodes.discard("one")
    with attempt(OnNode(ledger, "two"), "generate", "a"):
        pass


def test_an_error_of_the_rows_own_is_no_death(ledger: Ledger) -> None:
    attempts = OnNode(ledger, "one")
    for _ in range(MAX_ATTEMPTS + 1):
        with pytest.raises(ValueError, match="its own"), attempt(attempts, "generate", "a"):
            raise ValueError("its own")


def test_starts_that_lasted_their_deadline_are_told_as_such(ledger: Ledger) -> None:
    attempts = OnNode(ledger, "one")
    for _ in range(MAX_ATTEMPTS):
        die(attempts)
        time.sleep(0.05)
    with (
        pytest.raises(SampleError, match=r"within 0\.05 s in 3 attempts") as caught,
        attempt(attempts, "generate", "a", 0.05),
    ):
        pass
    assert caught.value.code is ErrorCode.TIMED_OUT


@pytest.mark.parametrize("body", ["time.sleep(60)", "re.match('(a*)*b', 'a' * 60)"], ids=["waits", "holds the lock"])
def test_the_deadline_ends_the_process(body: str) -> None:
    script = (
        f"import re, time\nfrom pipeline.flow.attempts import attempt\nwith attempt(None, 's', 'a', 0.5):\n    {body}"
    )
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=Path(__file__).parents[3],
    )
    assert done.returncode == 1
    assert "Timeout" in done.stderr
    assert time.monotonic() - start < 30


def test_a_deadline_that_was_kept_is_called_off() -> None:
    with attempt(None, "generate", "a", 0.2):
        pass
    time.sleep(0.4)


def test_no_room_on_the_machines_own_disk_is_no_fault_of_the_row(tmp_path: Path, ledger: Ledger) -> None:
    attempts = OnNode(ledger, "one")
    attempts.traces = tmp_path / "traces"
    with (
        pytest.raises(StorageError, match=r"a disk of .* is full: .*No space left on device.*/dev/full.*; make room"),
        attempt(attempts, "commit", "a"),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/dev/full")
    assert list(tmp_path.iterdir()) == []


def test_rows_wait_while_too_many_are_on_their_way(ledger: Ledger) -> None:
    worker = OnNode(ledger, "one")
    assert [worker.admit(sample_id) for sample_id in "abc"] == [True, True, False]
    assert worker.admit("a"), "what came of it was lost: it is done again, and has its place"
    worker.leave("b")
    worker.leave("b")
    assert worker.admit("c")
    assert not worker.admit("b")


def test_rows_lost_with_their_node_keep_no_worker_waiting(ledger: Ledger, nodes: set[str]) -> None:
    lost, worker = OnNode(ledger, "one"), OnNode(ledger, "two")
    assert [each.admit(sample_id) for each, sample_id in ((lost, "a"), (worker, "b"), (worker, "c"))] == [1, 1, 0]
    nodes.discard("one")
    waiter = threading.Thread(target=wait_for_room, args=(worker, "c"), daemon=True)
    waiter.start()
    waiter.join(10)
    assert not waiter.is_alive(), "it is the only worker, and the row that it waits for waits for it"
    assert not worker.admit("a"), "that of a node which is alive keeps its place, and so does the new one"


def test_a_worker_goes_on_as_soon_as_there_is_room(ledger: Ledger) -> None:
    attempts = OnNode(ledger, "one")
    for sample_id in "ab":
        wait_for_room(attempts, sample_id)
    waiter = threading.Thread(target=wait_for_room, args=(attempts, "c"), daemon=True)
    waiter.start()
    waiter.join(0.3)
    assert waiter.is_alive()
    ledger.leave("a")
    waiter.join(10)
    assert not waiter.is_alive()
    wait_for_room(None, "d")


@pytest.mark.slow
def test_a_ledger_that_dies_starts_anew_and_one_that_cannot_ends_the_run() -> None:
    script = """
import psutil, ray
from pipeline.flow.attempts import LedgerActor
from pipeline.flow.session import ray_session
from pipeline.config import ExecutionConfig
from sgi2v.errors import ClusterError
with ray_session(ExecutionConfig(), 1, None):
    ledger = LedgerActor(1)
    told = [ledger.start("load", "a"), ledger.admit("a"), ledger.admit("b")]
    (process,) = [each for each in psutil.Process().children(recursive=True) if "ray::Ledger" in each.cmdline()]
    process.kill()
    process.wait()
    print(*told, ledger.start("load", "a"), ledger.admit("b"))
    ray.kill(ledger._actor)
    for ask in (lambda: ledger.start("load", "a"), lambda: ledger.admit("b")):
        try:
            ask()
        except ClusterError as error:
            print(error)
"""
    at = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", script], check=True, timeout=120, cwd=at, capture_output=True)
    lines = done.stdout.decode().splitlines()
    told, *errors = [line for line in lines if "(raylet)" not in line]  # who calls the ledger hears of its restart
    assert told == "[] True False [] True"
    assert len(errors) == 2
    assert all(re.match(r"the Ray cluster failed: ActorDiedError: .*the same command goes on", each) for each in errors)


CRASHES = "import ctypes; ctypes.string_at(0)"
HANGS = "import time; time.sleep(60)"
DIES = "import os; os.kill(os.getpid(), 9)"


def counts_nothing(folder: Path) -> str:
    """Code for a process of its own: attempts without a ledger, whose last words go to the folder."""
    return f"""
from pathlib import Path
from pipeline.flow.attempts import attempt
class Attempts:
    traces = Path({str(folder)!r}) / "traces"
    def start(self, stage, sample_id):
        return []
    def finish(self, stage, sample_id):
        pass"""


@pytest.mark.parametrize(
    ("body", "timeout_s", "code", "told"),
    [
        (CRASHES, None, ErrorCode.WORKER_DIED, "it crashed a library\nFatal Python error: Segmentation fault"),
        (HANGS, 0.5, ErrorCode.TIMED_OUT, "in 3 attempts: raise --sample-timeout .*\nTimeout .*\n.*\n.*line 11"),
        (DIES, None, ErrorCode.WORKER_DIED, "killed from outside, which is what a system does"),
        (DIES, 0.5, ErrorCode.WORKER_DIED, "killed from outside, which is what a system does"),
    ],
)
def test_the_record_says_where_a_worker_died(
    tmp_path: Path, ledger: Ledger, body: str, timeout_s: float | None, code: ErrorCode, told: str
) -> None:
    script = f"""{counts_nothing(tmp_path)}
with attempt(Attempts(), "generate", "a", {timeout_s}):
    {body}
"""
    attempts = OnNode(ledger, "one")
    attempts.traces = tmp_path / "traces"
    for _ in range(MAX_ATTEMPTS):
        die(attempts)
        subprocess.run([sys.executable, "-c", script], check=False, timeout=60, cwd=Path(__file__).parents[3])
    error = given_up(attempts, timeout_s and 0.1)  # every start lasted longer, with the time that a process takes
    assert error.code is code
    assert re.search(told, error.message), error.message
    assert list(tmp_path.iterdir()) == []


def test_a_row_that_costs_a_worker_its_gpu_is_counted_and_says_so(tmp_path: Path, ledger: Ledger) -> None:
    manifest = write_good(tmp_path / "in", 1)
    script = f"""{counts_nothing(tmp_path)}
    def finish(self, stage, sample_id):
        print("has come through")
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
LosesItsGpu(config, "cpu", Attempts())(Load(config)(rows_of(manifest)))
"""
    at = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", script], check=False, timeout=120, cwd=at, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    attempts = OnNode(ledger, "one")
    attempts.traces = tmp_path / "traces"
    die(attempts, MAX_ATTEMPTS, "s00")
    with pytest.raises(SampleError) as caught, attempt(attempts, "generate", "s00"):
        pass
    assert caught.value.code is ErrorCode.WORKER_DIED
    assert "after this\nRuntimeError: CUDA error: device-side assert triggered" in caught.value.message


def test_a_row_that_comes_through_leaves_no_trace(tmp_path: Path, ledger: Ledger) -> None:
    attempts = OnNode(ledger, "one")
    attempts.traces = tmp_path / "traces"
    with attempt(attempts, "generate", "a", 60):
        assert (tmp_path / "traces-generate-a.txt").exists()
    assert list(tmp_path.iterdir()) == []


def test_a_row_that_fails_leaves_no_trace(tmp_path: Path, ledger: Ledger) -> None:
    attempts = OnNode(ledger, "one")
    attempts.traces = tmp_path / "traces"
    with pytest.raises(ValueError, match="its own"), attempt(attempts, "generate", "a", 60):
        raise ValueError("its own")
    assert list(tmp_path.iterdir()) == []


def test_processes_of_a_node_are_out_of_each_others_way(tmp_path: Path) -> None:
    script = f"""{counts_nothing(tmp_path)}
import sys
for _ in range(3000):
    with attempt(Attempts(), "commit", sys.argv[1]):
        pass
"""
    at = Path(__file__).parents[3]
    processes = [subprocess.Popen([sys.executable, "-c", script, name], cwd=at) for name in "abc"]
    assert [process.wait(60) for process in processes] == [0, 0, 0]
    assert list(tmp_path.iterdir()) == []
