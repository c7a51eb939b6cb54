"""Shards that are being filled: a tar, a folder, or rows for a Lance dataset."""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from pipeline.export.destination import Destination, Shard, shard_name
from pipeline.export.formats.lance_dataset import LanceDataset, append, unlisted_shards
from pipeline.export.formats.layout import Layout, Sample
from pipeline.output.storage import Storage
from sgi2v.errors import ConfigError

PARALLEL_PUTS = 8
"""Files of a folder that are put at the same time."""
MAX_PENDING = 32
"""Files that are held in memory until they are put."""
_BLOCK = tarfile.BLOCKSIZE


class OpenShard(ABC):
    """A shard of one split that is being filled. `close` makes it whole; until then nothing of it counts."""

    def __init__(self, destination: Destination, split: str, number: int) -> None:
        self.destination = destination
        self.split = split
        self.number = number
        self.samples: dict[str, str] = {}
        """Digest of the video, by sample id."""
        self.bytes = 0

    @property
    def is_empty(self) -> bool:
        return not self.samples

    def is_full_for(self, size: int) -> bool:
        """Whether a sample of this size belongs to the next shard. A shard takes at least one."""
        settings = self.destination.settings
        too_large = self.bytes + size > settings.shard_bytes or len(self.samples) >= settings.shard_samples
        return too_large and not self.is_empty

    def add(self, sample: Sample, content: Any, size: int) -> None:
        """Take a sample in. content, size: as `content_of` gave them."""
        self.samples[sample.row["sample_id"]] = sample.row["video_sha256"]
        self.bytes += size
        self._take(sample, content)

    @abstractmethod
    def content_of(self, sample: Sample) -> tuple[Any, int]:
        """What is stored of a sample, and its bytes in the shard."""

    @abstractmethod
    def _take(self, sample: Sample, content: Any) -> None: ...

    @abstractmethod
    def close(self) -> None:
        """Put the shard, and note it in the destination."""

    def _note(self, objects: dict[str, dict[str, Any]]) -> None:
        self.destination.add(Shard(self.split, self.number, self.samples, dict(sorted(objects.items()))))


class TarShard(OpenShard):
    """A tar file, which lies in a temporary folder until it is full."""

    def __init__(self, destination: Destination, split: str, number: int, layout: Layout, folder: Path) -> None:
        super().__init__(destination, split, number)
        self.layout = layout
        self.file = folder / f"{shard_name(split, number)}.tar"
        self.tar = tarfile.open(self.file, "w", format=tarfile.GNU_FORMAT)  # noqa: SIM115 - closed by `close`
        self.bytes = tarfile.RECORDSIZE  # the end of an archive

    def content_of(self, sample: Sample) -> tuple[dict[str, bytes], int]:
        files = self.layout.files(sample)
        return files, sum(_bytes_in_tar(name, data) for name, data in files.items())

    def _take(self, sample: Sample, content: Any) -> None:
        for name, data in content.items():
            member = tarfile.TarInfo(name)  # no time, no user: equal samples make equal bytes
            member.size = len(data)
            self.tar.addfile(member, io.BytesIO(data))

    def close(self) -> None:
        self.tar.close()
        key = f"{self.split}/{self.file.name}"
        with self.file.open("rb") as stream:
            digest = hashlib.file_digest(stream, "sha256").hexdigest()
        about = {"bytes": self.file.stat().st_size, "sha256": digest}
        self.destination.storage.put_file(key, self.file)
        self.file.unlink()
        self._note({key: about})


class FolderShard(OpenShard):
    """A folder of files, each of which is put at once. The files of the shard as a whole come last."""

    def __init__(
        self, destination: Destination, split: str, number: int, layout: Layout, linked: Storage | None
    ) -> None:
        """linked: local output whose videos are linked; None: videos are copied."""
        super().__init__(destination, split, number)
        self.layout = layout
        self.linked = linked
        self.kept: list[Sample] = []
        self.objects: dict[str, dict[str, Any]] = {}
        self.pool = ThreadPoolExecutor(PARALLEL_PUTS)
        self.pending: list[Future[None]] = []

    def content_of(self, sample: Sample) -> tuple[dict[str, bytes], int]:
        files = self.layout.files(sample)
        return files, sum(map(len, files.values()))

    def _take(self, sample: Sample, content: Any) -> None:
        self.kept.append(replace(sample, video=b""))
        video = f"{sample.stem}.mp4"
        if self.linked is not None:
            self._note_object(video, content[video])
            # `resolve`, since the videos of an evaluation are symbolic links
            _link((Path(self.linked.root) / sample.row["file_name"]).resolve(), self._path(video))
        self._put({name: data for name, data in content.items() if self.linked is None or name != video})

    def close(self) -> None:
        self._wait(0)
        self._put(self.layout.shard_files(self.kept))
        self._wait(0)
        self.pool.shutdown()
        self._note(self.objects)

    def _put(self, files: Mapping[str, bytes]) -> None:
        for name, data in files.items():
            key = self._note_object(name, data)
            self.pending.append(self.pool.submit(self.destination.storage.put, key, data))
        self._wait(MAX_PENDING)

    def _note_object(self, name: str, data: bytes) -> str:
        key = f"{self.split}/{self.number:05d}/{name}"
        self.objects[key] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        return key

    def _path(self, name: str) -> Path:
        return Path(self.destination.storage.root) / self.split / f"{self.number:05d}" / name

    def _wait(self, at_most: int) -> None:
        """Wait until at most so many files are on their way. Raises the error of one that could not be put."""
        while len(self.pending) > at_most:
            self.pending.pop(0).result()


class LanceShard(OpenShard):
    """Rows that are held in memory until they are appended to the dataset of their split."""

    def __init__(self, destination: Destination, split: str, number: int, layout: LanceDataset) -> None:
        super().__init__(destination, split, number)
        self.layout = layout
        self.batches: list[pa.RecordBatch] = []

    def content_of(self, sample: Sample) -> tuple[pa.RecordBatch, int]:
        batch = self.layout.batch(sample)
        return batch, batch.nbytes

    def _take(self, sample: Sample, content: Any) -> None:
        self.batches.append(content)

    def close(self) -> None:
        append(self.destination.storage, self.split, self.batches, self.layout.schema)
        self.batches = []
        note_appended(self.destination)


def note_appended(destination: Destination) -> None:
    """Note the shards that are in the datasets and not in the index. After an append, and after a kill."""
    for shard in list(unlisted_shards(destination)):
        destination.add(shard)


def _bytes_in_tar(name: str, data: bytes) -> int:
    long_name = 0 if len(name) <= tarfile.LENGTH_NAME else 2 * _BLOCK
    return _BLOCK + long_name + -(-len(data) // _BLOCK) * _BLOCK


def _link(video: Path, target: Path) -> None:
    """Hard-link a video into a shard. One that an earlier call linked or copied is replaced."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileNotFoundError):
        target.unlink()
    try:
        os.link(video, target)
    except OSError as error:
        raise ConfigError(
            f"{video} cannot be linked to {target} ({error.strerror}): leave out --link, and the videos are copied"
        ) from error
