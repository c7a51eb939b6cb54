"""verify of an export: compare every shard with its entry, and the list of shards with what is there."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from pipeline.export.destination import (
    EXPORT_FILE,
    SHARDS_FILE,
    Settings,
    Shard,
    digest_of,
    entry_key,
    list_of_shards,
    parse_export,
    read_shards,
)
from pipeline.export.formats.lance_dataset import open_dataset
from pipeline.output.lease import acquire, is_alive, read_claim
from pipeline.output.storage import Storage
from sgi2v.errors import ConfigError, StorageError
from sgi2v.wording import counted

PARALLEL_READS = 8


@dataclass
class ExportVerdict:
    """The result of a verification of an export."""

    samples: int = 0
    shards: int = 0
    objects: int = 0
    bytes: int = 0
    flaws: dict[str, list[str]] = field(default_factory=dict)
    """What is wrong, by shard or file."""
    is_running: bool = False
    """Whether an export was writing to it."""

    @property
    def number_of_flaws(self) -> int:
        return sum(map(len, self.flaws.values()))

    def note(self, name: str, problem: str) -> None:
        """Add one flaw."""
        self.flaws.setdefault(name, []).append(problem)


def is_export(location: str) -> bool:
    """Whether an export is there."""
    return Storage(location).get(EXPORT_FILE) is not None


def verify_export(location: str) -> ExportVerdict:
    """Read a whole export. Raises ConfigError for one of another version, StorageError."""
    storage = Storage(location)
    claim = read_claim(storage)
    verdict = ExportVerdict(is_running=claim is not None and is_alive(claim))
    entries = parse_export(storage, storage.get(EXPORT_FILE) or b"")
    settings = Settings(**{name: entries[name] for name in Settings.__dataclass_fields__})
    listed = storage.get(SHARDS_FILE)  # before the shards: a call that goes on adds to them
    owner: dict[str, str] = {}
    shards = list(read_shards(storage))
    for shard in shards:
        verdict.samples += len(shard.samples)
        verdict.objects += len(shard.objects)
        verdict.bytes += shard.size
        for sample_id in shard.samples:
            if (other := owner.setdefault(sample_id, shard.name)) != shard.name:
                verdict.note(shard.name, f"{sample_id} is in {other} too")
        for problem in _damage(storage, shard):
            verdict.note(shard.name, problem)
    verdict.shards = len(shards)
    if settings.format == "lance":
        _count_rows(storage, settings, shards, verdict)
    if not verdict.is_running:
        if listed is None:
            verdict.note(SHARDS_FILE, "is not there: the export was interrupted. Export again, and it goes on")
        elif listed != list_of_shards(shards, settings):
            verdict.note(SHARDS_FILE, "does not list the shards that are there. Export again, and it is written anew")
    return verdict


def repair_export(location: str, verdict: ExportVerdict) -> int:
    """Delete the shards that are flawed, for the next export to make them again. Returns the number of samples."""
    storage = Storage(location)
    lost = 0
    with acquire(storage):
        for shard in list(read_shards(storage)):
            if shard.name not in verdict.flaws:
                continue
            if any(".lance/" in key for key in shard.objects):
                raise ConfigError(
                    f"{location}: shards of a Lance dataset cannot be taken out. Export to another folder"
                )
            storage.delete(entry_key(shard.name))  # first: a shard without an entry does not count
            storage.delete_many(shard.objects)
            lost += len(shard.samples)
        if lost:
            storage.delete(SHARDS_FILE)
    return lost


def lines(verdict: ExportVerdict) -> Iterator[str]:
    """What a verification found, in words."""
    for name, problems in sorted(verdict.flaws.items()):
        yield from (f"{name}: {problem}" for problem in problems)
    if verdict.is_running:
        yield f"an export is writing to it: {SHARDS_FILE} is not judged"
    whole = "everything is there and whole" if not verdict.flaws else counted(verdict.number_of_flaws, "flaw")
    yield (
        f"{counted(verdict.samples, 'sample')} in {counted(verdict.shards, 'shard')}, "
        f"{counted(verdict.objects, 'file')}, {verdict.bytes / 1e6:.1f} MB: {whole}"
    )


def _damage(storage: Storage, shard: Shard) -> Iterator[str]:
    """What is wrong with the objects of a shard."""
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        for key, found in zip(shard.objects, pool.map(lambda key: digest_of(storage, key), shard.objects), strict=True):
            if found is None:
                yield f"{key} is not there"
            elif found["bytes"] != shard.objects[key]["bytes"]:
                yield f"{key} has {found['bytes']} bytes, not {shard.objects[key]['bytes']}"
            elif found != shard.objects[key]:
                yield f"{key} has another checksum than its entry"


def _count_rows(storage: Storage, settings: Settings, shards: list[Shard], verdict: ExportVerdict) -> None:
    """Compare the rows of the datasets with the samples of their shards."""
    for split in settings.splits:
        expected = sum(len(shard.samples) for shard in shards if shard.split == split)
        try:
            dataset = open_dataset(storage, split)
            rows = 0 if dataset is None else dataset.count_rows()
        except StorageError as error:
            verdict.note(f"{split}.lance", str(error))
            continue
        if rows != expected:
            verdict.note(f"{split}.lance", f"has {counted(rows, 'row')}, not {expected}")
