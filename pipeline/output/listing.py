"""Whether a store lists what was put into it. The commit protocol finds finished samples by listing."""

from __future__ import annotations

import uuid

from pipeline.output.storage import Storage
from sgi2v.errors import ConfigError

PROBES = "probes"
"""Folder of the objects that `check_listing` puts and deletes."""


def check_listing(storage: Storage) -> None:
    """Put a small object, list it, read it and delete it. Raises ConfigError if the store does not give it back.

    Some clients put `s3://bucket//x` under one key and list another; some stores tidy keys like paths. A run there
    would find none of its own records, and make every sample again. A local disk needs no such check.
    """
    if storage.is_local:
        return
    key = f"{PROBES}/{uuid.uuid4().hex}"
    content = key.encode()
    storage.put(key, content)
    try:
        listed, found = storage.keys(PROBES), storage.get(key)
    finally:
        storage.delete(key)
    if key in listed and found == content:
        return
    what = "lists it under another name or not at all" if found == content else "does not give it back"
    raise ConfigError(
        f"{storage.url} cannot hold an output: an object was put there as {key}, and the store {what}. "
        "Give a location without empty parts (`//`), `.` and `..`"
    )
