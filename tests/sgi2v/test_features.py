"""Recording features does not change the model, detaches frame 0, and ends the pass at the last guided layer."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor

from sgi2v.checkpoint import available_layers
from sgi2v.config import Feature, GuidanceConfig
from sgi2v.errors import ConfigError
from sgi2v.features import LastGuidedLayerReached, record_features
from sgi2v.guidance import guided_features
from sgi2v.model import VideoModel

HEIGHT, WIDTH, FRAMES = 8, 16, 3


def inputs(seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "sample": torch.randn(1, FRAMES, 8, HEIGHT, WIDTH, generator=generator),
        "timestep": torch.tensor(0.5),
        "encoder_hidden_states": torch.randn(1, 1, 32, generator=generator),
        "added_time_ids": torch.tensor([[6.0, 127.0, 0.02]]),
    }


def processors(unet: Any) -> dict[str, int]:
    return {name: id(processor) for name, processor in unet.attn_processors.items()}


@pytest.mark.slow
@pytest.mark.parametrize("feature", list(Feature))
@pytest.mark.parametrize("layers", [((1, 0),), ((2, 1), (2, 2)), ((3, 2), (1, 1))])
def test_shapes_of_every_kind_and_layer(
    model: VideoModel, feature: Feature, layers: tuple[tuple[int, int], ...]
) -> None:
    guidance = GuidanceConfig(layers=layers, feature=feature)
    with (
        record_features(model.unet, guidance, HEIGHT, WIDTH) as features,
        suppress(LastGuidedLayerReached),
        torch.no_grad(),
    ):
        model.unet(**inputs())
    shrink = {0: 8, 1: 4, 2: 2, 3: 1}
    expected = [(FRAMES, HEIGHT // shrink[block], WIDTH // shrink[block], 32) for block, _ in sorted(layers)]
    assert [tuple(recorded.shape) for recorded in features] == expected
    joined = guided_features(model.unet, inputs(), guidance)
    assert joined.shape == (FRAMES, HEIGHT, WIDTH, 32 * len(layers))


def test_the_first_up_block_has_outputs_but_no_attention(model: VideoModel) -> None:
    assert (0, 0) in available_layers(model.unet.config, Feature.UPSAMPLE_BLOCK)
    assert (0, 0) not in available_layers(model.unet.config, Feature.SELF_ATTENTION)
    features = guided_features(model.unet, inputs(), GuidanceConfig(layers=((0, 2),), feature=Feature.UPSAMPLE_BLOCK))
    assert features.shape == (FRAMES, HEIGHT, WIDTH, 32)


def test_the_error_for_a_missing_layer_names_it_and_the_available_ones(model: VideoModel) -> None:
    with pytest.raises(ConfigError, match=r"\[4, 0\].*\[1, 0\]"):
        guided_features(model.unet, inputs(), GuidanceConfig(layers=((4, 0),)))


@pytest.mark.parametrize("feature", list(Feature))
def test_the_model_is_restored(model: VideoModel, feature: Feature) -> None:
    before = processors(model.unet)
    with torch.no_grad():
        expected = model.unet(**inputs(), return_dict=False)[0]
        guided_features(model.unet, inputs(), GuidanceConfig(feature=feature))
        after = model.unet(**inputs(), return_dict=False)[0]
    assert processors(model.unet) == before
    assert not any(module._forward_hooks for module in model.unet.modules())
    assert torch.equal(expected, after)


def test_the_model_is_restored_after_an_error(model: VideoModel) -> None:
    before = processors(model.unet)
    with pytest.raises(RuntimeError, match="interrupted"), record_features(model.unet, GuidanceConfig(), HEIGHT, WIDTH):
        raise RuntimeError("interrupted")
    assert processors(model.unet) == before


def test_recording_processors_compute_the_same_output(model: VideoModel) -> None:
    """Layer [3, 2] is the last attention, so all guided layers before it run through the recording processors."""
    guidance = GuidanceConfig(layers=((1, 0), (1, 1), (2, 2), (3, 1), (3, 2)))
    outputs: list[Tensor] = []
    last_resnet = model.unet.up_blocks[3].resnets[2]
    handle = last_resnet.register_forward_hook(lambda *call: outputs.append(call[2]))
    try:
        with torch.no_grad():
            guided_features(model.unet, inputs(), guidance)
            model.unet(**inputs())
    finally:
        handle.remove()
    assert torch.equal(*outputs)


def test_nothing_runs_after_the_last_guided_layer(model: VideoModel) -> None:
    ran: list[str] = []
    unet = model.unet
    watched = {
        "guided block": unet.up_blocks[2].attentions[1].norm,
        "rest of it": unet.up_blocks[2].attentions[1].proj_out,
        "next block": unet.up_blocks[3].resnets[0],
        "end": unet.conv_out,
    }
    handles = [module.register_forward_hook(lambda *_, name=name: ran.append(name)) for name, module in watched.items()]
    try:
        guided_features(unet, inputs(), GuidanceConfig(layers=((2, 0), (2, 1))))
    finally:
        for handle in handles:
            handle.remove()
    assert ran == ["guided block"]


def test_modified_attention_reads_frame_0_and_is_detached_from_it(model: VideoModel) -> None:
    attention = model.unet.up_blocks[2].attentions[1].transformer_blocks[0].attn1
    inputs_seen: list[Tensor] = []
    handle = attention.register_forward_pre_hook(lambda _, args: inputs_seen.append(args[0]))
    weights = [attention.to_q.weight, attention.to_k.weight, attention.to_v.weight]
    for weight in weights:
        weight.requires_grad_(True)
    try:
        features = guided_features(model.unet, inputs(), GuidanceConfig(layers=((2, 1),)))
        features.sum().backward()
        hidden = inputs_seen[0]
        query, key, value = (hidden @ weight.T for weight in weights)

        def heads(projected: Tensor) -> Tensor:
            return projected.unflatten(-1, (attention.heads, -1)).transpose(1, 2)

        scores = heads(query) @ heads(key)[:1].transpose(-1, -2) / heads(query).shape[-1] ** 0.5
        expected = (scores.softmax(-1) @ heads(value)[:1]).transpose(1, 2).flatten(2)
        expected = expected.unflatten(1, (HEIGHT // 2, WIDTH // 2)).permute(0, 3, 1, 2)
        expected = torch.nn.functional.interpolate(expected, size=(HEIGHT, WIDTH), mode="bilinear")
        torch.testing.assert_close(features, expected.permute(0, 2, 3, 1), atol=1e-5, rtol=1e-4)
        assert weights[0].grad is not None
        assert weights[1].grad is None
        assert weights[2].grad is None
    finally:
        handle.remove()
        for weight in weights:
            weight.requires_grad_(False)
            weight.grad = None
