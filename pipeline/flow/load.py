"""First stage: manifest row -> first frame and box tracks, at the output size."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pyarrow as pa

from manifests.images import decode_image, read_image_bytes, resolve_uri
from manifests.schema import parse_row, row_digest, rows_of
from pipeline.config import RunConfig, sample_seed
from pipeline.flow.attempts import Attempts, attempt
from pipeline.flow.row import InFlight, as_row, each_row
from pipeline.output.run_file import RUN_FILE
from pipeline.output.storage import Storage
from sgi2v.errors import (
    ClusterError,
    ErrorCode,
    SampleError,
    StorageError,
)
from sgi2v.retry import with_retries

FETCHES = 4
"""Tries of an image's place in a row: the rows that fail with it may be far too many to wait long for each."""


class Load:
    """Manifest row -> first frame at output size and box tracks in its pixels."""

    def __init__(self, config: RunConfig, attempts: Attempts | None = None) -> None:
        self.config = config
        self.attempts = attempts

    def __call__(self, table: pa.Table) -> pa.Table:
        return each_row(table, "load", self._load)

    def _load(self, table: pa.Table) -> pa.Table:
        start = time.perf_counter()
        # outside the attempt, as what becomes of the row is told with them; they take no more than MAX_BOXES allows
        row = rows_of(table)[0]
        seed = row["seed"] if row["seed"] is not None else sample_seed(row["sample_id"], self.config.seed)
        state = InFlight(row["sample_id"], row["_attempts"], row_digest(row), seed)
        try:
            with attempt(self.attempts, "load", state.sample_id, self.config.execution.sample_timeout_s):
                first_frame, boxes = self._first_frame_and_boxes(row)
        except (ClusterError, StorageError) as error:
            return as_row(state.ends_run(error), None, None)
        except Exception as error:
            return as_row(state.failed(error).took("load", time.perf_counter() - start), None, None)
        state = replace(state, boxes_NT4=boxes)
        return as_row(state.took("load", time.perf_counter() - start), first_frame, None)

    def _first_frame_and_boxes(self, row: dict[str, Any]) -> tuple[bytes, list[list[list[float]]]]:
        from sgi2v.video import resize_image

        sampler, access = self.config.sampler, self.config.execution.access
        sample = parse_row(row)
        uri = resolve_uri(sample.image, self.config.manifest, access)
        image_HWC = decode_image(_fetch(uri, self.config))
        height, width = image_HWC.shape[:2]
        tracks = sample.tracks(sampler.num_frames, height, width).clip_to_first_frame()
        boxes_NT4: list[list[list[float]]] = tracks.rescale(sampler.height, sampler.width).boxes_NT4.tolist()
        return resize_image(image_HWC, sampler.height, sampler.width).tobytes(), boxes_NT4


def _fetch(uri: str, config: RunConfig) -> bytes:
    """The image file's bytes; a place that does not answer fails its rows, and the others go on.

    Where the run's own objects are in the same store, it is waited for as for those, and tried once more. Raises
    StorageError if it does not come back: all rows would fail with it.
    """
    failed: Exception
    for _ in range(2):
        try:
            return with_retries(
                f"reading {uri}", lambda: read_image_bytes(uri, access=config.execution.access), FETCHES
            )
        except (StorageError, OSError) as error:
            failed = error
        own = _own_object_beside(uri, config)
        if own is None:
            break
        # waits for long where the store is down, and not for every row that names what cannot be read
        Storage(own[0]).get(own[1])
    message = f"{failed}: make it readable, then run again with --retry-failed"
    raise SampleError(ErrorCode.IMAGE_MISSING, message) from failed


def _own_object_beside(uri: str, config: RunConfig) -> tuple[str, str] | None:
    """Folder and key of the run's own in the bucket or server of an image; None where it has nothing there."""
    for own in (f"{config.output.rstrip('/')}/{RUN_FILE}", config.manifest):
        if "://" in own and own.split("/")[:3] == uri.split("/")[:3]:
            folder, _, key = own.rpartition("/")
            return folder, key
    return None
