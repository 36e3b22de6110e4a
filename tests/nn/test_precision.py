"""Mixed precision: what is computed under it, against autocast alone and against float32."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from mvq.nn.precision import mixed

SETTINGS = [
    pytest.param({"stride": 2, "padding": 1, "groups": 6}, id="depthwise"),
    pytest.param({"stride": 1, "padding": 2, "dilation": 2, "groups": 6}, id="dilated"),
    pytest.param({"stride": (2, 3), "padding": (0, 1), "dilation": 2, "groups": 6}, id="unequal"),
    pytest.param({"stride": 2, "padding": 1, "groups": 6, "bias": False}, id="no-bias"),
    pytest.param({"stride": 2, "padding": 1, "groups": 6, "padding_mode": "circular"}, id="circular"),
    pytest.param({"stride": 2, "padding": 1, "groups": 3}, id="grouped"),
    pytest.param({"stride": 1, "padding": "same", "groups": 6}, id="same"),
    pytest.param({"stride": 2, "padding": 1}, id="dense"),
]


def gradients(layer: nn.Conv2d, x: torch.Tensor) -> list[torch.Tensor]:
    output = layer(x)
    towards = torch.linspace(-1, 1, output.numel()).reshape(output.shape)
    found = torch.autograd.grad((output.float() * towards).sum(), [x, *layer.parameters()])
    return [output, *found]


def layer_and_input(options: dict) -> tuple[nn.Conv2d, torch.Tensor]:
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 12, 3, **options)
    x = torch.randn(4, 6, 13, 11).contiguous(memory_format=torch.channels_last)
    return layer, x.requires_grad_()


@pytest.mark.parametrize("options", SETTINGS)
def test_outputs_are_those_of_autocast_and_gradients_are_near_float32(options: dict) -> None:
    layer, x = layer_and_input(options)
    wanted = gradients(layer, x)
    with torch.autocast("cpu", torch.bfloat16):
        plain = gradients(layer, x)
    with mixed("bfloat16"):
        found = gradients(layer, x)
    assert found[0].dtype == torch.bfloat16
    assert torch.equal(found[0], plain[0])
    for ours, theirs, exact in zip(found[1:], plain[1:], wanted[1:], strict=True):
        assert ours.dtype == theirs.dtype == torch.float32
        assert float((ours - exact).norm() / exact.norm()) < 0.01


@pytest.mark.parametrize(("stride", "dilation"), [(2, 1), (1, 2)])
def test_strided_and_dilated_depthwise_convolutions_get_a_float32_backward_pass(stride: int, dilation: int) -> None:
    layer, x = layer_and_input({"stride": stride, "padding": dilation, "dilation": dilation, "groups": 6})
    with mixed("bfloat16"):
        assert type(layer(x).grad_fn).__name__ == "_FullBackwardBackward"
        assert layer(x.detach()).requires_grad
        with torch.no_grad():
            assert layer(x).grad_fn is None
    assert type(layer(x).grad_fn).__name__ == "ConvolutionBackward0"


def test_gradients_that_nobody_needs_are_not_computed() -> None:
    layer, x = layer_and_input({"stride": 2, "padding": 1, "groups": 6})
    layer.weight.requires_grad_(False)
    with mixed("bfloat16"):
        layer(x.detach()).sum().backward()
    assert layer.weight.grad is None
    assert layer.bias is not None
    assert layer.bias.grad is not None


def test_without_autocast_nothing_changes() -> None:
    layer, x = layer_and_input({"stride": 2, "padding": 1, "groups": 6})
    with mixed(None):
        assert torch.equal(layer(x), functional.conv2d(x, layer.weight, layer.bias, 2, 1, 1, 6))
