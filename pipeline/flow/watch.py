"""A watch over the Ray processes that the driver depends on.

When the raylet of the driver's node or the cluster's GCS dies, Ray's native code ends the driver (2.60: after 13 s and
60 s) with exit code 1, without a word, and without Python's clean-up. The watch notices it before.
"""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Callable
from types import TracebackType

from sgi2v.errors import ClusterError

POLL_S = 1.0
"""Between two looks, seconds."""
CONNECT_TIMEOUT_S = 5.0
"""Seconds that a process may take to accept a connection."""
REFUSALS = 2
"""Refused connections in a row after which a process of this machine is dead: a busy one is slow, but refuses none."""
STUCK_S = 10.0
"""Seconds after the interruption in which the driver must leave its call of Ray. Native code may wait for minutes."""
UNREACHABLE_S = 45.0
"""Seconds without a connection after which any process is lost. Ray ends the driver 60 s after the GCS is gone."""


class ClusterWatch:
    """Interrupts the driver in a `with` block when Ray is lost; the block then raises ClusterError."""

    def __init__(self, on_stuck: Callable[[str], object]) -> None:
        """Ray is connected when this is called.

        on_stuck: called with the message, in a thread, if native code of Ray keeps the driver from ending.
        """
        import ray

        context = ray.get_runtime_context()
        (own,) = (node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
        own_address = own["NodeManagerAddress"]
        gcs_host, _, gcs_port = context.gcs_address.rpartition(":")
        raylet = RayProcess("raylet", own_address, own["NodeManagerPort"], is_here=True)
        gcs = RayProcess("gcs_server", gcs_host.strip("[]"), int(gcs_port), is_here=gcs_host.strip("[]") == own_address)
        self._processes = (raylet, gcs)
        self._on_stuck = on_stuck
        self._lost: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, name="cluster-watch", daemon=True)

    def __enter__(self) -> ClusterWatch:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._stop.set()
            self._thread.join()
        except KeyboardInterrupt:  # the watch's own may come this late
            if self._lost is None:
                raise
        if error is not None and self._lost is not None:
            raise ClusterError(self._lost) from error

    def _look(self) -> None:
        while not self._stop.wait(POLL_S):
            lost = [process.describe() for process in self._processes if process.is_lost()]
            if lost:
                self._lost = (
                    f"the Ray cluster failed: {' and '.join(lost)}. Committed samples are safe. "
                    "Run the same command again to continue."
                )
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                if not self._stop.wait(STUCK_S):
                    self._on_stuck(self._lost)
                return


class RayProcess:
    """A process of Ray that listens at an address."""

    def __init__(self, name: str, host: str, port: int, is_here: bool) -> None:
        self.name = name
        self.host = host
        self.port = port
        self.is_here = is_here
        """Whether it runs on this machine."""
        self._refusals = 0
        self._failing_since: float | None = None

    def is_lost(self) -> bool:
        """Try to connect, and judge by this attempt and the ones before."""
        try:
            socket.create_connection((self.host, self.port), timeout=CONNECT_TIMEOUT_S).close()
        except OSError as error:
            self._refusals = self._refusals + 1 if isinstance(error, ConnectionRefusedError) else 0
            now = time.monotonic()
            self._failing_since = self._failing_since or now
            is_dead = self.is_here and self._refusals >= REFUSALS
            return is_dead or now - self._failing_since > UNREACHABLE_S
        self._refusals = 0
        self._failing_since = None
        return False

    def describe(self) -> str:
        """What happened to it, and what to look for."""
        if self.is_here:
            return (
                f"its process {self.name} on this machine has died, perhaps killed because memory ran out "
                "(see the system's log)"
            )
        return f"its {self.name} at {self.host}:{self.port} has not answered for {UNREACHABLE_S:.0f} s"
