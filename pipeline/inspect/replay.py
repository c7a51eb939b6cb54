"""replay: make one sample of a run again, on this machine and without Ray, and compare it bit for bit."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from manifests.io import read_manifest
from manifests.schema import known_columns, row_digest
from pipeline.config import RunConfig
from pipeline.flow.generate import Generate
from pipeline.flow.load import Load
from pipeline.flow.notes import SendNote
from pipeline.flow.row import InFlight, generated_frames, state_of
from pipeline.output.catalog import Catalog
from pipeline.output.records import SampleRecord
from pipeline.output.run_file import recorded_config
from pipeline.output.storage import Storage
from sgi2v.errors import ConfigError, ErrorCode, SampleError
from sgi2v.video import Frames, decode_mp4


@dataclass(frozen=True)
class Replay:
    """The comparison of a replayed sample with the recorded one."""

    identical: bool
    """Whether the frames before encoding are the same, bit for bit."""
    mean_difference: float
    """Mean absolute difference to the stored video, 8-bit levels; its compression alone makes about 1."""
    record: SampleRecord
    """The sample's record."""


def replay(
    output: str,
    sample_id: str,
    device: str,
    on_load: Callable[[str], None] = lambda model: None,
    send_note: SendNote | None = None,
) -> Replay:
    """Make a sample again from run.json and the manifest that it names. device: `cuda` or `cpu`.

    on_load: called with the model's name before it is loaded. send_note: called when it is, and with the step about
    once a second.
    Raises ConfigError if there is no such run or sample, or its row has changed; SampleError if the row fails.
    """
    prepared = prepare(output, sample_id)
    config, record = prepared.config, prepared.record
    on_load(config.model.source)
    generated = Generate(config, device, send_note=send_note)(prepared.loaded)
    frames_THWC, frames_sha256 = frames_of(generated, config)
    difference = np.abs(frames_THWC.astype(np.int16) - decode_mp4(prepared.video)).mean()
    return Replay(frames_sha256 == record.frames_sha256, float(difference), record)


@dataclass(frozen=True)
class Prepared:
    """What a sample is made again from."""

    config: RunConfig
    """Of its run, with the decoder's chunks of the sample."""
    record: SampleRecord
    video: bytes
    """The mp4 in the output."""
    loaded: pa.Table
    """Its row, as the stage `load` gives it."""


def prepare(output: str, sample_id: str) -> Prepared:
    """Find a sample's record, video and manifest row, and load its image. Raises as `replay`."""
    storage = Storage(output)
    config = recorded_config(storage)
    catalog = Catalog(storage)
    record = catalog.get(sample_id)
    if record is None:
        for damage in catalog.damaged:
            if damage.sample_id == sample_id:
                raise ConfigError(f"{output}/{damage.key} {damage.problem}: the next run makes {sample_id} again")
        raise ConfigError(f"{output} has no sample {sample_id!r}")
    if record.status != "committed" or record.file_name is None:
        raise ConfigError(f"{sample_id} failed ({record.error_code}): it has no video to compare with")
    video = storage.get(record.file_name)
    if video is None:
        raise ConfigError(f"{output}/{record.file_name} is missing: check the output with `sgi2v-batch verify`")
    rows = known_columns(read_manifest(config.manifest))
    rows = rows.filter(pc.equal(rows["sample_id"], sample_id))
    if rows.num_rows != 1 or row_digest(rows.to_pylist()[0]) != record.row_digest:
        raise ConfigError(f"{config.manifest} does not have the row that {sample_id} was made from")
    loaded = Load(config)(InFlight.begin(rows))
    image = state_of(loaded).record_fields
    if record.image_sha256 not in {None, image.get("image_sha256")}:
        raise ConfigError(f"{image['image_uri']} is not the image that {sample_id} was made from")
    if record.decode_chunk is not None:  # fewer frames than the setting says, where memory was short
        config = dataclasses.replace(config, sampler=config.sampler.replace(decode_chunk_size=record.decode_chunk))
    return Prepared(config, record, video, loaded)


def frames_of(generated: pa.Table, config: RunConfig) -> tuple[Frames, str | None]:
    """The frames of a row after the stage `generate`, and their digest. Raises SampleError if the row failed."""
    state, frames_THWC = generated_frames(generated, config.sampler)
    if frames_THWC is None:
        raise SampleError(ErrorCode(state.error_code or ErrorCode.UNKNOWN), state.message or "the row failed")
    return frames_THWC, state.record_fields["frames_sha256"]
