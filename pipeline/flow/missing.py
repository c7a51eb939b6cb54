"""What to say where a package is missing on a node: no row could be made there, so it ends the run."""

from __future__ import annotations

import re
import socket

from sgi2v.errors import ClusterError


def missing_package(error: ModuleNotFoundError) -> ClusterError:
    """The error of a run whose stage cannot import something in this process."""
    return ClusterError(_message(str(error.name or error), socket.gethostname()))


def missing_package_in(text: str) -> ClusterError | None:
    """The same, from the text of Ray's error about an actor that did not start; None for another fault."""
    package = re.search(r"No module named '([\w.]+)'", text)
    if package is None:
        return None
    node = re.search(r"\bip=([\w.:]+)", text)
    return ClusterError(_message(package[1], node[1] if node else "a node"))


def _message(module: str, node: str) -> str:
    return (
        f"the Python package {module.partition('.')[0]} is missing on {node}: install sgi2v-batch there with the same "
        "versions as here, or use the project's image on every node. Committed samples are safe. Then run the same "
        "command again."
    )
