"""First stage: manifest row -> first frame and box tracks, at the output size."""

from __future__ import annotations

import hashlib
import time
from dataclasses import replace
from typing import Any

import pyarrow as pa

from manifests.decode import decode_picture
from manifests.fit import place
from manifests.masks import masks_of, png_of
from manifests.schema import parse_row, row_digest, rows_of
from manifests.urls import resolve_uri
from pipeline.config import RunConfig, sample_seed
from pipeline.flow.attempts import LedgerClient, attempt
from pipeline.flow.meters import label_output, record
from pipeline.flow.row import InFlight, as_row, map_rows
from pipeline.output.inputs import fetch_image, shown_uri
from pipeline.output.run_file import RUN_FILE
from pipeline.output.storage import Storage
from sgi2v.errors import (
    ClusterError,
    ErrorCode,
    SampleError,
    StorageError,
)
from sgi2v.locations import split_protocol


class Load:
    """Manifest row -> first frame at output size and box tracks in its pixels."""

    def __init__(self, config: RunConfig, ledger: LedgerClient | None = None) -> None:
        self.config = config
        self.ledger = ledger
        label_output(config.output)

    def __call__(self, table: pa.Table) -> pa.Table:
        return map_rows(table, "load", self._load)

    def _load(self, table: pa.Table) -> pa.Table:
        start = time.perf_counter()
        # outside the attempt, since a row that is quarantined needs them too; MAX_BOXES bounds their cost
        row = rows_of(table)[0]
        seed = row["seed"] if row["seed"] is not None else sample_seed(row["sample_id"], self.config.seed)
        state = InFlight(row["sample_id"], row["_attempts"], row_digest(row), seed)
        try:
            with attempt(self.ledger, "load", state.sample_id, self.config.execution.sample_timeout_s):
                state, first_frame, masks = self._with_conditions(row, state)
        except (ClusterError, StorageError) as error:
            return as_row(state.with_run_error(error), None, None)
        except Exception as error:
            return as_row(state.with_error(error).with_seconds("load", time.perf_counter() - start), None, None)
        return as_row(state.with_seconds("load", time.perf_counter() - start), first_frame, None, masks)

    def _with_conditions(self, row: dict[str, Any], state: InFlight) -> tuple[InFlight, bytes, list[bytes] | None]:
        """The state with the row's boxes, its first frame, and the masks of its boxes as PNGs of that frame.

        Notes the image in `state.record_fields`, also if the row fails after that.
        """
        access, record_fields = self.config.execution.access, state.record_fields
        sample = parse_row(row)
        uri = resolve_uri(sample.image, self.config.manifest, access)
        record_fields["image_uri"] = shown_uri(uri)
        data = _fetch(uri, self.config)
        record("sgi2v_bytes", len(data), direction="down")
        record_fields["image_sha256"] = hashlib.sha256(data).hexdigest()
        picture = decode_picture(data)
        record_fields["image_note"] = picture.note
        height, width = picture.pixels_HWC.shape[:2]
        tracks = sample.tracks(self.config.sampler.num_frames, height, width).clip_to_first_frame()
        placement = place(tracks, self.config.video_size, sample.fit)
        for _, error in placement.lost_boxes(tracks):
            raise error
        record_fields["fit"] = placement.fit
        record_fields["source_box"] = list(placement.source_box)
        record_fields["picture_box"] = list(placement.picture_box)
        masks = None
        if sample.masks is not None and any(mask is not None for mask in sample.masks):
            own = masks_of(sample.masks, sample.boxes_N4, height, width)
            masks = [png_of(mask_HW) for mask_HW in placement.box_masks(own, tracks)]
        state = replace(
            state,
            height=placement.height,
            width=placement.width,
            boxes_NT4=placement.tracks(tracks).boxes_NT4.tolist(),
            still=None if sample.still is None else list(sample.still),
        )
        return state, placement.image(picture.pixels_HWC).tobytes(), masks


def _fetch(uri: str, config: RunConfig) -> bytes:
    """The bytes of an image file. Raises SampleError if its place does not answer; other rows go on.

    If the run keeps objects in the same store, this waits until the store returns those, and tries the image once
    more. Raises StorageError if it does not return them: then every row would fail.
    """
    failure: Exception
    for _ in range(2):
        try:
            return fetch_image(uri, config.execution.access)
        except (StorageError, OSError) as error:
            failure = error
        own_object = _own_object_beside(uri, config)
        if own_object is None:
            break
        folder, key = own_object
        Storage(folder).get(key)  # waits long if the store is down, but not if only this image cannot be read
    message = f"{failure}: make it readable, then run again with --retry-failed"
    raise SampleError(ErrorCode.IMAGE_MISSING, message) from failure


def _own_object_beside(uri: str, config: RunConfig) -> tuple[str, str] | None:
    """Folder and key of an object that the run has in the image's bucket or on its server; None if it has none."""
    for own in (f"{config.output.rstrip('/')}/{RUN_FILE}", config.manifest):
        if "://" in own and _store_of(own) == _store_of(uri):
            folder, _, key = own.rpartition("/")
            return folder, key
    return None


def _store_of(uri: str) -> tuple[str, str]:
    """The protocol, and the bucket or server."""
    protocol, rest = split_protocol(uri)
    return protocol, rest.partition("/")[0]
