"""Ray for the length of a run: attached to a cluster, or started on this machine."""

from __future__ import annotations

import gc
import logging
import math
import os
import signal
import socket
import sys
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from pathlib import Path

from manifests.access import without_secrets
from pipeline.config import ExecutionConfig, RunConfig, cluster_address, waiting_seconds
from pipeline.flow.missing import missing_package_in
from pipeline.flow.pools import Needs, NoRoomError, Pools, bundles, describe, plan_pools, worker_bytes
from pipeline.flow.watch import ClusterWatch
from sgi2v.errors import ClusterError, ConfigError
from sgi2v.wording import counted

CONNECT_TIMEOUT_S = 10.0
"""Seconds that a cluster may take to accept a connection."""
LOCAL_RAY = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on Linux too: every process of this Ray binds to the loopback address
    "RAY_enable_metrics_collection": "0",
    "RAY_event_stats": "0",
    "RAY_task_events_report_interval_ms": "0",
    "RAY_num_workers_soft_limit": "0",
    "RAY_prestart_worker_first_driver": "0",
    "RAY_enable_worker_prestart": "0",
    "REPORTER_UPDATE_INTERVAL_MS": "3600000",
}
"""Environment of a Ray that serves one run on this machine, before Ray is imported: nothing listens on the network; no
metrics, since nobody reads them, and no idle workers in reserve."""
RAY_DATA = {
    "enable_progress_bars": False,
    "print_on_execution_start": False,
    "execution_no_progress_timeout_s": -1,  # Ray Data ends a run in which no row moves for 30 minutes; a sample may
    "max_consecutive_actor_init_deaths": 3,  # with Ray Data's 0, one actor that dies while it starts ends the run
    "target_max_block_size": 1,  # bytes; a block is closed once it is larger, so each holds one row
}
"""Fields of Ray Data's `DataContext`; set them before a dataset is made, which keeps a copy."""
ROOM_POLL_S = 2.0
"""Seconds between two looks at the nodes of a cluster that has no room for the workers yet."""
SAY_EVERY_S = 60.0
"""Seconds between two lines about what a run waits for."""
MESSAGE_LIMIT = 400
"""Characters of a Ray error in a message."""


def quiet_ray() -> None:
    """Silence Ray; call it before Ray is imported. Its messages are for its own developers."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")  # else the raylet prints its lines before the driver's


@contextmanager
def ray_session(
    config: RunConfig,
    rows: int,
    on_stuck: Callable[[str], object] = lambda message: None,
    on_wait: Callable[[str], object] = lambda line: None,
) -> Iterator[Pools]:
    """Start Ray or attach to it, and yield the actors that a run over so many rows gets.

    Raises as `ray_running`, and ConfigError for a cluster that cannot hold a worker. on_stuck: as `ClusterWatch` has
    it. on_wait: called with a line that says for which nodes the session waits.
    """
    needs = Needs.of_tracker(config.metrics.tracker)
    with ray_running(config.execution, needs, on_stuck):
        yield pools_when_there_is_room(config, needs, rows, on_wait)


@contextmanager
def ray_running(
    execution: ExecutionConfig, needs: Needs, on_stuck: Callable[[str], object] = lambda message: None
) -> Iterator[None]:
    """Start Ray or attach to it for the length of a `with` block.

    Attaches to `run.address`, else to the cluster of the job that this process belongs to, else starts Ray on this
    machine. Raises ConfigError for a cluster that cannot be reached, and ClusterError if Ray does not start or is lost
    before the end of the block. on_stuck: as `ClusterWatch` has it.
    """
    quiet_ray()
    if cluster_address(execution) is None:
        for name, value in LOCAL_RAY.items():
            os.environ.setdefault(name, value)
    import ray

    importing = threading.Thread(target=import_module, args=("ray.data",), name="import-ray-data", daemon=True)
    importing.start()  # while ray.init waits for Ray's processes
    try:
        _connect(execution, needs)
        with ClusterWatch(on_stuck):
            importing.join()
            configure_ray_data()
            yield
    finally:
        importing.join()  # a process that ends during an import in another thread can hang
        gc.collect()
        # ray.shutdown aborts the process if a Ray reference is collected meanwhile
        with _stderr_discarded(), garbage_collection_paused():
            ray.shutdown()


def pools_when_there_is_room(config: RunConfig, needs: Needs, rows: int, on_wait: Callable[[str], object]) -> Pools:
    """The actors of a run, once the nodes can hold them. Raises NoRoomError if they cannot within the time to wait.

    Ray's autoscaler starts nodes that have been scaled to zero for a request only. The request is taken back at the
    end, since it would hold the nodes, and since Ray Data makes its own from then on.
    """
    import ray
    from ray.autoscaler.sdk import request_resources

    execution = config.execution
    on_cluster = cluster_address(execution) is not None
    plan = partial(plan_pools, execution, needs, rows, worker_bytes=worker_bytes(config), on_cluster=on_cluster)
    least, asked = counted(min(execution.min_workers, rows), "worker"), bundles(execution, rows)
    wait_s, start, said_at = waiting_seconds(execution), time.monotonic(), -math.inf
    try:
        while True:
            try:
                return plan(nodes=[node["Resources"] for node in ray.nodes() if node["Alive"]])
            except NoRoomError as error:
                waited = time.monotonic() - start
                if waited >= wait_s:
                    if not wait_s:
                        raise
                    raise NoRoomError(f"{error}. Waited {wait_s:g} s (--wait-for-gpus)") from error
                if said_at == -math.inf:
                    request_resources(bundles=asked)
                    on_wait(
                        f"{error}. Asked Ray for {_shown(asked)}. The run begins when there is room for {least}, and "
                        f"waits {wait_s:g} s at most (--wait-for-gpus)"
                    )
                    said_at = time.monotonic()
                elif time.monotonic() - said_at >= SAY_EVERY_S:
                    on_wait(f"still waiting for room for {least}, {wait_s - waited:.0f} s more at most")
                    said_at = time.monotonic()
            time.sleep(min(ROOM_POLL_S, wait_s))
    finally:
        if said_at != -math.inf:
            request_resources(bundles=[])


def _shown(asked: list[dict[str, float]]) -> str:
    """Equal bundles in words: `4 x (1 GPU and 1 CPU)`."""
    one = describe(asked[0])
    return one if len(asked) == 1 else f"{len(asked)} x ({one})"


def _connect(execution: ExecutionConfig, needs: Needs) -> None:
    import ray

    options = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    if address := cluster_address(execution):
        origin = address if execution.address else f"RAY_ADDRESS={address}"
        _check_reachable(address, origin)
        try:
            with _stderr_discarded(), _sigterm_handler_kept(), _users_folder_hidden():
                ray.init(address=address, **options)
        except Exception as error:  # of many kinds, some of which are plain exceptions
            raise ConfigError(f"no Ray cluster answers at {origin}: {error}") from error
        return
    asked = execution.workers if isinstance(execution.workers, int) else execution.min_workers
    cpus = max(_available_cpus(), asked) + math.ceil(needs.cpus())
    try:
        with _stderr_discarded(), _sigterm_handler_kept(), _users_folder_hidden():
            ray.init(address="local", num_cpus=cpus, include_dashboard=False, **options)
    except Exception as error:  # of many kinds: no port, no process, no answer in time
        advice = "Run the same command again, with less other work on the machine if it is busy."
        if "AF_UNIX" in str(error):  # a socket's path may have 107 characters, and Ray adds 62 of its own
            advice = "Set RAY_TMPDIR to a folder with a shorter name, such as /tmp."
        raise ClusterError(f"Ray did not start on this machine: {_one_line(error)}. {advice}") from error


def _available_cpus() -> int:
    """CPUs that this process may use. macOS has no affinity: all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_reachable(address: str, origin: str) -> None:
    """Raise ConfigError if nothing listens at an address, for which Ray itself would wait for minutes.

    origin: the address as messages show it, with the variable that it comes from.
    """
    if address.startswith(("http://", "https://", "ray://")):
        raise ConfigError(f"{origin} is not a cluster's own address (HOST:6379); for a job use `sgi2v-batch submit`")
    host, _, port = address.rpartition(":")
    if not port.isdigit():
        return  # a word that Ray resolves, such as `auto`
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S).close()
    except OSError as error:
        raise ConfigError(f"no Ray cluster answers at {origin}: {error}") from error


def configure_ray_data() -> None:
    """Apply RAY_DATA, and silence Ray's loggers."""
    import ray.data

    context = ray.data.DataContext.get_current()
    for name, value in RAY_DATA.items():
        setattr(context, name, value)
    for name in ("ray", "ray.data"):
        logger = logging.getLogger(name)
        logger.setLevel(logging.CRITICAL)
        logger.propagate = False
        logger.handlers.clear()


@contextmanager
def cluster_errors() -> Iterator[None]:
    """Turn Ray's errors about a lost cluster or actor into ClusterError; other errors, such as a stage's bug, pass."""
    try:
        yield
    except Exception as error:
        from ray.data.exceptions import ExecutionTimeoutError, SystemException
        from ray.exceptions import RayError, UserCodeException

        is_rays = isinstance(error, (RayError, ExecutionTimeoutError)) or isinstance(error.__cause__, SystemException)
        if not is_rays or isinstance(error, UserCodeException):
            raise
        if (missing := missing_package_in(str(error))) is not None:
            raise missing from error
        raise ClusterError(
            f"the Ray cluster failed: {_one_line(error)}. "
            "Committed samples are safe. Run the same command again to continue."
        ) from error


def _one_line(error: Exception) -> str:
    """A Ray error in one line; of one with a worker's traceback only the last line, which names the cause."""
    from ray.exceptions import RayActorError, RayTaskError

    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    has_traceback = isinstance(error, RayTaskError) or (isinstance(error, RayActorError) and error.actor_init_failed)
    message = without_secrets(" ".join(lines[-1:] if has_traceback else lines))  # a cut password is still one
    return f"{type(error).__name__}: {message}"[:MESSAGE_LIMIT].rstrip(" .:")


@contextmanager
def _users_folder_hidden() -> Iterator[None]:
    """Run ray.init in the folder of the standard library.

    Ray puts the driver's current folder first on the path of all workers, and a module of the user's there, such as
    `pipeline.py` or `torch.py`, would be imported in place of ours or a library's. The standard library comes first
    anyway. Actors go back to the driver's folder (`in_actor`).
    """
    folder = Path.cwd()
    os.chdir(sysconfig.get_path("stdlib"))
    try:
        yield
    finally:
        os.chdir(folder)


@contextmanager
def _stderr_discarded() -> Iterator[None]:
    """Discard what native code writes to standard error: Ray announces there that it will be quiet."""
    sys.stderr.flush()
    stderr, devnull = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(devnull)


@contextmanager
def _sigterm_handler_kept() -> Iterator[None]:
    """Restore the handler of SIGTERM afterwards: ray.init replaces it with one that exits at once."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


@contextmanager
def garbage_collection_paused() -> Iterator[None]:
    """Pause garbage collection for the length of a `with` block."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
