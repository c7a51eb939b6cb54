"""`videofolder`: mp4 files beside a metadata.parquet, as Hugging Face `datasets` reads them."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.export.formats.layout import Layout, Sample, parquet_of
from pipeline.output.labels import LABELS
from pipeline.output.tables import METADATA


class VideoFolder(Layout):
    """A shard is a folder with videos, their metadata.parquet and their labels.parquet."""

    def shard_files(self, samples: Sequence[Sample]) -> dict[str, bytes]:
        named = [(f"{sample.stem}.mp4", sample) for sample in samples]
        files = {METADATA: parquet_of([{**sample.row, "file_name": name} for name, sample in named], self.columns)}
        if len(self.label_columns):
            labels = [{**label, "file_name": name} for name, sample in named for label in sample.labels or []]
            files[LABELS] = parquet_of(labels, self.label_columns)
        return files

    def loading(self, url: str, splits: Sequence[str]) -> str:
        return """```python
from datasets import Video, load_dataset

dataset = load_dataset("FOLDER")  # this folder, or its id on the Hugging Face Hub
dataset = dataset.cast_column("video", Video(decode=False))  # paths in place of frames, which need torchcodec
```

Each folder has a `metadata.parquet` with the columns of its videos, and a `labels.parquet` with a row a box, where the
output had labels: `duckdb -c "select * from 'FOLDER/*/*/labels.parquet'"`."""
