"""inspect: make one sample again, and see what guidance saw and did. Replays as `replay` does, and only reads.

Axes: S guided steps, I iterations, T frames, N boxes, H W pixels, h w latent cells, 3 principal components.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.flow.generate import Generate
from pipeline.flow.notes import SendNote
from pipeline.flow.row import pixels_of, sampler_of, state_of, tracks_of
from pipeline.inspect.replay import frames_of, prepare
from pipeline.output.records import SampleRecord
from sgi2v.config import Feature
from sgi2v.errors import ConfigError
from sgi2v.video import Frames

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Inside:
    """What guidance saw and did while a sample was made."""

    record: SampleRecord
    identical: bool
    """Whether the frames are those of the record, bit for bit."""
    frames_THWC: Frames
    boxes_NT4: Floats
    """Asked boxes, pixels of the frames."""
    steps: tuple[int, ...]
    """Guided steps, as 0-based loop indices."""
    step: int
    """The one whose features are shown, before its first update."""
    plain_Thw3: Floats
    """Principal components of the guided layers' own self-attention."""
    modified_Thw3: Floats
    """The same with every frame's queries against frame 0's keys and values, which is what the loss compares."""
    plain_shares: list[float]
    """Share of the variance of each component."""
    modified_shares: list[float]
    change_SThw: Floats
    """Root mean square of what each guided step added to each cell."""
    loss_SI: Floats
    """Guidance loss before each update."""


def look_inside(
    output: str,
    sample_id: str,
    device: str,
    step: int | None = None,
    on_load: Callable[[str], None] = lambda model: None,
    send_note: SendNote | None = None,
) -> Inside:
    """Make a sample again and look inside. step: a guided step; None takes the middle one. Others: as `replay`.

    Raises ConfigError as `replay`, and for a sample that was not guided or a step that is not; SampleError.
    """
    prepared = prepare(output, sample_id)
    config, record = prepared.config, prepared.record
    if config.guidance is None or not record.guided:
        raise ConfigError(f"{sample_id} was made without guidance, so there is nothing to look at inside")
    steps = config.guidance.step_indices(config.sampler.steps)
    if step is not None and step not in steps:
        raise ConfigError(f"step {step} is not guided: choose one of {', '.join(map(str, steps))}")
    on_load(config.model.source)
    # here, because they load torch
    from sgi2v.inspection import Inspector, attention_features, principal_components

    stage = Generate(config, device, send_note=send_note)
    inspector = stage.inspector = Inspector()
    frames_THWC, frames_sha256 = frames_of(stage(prepared.loaded), config)
    assert inspector.generation is not None
    assert not isinstance(stage.model, ConfigError)
    state = state_of(prepared.loaded)
    sampler = sampler_of(state, config.sampler)
    image_HWC = pixels_of(prepared.loaded, "first_frame", (sampler.height, sampler.width, 3))
    shown = inspector.steps[len(inspector.steps) // 2] if step is None else step
    components = {}
    for feature in (Feature.SELF_ATTENTION, Feature.MODIFIED_SELF_ATTENTION):
        features = attention_features(
            stage.model, image_HWC, sampler, config.guidance, state.seed, shown, inspector.before[shown], feature
        )
        components[feature] = principal_components(features)
    plain, plain_shares = components[Feature.SELF_ATTENTION]
    modified, modified_shares = components[Feature.MODIFIED_SELF_ATTENTION]
    return Inside(
        record=record,
        identical=frames_sha256 == record.frames_sha256,
        frames_THWC=frames_THWC,
        boxes_NT4=tracks_of(state, sampler).boxes_NT4,
        steps=inspector.steps,
        step=shown,
        plain_Thw3=plain.numpy(),
        modified_Thw3=modified.numpy(),
        plain_shares=plain_shares,
        modified_shares=modified_shares,
        change_SThw=inspector.changes_SThw().double().numpy(),
        loss_SI=inspector.generation.losses,
    )
