"""Exit codes of every command; 0 means that all is well."""

from sgi2v.errors import ClusterError, SGI2VError, StorageError

FAILED_ROWS = 1
"""Some rows failed, or an output is not whole."""
BAD_INPUT = 2
"""The manifest or a setting cannot be used."""
LOST = 3
"""The store refused, a disk is full, or the Ray cluster was lost."""
INTERRUPTED = 130
"""Ctrl-C or SIGTERM; the same command goes on."""


def of_error(error: BaseException) -> int:
    """The exit code of a command that an error has ended."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, SGI2VError) and not isinstance(error, (StorageError, ClusterError)):
        return BAD_INPUT
    return LOST
