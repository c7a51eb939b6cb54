"""The formats of an export, one file each."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.export.formats.coco_video import CocoVideo
from pipeline.export.formats.lance_dataset import LanceDataset
from pipeline.export.formats.layout import Layout
from pipeline.export.formats.npz import Npz
from pipeline.export.formats.videofolder import VideoFolder
from pipeline.export.formats.webdataset import WebDataset

FORMATS: Mapping[str, type[Layout]] = {
    "videofolder": VideoFolder,
    "webdataset": WebDataset,
    "lance": LanceDataset,
    "npz": Npz,
    "coco-video": CocoVideo,
}
"""By name. A new format is a subclass of `Layout`, and a row here."""
