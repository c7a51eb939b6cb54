"""Record the features of the guided layers while the U-Net runs.

Axes: T frames, h w latent cells, h' w' cells of a guided layer, S = h' w', C channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgi2v.attention import SelfAttention
from sgi2v.checkpoint import check_layers
from sgi2v.compiled import uncompiled
from sgi2v.config import Feature, GuidanceConfig


class LastGuidedLayerReached(Exception):  # noqa: N818  a signal, not a failure
    """Ends a forward pass as soon as every feature is recorded."""


class _RecordingProcessor:
    """A diffusers attention processor that also records the attention's output before its output projection.

    The batch axis is frames in spatial attention, and cells in temporal attention.
    """

    def __init__(self, inner: SelfAttention, recorder: _Recorder, feature: Feature) -> None:
        self.inner = inner
        self.recorder = recorder
        self.feature = feature

    def __call__(self, attn: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        query = attn.to_q(hidden_states)
        if self.feature is Feature.MODIFIED_SELF_ATTENTION:
            # first, because the last guided layer ends the pass before the other frames' keys are needed
            self.recorder.add_cells(self.inner.attended_to_first(attn, query, hidden_states))
        attended = self.inner.attended(attn, query, hidden_states)
        if self.feature is Feature.SELF_ATTENTION:
            self.recorder.add_cells(attended)
        elif self.feature is Feature.TEMPORAL_ATTENTION:
            self.recorder.add_cells(attended.transpose(0, 1))
        return self.inner.project(attn, attended)


class _Recorder:
    """Collects features, and ends the forward pass when it has `expected` of them."""

    def __init__(self, expected: int, height: int, width: int) -> None:
        """height, width: latent cells."""
        self.features: list[Tensor] = []
        self.expected = expected
        self.height = height
        self.width = width

    def add_cells(self, features_TSC: Tensor) -> None:
        """Record [T, S, C], where S is a shrunken latent grid in row order."""
        num_frames, cells, channels = features_TSC.shape
        factor = round(math.sqrt(self.height * self.width / cells))
        self.add(features_TSC.reshape(num_frames, self.height // factor, self.width // factor, channels))

    def add(self, features_ThwC: Tensor) -> None:
        self.features.append(features_ThwC)
        if len(self.features) == self.expected:
            raise LastGuidedLayerReached


@contextmanager
def _recording(attention: Any, recorder: _Recorder, feature: Feature) -> Iterator[None]:
    original = attention.processor
    inner = original if isinstance(original, SelfAttention) else SelfAttention()
    attention.set_processor(_RecordingProcessor(inner, recorder, feature))
    try:
        yield
    finally:
        attention.set_processor(original)


@contextmanager
def _output_hook(module: nn.Module, recorder: _Recorder) -> Iterator[None]:
    def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
        hidden_states_TChw: Tensor = output[0] if isinstance(output, tuple) else output
        recorder.add(hidden_states_TChw.permute(0, 2, 3, 1))

    handle = module.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def record_features(unet: Any, guidance: GuidanceConfig, height: int, width: int) -> Iterator[list[Tensor]]:
    """Record the guided layers during one video's forward pass inside the context.

    Yields a list that fills with [T, h', w', C] per guided layer, in the order in which the U-Net computes them. The
    pass ends by raising LastGuidedLayerReached. height, width: latent cells. The U-Net is restored on leaving. Raises
    ConfigError for a layer that the U-Net does not have.
    """
    check_layers(unet.config, guidance)
    layers = sorted(set(guidance.layers))
    recorder = _Recorder(len(layers), height, width)
    with ExitStack() as stack:
        for block_index, index in layers:
            block = unet.up_blocks[block_index]
            if guidance.feature is Feature.UPSAMPLE_BLOCK:
                module = block.attentions[index] if hasattr(block, "attentions") else block.resnets[index]
                stack.enter_context(_output_hook(module, recorder))
                continue
            transformer = block.attentions[index]
            temporal = guidance.feature is Feature.TEMPORAL_ATTENTION
            stack.enter_context(uncompiled(transformer))
            blocks = transformer.temporal_transformer_blocks if temporal else transformer.transformer_blocks
            stack.enter_context(_recording(blocks[0].attn1, recorder, guidance.feature))
        yield recorder.features


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor in float32; a float64 tensor stays float64."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def resize_and_join(features: list[Tensor], height: int, width: int) -> Tensor:
    """Resize every [T, h', w', C] bilinearly to the latent grid and join over channels: float32 [T, h, w, C]."""

    def resize(features_ThwC: Tensor) -> Tensor:
        if features_ThwC.shape[1:3] == (height, width):
            return features_ThwC
        channels_first = features_ThwC.permute(0, 3, 1, 2)
        return F.interpolate(channels_first, size=(height, width), mode="bilinear").permute(0, 2, 3, 1)

    return torch.cat([resize(at_least_float32(feature)) for feature in features], dim=-1)
