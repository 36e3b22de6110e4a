"""Moments of input columns and curvature at the outputs."""

import pytest
import torch
from recover_nets import images, residual
from torch import nn

from mvq.recover.statistics import Moments, input_columns, input_energies, output_curvature


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(6, 8, 3, 2, 1),
        nn.Conv2d(6, 8, 1),
        nn.Conv2d(6, 8, 3, dilation=2, groups=2),
        nn.Conv2d(6, 8, (1, 3), padding="same"),
        nn.Conv2d(6, 8, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(6, 6, 3, groups=6),
        nn.Linear(6, 5),
    ],
)
def test_columns_times_weight_are_the_outputs(layer):
    x = torch.randn(3, 6) if isinstance(layer, nn.Linear) else torch.randn(3, 6, 9, 9)
    columns = input_columns(layer, x)
    weight = layer.weight.reshape(len(columns), -1, columns.shape[2])
    out = columns @ weight.mT + layer.bias.reshape(len(columns), 1, -1)
    expected = layer(x) if isinstance(layer, nn.Linear) else layer(x).movedim(1, -1)
    torch.testing.assert_close(out.transpose(0, 1).reshape(-1, len(layer.bias)), expected.reshape(-1, len(layer.bias)))


def test_a_sample_of_positions_is_taken_of_every_image():
    layer = nn.Conv2d(2, 4, 3)
    x = torch.randn(5, 2, 10, 10)
    every, some = input_columns(layer, x), input_columns(layer, x, 7)
    assert some.shape == (1, 5 * 7, 18)
    # First and last position of each image are among them.
    torch.testing.assert_close(some[0, ::7], every[0, ::64])
    torch.testing.assert_close(some[0, 6::7], every[0, 63::64])


@pytest.mark.parametrize("max_columns", [100, 5, 4])
def test_moments_do_not_depend_on_batches(max_columns):
    x, y = torch.randn(2, 30, 12), torch.randn(2, 30, 12)
    moments = Moments(12, max_columns)
    for low, high in ((0, 3), (3, 20), (20, 30)):
        moments.add(x[:, low:high], y[:, low:high])
    for part, second, cross in zip(moments.slices, moments.second, moments.cross, strict=True):
        torch.testing.assert_close(second, x[:, :, part].mT @ x[:, :, part] / 30)
        torch.testing.assert_close(cross, y[:, :, part].mT @ x[:, :, part] / 30)
    torch.testing.assert_close(moments.diagonal(), x.square().mean(1))
    assert max(len(m[0]) for m in moments.second) <= max_columns
    assert moments.slices[-1].stop == 12


def test_input_energies_are_those_of_the_inputs():
    model, x = residual(), images(6)
    modules = {"project": model.project[0], "fc": model.fc}
    found = input_energies(model, modules, x.split(4), 10**6)
    with torch.no_grad():
        hidden = model.depthwise(model.expand(model.stem(x)))
    torch.testing.assert_close(found["project"][0], hidden.square().mean((0, 2, 3)))


def test_curvature_is_the_mean_squared_gradient_of_drawn_labels():
    """Against the exact expectation over labels: `p_o (1 - p_o)` at the outputs of the last layer."""
    model, x = residual(), images(400)
    found = output_curvature(model, {"fc": model.fc}, [x])["fc"]
    with torch.no_grad():
        p = model(x).softmax(1)
    expected = (p * (1 - p)).mean(0)
    torch.testing.assert_close(2 * found - 1, expected / expected.mean(), rtol=0.3, atol=0.1)
    assert all(p.grad is None for p in model.parameters())
    again = output_curvature(model, {"fc": model.fc}, [x])["fc"]
    assert torch.equal(found, again)


def test_curvature_of_maps_is_that_of_squared_error():
    layer = nn.Conv2d(3, 4, 1)
    with torch.no_grad():
        tail = nn.Conv2d(4, 5, 1, bias=False)
        tail.weight[:, 0] = 0
    found = output_curvature(nn.Sequential(layer, tail), {"a": layer}, [images(8)])["a"]
    expected = tail.weight.detach().flatten(1).square().sum(0)
    torch.testing.assert_close(2 * found - 1, expected / expected.mean(), rtol=0.2, atol=1e-6)


def test_channels_that_no_image_says_anything_of_still_count():
    layer, x = nn.Conv2d(3, 4, 1), images(8)
    with torch.no_grad():
        tail = nn.Conv2d(4, 5, 1)
        tail.weight[:, 2] = 0
    found = output_curvature(nn.Sequential(layer, tail), {"a": layer}, [x])["a"]
    assert found[2] == 0.5
    assert float(found.mean()) == pytest.approx(1)


def test_layers_without_gradient_count_alike():
    net = nn.ModuleDict({"used": nn.Conv2d(3, 4, 1), "unused": nn.Conv2d(3, 4, 1)})
    net.forward = lambda x: net["used"](x)  # type: ignore[method-assign]
    found = output_curvature(net, dict(net.items()), [images(2)])
    assert torch.equal(found["unused"], torch.ones(4))
