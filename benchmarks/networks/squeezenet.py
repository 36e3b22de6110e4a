"""SqueezeNet 1.1, torchvision's module. It has no batch norm, and its classifier is a convolution."""

from __future__ import annotations

import functools

from torch import nn

from benchmarks.networks.adapter import Adapter, data_file
from benchmarks.networks.images import TORCH_NORM, imagenet, imagenet_training
from mvq.tasks import build_model


def build() -> nn.Module:
    """SqueezeNet 1.1 with its weights."""
    return build_model("torchvision/squeezenet1_1", weights=data_file("imagenet/squeezenet1_1.safetensors")).eval()


data = functools.partial(imagenet, TORCH_NORM)
training = functools.partial(imagenet_training, TORCH_NORM)

ADAPTER = Adapter(
    name="squeezenet1_1",
    task="classification",
    build=build,
    data=data,
    training=training,
    input_shape=(3, 224, 224),
    baseline={"top1": 69.11, "top5": 90.33},
    preprocessing=TORCH_NORM,
)
