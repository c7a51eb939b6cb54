"""The disk of the machine that a process is on: its temporary files, which are no part of the output."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from sgi2v.errors import StorageError

FULL = {errno.ENOSPC, errno.EDQUOT}
NO_FOLDER = "No usable temporary directory"
"""What the standard library says where it could write to none."""


@contextmanager
def full_disk_told() -> Iterator[None]:
    """StorageError for a disk of this machine that is full: no row is at fault, and none would get any further."""
    try:
        yield
    except OSError as error:
        if error.errno not in FULL and NO_FOLDER not in str(error):
            raise
        place = f"a disk of {socket.gethostname()} is full: {error}"
        raise StorageError(f"{place}; make room there, then the same command goes on from where it stopped") from error
