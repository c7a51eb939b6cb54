"""Every form of a temporal convolution gives the same values and gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sgi2v.convolution import ConvolutionForm, TemporalConvolution, replace_temporal_convolutions
from sgi2v.model import load_model


@pytest.mark.parametrize("form", list(ConvolutionForm))
@pytest.mark.parametrize("bias", [True, False])
def test_values_and_gradients_are_the_same(bias: bool, form: ConvolutionForm) -> None:
    torch.manual_seed(0)
    conv = nn.Conv3d(6, 5, (3, 1, 1), padding=(1, 0, 0), bias=bias).double()
    hidden_BCThw = torch.randn(2, 6, 4, 3, 7, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(2, 5, 4, 3, 7, dtype=torch.float64)
    results = []
    for layer in (conv, TemporalConvolution(conv, form)):
        output = layer(hidden_BCThw)
        results.append((output, *torch.autograd.grad((output * weights).sum(), hidden_BCThw)))
    for expected, actual in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "settings",
    [
        {"kernel_size": (3, 3, 3), "padding": 1},
        {"kernel_size": (3, 1, 1), "stride": (2, 1, 1), "padding": (1, 0, 0)},
        {"kernel_size": (3, 1, 1), "padding": (1, 0, 0), "padding_mode": "replicate"},
        {"kernel_size": (3, 1, 1), "padding": "same"},
        {"kernel_size": (3, 1, 1), "padding": (1, 0, 0), "groups": 2},
    ],
)
def test_other_convolutions_are_not_replaced(settings: dict[str, Any]) -> None:
    module = nn.Sequential(nn.Conv3d(4, 4, **settings))
    replace_temporal_convolutions(module, ConvolutionForm.CONV2D)
    assert type(module[0]) is nn.Conv3d


def test_a_model_on_a_cpu_has_no_conv3d_left() -> None:
    model = load_model("embedded", device="cpu")
    parts = [module for part in (model.unet, model.vae) for module in part.modules()]
    assert not any(isinstance(module, nn.Conv3d) for module in parts)
    assert any(isinstance(module, TemporalConvolution) for module in parts)
