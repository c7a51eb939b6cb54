"""Ray: started on this machine for one run, or attached to; and how wide the run can be on it."""

from __future__ import annotations

import logging
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from pipeline.config import ExecutionConfig, cluster_address
from sgi2v.errors import ConfigError

ANSWER_S = 10.0
"""How long a cluster has to take a connection."""
STAGE_CPUS = 0.25
"""CPU share that a load or a commit actor reserves."""
RESERVED_CPUS = 1 + 2 * STAGE_CPUS
"""Beside the workers: Ray Data's own tasks, a loader and a committer. With less the flow waits for ever."""


@dataclass(frozen=True)
class Width:
    """How many actors of each stage run."""

    workers: int
    gpus_per_worker: float
    cpus_per_worker: float
    helpers: int
    """Load actors, and commit actors."""
    note: str
    """One line on what the workers run on."""


def quiet_ray() -> None:
    """Silence Ray before it is imported: its own lines are for its developers."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")


@contextmanager
def _stderr_silenced() -> Iterator[None]:
    """Send what native code writes to standard error nowhere: the one line by which Ray says it will be quiet."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


@contextmanager
def _sigterm_kept() -> Iterator[None]:
    """Keep what SIGTERM does: ray.init takes it, to end the process on the spot."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _check_answering(address: str) -> None:
    """Raise ConfigError for an address at which nothing listens: Ray itself would try for minutes."""
    if address.startswith(("http://", "https://", "ray://")):
        raise ConfigError(f"{address} is not a cluster's own address (HOST:6379); for a job use `sgi2v-batch submit`")
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return  # such as `auto`: Ray knows
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    except OSError as error:
        raise ConfigError(f"no Ray cluster answers at {address}: {error}") from error


@contextmanager
def ray_session(execution: ExecutionConfig, rows: int) -> Iterator[Width]:
    """Ray for the length of a run, with all its own chatter off.

    Attaches to `execution.address`, or to the cluster of the job that this process belongs to; otherwise starts
    Ray on this machine alone. Raises ConfigError for a cluster that cannot be reached.
    """
    quiet_ray()
    import ray

    address = cluster_address(execution)
    options = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address:
        _check_answering(address)
        try:
            with _stderr_silenced(), _sigterm_kept():
                ray.init(address=address, **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(f"no Ray cluster answers at {address}: {error}") from error
    else:
        cpus = max(os.cpu_count() or 1, execution.workers or 1) + math.ceil(RESERVED_CPUS)
        with _stderr_silenced(), _sigterm_kept():
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, **options)
    try:
        _quiet_ray_data()
        yield width(execution, rows, ray.cluster_resources(), local=not address)
    finally:
        ray.shutdown()


def width(execution: ExecutionConfig, rows: int, resources: dict[str, float], local: bool) -> Width:
    """How many workers a run gets from a cluster's resources, and what each takes."""
    gpus, cpus = resources.get("GPU", 0.0), resources.get("CPU", 1.0)
    if cpus < RESERVED_CPUS + 0.5:
        raise ConfigError(
            f"the Ray cluster has {cpus:g} CPU, and a run needs 2 at least: add a node or raise --num-cpus"
        )
    per_worker = execution.gpus_per_worker
    note = ""
    if per_worker is None:
        per_worker = 1.0 if gpus else 0.0
    if per_worker > 0 and gpus < per_worker:
        note = f"there is no GPU to give {per_worker:g} of to a worker: "
        per_worker = 0.0
    if per_worker > 0:
        most = int(gpus // per_worker)
        workers = min(execution.workers or most, max(rows, 1))
        share = min(1.0, (cpus - RESERVED_CPUS) / workers)
        helpers = max(1, min(workers, int(cpus - workers) // 2))
        return Width(workers, per_worker, share, helpers, f"{per_worker:g} GPU per worker")
    available = (os.cpu_count() or 1) if local else max(1, int(cpus - RESERVED_CPUS))
    workers = min(execution.workers or available, max(rows, 1))
    threads = execution.threads_per_worker
    note += f"no GPU, {threads} CPU thread{'s' if threads > 1 else ''} per worker"
    share = min(1.0, (cpus - RESERVED_CPUS) / workers)
    return Width(workers, 0.0, share, max(1, workers // 4), note)


def _quiet_ray_data() -> None:
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    for name in ("ray", "ray.data"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.CRITICAL)
        logger.propagate = False
        logger.handlers.clear()
