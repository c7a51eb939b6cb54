"""Whether an output would lie in a folder of another output, whose records and parts it would mix with."""

from __future__ import annotations

from contextlib import suppress

from pipeline.output.run_file import RUN_FILE
from pipeline.output.storage import Storage
from sgi2v.errors import ConfigError, StorageError

FOLDERS = ("records", "videos", "parts", "lease", "tables", "logs")
"""Folders of an output."""


def check_not_nested(storage: Storage) -> None:
    """Raise ConfigError if the location lies in a folder of another output.

    There `run.json` would be a damaged record of the other output, and its repair would delete it.
    """
    names = storage.url.split("/")
    first = 3 if "://" in storage.url else 1  # after the bucket
    for number in range(first, len(names)):
        outer = "/".join(names[:number])
        if names[number] not in FOLDERS or not outer:
            continue
        with suppress(StorageError):  # what may not be read there is not this run's business
            if Storage(outer).get(RUN_FILE) is not None:
                raise ConfigError(
                    f"{storage.url} lies in the folder {names[number]} of the output {outer}: give another --output"
                )
