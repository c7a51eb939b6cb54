"""The disk of the machine a process is on, with its temporary files; not the output."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from sgi2v.errors import StorageError

FULL_DISK = {errno.ENOSPC, errno.EDQUOT}
NO_TEMPORARY_FOLDER = "No usable temporary directory"
"""Start of the message of `tempfile` when no folder can be written to."""


@contextmanager
def full_disk_as_storage_error() -> Iterator[None]:
    """Raise StorageError for a full disk of this machine: it ends the run, since every row would fail with it."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL_DISK and NO_TEMPORARY_FOLDER not in str(error):
            raise
        raise StorageError(
            f"a disk of {socket.gethostname()} is full: {error}; make room there, then run the same command again: "
            "it continues where it stopped"
        ) from error
