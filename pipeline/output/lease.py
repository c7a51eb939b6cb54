"""Who may write to an output: one driver at a time, and nobody who has been overtaken.

    lease/000007.json   the seventh driver's claim, made by conditional put, so that of two only one succeeds

The highest number holds the output. Its driver renews the claim while it lives, and releases it when it is done. A
claim that has not been renewed for EXPIRY_S is a dead driver's, and the next number may be claimed; at once where
the driver ran on this machine and its process is gone. Workers of an overtaken driver find a higher number than
theirs before they commit, and stop: the number is their run's epoch.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from pipeline.output.storage import Storage
from sgi2v.errors import ConfigError, SGI2VError, StorageError

FOLDER = "lease"
HEARTBEAT_S = 10.0
"""Between two renewals."""
EXPIRY_S = 60.0
"""Without renewal; the clocks of two machines may differ by less than this."""
MISSED_HEARTBEATS = 2.5
"""After which a driver is probably dead, and the next one waits for the expiry rather than give up."""
POLL_S = 1.0


class LeaseError(ConfigError):
    """Another driver holds the output, or has taken it over."""


@dataclass(frozen=True)
class Claim:
    """One driver's hold on an output."""

    epoch: int
    """Number of the run, from 1."""
    owner: str
    """Random, so that a claim is told from another by the same process."""
    host: str
    pid: int
    machine: str
    """Boot and process namespace that the pid belongs to; empty where the system does not tell."""
    started_at: float
    """Seconds since 1970, UTC, by the owner's clock."""
    renewed_at: float
    released: bool = False
    """Whether its driver is done."""

    def told(self) -> str:
        """`host-7, process 4711, since 2026-01-31 22:04 UTC`."""
        since = datetime.fromtimestamp(self.started_at, UTC)
        return f"{self.host}, process {self.pid}, since {since:%Y-%m-%d %H:%M} UTC"


class Lease:
    """A claim kept alive by a thread for the length of a `with` block; `lost` says who has taken over, if any."""

    def __init__(self, storage: Storage, claim: Claim) -> None:
        self.storage = storage
        self.claim = claim
        self.lost: str | None = None
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)

    @property
    def epoch(self) -> int:
        """Number of this run among those of the output."""
        return self.claim.epoch

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()
        if self.lost is None:
            with suppress(StorageError):  # then it runs out by itself
                _write(self.storage, replace(self.claim, renewed_at=time.time(), released=True))

    def check(self) -> None:
        """Raise LeaseError where the lease is lost."""
        if self.lost is not None:
            raise LeaseError(self.lost)

    def _renew(self) -> None:
        while not self._done.wait(HEARTBEAT_S):
            try:
                check_epoch(self.storage, self.epoch)
                renewed = replace(self.claim, renewed_at=time.time())
                _write(self.storage, renewed)
                self.claim = renewed
            except LeaseError as error:
                self._lose(str(error))
            except Exception as error:  # whatever it is, a driver without a heartbeat must not go on unheard
                if time.time() - self.claim.renewed_at > EXPIRY_S:
                    told = str(error) if isinstance(error, SGI2VError) else f"{type(error).__name__}: {error}"
                    self._lose(f"the lease on {self.storage.url} ran out, since it could not be renewed: {told}")

    def _lose(self, message: str) -> None:
        """Say so, and interrupt the driver wherever it waits."""
        self.lost = message
        self._done.set()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def acquire(storage: Storage, take_over: bool = False, say: Callable[[str], None] = lambda line: None) -> Lease:
    """Claim the output. take_over: even from a driver that seems alive. say: told why it waits.

    Waits for the expiry of a claim whose heartbeats have stopped. Raises LeaseError where another driver is alive.
    """
    waits = False
    while True:
        holder = read_claim(storage)
        if holder is None or take_over or not is_alive(holder):
            now = time.time()
            number = 1 if holder is None else holder.epoch + 1
            claim = Claim(number, uuid.uuid4().hex, socket.gethostname(), os.getpid(), _machine(), now, now)
            if storage.put_new(_key(number), _as_file(claim)):
                check_epoch(storage, number)  # or a listing that came too late took a number that had been used
                _tidy(storage, number)
                return Lease(storage, claim)
            take_over = False  # whoever was faster is not the one that was meant
            continue
        age = time.time() - holder.renewed_at
        if age < MISSED_HEARTBEATS * HEARTBEAT_S:
            raise LeaseError(
                f"{storage.url} is in use by another run: {holder.told()}. Wait for it, or give another --output; "
                "if it is certainly dead, --take-over takes its place at once."
            )
        if not waits:
            left = EXPIRY_S - age
            say(
                f"{storage.url} was in use by {holder.told()}, silent for {age:.0f} s: waiting {left:.0f} s for its end"
            )
            waits = True
        time.sleep(POLL_S)


def check_epoch(storage: Storage, epoch: int) -> None:
    """Raise LeaseError where a later run than this one has claimed the output."""
    holder = read_claim(storage)
    if holder is not None and holder.epoch > epoch:
        raise LeaseError(f"{storage.url} has been taken over by another run: {holder.told()}. This one has stopped.")


def read_claim(storage: Storage) -> Claim | None:
    """The claim that holds the output, or did last; None where there has been none."""
    keys = sorted(key for key in storage.keys(FOLDER) if key.endswith(".json"))
    data = storage.get(keys[-1]) if keys else None
    if data is None:
        return None if not keys else read_claim(storage)  # tidied away between the two: there is a later one
    try:
        return Claim(**json.loads(data))
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{storage.url}/{keys[-1]} is not a lease of this program: move it away") from error


def is_alive(claim: Claim) -> bool:
    """Whether its driver may still be at work."""
    if claim.released or time.time() - claim.renewed_at > EXPIRY_S:
        return False
    if not claim.machine or claim.machine != _machine():
        return True
    try:
        os.kill(claim.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # somebody else's process, and alive
    return True


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _tidy(storage: Storage, epoch: int) -> None:
    """Remove the claims that have been overtaken."""
    for key in storage.keys(FOLDER):
        if key < _key(epoch):
            storage.delete(key)


def _write(storage: Storage, claim: Claim) -> None:
    storage.put(_key(claim.epoch), _as_file(claim))


def _key(epoch: int) -> str:
    return f"{FOLDER}/{epoch:06d}.json"


def _as_file(claim: Claim) -> bytes:
    return json.dumps(asdict(claim), indent=2).encode()
