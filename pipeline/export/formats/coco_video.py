"""`coco-video`: boxes per frame, in the form of COCO for videos that YouTube-VIS uses, beside the videos."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.export.destination import Destination, Shard
from pipeline.export.formats.layout import Layout, Sample, parquet_of, plain_json
from pipeline.output.storage import Storage
from pipeline.output.tables import METADATA
from sgi2v.errors import StorageError

ANNOTATIONS = "annotations"
SHARD_FILE = "annotations.json"
CATEGORY = 1
_HEAD = {
    "info": {"description": "Boxes of sgi2v-batch: `bboxes` are measured, `asked_bboxes` were asked for"},
    "licenses": [],
    "categories": [{"id": CATEGORY, "name": "object", "supercategory": "object"}],
}


class CocoVideo(Layout):
    """A shard is a folder with videos and their annotations.json; the whole has one such file a split."""

    needs_labels = True

    def left_out(self, sample: Sample) -> str | None:
        return None if sample.labels else "it has no boxes"

    def shard_files(self, samples: Sequence[Sample]) -> dict[str, bytes]:
        videos, annotations = [], []
        for number, sample in enumerate(samples, start=1):
            videos.append(_video(number, sample))
            annotations += [_annotation(number, sample.row, label) for label in sample.labels or []]
        numbered = [{"id": number, **each} for number, each in enumerate(annotations, start=1)]
        whole = plain_json({**_HEAD, "videos": videos, "annotations": numbered})
        rows = [{**sample.row, "file_name": f"{sample.stem}.mp4"} for sample in samples]
        return {SHARD_FILE: json.dumps(whole).encode(), METADATA: parquet_of(rows, self.columns)}

    def finish(self, destination: Destination) -> Iterator[str]:
        for split in destination.settings.splits:
            shards = sorted((each for each in destination.shards if each.split == split), key=lambda each: each.number)
            if shards:
                key = f"{ANNOTATIONS}/{split}.json"
                _put_whole(destination.storage, key, shards)
                yield key

    def loading(self, url: str, splits: Sequence[str]) -> str:
        return """```python
import json

coco = json.load(open("FOLDER/annotations/train.json"))
coco["videos"], coco["annotations"], coco["categories"]
```

As in YouTube-VIS, an annotation is one object of a video, and `bboxes` has one entry a frame: x, y, width, height in
pixels of the video, or null where the object was not measured. `asked_bboxes` is the same of the asked box. `file_name`
of a video is the mp4's place below this folder; its frames are not files of their own. `areas` are those of the boxes,
and there are no masks."""


def _video(number: int, sample: Sample) -> dict[str, Any]:
    row = sample.row
    return {
        "id": number,
        "file_name": f"{sample.stem}.mp4",
        "sample_id": row["sample_id"],
        "length": row["num_frames"],
        "height": row["height"],
        "width": row["width"],
        "fps": row["fps"],
    }


def _annotation(video: int, row: dict[str, Any], label: dict[str, Any]) -> dict[str, Any]:
    boxes = label["measured_boxes"] or [None] * row["num_frames"]
    return {
        "video_id": video,
        "category_id": CATEGORY,
        "iscrowd": 0,
        "height": row["height"],
        "width": row["width"],
        "length": row["num_frames"],
        "bboxes": [_xywh(box) for box in boxes],
        "areas": [None if box is None else (box[2] - box[0]) * (box[3] - box[1]) for box in boxes],
        "asked_bboxes": [_xywh(box) for box in label["asked_boxes"] or []],
        "box": label["box"],
        "still": label["still"],
        "visible_fraction": label["visible_fraction"],
    }


def _xywh(box: list[float] | None) -> list[float] | None:
    return None if box is None else [box[0], box[1], box[2] - box[0], box[3] - box[1]]


def _put_whole(storage: Storage, key: str, shards: Sequence[Shard]) -> None:
    """Join the annotations of shards, one shard at a time. Ids count on from shard to shard."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "whole.json"
        with file.open("w") as stream:
            stream.write(json.dumps(_HEAD).removesuffix("}"))
            for name in ("videos", "annotations"):
                stream.write(f', "{name}": [')
                videos = annotations = 0
                for shard in shards:
                    place = f"{shard.split}/{shard.number:05d}"
                    part = json.loads(_required(storage, f"{place}/{SHARD_FILE}"))
                    for each in part[name]:
                        if name == "videos":
                            each |= {"id": each["id"] + videos, "file_name": f"{place}/{each['file_name']}"}
                        else:
                            each |= {"id": each["id"] + annotations, "video_id": each["video_id"] + videos}
                        is_first = each["id"] == 1
                        stream.write(("" if is_first else ",\n") + json.dumps(each))
                    videos += len(part["videos"])
                    annotations += len(part["annotations"])
                stream.write("]")
            stream.write("}\n")
        storage.put_file(key, file)


def _required(storage: Storage, key: str) -> bytes:
    data = storage.get(key)
    if data is None:
        raise StorageError(
            f"{storage.url}/{key} is gone: `sgi2v-batch verify {storage.url} --repair`, then export again"
        )
    return data
