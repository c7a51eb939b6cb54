"""`webdataset`: tar files in which the files of a sample follow each other, as the library of this name reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import pyarrow as pa

from pipeline.export.destination import Destination
from pipeline.export.formats.layout import Sample, plain_json


class WebDataset:
    """A sample is `<stem>.mp4`, `<stem>.json` and, where it has labels, `<stem>.labels.json`."""

    needs_labels = False

    def __init__(self, columns: pa.Schema, label_columns: pa.Schema) -> None:
        self.columns = columns
        self.label_columns = label_columns

    def left_out(self, sample: Sample) -> str | None:
        return None

    def files(self, sample: Sample) -> dict[str, bytes]:
        row = {name: sample.row.get(name) for name in self.columns.names}
        files = {f"{sample.stem}.mp4": sample.video, f"{sample.stem}.json": _json(row)}
        if sample.labels is not None:
            files[f"{sample.stem}.labels.json"] = _json(sample.labels)
        return files

    def shard_files(self, samples: Sequence[Sample]) -> dict[str, bytes]:
        return {}

    def finish(self, destination: Destination) -> Iterator[str]:
        yield from ()

    def loading(self, url: str, splits: Sequence[str]) -> str:
        return """```python
import json
import webdataset

shards = [shard["key"] for shard in json.load(open("FOLDER/shards.json"))["shards"] if shard["split"] == "train"]
for sample in webdataset.WebDataset([f"FOLDER/{key}" for key in shards], shardshuffle=False):
    sample["mp4"], json.loads(sample["json"]), json.loads(sample["labels.json"])  # bytes, columns, a list of boxes
```

The samples of a shard are sorted by `sample_id`: shuffle them, with `.shuffle(1000)`."""


def _json(value: object) -> bytes:
    return json.dumps(plain_json(value), allow_nan=False, separators=(",", ":")).encode()
