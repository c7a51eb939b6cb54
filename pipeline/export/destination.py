"""The files of an export beside its samples: its settings, and the lists of its shards. See docs/exporting.md, Files.

A shard is whole if and only if its entry is in `index/`, which is put after everything that it names.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, BinaryIO

import pyarrow as pa

from pipeline.export.source import Source
from pipeline.output.run_file import location_of
from pipeline.output.storage import Storage
from sgi2v.errors import ConfigError

EXPORT_FILE = "export.json"
SHARDS_FILE = "shards.json"
INDEX = "index"
EXPORT_VERSION = "export/v1"
_ENTRY = re.compile(rf"{INDEX}/[a-z][a-z0-9_]*-[0-9]{{5,}}\.json")
_READ_AT_ONCE = 64


@dataclass(frozen=True)
class Settings:
    """What decides the files of an export. A later call must have the same."""

    format: str
    splits: Mapping[str, float]
    """Share of each split."""
    split_seed: int
    shard_bytes: int
    """A shard with more than one sample has at most this many bytes."""
    shard_samples: int
    """A shard has at most this many samples."""
    labels: bool
    """Whether the output had labels."""
    version: str = EXPORT_VERSION


@dataclass(frozen=True)
class Shard:
    """One whole shard, as its entry in `index/` says it."""

    split: str
    number: int
    samples: dict[str, str]
    """Digest of the video, by sample id."""
    objects: dict[str, dict[str, Any]]
    """`bytes` and `sha256` of each object, by key."""

    @property
    def name(self) -> str:
        """`train-00017`."""
        return shard_name(self.split, self.number)

    @property
    def size(self) -> int:
        """Bytes of all its objects."""
        return sum(each["bytes"] for each in self.objects.values())

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), indent=1).encode()


def shard_name(split: str, number: int) -> str:
    """The name of a shard in its entry, and of its files."""
    return f"{split}-{number:05d}"


def entry_key(name: str) -> str:
    """The key of a shard's entry."""
    return f"{INDEX}/{name}.json"


class Destination:
    """An export, new or begun."""

    def __init__(self, storage: Storage, settings: Settings, columns: pa.Schema, label_columns: pa.Schema) -> None:
        self.storage = storage
        self.settings = settings
        self.columns = columns
        """Columns of metadata.parquet as the first call found them: later calls write the same."""
        self.label_columns = label_columns
        self.shards: list[Shard] = list(read_shards(storage))

    def free_numbers(self, split: str) -> Iterator[int]:
        """Numbers of shards that are not there, from the lowest."""
        taken = {shard.number for shard in self.shards if shard.split == split}
        number = 0
        while True:
            if number not in taken:
                yield number
            number += 1

    def add(self, shard: Shard) -> None:
        """Note that a shard is whole: after this its samples are exported."""
        self.storage.put(entry_key(shard.name), shard.to_json())
        self.shards.append(shard)


def check_apart(source: Source, storage: Storage) -> None:
    """Raise ConfigError if an export would lie in an output, or around one."""
    output, target = (location_of(each.url).rstrip("/") for each in (source.storage, storage))
    if target == output or target.startswith(f"{output}/") or output.startswith(f"{target}/"):
        raise ConfigError(f"{storage.url} cannot hold an export of {source.storage.url}: neither may lie in the other")


def check_free_or_export(storage: Storage) -> None:
    """Raise ConfigError if something else than an export is there."""
    if storage.get(EXPORT_FILE) is not None:
        return
    others = [key for key in storage.keys("") if not key.startswith("lease/")]
    if others:
        raise ConfigError(
            f"{storage.url} holds something else than an export, such as {others[0].lstrip('/')}: "
            "give an empty or a new folder"
        )


def open_destination(storage: Storage, source: Source, settings: Settings, label_columns: pa.Schema) -> Destination:
    """The export at a location, with its settings written if it is new.

    Raises ConfigError for an export with other settings or of another output.
    """
    data = storage.get(EXPORT_FILE)
    if data is None:
        entries = {
            **asdict(settings),
            "source": source.describe(),
            "columns": _packed(source.schema),
            "label_columns": _packed(label_columns),
        }
        storage.put(EXPORT_FILE, json.dumps(entries, indent=2).encode())
        return Destination(storage, settings, source.schema, label_columns)
    entries = parse_export(storage, data)
    lines = [
        f"  {name} is {_shown(entries[name])} there and {_shown(value)} here"
        for name, value in asdict(settings).items()
        if entries[name] != value
    ]
    if lines:
        raise ConfigError(
            f"{storage.url} is an export with other settings, which are never mixed:\n" + "\n".join(lines) + "\n"
            "Give the same settings, or another --output"
        )
    there, here = entries["source"], source.describe()
    if there["fingerprint"] != here["fingerprint"] or (here["fingerprint"] is None and there != here):
        raise ConfigError(
            f"{storage.url} is an export of {there['output']}, whose samples were made with other settings than those "
            f"of {source.storage.url}: give another --output"
        )
    return Destination(storage, settings, _unpacked(entries["columns"]), _unpacked(entries["label_columns"]))


def parse_export(storage: Storage, data: bytes) -> dict[str, Any]:
    """export.json. Raises ConfigError for a file of another program or version."""
    try:
        entries = dict(json.loads(data))
        if entries["version"] == EXPORT_VERSION and set(Settings.__dataclass_fields__) <= set(entries):
            return entries
    except (ValueError, TypeError, KeyError):
        pass
    raise ConfigError(f"{storage.url}/{EXPORT_FILE} is not of this version of sgi2v-batch: give another --output")


def read_shards(storage: Storage) -> Iterator[Shard]:
    """The whole shards of an export, by name. Raises ConfigError for an entry that cannot be read."""
    keys = sorted(key for key in storage.keys(INDEX) if _ENTRY.fullmatch(key))
    for begin in range(0, len(keys), _READ_AT_ONCE):
        for key, data in sorted(storage.get_many(keys[begin : begin + _READ_AT_ONCE]).items()):
            try:
                shard = Shard(**json.loads(data))
            except (ValueError, TypeError) as error:
                raise ConfigError(
                    f"{storage.url}/{key} is damaged: delete it, and export again; its shard is then made again"
                ) from error
            yield shard


def list_of_shards(shards: Iterable[Shard], settings: Settings) -> bytes:
    """The content of shards.json: every shard with its checksum, or that of its entry where it has many objects."""
    shards = sorted(shards, key=lambda shard: (shard.split, shard.number))
    return json.dumps(
        {
            "version": EXPORT_VERSION,
            "format": settings.format,
            "samples": sum(len(shard.samples) for shard in shards),
            "bytes": sum(shard.size for shard in shards),
            "splits": {
                split: sum(len(shard.samples) for shard in shards if shard.split == split) for split in settings.splits
            },
            "shards": [_listed(shard) for shard in shards],
        },
        indent=1,
    ).encode()


def _listed(shard: Shard) -> dict[str, Any]:
    entry = shard.to_json()
    listed = {"name": shard.name, "split": shard.split, "samples": len(shard.samples), "bytes": shard.size}
    if len(shard.objects) == 1:
        ((key, about),) = shard.objects.items()
        listed |= {"key": key, "sha256": about["sha256"]}
    return listed | {"index": entry_key(shard.name), "index_sha256": hashlib.sha256(entry).hexdigest()}


def digest_of(storage: Storage, key: str) -> dict[str, Any] | None:
    """`bytes` and `sha256` of an object, read in pieces; None if there is none."""

    def digest(stream: BinaryIO) -> dict[str, Any]:
        sha256, size = hashlib.sha256(), 0
        while block := stream.read(1 << 20):
            sha256.update(block)
            size += len(block)
        return {"bytes": size, "sha256": sha256.hexdigest()}

    return storage.read(key, digest)


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ",".join(f"{name}={share:g}" for name, share in value.items())
    return str(value)


def _packed(schema: pa.Schema) -> str:
    return base64.b64encode(schema.serialize()).decode()


def _unpacked(text: str) -> pa.Schema:
    return pa.ipc.read_schema(pa.py_buffer(base64.b64decode(text)))
