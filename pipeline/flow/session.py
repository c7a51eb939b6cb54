"""Ray: started on this machine for one run, or attached to."""

from __future__ import annotations

import gc
import logging
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.config import ExecutionConfig, cluster_address
from pipeline.flow.width import RESERVED_CPUS, Width, width
from sgi2v.errors import ClusterError, ConfigError

ANSWER_S = 10.0
"""How long a cluster has to take a connection."""
LEAN_RAY = {
    "RAY_enable_metrics_collection": "0",
    "RAY_event_stats": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_num_workers_soft_limit": "0",
    "REPORTER_UPDATE_INTERVAL_MS": "3600000",
}
"""Of a Ray that is started for one run: no figures that nobody sees, be it of its tasks or of the machine, no processes
kept for tasks that do not come."""
RAY_DATA = {
    "enable_progress_bars": False,
    "print_on_execution_start": False,
    "execution_no_progress_timeout_s": -1,  # Ray Data ends a run in which no row moves for 30 minutes; a sample may
    "max_consecutive_actor_init_deaths": 3,  # with Ray Data's 0, one actor that dies while it starts ends the run
}
"""Fields of Ray Data's `DataContext`."""
_TOLD_LIMIT = 400


def quiet_ray() -> None:
    """Silence Ray before it is imported: its own lines are for its developers."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # every line that the raylet would put before a driver


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


def _check_answering(address: str, named: str) -> None:
    """Raise ConfigError for an address at which nothing listens: Ray itself would try for minutes.

    named: the address as messages tell it, with where it comes from.
    """
    if address.startswith(("http://", "https://", "ray://")):
        raise ConfigError(f"{named} is not a cluster's own address (HOST:6379); for a job use `sgi2v-batch submit`")
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return  # such as `auto`: Ray knows
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    except OSError as error:
        raise ConfigError(f"no Ray cluster answers at {named}: {error}") from error


@contextmanager
def cluster_errors() -> Iterator[None]:
    """Turn what Ray raises for a cluster or an actor that is gone into ClusterError; a stage's bug passes."""
    try:
        yield
    except Exception as error:
        from ray.data.exceptions import ExecutionTimeoutError, SystemException
        from ray.exceptions import RayError, UserCodeException

        of_ray = isinstance(error, (RayError, ExecutionTimeoutError)) or isinstance(error.__cause__, SystemException)
        if not of_ray or isinstance(error, UserCodeException):
            raise
        raise ClusterError(
            f"the Ray cluster failed: {_in_one_line(error)}. "
            "What is committed is safe: the same command goes on from where it stopped."
        ) from error


def _in_one_line(error: Exception) -> str:
    """What happened; of an error that holds a worker's traceback its last line, which names the cause."""
    from ray.exceptions import RayActorError, RayTaskError

    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    remote = isinstance(error, RayTaskError) or (isinstance(error, RayActorError) and error.actor_init_failed)
    told = " ".join(lines[-1:] if remote else lines)
    return f"{type(error).__name__}: {told}"[:_TOLD_LIMIT].rstrip(" .:")


@contextmanager
def _collector_paused() -> Iterator[None]:
    """Let no thread collect a reference to one of Ray's objects meanwhile: Ray's shutdown ends the process for that."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


@contextmanager
def ray_session(execution: ExecutionConfig, rows: int, worker_bytes: int | None) -> Iterator[Width]:
    """Ray for the length of a run, with all its own chatter off.

    Attaches to `execution.address`, or to the cluster of the job that this process belongs to; otherwise starts
    Ray on this machine alone. Raises ConfigError for a cluster that cannot be reached or cannot hold a worker.
    """
    quiet_ray()
    import ray

    _begin(execution)
    try:
        _configure_ray_data()
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        yield width(execution, rows, nodes, worker_bytes)
    finally:
        with _stderr_silenced(), _collector_paused():
            ray.shutdown()


def _begin(execution: ExecutionConfig) -> None:
    """Attach to the cluster or start one, as `ray_session` says."""
    import ray

    options = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address := cluster_address(execution):
        named = address if execution.address else f"RAY_ADDRESS={address}"
        _check_answering(address, named)
        try:
            with _stderr_silenced(), _sigterm_kept():
                ray.init(address=address, **options)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise ConfigError(f"no Ray cluster answers at {named}: {error}") from error
        return
    for name, value in LEAN_RAY.items():
        os.environ.setdefault(name, value)
    cpus = max(len(os.sched_getaffinity(0)), execution.workers or 1) + math.ceil(RESERVED_CPUS)
    with _stderr_silenced(), _sigterm_kept():
        ray.init(address="local", num_cpus=cpus, include_dashboard=False, **options)


def _configure_ray_data() -> None:
    import ray.data

    context = ray.data.DataContext.get_current()
    for name, value in RAY_DATA.items():
        setattr(context, name, value)
    for name in ("ray", "ray.data"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.CRITICAL)
        logger.propagate = False
        logger.handlers.clear()
