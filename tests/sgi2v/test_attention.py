"""Cross-attention without queries and keys gives the same values and gradients for one token."""

from __future__ import annotations

import pytest
import torch
from diffusers import UNetSpatioTemporalConditionModel
from diffusers.models.attention_processor import Attention

from sgi2v.attention import OneTokenAttention, replace_cross_attention
from sgi2v.model import VideoModel


def test_values_are_the_same_and_queries_have_no_gradient() -> None:
    torch.manual_seed(0)
    attention = Attention(query_dim=6, cross_attention_dim=5, heads=2, dim_head=3).double()
    hidden_BSC = torch.randn(3, 7, 6, dtype=torch.float64, requires_grad=True)
    token_B1D = torch.randn(3, 1, 5, dtype=torch.float64)
    expected = attention(hidden_BSC, encoder_hidden_states=token_B1D)
    actual = OneTokenAttention(attention)(hidden_BSC, encoder_hidden_states=token_B1D)
    torch.testing.assert_close(actual.expand_as(expected), expected, rtol=0, atol=1e-12)
    (gradient,) = torch.autograd.grad(expected.square().sum(), hidden_BSC)
    assert gradient.abs().max() < 1e-12


def test_more_than_one_token_is_refused() -> None:
    attention = OneTokenAttention(Attention(query_dim=6, cross_attention_dim=5, heads=2, dim_head=3))
    with pytest.raises(ValueError, match="expected 1 context token, got 2"):
        attention(torch.randn(3, 7, 6), encoder_hidden_states=torch.randn(3, 2, 5))


@pytest.mark.slow
def test_a_whole_unet_gives_the_same_values_and_gradients(model: VideoModel) -> None:
    torch.manual_seed(0)
    config = model.unet.config
    unet = UNetSpatioTemporalConditionModel.from_config(dict(config)).double().eval().requires_grad_(False)
    inputs = {
        "sample": torch.randn(2, 3, config.in_channels, 8, 16, dtype=torch.float64, requires_grad=True),
        "timestep": torch.tensor(0.7, dtype=torch.float64),
        "encoder_hidden_states": torch.randn(2, 1, config.cross_attention_dim, dtype=torch.float64),
        "added_time_ids": torch.tensor([[6.0, 127.0, 0.02]], dtype=torch.float64).repeat(2, 1),
    }
    results = []
    for replace in (lambda _: None, replace_cross_attention):
        replace(unet)
        sample = unet(**inputs).sample
        results.append((sample, *torch.autograd.grad(sample.sum(), inputs["sample"])))
    assert any(isinstance(module, OneTokenAttention) for module in unet.modules())
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-8, atol=1e-8)
