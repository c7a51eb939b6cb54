"""`webdataset`: tar files in which the files of a sample follow each other, as the library of this name reads them."""

from __future__ import annotations

import json
from collections.abc import Sequence

from pipeline.export.formats.layout import Layout, Sample, plain_json


class WebDataset(Layout):
    """A sample is `<stem>.mp4`, `<stem>.json` and, where it has labels, `<stem>.labels.json`."""

    def files(self, sample: Sample) -> dict[str, bytes]:
        row = {name: sample.row.get(name) for name in self.columns.names}
        files = {f"{sample.stem}.mp4": sample.video, f"{sample.stem}.json": _json(row)}
        if sample.labels is not None:
            files[f"{sample.stem}.labels.json"] = _json(sample.labels)
        return files

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
