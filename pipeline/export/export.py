"""Export: copy samples of an output into the shards of a format. See docs/exporting.md.

The samples go into the shards of their split by sample id, so the same samples make the same shards. A call that was
killed has left whole shards, which hold the first samples of each split, and the next call goes on behind them.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain, islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from manifests.access import display_uri
from pipeline.export.card import write_export_card
from pipeline.export.destination import (
    SHARDS_FILE,
    Destination,
    Settings,
    check_apart,
    check_free_or_export,
    list_of_shards,
    open_destination,
)
from pipeline.export.formats import FORMATS
from pipeline.export.formats.lance_dataset import LanceDataset, load_library
from pipeline.export.formats.layout import Layout, Sample
from pipeline.export.formats.webdataset import WebDataset
from pipeline.export.shards import FolderShard, LanceShard, OpenShard, TarShard, note_appended
from pipeline.export.source import Row, Source, open_source
from pipeline.export.splits import split_of
from pipeline.output.lease import Lease, LeaseError, acquire
from pipeline.output.storage import Storage
from sgi2v.errors import ConfigError
from sgi2v.wording import counted, did_you_mean

BATCH_VIDEOS = 16
"""Videos that are read at the same time. Twice as many are held in memory."""
NO_LABELS_YET = "its labels are not written yet: the next call adds it"
_SHARD_KEY = re.compile(r"[a-z][a-z0-9_]*/(?:[0-9]{5,}/[^/]+|[a-z][a-z0-9_]*-[0-9]{5,}\.tar)")


@dataclass(frozen=True)
class ExportOptions:
    """What a user asks for."""

    format: str
    splits: dict[str, float]
    split_seed: int = 0
    shard_bytes: int = 256 * 10**6
    shard_samples: int = 1000
    link: bool = False
    """Hard-link the videos, in place of copying them."""
    source: str | None = None
    """Where the output of a selection is, if it was moved."""


@dataclass
class Exported:
    """What a call did."""

    new: int = 0
    """Samples that it added."""
    before: int = 0
    """Samples that were there."""
    new_shards: int = 0
    shards: int = 0
    bytes: int = 0
    """Of the whole export, without its lists."""
    splits: dict[str, int] = field(default_factory=dict)
    """Samples of the whole export, by split."""
    problems: dict[str, str] = field(default_factory=dict)
    """Samples that could not be exported, each with the reason."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Samples that the format has no place for, by reason."""
    notes: list[str] = field(default_factory=list)
    """What else the user should know."""


@dataclass(frozen=True)
class Planned:
    """A sample that is to be exported."""

    file_name: str
    split: str


def export(
    location: str, target: str, options: ExportOptions, progress: Callable[[str, int, int], None] = lambda *_: None
) -> Exported:
    """Export what the target does not have yet. location: of an output or a selection.

    progress: called with a noun, the number of samples done and that of all. Raises ConfigError, StorageError.
    """
    if options.format not in FORMATS:
        raise ConfigError(
            f"there is no format {options.format!r}{did_you_mean(options.format, FORMATS)}: {', '.join(FORMATS)}"
        )
    if options.format == "lance":
        load_library()
    storage = Storage(target)
    with open_source(location, options.source) as source:
        _check_usable(source, storage, options)
        settings = Settings(
            options.format,
            options.splits,
            options.split_seed,
            options.shard_bytes,
            options.shard_samples,
            labels=source.labels is not None,
        )
        with _held(storage):
            label_columns = pa.schema([]) if source.labels is None else pq.read_schema(source.labels).remove_metadata()
            destination = open_destination(storage, source, settings, label_columns)
            return _Export(source, destination, options, progress).run()


def _check_usable(source: Source, storage: Storage, options: ExportOptions) -> None:
    """Raise ConfigError for a target and options that cannot be used, before anything is written."""
    check_apart(source, storage)
    check_free_or_export(storage)
    if FORMATS[options.format].needs_labels and source.labels is None:
        raise ConfigError(
            f"the format {options.format} is made of labels, and {source.storage.url} has none (an earlier version "
            "made it): make the samples again with `run` into another output, or choose another format"
        )
    if options.link and not (source.storage.is_local and storage.is_local and options.format in _WITH_FILES):
        raise ConfigError(
            f"--link needs an output and an export on one local disk, and one of {', '.join(_WITH_FILES)}"
        )


_WITH_FILES = ("videofolder", "npz", "coco-video")
"""Formats in which a video is a file."""


def _held(storage: Storage) -> Lease:
    """The lease on the target: two exports at a time would write the same shards."""
    try:
        return acquire(storage)
    except LeaseError as error:
        raise ConfigError(f"another export is writing to {storage.url}: wait for it. ({error})") from error


class _Export:
    """One call."""

    def __init__(
        self,
        source: Source,
        destination: Destination,
        options: ExportOptions,
        progress: Callable[[str, int, int], None],
    ) -> None:
        self.source = source
        self.destination = destination
        self.options = options
        self.progress = progress
        self.layout: Layout = FORMATS[options.format](destination.columns, destination.label_columns)
        self.result = Exported()
        self.open: dict[str, OpenShard] = {}
        """The shard of each split that is being filled."""

    def run(self) -> Exported:
        """Add what is new."""
        result, destination = self.result, self.destination
        if self.options.format == "lance":
            note_appended(destination)
        known = len(destination.shards)
        result.before = sum(len(shard.samples) for shard in destination.shards)
        self._note_source()
        planned = self._plan()
        self._note_columns()
        with tempfile.TemporaryDirectory(prefix="sgi2v-shards-") as folder:
            for done, sample in enumerate(self._samples(planned), start=1):
                if sample is not None:
                    self._add(sample, planned[sample.row["sample_id"]].split, Path(folder))
                self.progress("sample", done, len(planned))
            for shard in self.open.values():
                shard.close()
        self._finish()
        result.new_shards = len(destination.shards) - known
        return result

    def _note_source(self) -> None:
        """Say what is special about the output."""
        url = self.source.storage.url
        if self.source.is_running:
            self.result.notes.append(f"a run is writing to {url}: export again to add what it makes from now on")
        if self.source.labels is None:
            self.result.notes.append(f"{url} has no labels of boxes per frame (an earlier version made it)")

    def _plan(self) -> dict[str, Planned]:
        """The samples to add, by id. Notes those that cannot be."""
        there = {name: digest for shard in self.destination.shards for name, digest in shard.samples.items()}
        small = self.source.small()
        is_own = self.source.has_own_videos(small)
        planned: dict[str, Planned] = {}
        problems, options = self.result.problems, self.options
        same = 0
        for row, own in zip(
            chain.from_iterable(each.to_pylist() for each in small.to_batches(1000)), is_own, strict=True
        ):
            sample_id = row["sample_id"]
            if sample_id in self.source.changed:
                problems[sample_id] = self.source.changed[sample_id]
            elif sample_id in there:
                same += there[sample_id] == row["video_sha256"]
                if there[sample_id] != row["video_sha256"]:
                    problems[sample_id] = "was made again since it was exported: export to another folder to have it"
            elif not own or row["file_name"] is None:
                problems[sample_id] = self._other_video(row["file_name"])
            else:
                image = row["image_sha256"] or row["image_uri"] or sample_id
                planned[sample_id] = Planned(row["file_name"], split_of(image, options.splits, options.split_seed))
        if there and not same:
            raise ConfigError(
                f"{self.destination.storage.url} is an export of another output: {self.source.storage.url} has none of "
                "its videos. Give another --output"
            )
        if (others := len(there.keys() - set(small["sample_id"].to_pylist()))) > 0:
            self.result.notes.append(f"{counted(others, 'sample')} of earlier calls stay that are not in this source")
        return planned

    def _other_video(self, file_name: str | None) -> str:
        """Why a video that is not at its sample's place is not exported."""
        if file_name is not None and file_name.endswith(".mp4") and not self.source.is_of_run:
            return (
                f"its video is at {display_uri(file_name)}, and an export reads only what is below "
                f"{self.source.storage.url}: evaluate a copy of the videos on this machine"
            )
        return f"names {file_name!r}, which is not a video of this sample"

    def _note_columns(self) -> None:
        """Compare the columns with those of the first call. Raises ConfigError for one of another type."""
        there, here = self.destination.columns, self.source.schema
        for wanted in there:
            if wanted.name in here.names and here.field(wanted.name).type != wanted.type:
                if pa.types.is_null(here.field(wanted.name).type) or pa.types.is_null(wanted.type):
                    continue
                raise ConfigError(
                    f"the column {wanted.name} is {wanted.type} in {self.destination.storage.url} and "
                    f"{here.field(wanted.name).type} in {self.source.storage.url}: give another --output"
                )
        new = [name for name in here.names if name not in there.names or pa.types.is_null(there.field(name).type)]
        new = [name for name in new if not pa.types.is_null(here.field(name).type)]
        if new:
            self.result.notes.append(
                f"columns that the export did not have at its start are left out: {', '.join(sorted(new))}"
            )

    def _samples(self, planned: dict[str, Planned]) -> Iterator[Sample | None]:
        """The planned samples, by id; None for one that has to be left out. Videos are read one batch ahead."""
        labels = self.source.labels_of(planned)
        next_labels: tuple[str, list[Row]] | None = next(labels, None)
        for row, video in self._rows_with_videos(planned):
            sample_id = row["sample_id"]
            while next_labels is not None and next_labels[0] < sample_id:
                next_labels = next(labels, None)
            found = next_labels[1] if next_labels is not None and next_labels[0] == sample_id else []
            yield self._checked(row, video, found)

    def _rows_with_videos(self, planned: dict[str, Planned]) -> Iterator[tuple[Row, bytes | None]]:
        storage = self.source.storage

        def read(rows: tuple[Row, ...]) -> list[tuple[Row, bytes | None]]:
            names = [planned[row["sample_id"]].file_name for row in rows]
            videos = storage.get_many(names)
            return [(row, videos.get(name)) for row, name in zip(rows, names, strict=True)]

        names = {field.name for field in self.destination.columns if not pa.types.is_null(field.type)}
        rows = ({name: row.get(name) for name in {*names, "sample_id"}} for row in self.source.rows(planned))
        with ThreadPoolExecutor(1) as reader:
            reading = None
            while batch := tuple(islice(rows, BATCH_VIDEOS)):
                coming = reader.submit(read, batch)
                if reading is not None:
                    yield from reading.result()
                reading = coming
            if reading is not None:
                yield from reading.result()

    def _checked(self, row: Row, video: bytes | None, labels: list[Row]) -> Sample | None:
        """The sample, if its video is whole, its labels are there and the format has a place for it."""
        sample_id = row["sample_id"]
        if video is None:
            self.result.problems[sample_id] = f"its video {row['file_name']} is not there"
            return None
        if hashlib.sha256(video).hexdigest() != row["video_sha256"]:
            self.result.problems[sample_id] = f"its video {row['file_name']} has another checksum than its record"
            return None
        own = [label for label in labels if label.get("video_sha256") in (None, row["video_sha256"])]
        if not own and row.get("num_boxes") and self.source.labels is not None and self.source.is_running:
            self.result.left_out[NO_LABELS_YET] += 1
            return None
        sample = Sample(row, own if self.source.labels is not None else None, video)
        if (reason := self.layout.left_out(sample)) is not None:
            self.result.left_out[reason] += 1
            return None
        return sample

    def _add(self, sample: Sample, split: str, folder: Path) -> None:
        shard = self.open.get(split) or self._new_shard(split, folder)
        content, size = shard.content_of(sample)
        if shard.is_full_for(size):
            shard.close()
            shard = self._new_shard(split, folder)
        self.open[split] = shard
        shard.add(sample, content, size)
        self.result.new += 1

    def _new_shard(self, split: str, folder: Path) -> OpenShard:
        number = next(self.destination.free_numbers(split))
        if isinstance(self.layout, LanceDataset):
            return LanceShard(self.destination, split, number, self.layout)
        if isinstance(self.layout, WebDataset):
            return TarShard(self.destination, split, number, self.layout, folder)
        return FolderShard(
            self.destination, split, number, self.layout, self.source.storage if self.options.link else None
        )

    def _finish(self) -> None:
        """Write what belongs to the whole export, the list of shards last."""
        destination, result = self.destination, self.result
        self._delete_leftovers()
        for _ in self.layout.finish(destination):
            pass
        result.shards = len(destination.shards)
        result.bytes = sum(shard.size for shard in destination.shards)
        for shard in destination.shards:
            result.splits[shard.split] = result.splits.get(shard.split, 0) + len(shard.samples)
        if not write_export_card(destination, self.source, self.layout, result.splits):
            result.notes.append("README.md was changed by a person and stays as it is")
        destination.storage.put(SHARDS_FILE, list_of_shards(destination.shards, destination.settings))

    def _delete_leftovers(self) -> None:
        """Delete what a killed call has left in shards that were made again with other samples."""
        listed = {key for shard in self.destination.shards for key in shard.objects}
        storage = self.destination.storage
        there = chain.from_iterable(storage.keys(split) for split in self.options.splits)
        storage.delete_many(key for key in there if _SHARD_KEY.fullmatch(key) and key not in listed)


def describe(result: Exported, target: str) -> list[str]:
    """Lines about what a call did."""
    lines: list[str] = []
    splits = ", ".join(f"{name} {number}" for name, number in sorted(result.splits.items()))
    total = sum(result.splits.values())
    lines.append(
        f"{counted(result.new, 'sample')} exported, {result.before} there before: {counted(total, 'sample')} "
        f"in {counted(result.shards, 'shard')}, {result.bytes / 1e6:.1f} MB" + (f" ({splits})" if splits else "")
    )
    lines += [f"{counted(number, 'sample')} left out: {reason}" for reason, number in sorted(result.left_out.items())]
    lines += result.notes
    lines.append(f"wrote {target}")
    return lines


def shown_problems(result: Exported, limit: int = 20) -> list[str]:
    """Lines about samples that could not be exported."""
    shown: list[Any] = sorted(result.problems.items())[:limit]
    lines = [f"{sample_id}: {reason}" for sample_id, reason in shown]
    if len(result.problems) > limit:
        lines.append(f"... and {counted(len(result.problems) - limit, 'sample')} more")
    if result.problems:
        lines.append(f"{counted(len(result.problems), 'sample')} could not be exported")
    return lines
