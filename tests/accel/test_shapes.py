"""Layers by shapes alone."""

import pytest
import torch
import torchvision
from torch import nn

from mvq.accel.shapes import shapes_of
from mvq.errors import ConfigError
from mvq.patterns import Pattern
from mvq.tasks.networks.mobilenet_v1 import MobileNetV1

#: Multiply-accumulates at 224 x 224, in 1e9: torchvision's documentation, MobileNet's paper (569 million).
DENSE = {"resnet18": 1.81, "resnet50": 4.09, "vgg16": 15.47, "alexnet": 0.71, "mobilenet_v2": 0.30}


@pytest.mark.parametrize(("name", "macs"), DENSE.items())
def test_macs_of_torchvision_networks(name, macs):
    with torch.device("meta"):
        model = torchvision.models.get_model(name)
    layers = shapes_of(model, (224, 224))
    assert sum(layer.dense_macs for layer in layers) * 1e-9 == pytest.approx(macs, abs=0.006)
    assert sum(layer.n_weights for layer in layers) == sum(
        m.weight.numel() for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))
    )


def test_depthwise_and_first_layers_are_not_compressed():
    layers = shapes_of(MobileNetV1(), (224, 224), pattern="1:2", linear=True)
    assert sum(layer.dense_macs for layer in layers) == pytest.approx(569e6, rel=0.001)
    assert not layers[0].compressed
    assert {layer.compressed for layer in layers if layer.groups > 1} == {False}
    assert {(layer.compressed, layer.pattern) for layer in layers[1:] if layer.groups == 1} == {(True, Pattern(1, 2))}
    assert not shapes_of(MobileNetV1(), (224, 224), pattern="1:2")[-1].compressed


def test_sizes_are_those_of_a_real_forward():
    model = nn.Sequential(
        nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(2, 3)),
        nn.Conv2d(4, 6, (3, 5), padding="same", groups=2),
        nn.Conv2d(6, 8, 3, padding="valid"),
        nn.Linear(9, 5),
    )
    layers = shapes_of(model, (15, 14), channels=2)
    image = torch.zeros(1, 2, 15, 14)
    for layer, module in zip(layers[:3], model, strict=False):
        assert layer.in_size == tuple(image.shape[2:])
        image = module(image)
        assert (layer.c_out, *layer.out_size) == tuple(image.shape[1:])
    assert (layers[1].groups, layers[1].padding) == (2, (1, 2, 1, 2))
    assert (layers[3].c_in, layers[3].n_positions) == (9, image[0, ..., 0].numel())
    assert [layer.name for layer in layers] == ["0", "1", "2", "3"]


def test_a_layer_that_runs_twice_counts_twice():
    conv = nn.Conv2d(3, 3, 1)
    assert len(shapes_of(nn.Sequential(conv, conv), (4, 4))) == 2


def test_what_the_machine_does_not_run_is_listed_together():
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1, padding_mode="reflect"), nn.ConvTranspose2d(4, 4, 2), nn.Conv2d(4, 4, 1)
    )
    with pytest.raises(ConfigError) as error:
        shapes_of(model, (8, 8))
    assert str(error.value).splitlines() == [
        "network Sequential: 0 (Conv2d): padding_mode='reflect' is not 'zeros'",
        "network Sequential: 1 (ConvTranspose2d): the machine runs nn.Conv2d and nn.Linear",
    ]
    with pytest.raises(ConfigError, match="it has no convolution and no fully connected layer"):
        shapes_of(nn.ReLU(), (8, 8))
