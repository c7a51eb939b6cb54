"""Exit codes of every command; 0 means that all is well."""

FAILED_ROWS = 1
"""Some rows failed, or an output is not whole."""
BAD_INPUT = 2
"""The manifest or a setting cannot be used."""
LOST = 3
"""The store refused, a disk is full, or the Ray cluster was lost."""
INTERRUPTED = 130
"""Ctrl-C or SIGTERM; the same command goes on."""
