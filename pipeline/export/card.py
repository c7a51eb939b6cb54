"""README.md of an export: its dataset card, for people and for Hugging Face `datasets`."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from pipeline.export.destination import EXPORT_FILE, SHARDS_FILE, Destination
from pipeline.export.formats.layout import Layout
from pipeline.export.formats.videofolder import VideoFolder
from pipeline.export.source import Source
from pipeline.output.card_parts import dataset_version
from pipeline.output.tables import METADATA
from sgi2v.wording import counted

CARD = "README.md"
_MARK = re.compile(r"<!-- sgi2v-batch keeps this file up to date while it is as written: ([0-9a-f]{64}) -->\n")


def write_export_card(destination: Destination, source: Source, layout: Layout, splits: Mapping[str, int]) -> bool:
    """Write the card. Returns False, and leaves it alone, if a person has changed it. splits: samples of each."""
    storage = destination.storage
    existing = storage.get(CARD)
    if existing is not None and not _is_own(existing.decode(errors="replace")):
        return False
    in_order = {name: splits[name] for name in destination.settings.splits if name in splits}
    text = _card(destination, source, layout, in_order)
    storage.put(CARD, f"{text}{_mark(text)}".encode())
    return True


def _mark(text: str) -> str:
    digest = hashlib.sha256(text.encode()).hexdigest()
    return f"<!-- sgi2v-batch keeps this file up to date while it is as written: {digest} -->\n"


def _is_own(text: str) -> bool:
    mark = _MARK.search(text)
    return mark is not None and mark[0] == _mark(text.replace(mark[0], "", 1))


def _card(destination: Destination, source: Source, layout: Layout, splits: Mapping[str, int]) -> str:
    settings = destination.settings
    front = ["---", "license: other", "tags:\n- video\n- synthetic\n- trajectory-control\n- sg-i2v"]
    if isinstance(layout, VideoFolder) and splits:
        # named, since `datasets` takes words such as `test` in names of files for splits
        version = dataset_version(shard.to_json() for shard in destination.shards)
        front.append(f"configs:\n- config_name: default\n  version: {version}\n  data_files:")
        front += [f"  - split: {name}\n    path:\n    - {name}/*/{METADATA}\n    - {name}/*/*.mp4" for name in splits]
    front.append("---")
    counts = "\n".join(f"| {name} | {number} |" for name, number in splits.items())
    shares = ", ".join(f"{name} {share:g}" for name, share in settings.splits.items())
    labels = (
        "Labels are where each box was asked to be (`asked_...`) and where it was measured (`measured_...`, `points`), "
        "frame by frame, in pixels of the video. Train on what was measured."
        if settings.labels
        else "There are no labels of boxes per frame: the output had none."
    )
    made = "that SG-I2V made from images" if source.is_of_run else "that exist, measured by `sgi2v-batch evaluate`"
    by = f"\nSettings of the output: fingerprint `{source.fingerprint}`." if source.is_of_run else ""
    return f"""{chr(10).join(front)}

# Videos with known motion

Videos {made}, each with its metrics, in the format `{settings.format}` of sgi2v-batch.
{labels}

| split | samples |
| --- | --- |
{counts}

All samples of an image are in one split: the digest of the image and the seed {settings.split_seed} decide which one.
The shares asked for are {shares}.

## How to load it

{layout.loading(destination.storage.url, list(splits))}

## What is where

`{SHARDS_FILE}` lists {counted(len(destination.shards), "shard")} with their checksums, and `index/` the samples and
files of each. `{EXPORT_FILE}` has the settings. `sgi2v-batch verify FOLDER` compares all of it.

License: `other`, because this program does not know which licences apply: those of the images, of the model and of the
texts in the manifest. State them here before you publish this. The columns `image_uri`, `video_uri` and `host` name
folders and machines of whoever made the videos.{by}
"""
