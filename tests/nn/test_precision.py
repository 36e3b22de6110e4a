"""Mixed precision: what is computed under it, against autocast alone and against float32."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from mvq.nn import precision
from mvq.nn.precision import mixed


@pytest.fixture(params=[True, False], ids=["bfloat16 kernels", "none"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the CPU has kernels in bfloat16."""
    monkeypatch.setattr(precision, "has_bfloat16", lambda: request.param)
    return request.param


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


def is_native(output: torch.Tensor) -> bool:
    """Whether PyTorch's own bfloat16 convolution computed it."""
    assert output.dtype == torch.bfloat16
    return type(output.grad_fn).__name__ == "ConvolutionBackward0"


@pytest.mark.parametrize("options", SETTINGS)
def test_outputs_are_those_of_autocast_and_gradients_are_near_float32(options: dict, kernels: bool) -> None:
    layer, x = layer_and_input(options)
    wanted = gradients(layer, x)
    with torch.autocast("cpu", torch.bfloat16):
        plain = gradients(layer, x)
    with mixed("bfloat16"):
        found = gradients(layer, x)
    if is_native(found[0]):
        assert torch.equal(found[0], plain[0])
    else:  # equal but where another order of sums rounds to the neighbour
        assert float((found[0] != plain[0]).float().mean()) < 0.01
        torch.testing.assert_close(found[0], plain[0], rtol=2**-7, atol=1e-5)
    for ours, theirs, exact in zip(found[1:], plain[1:], wanted[1:], strict=True):
        assert ours.dtype == theirs.dtype == torch.float32
        assert float((ours - exact).norm() / exact.norm()) < 0.01


@pytest.mark.parametrize(("stride", "dilation"), [(2, 1), (1, 2), (1, 1)])
def test_convolutions_with_slow_kernels_are_not_pytorchs_own(stride: int, dilation: int, kernels: bool) -> None:
    layer, x = layer_and_input({"stride": stride, "padding": dilation, "dilation": dilation, "groups": 6})
    dense, pixels = layer_and_input({"stride": stride, "padding": dilation, "dilation": dilation})
    with mixed("bfloat16"):
        assert is_native(layer(x)) == (kernels and stride == dilation == 1)
        assert is_native(dense(pixels)) == kernels
        assert layer(x.detach()).requires_grad
        with torch.no_grad():
            assert layer(x).grad_fn is None
    assert type(layer(x).grad_fn).__name__ == "ConvolutionBackward0"


PRODUCTS = {
    "conv1d": (functional.conv1d, (2, 6, 9), (4, 6, 3)),
    "conv3d": (functional.conv3d, (2, 6, 5, 5, 5), (4, 6, 3, 3, 3)),
    "conv_transpose2d": (functional.conv_transpose2d, (2, 6, 5, 5), (6, 4, 3, 3)),
    "linear": (functional.linear, (5, 12), (7, 12)),
    "matmul": (torch.matmul, (3, 5, 12), (12, 7)),
    "method": (torch.Tensor.matmul, (5, 12), (12, 7)),
    "operator": (lambda a, b: a @ b, (5, 12), (12, 7)),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_without_kernels_only_operands_and_results_are_rounded(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda: False)
    function, *shapes = PRODUCTS[name]
    torch.manual_seed(1)
    a, b = (torch.randn(shape, requires_grad=True) for shape in shapes)
    with mixed("bfloat16"):
        found = function(a, b)
    wanted = function(a.bfloat16().double(), b.bfloat16().double())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.double(), wanted, rtol=2**-8, atol=1e-5)
    towards = torch.randn(found.shape).bfloat16()
    ours = torch.autograd.grad(found, [a, b], towards)
    theirs = torch.autograd.grad(wanted, [a, b], towards.double())
    for x, y in zip(ours, theirs, strict=True):
        assert x.dtype == torch.float32
        assert torch.equal(x, x.bfloat16().float())
        torch.testing.assert_close(x, y, rtol=2**-7, atol=1e-4)


def test_other_types_and_regions_without_autocast_stay(kernels: bool) -> None:
    torch.manual_seed(2)
    a = torch.randn(4, 5)
    with mixed("bfloat16"):
        assert torch.equal(a.long() @ a.T.long(), a.long() @ a.T.long())
        assert (a.double() @ a.T.double()).dtype == torch.float64
        with torch.autocast("cpu", enabled=False):
            assert torch.equal(a @ a.T, torch.mm(a, a.T))


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
