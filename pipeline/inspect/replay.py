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
from pipeline.config import CandidatesConfig, RunConfig
from pipeline.flow.generate import Generate
from pipeline.flow.load import Load
from pipeline.flow.notes import SendNote
from pipeline.flow.row import InFlight, generated_frames, state_of, with_seed
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
    mean_difference: float | None
    """Mean absolute difference to the stored video, 8-bit levels; its compression alone makes about 1. None for a
    candidate whose video was not kept."""
    record: SampleRecord
    """The sample's record."""


@dataclass(frozen=True)
class Which:
    """Which of a sample's videos is made again; without a choice, the one that is its result."""

    candidate: int | None = None
    """Number of a candidate, from 0."""
    baseline: bool = False


@dataclass(frozen=True)
class _Recorded:
    """What a record says of the video that is made again."""

    seed: int | None
    frames_sha256: str | None
    decode_chunk: int | None
    file_name: str | None
    """None: it is not stored."""


def replay(
    output: str,
    sample_id: str,
    device: str,
    on_load: Callable[[str], None] = lambda model: None,
    send_note: SendNote | None = None,
    which: Which = Which(),
) -> Replay:
    """Make a sample again from run.json and the manifest that it names. device: `cuda` or `cpu`.

    on_load: called with the model's name before it is loaded. send_note: called when it is, and with the step about
    once a second.
    Raises ConfigError if there is no such run or sample, or its row has changed; SampleError if the row fails.
    """
    prepared = prepare(output, sample_id, which)
    config = prepared.config
    on_load(config.model.source)
    generated = Generate(config, device, send_note=send_note)(prepared.loaded)
    frames_THWC, frames_sha256 = frames_of(generated, config)
    difference = None
    if prepared.video is not None:
        difference = float(np.abs(frames_THWC.astype(np.int16) - decode_mp4(prepared.video)).mean())
    return Replay(frames_sha256 == prepared.frames_sha256, difference, prepared.record)


@dataclass(frozen=True)
class Prepared:
    """What a sample is made again from."""

    config: RunConfig
    """Of its run, for this video alone, with the decoder's chunks of the sample."""
    record: SampleRecord
    frames_sha256: str | None
    """Digest of the video's frames, as it was recorded."""
    video: bytes | None
    """The mp4 in the output; None for a candidate whose video was not kept."""
    loaded: pa.Table
    """Its row, as the stage `load` gives it, with the seed of this video."""


def prepare(output: str, sample_id: str, which: Which = Which()) -> Prepared:
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
    recorded = _recorded(record, which)
    video = None if recorded.file_name is None else storage.get(recorded.file_name)
    if video is None and recorded.file_name is not None:
        raise ConfigError(f"{output}/{recorded.file_name} is missing: check the output with `sgi2v-batch verify`")
    rows = known_columns(read_manifest(config.manifest))
    rows = rows.filter(pc.equal(rows["sample_id"], sample_id))
    if rows.num_rows != 1 or row_digest(rows.to_pylist()[0]) != record.row_digest:
        raise ConfigError(f"{config.manifest} does not have the row that {sample_id} was made from")
    loaded = Load(config)(InFlight.begin(rows))
    image = state_of(loaded).record_fields
    if record.image_sha256 not in {None, image.get("image_sha256")}:
        raise ConfigError(f"{image['image_uri']} is not the image that {sample_id} was made from")
    config = dataclasses.replace(config, candidates=CandidatesConfig(), baseline=None)
    if which.baseline:
        config = dataclasses.replace(config, guidance=None)
    if recorded.decode_chunk is not None:  # fewer frames than the setting says, where memory was short
        config = dataclasses.replace(config, sampler=config.sampler.replace(decode_chunk_size=recorded.decode_chunk))
    if recorded.seed is not None:
        loaded = with_seed(loaded, recorded.seed)
    return Prepared(config, record, recorded.frames_sha256, video, loaded)


def frames_of(generated: pa.Table, config: RunConfig) -> tuple[Frames, str | None]:
    """The frames of a row after the stage `generate`, and their digest. Raises SampleError if the row failed."""
    state, frames_THWC = generated_frames(generated, config.sampler)
    if frames_THWC is None:
        raise SampleError(ErrorCode(state.error_code or ErrorCode.UNKNOWN), state.message or "the row failed")
    return frames_THWC, state.record_fields["frames_sha256"]


def _recorded(record: SampleRecord, which: Which) -> _Recorded:
    """What the record of a committed sample says of one of its videos. Raises ConfigError if it has no such video."""
    sample_id = record.sample_id
    if which.baseline:
        if record.baseline_file_name is None:
            raise ConfigError(f"{sample_id} has no baseline")
        return _Recorded(record.seed, record.baseline_frames_sha256, None, record.baseline_file_name)
    if which.candidate is None:
        return _Recorded(record.seed, record.frames_sha256, record.decode_chunk, record.file_name)
    rows = record.candidates or []
    if which.candidate >= len(rows):
        known = f"its candidates are 0 to {len(rows) - 1}" if rows else "it was made without candidates"
        raise ConfigError(f"{sample_id} has no candidate {which.candidate}: {known}")
    row = rows[which.candidate]
    if row["frames_sha256"] is None:
        raise ConfigError(f"candidate {which.candidate} of {sample_id} failed ({row['error_code']}): it has no video")
    file_name = record.file_name if row["kept"] else None
    return _Recorded(row["seed"], row["frames_sha256"], row["decode_chunk"], file_name)
