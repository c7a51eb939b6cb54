"""The lease: one driver at a time, on disk and on S3; drivers that are alive, dead, silent, or taken over."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.flow.commit import Commit
from pipeline.flow.row import InFlight
from pipeline.output import lease
from pipeline.output.lease import EXPIRY_S, Claim, Lease, LeaseError, acquire, check_epoch, read_claim
from pipeline.output.storage import Storage
from sgi2v.errors import StorageError
from tests.pipeline.flow.test_stages import config_of
from tests.pipeline.runs import write_good

TOGETHER = 4
ROUNDS = 10


@pytest.fixture(params=["disk", pytest.param("s3", marks=pytest.mark.slow)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    if request.param == "disk":
        return Storage(str(tmp_path / "out"))
    return Storage(request.getfixturevalue("bucket") + "/out")


@pytest.fixture
def disk(tmp_path: Path) -> Storage:
    return Storage(str(tmp_path / "out"))


def leave(storage: Storage, **changes: object) -> Claim:
    """Write the claim of a driver on another machine."""
    now = time.time()
    claim = replace(Claim(3, "someone", "other-host", 4711, "elsewhere", now - 3600, now), **changes)
    storage.put(f"lease/{claim.epoch:06d}.json", json.dumps(asdict(claim)).encode())
    return claim


@pytest.mark.slow
def test_one_of_several_drivers_that_start_together_gets_the_lease(storage: Storage) -> None:
    for _ in range(ROUNDS):
        start = threading.Barrier(TOGETHER)
        won: list[Lease] = []
        lost: list[LeaseError] = []

        def contend(start: threading.Barrier = start, won: list[Lease] = won, lost: list[LeaseError] = lost) -> None:
            own = Storage(storage.url)
            start.wait()
            try:
                won.append(acquire(own))
            except LeaseError as error:
                lost.append(error)

        threads = [threading.Thread(target=contend) for _ in range(TOGETHER)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (len(won), len(lost)) == (1, TOGETHER - 1)
        assert f"process {os.getpid()}" in str(lost[0])
        assert read_claim(storage) == won[0].claim
        with won[0]:
            pass  # so that it is released


def test_a_released_output_is_claimed_with_the_next_epoch_and_old_claims_are_deleted(storage: Storage) -> None:
    for epoch in (1, 2, 3):
        with acquire(storage) as held:
            assert held.epoch == epoch
            assert storage.keys("lease") == [f"lease/{epoch:06d}.json"]
    claim = read_claim(storage)
    assert claim is not None
    assert claim.released


def test_a_driver_that_is_alive_is_named(disk: Storage) -> None:
    leave(disk)
    with pytest.raises(LeaseError, match=r"other-host, process 4711, since 20.* UTC.*--take-over"):
        acquire(disk)


def test_an_expired_claim_is_replaced(disk: Storage) -> None:
    leave(disk, renewed_at=time.time() - EXPIRY_S - 1)
    assert acquire(disk).epoch == 4


@pytest.mark.slow
def test_a_silent_driver_is_given_until_its_lease_expires(disk: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "POLL_S", 0.05)
    leave(disk, renewed_at=time.time() - EXPIRY_S + 1)
    waits: list[str] = []
    start = time.monotonic()
    assert acquire(disk, on_wait=waits.append).epoch == 4
    assert 0.5 < time.monotonic() - start < 10
    assert len(waits) == 1
    assert "whose last heartbeat was 59 s ago: waiting 1 s for its lease to expire" in waits[0]


def test_a_driver_that_was_only_slow_keeps_its_lease(disk: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "POLL_S", 0.05)
    leave(disk, renewed_at=time.time() - EXPIRY_S + 5)
    with pytest.raises(LeaseError, match="in use by another run"):
        acquire(disk, on_wait=lambda line: leave(disk) and None)


def test_a_dead_process_of_this_machine_is_replaced_at_once(disk: Storage) -> None:
    imports = "from pipeline.output.lease import acquire; from pipeline.output.storage import Storage"
    script = f"{imports}; acquire(Storage({disk.url!r}))"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[3])
    claim = read_claim(disk)
    assert claim is not None
    assert not claim.released
    assert acquire(disk).epoch == 2


def test_a_driver_that_is_taken_over_is_interrupted_and_learns_by_whom(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.1)
    with acquire(storage) as held:
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 it may come at either line
            acquire(storage, take_over=True)
            time.sleep(20)
        with pytest.raises(LeaseError, match=f"taken over by another run: .*process {os.getpid()}"):
            held.check()
    claim = read_claim(storage)
    assert claim is not None
    assert (claim.epoch, claim.released) == (2, False), "the first driver releases nothing"
    check_epoch(storage, claim.epoch)
    with pytest.raises(LeaseError):
        check_epoch(storage, held.epoch)


def test_a_driver_that_ignores_sigint_is_interrupted_all_the_same(
    disk: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.1)
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with acquire(disk) as held, pytest.raises(KeyboardInterrupt):  # noqa: PT012 it may come at either line
            acquire(disk, take_over=True)
            time.sleep(20)
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN, "as it was before the block"
    finally:
        signal.signal(signal.SIGINT, before)
    with pytest.raises(LeaseError, match="taken over by another run"):
        held.check()


@pytest.mark.parametrize(
    ("error", "reason"),
    [(StorageError("no answer"), "no answer"), (RuntimeError("no threads left"), "RuntimeError: no threads left")],
)
def test_heartbeats_renew_the_lease_and_it_is_lost_if_they_fail_for_long(
    disk: Storage, monkeypatch: pytest.MonkeyPatch, error: Exception, reason: str
) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.05)
    monkeypatch.setattr(lease, "EXPIRY_S", 0.3)
    with acquire(disk) as held:
        time.sleep(0.5)
        held.check()
        claim = read_claim(disk)
        assert claim is not None
        assert claim.renewed_at > claim.started_at + 0.2

        def refuse(*_: object) -> None:
            raise error

        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 it may come at either line
            monkeypatch.setattr(lease, "_write", refuse)
            time.sleep(20)
        with pytest.raises(LeaseError, match=f"expired, because it could not be renewed: {reason}"):
            held.check()


def test_workers_of_a_run_that_lost_its_lease_commit_nothing(tmp_path: Path) -> None:
    config = config_of(write_good(tmp_path, 1))
    storage = Storage(config.output)
    lost, _ = acquire(storage), acquire(storage, take_over=True)
    state = InFlight("s00", 0, "digest", 1, error_code="unknown", message="would be a failed record")
    row = {"state": json.dumps(asdict(state)), "first_frame": None, "frames": None}
    (outcome,) = Commit(config, lost.epoch)(pa.Table.from_pylist([row])).to_pylist()
    assert (outcome["record"], outcome["fatal"]) == (None, "LeaseError")
    assert storage.keys("records") == []


DAMAGED_CLAIMS: dict[str, bytes | dict[str, object] | None] = {
    "empty": b"",
    "half": b'{"epoch": 7, "owner": "so',
    "not an object": b"[7]",
    "no entries": b"{}",
    "not UTF-8": b"\xff\xfe{}",
    "another type": {"renewed_at": "yesterday"},
    "another epoch": {"epoch": 8},
    "a time that no clock shows": {"started_at": 1e300},
    "no process": {"pid": -1},
    "a folder": None,
}


@pytest.mark.parametrize("kind", DAMAGED_CLAIMS)
def test_a_damaged_claim_is_void_once_it_is_as_old_as_an_expired_one(disk: Storage, kind: str) -> None:
    damage, file = DAMAGED_CLAIMS[kind], Path(disk.root) / "lease" / "000007.json"
    whole = asdict(Claim(7, "someone", "host", 1, "", time.time(), time.time()))
    file.parent.mkdir(parents=True)
    if damage is None:
        file.mkdir()
    else:
        file.write_bytes(damage if isinstance(damage, bytes) else json.dumps({**whole, **damage}).encode())
    with pytest.raises(LeaseError, match=r"by another run: an unknown driver \(its claim lease/000007.json is damaged"):
        acquire(disk)
    os.utime(file, (0, time.time() - EXPIRY_S - 1))
    assert acquire(disk).epoch == 8
    assert disk.keys("lease") == ["lease/000008.json"]


def test_other_files_beside_the_claims_are_left_alone(disk: Storage) -> None:
    disk.put("lease/notes.json", b"{}")
    disk.put("lease/000003.json.bak", b"{}")
    assert read_claim(disk) is None
    assert acquire(disk).epoch == 1
    assert disk.keys("lease") == ["lease/000001.json", "lease/000003.json.bak", "lease/notes.json"]


@pytest.mark.parametrize("key", ["parts/000012-0003.parquet", "tables/000012-metadata.parquet"])
def test_an_output_whose_claims_were_lost_goes_on_behind_its_last_epoch(disk: Storage, key: str) -> None:
    disk.put(key, b"")
    assert acquire(disk).epoch == 13


def test_a_driver_whose_claim_another_one_replaced_is_interrupted(
    disk: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lease, "HEARTBEAT_S", 0.1)
    with acquire(disk) as held:
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 it may come at either line
            leave(disk, epoch=held.epoch)
            time.sleep(20)
        with pytest.raises(LeaseError, match="taken over by another run: other-host"):
            held.check()
