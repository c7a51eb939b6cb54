"""Record the features of the guided layers while the U-Net runs.

Axes: T frames, h w latent cells, h' w' cells of a guided layer, S = h' w', C channels, N heads, D head channels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgi2v.checkpoint import check_layers
from sgi2v.compiled import uncompiled
from sgi2v.config import Feature, GuidanceConfig


class LastGuidedLayerReached(Exception):  # noqa: N818  a signal, not a failure
    """Ends a forward pass as soon as every feature is recorded."""


def _attend(query_TNSD: Tensor, key_TNSD: Tensor, value_TNSD: Tensor) -> Tensor:
    """Scaled dot-product attention, heads joined: [T, S, N D]."""
    attended_TNSD: Tensor = F.scaled_dot_product_attention(query_TNSD, key_TNSD, value_TNSD)
    return attended_TNSD.transpose(1, 2).flatten(2)


class _RecordingProcessor:
    """A diffusers attention processor that also records the attention's output before its output projection.

    The batch axis is frames in spatial attention, and cells in temporal attention.
    """

    def __init__(self, recorder: _Recorder, feature: Feature) -> None:
        self.recorder = recorder
        self.feature = feature

    def __call__(self, attn: Any, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        def heads(projected: Tensor) -> Tensor:
            return projected.view(*projected.shape[:2], attn.heads, -1).transpose(1, 2)

        query = heads(attn.to_q(hidden_states))
        if self.feature is Feature.MODIFIED_SELF_ATTENTION:
            # frame 0's alone: the last guided layer ends the pass before the other frames' are needed
            first_key, first_value = (heads(project(hidden_states[:1])).detach() for project in (attn.to_k, attn.to_v))
            self.recorder.add_cells(_attend(query, first_key.expand_as(query), first_value.expand_as(query)))
        key, value = (heads(project(hidden_states)) for project in (attn.to_k, attn.to_v))
        attended = _attend(query, key, value)
        if self.feature is Feature.SELF_ATTENTION:
            self.recorder.add_cells(attended)
        elif self.feature is Feature.TEMPORAL_ATTENTION:
            self.recorder.add_cells(attended.transpose(0, 1))
        projected: Tensor = attn.to_out[1](attn.to_out[0](attended)) / attn.rescale_output_factor
        return projected


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
def _processor(attention: Any, processor: _RecordingProcessor) -> Iterator[None]:
    original = attention.processor
    attention.set_processor(processor)
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
            stack.enter_context(_processor(blocks[0].attn1, _RecordingProcessor(recorder, guidance.feature)))
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
