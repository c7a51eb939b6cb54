"""`lance`: one Lance dataset a split, with the videos, the labels and all columns in its rows."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import pyarrow as pa

from pipeline.export.destination import Destination, Shard, digest_of
from pipeline.export.formats.layout import Layout, Sample
from pipeline.output.storage import Storage
from sgi2v.errors import ConfigError, StorageError
from sgi2v.locations import split_protocol

VIDEO, LABELS = "video", "labels"
_PROTOCOLS = {"file": "", "local": "", "s3": "s3", "s3a": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az"}
"""Stores that the library reaches, by fsspec's name of them."""


class LanceDataset(Layout):
    """A shard is what one append adds: a fragment of the dataset of its split."""

    def __init__(self, columns: pa.Schema, label_columns: pa.Schema) -> None:
        super().__init__(columns, label_columns)
        self.names = {name: _free_name(name, columns.names) for name in columns.names}
        """Name in the dataset, by column."""
        fields = [field.with_name(self.names[field.name]) for field in columns]
        fields.append(pa.field(VIDEO, pa.large_binary()))
        if len(label_columns):
            fields.append(pa.field(LABELS, pa.list_(pa.struct(list(label_columns)))))
        self.schema = pa.schema(fields)

    def batch(self, sample: Sample) -> pa.RecordBatch:
        """The row of a sample."""
        row = {name: sample.row.get(column) for column, name in self.names.items()}
        return pa.RecordBatch.from_pylist([{**row, VIDEO: sample.video, LABELS: sample.labels}], self.schema)

    def loading(self, url: str, splits: Sequence[str]) -> str:
        return f"""```python
import lance

dataset = lance.dataset("FOLDER/{next(iter(splits), "train")}.lance")  # one dataset a split: {", ".join(splits)}
table = dataset.to_table(columns=["sample_id", "control_gain", "labels"], filter="control_gain > 0.5")
video = dataset.take([0], columns=["video"])["video"][0].as_py()  # the bytes of an mp4
```"""


def load_library() -> Any:
    """The module `lance`. Raises ConfigError if it is not installed."""
    try:
        import lance
    except ImportError as error:
        raise ConfigError(
            "the format lance needs the package pylance: install `sgi2v-batch[export]`, or choose another --format"
        ) from error
    return lance


def append(storage: Storage, split: str, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> None:
    """Add rows to the dataset of a split: all of them or none."""
    lance = load_library()
    mode = "append" if storage.keys(f"{split}.lance/_versions") else "create"
    reader = pa.RecordBatchReader.from_batches(schema, batches)
    try:
        lance.write_dataset(reader, _uri(storage, split), mode=mode, storage_options=_options())
    except (OSError, RuntimeError, ValueError) as error:
        raise StorageError(f"writing {storage.url}/{split}.lance failed: {error}") from error


def open_dataset(storage: Storage, split: str) -> Any:
    """The dataset of a split; None if there is none yet."""
    lance = load_library()
    if not storage.keys(f"{split}.lance/_versions"):
        return None
    try:
        return lance.dataset(_uri(storage, split), storage_options=_options())
    except (OSError, RuntimeError, ValueError) as error:
        raise StorageError(f"reading {storage.url}/{split}.lance failed: {error}") from error


def unlisted_shards(destination: Destination) -> Iterator[Shard]:
    """Shards in the datasets without an entry: of this append, or of one after which a call was killed."""
    for split in destination.settings.splits:
        listed = {key for shard in destination.shards for key in shard.objects}
        numbers = destination.free_numbers(split)
        dataset = open_dataset(destination.storage, split)
        for fragment in [] if dataset is None else dataset.get_fragments():
            keys = [f"{split}.lance/data/{file.path}" for file in fragment.data_files()]
            if listed.issuperset(keys):
                continue
            rows = fragment.to_table(columns=["sample_id", "video_sha256"])
            samples = dict(zip(rows["sample_id"].to_pylist(), rows["video_sha256"].to_pylist(), strict=True))
            digests = {key: digest_of(destination.storage, key) for key in keys}
            yield Shard(split, next(numbers), samples, {key: digest or {} for key, digest in digests.items()})


def _free_name(name: str, others: Sequence[str]) -> str:
    """The name of a column in the dataset, in which `video` and `labels` mean something else."""
    free = name
    while free.lower() in {VIDEO, LABELS} or (free != name and free in others):
        free = f"manifest_{free}"
    return free


def _uri(storage: Storage, split: str) -> str:
    protocol = split_protocol(storage.url)[0]
    if protocol not in _PROTOCOLS:
        raise ConfigError(
            f"the library lance does not reach {protocol}://: give a local folder or an s3://, gs:// or az:// location"
        )
    prefix = _PROTOCOLS[protocol]
    return f"{prefix}://{storage.root}/{split}.lance" if prefix else f"{storage.root}/{split}.lance"


def _options() -> dict[str, str]:
    """What the library does not read from the environment as other clients of S3 do."""
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if endpoint is None:
        return {}
    return {"aws_endpoint": endpoint, "allow_http": str(endpoint.startswith("http://")).lower()}
