"""The lease on an output: one driver at a time may write to it. See docs/output-format.md, Lease."""

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
from typing import Any

from pydantic import TypeAdapter, ValidationError

from pipeline.output.keys import epoch_of, is_own_key
from pipeline.output.storage import Storage
from sgi2v.errors import ConfigError, SGI2VError, StorageError
from sgi2v.wording import escaped

FOLDER = "lease"
HEARTBEAT_S = 10.0
"""Between two heartbeats, seconds."""
EXPIRY_S = 60.0
"""After the last heartbeat, seconds; the clocks of two machines may differ by less than this."""
MISSED_HEARTBEATS = 2.5
"""Heartbeats without a sign of life after which the next driver waits for the expiry, in place of giving up."""
UNKNOWN = ""
"""Owner in place of the one of a damaged claim."""
POLL_S = 1.0
"""Between two looks at the claim while the next driver waits, seconds."""


class LeaseError(ConfigError):
    """Another driver holds the output, or has taken it over."""


@dataclass(frozen=True)
class Claim:
    """One driver's hold on an output, as its lease file stores it."""

    epoch: int
    """Number of the run on this output, from 1."""
    owner: str
    """Random, so that two claims of one process differ."""
    host: str
    pid: int
    machine: str
    """Boot and process namespace that the pid belongs to; empty if the system has none to read."""
    started_at: float
    """Seconds since 1970, UTC, by the owner's clock."""
    renewed_at: float
    """The last heartbeat, as `started_at`."""
    released: bool = False
    """Whether the driver has finished."""

    def describe(self) -> str:
        """`host-7, process 4711, since 2026-01-31 22:04 UTC`."""
        since = f"since {datetime.fromtimestamp(self.started_at, UTC):%Y-%m-%d %H:%M} UTC"
        host = escaped(self.host)
        return f"{host}, {since}" if self.owner == UNKNOWN else f"{host}, process {self.pid}, {since}"


class Lease:
    """A claim that a thread renews for the length of a `with` block, and that the end of the block releases.

    A driver that loses its lease is interrupted as by Ctrl-C; `check` then raises LeaseError with the reason. For the
    length of the block SIGINT therefore raises KeyboardInterrupt, also where it was ignored, as for `command &` in a
    script.
    """

    def __init__(self, storage: Storage, claim: Claim) -> None:
        self.storage = storage
        self.claim = claim
        self.lost: str | None = None
        """Why the lease is lost; None while it is held."""
        self._sigint_before: Any = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._send_heartbeats, name="lease", daemon=True)

    @property
    def epoch(self) -> int:
        """Number of this run on the output."""
        return self.claim.epoch

    def __enter__(self) -> Lease:
        if threading.current_thread() is threading.main_thread():
            self._sigint_before = signal.signal(signal.SIGINT, signal.default_int_handler)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.release()
        if self._sigint_before is not None:
            signal.signal(signal.SIGINT, self._sigint_before)

    def release(self) -> None:
        """End the heartbeats, and give the output back."""
        self._stop.set()
        self._thread.join()
        if self.lost is None:
            with suppress(StorageError):  # an unreleased claim expires
                _write(self.storage, replace(self.claim, renewed_at=time.time(), released=True))

    def check(self) -> None:
        """Raise LeaseError if the lease is lost."""
        if self.lost is not None:
            raise LeaseError(self.lost)

    def _send_heartbeats(self) -> None:
        while not self._stop.wait(HEARTBEAT_S):
            try:
                check_owner(self.storage, self.claim)
                renewed = replace(self.claim, renewed_at=time.time())
                _write(self.storage, renewed)
                self.claim = renewed
            except LeaseError as error:
                self._lose(str(error))
            except Exception as error:  # any error: a driver without heartbeats must not go on
                if time.time() - self.claim.renewed_at > EXPIRY_S:
                    reason = str(error) if isinstance(error, SGI2VError) else f"{type(error).__name__}: {error}"
                    self._lose(f"the lease on {self.storage.url} expired, because it could not be renewed: {reason}")

    def _lose(self, reason: str) -> None:
        """Note the reason, and interrupt the driver's main thread whatever it waits for."""
        self.lost = reason
        self._stop.set()
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)


def acquire(storage: Storage, take_over: bool = False, on_wait: Callable[[str], None] = lambda line: None) -> Lease:
    """Claim the output, and wait for the expiry of a claim whose heartbeats have stopped.

    take_over: even from a driver that seems alive. on_wait: called with one line when the wait begins. Raises
    LeaseError if another driver is alive; ConfigError for a store that cannot hold an output.
    """
    storage.check_usable()
    waiting = False
    while True:
        holder = read_claim(storage)
        if holder is None or take_over or not is_alive(holder):
            now = time.time()
            epoch = 1 + (_last_epoch(storage) if holder is None else holder.epoch)
            claim = Claim(epoch, uuid.uuid4().hex, socket.gethostname(), os.getpid(), _machine(), now, now)
            if storage.put_new(claim_key(epoch), _to_json(claim)):
                check_owner(storage, claim)  # a stale listing may have led to an epoch that was used before
                _delete_older_claims(storage, epoch)
                return Lease(storage, claim)
            take_over = False  # a third driver was faster, and --take-over did not mean that one
            continue
        age_s = time.time() - holder.renewed_at
        if age_s < MISSED_HEARTBEATS * HEARTBEAT_S:
            raise LeaseError(
                f"{storage.url} is in use by another run: {holder.describe()}. Wait for it, or give another --output; "
                "if it is certainly dead, --take-over takes its place at once."
            )
        if not waiting:
            on_wait(
                f"{storage.url} was in use by {holder.describe()}, whose last heartbeat was {age_s:.0f} s ago: "
                f"waiting {EXPIRY_S - age_s:.0f} s for its lease to expire"
            )
            waiting = True
        time.sleep(POLL_S)


def check_epoch(storage: Storage, epoch: int) -> None:
    """Raise LeaseError if a later run has claimed the output: the fencing of a write. epoch: of the run's lease."""
    holder = read_claim(storage)
    if holder is not None and holder.epoch > epoch:
        raise LeaseError(_taken_over(storage, holder))


def check_owner(storage: Storage, claim: Claim) -> None:
    """Raise LeaseError if the output is another driver's: by a later epoch, or by a claim with this epoch.

    Two claims with one epoch only come from a store that lets a conditional put replace an object.
    """
    holder = read_claim(storage)
    if holder is not None and holder.epoch >= claim.epoch and holder.owner != claim.owner:
        raise LeaseError(_taken_over(storage, holder))


def _taken_over(storage: Storage, holder: Claim) -> str:
    return f"{storage.url} has been taken over by another run: {holder.describe()}. This one has stopped."


def read_claim(storage: Storage) -> Claim | None:
    """The claim with the highest epoch; None if there has been none.

    A claim that cannot be read is one of an unknown driver whose last heartbeat was when the object was last changed.
    """
    keys = [key for key in storage.keys(FOLDER) if is_own_key(key) and epoch_of(key)]
    if not keys:
        return None
    key = max(keys, key=epoch_of)
    data = storage.get(key)
    if data is None:
        return read_claim(storage)  # deleted meanwhile, so there is a later one
    claim = _parse(key, data)
    if claim is None:
        changed_at = storage.changed_at(key)
        claim = Claim(
            epoch_of(key), UNKNOWN, f"an unknown driver (its claim {key} is damaged)", 0, "", changed_at, changed_at
        )
    return claim


def _parse(key: str, data: bytes) -> Claim | None:
    """The claim in an object's content; None if it is damaged."""
    try:
        claim = TypeAdapter(Claim).validate_json(data, strict=True)
        claim.describe()
    except (ValidationError, OverflowError, ValueError, OSError):  # the last three: of a time that no clock shows
        return None
    is_process = 0 < claim.pid < 1 << 31
    return claim if is_process and claim.epoch == epoch_of(key) else None


def _last_epoch(storage: Storage) -> int:
    """The highest epoch that left its number in the output, for an output whose claims were lost."""
    return max((epoch_of(key) for folder in ("parts", "tables") for key in storage.keys(folder)), default=0)


def is_alive(claim: Claim) -> bool:
    """Whether the driver of a claim may still be at work."""
    if claim.released or time.time() - claim.renewed_at > EXPIRY_S:
        return False
    if not claim.machine or claim.machine != _machine():
        return True
    try:
        os.kill(claim.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # the process is alive and belongs to another user
    return True


def _machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _delete_older_claims(storage: Storage, epoch: int) -> None:
    for key in storage.keys(FOLDER):
        if is_own_key(key) and 0 < epoch_of(key) < epoch:
            storage.delete(key)


def _write(storage: Storage, claim: Claim) -> None:
    storage.put(claim_key(claim.epoch), _to_json(claim))


def claim_key(epoch: int) -> str:
    """The key of the claim of a run."""
    return f"{FOLDER}/{epoch:06d}.json"


def _to_json(claim: Claim) -> bytes:
    return json.dumps(asdict(claim), indent=2).encode()
