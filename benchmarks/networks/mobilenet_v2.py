"""MobileNet-V2 1.0/224, torchvision's module with TensorFlow's "SAME" padding."""

from __future__ import annotations

import functools

from torch import nn

from benchmarks.networks.adapter import Adapter, data_file
from benchmarks.networks.images import TF_NORM, imagenet, imagenet_training
from benchmarks.networks.padding import same_padding_
from mvq.tasks import build_model


def build() -> nn.Module:
    """MobileNet-V2 with its weights."""
    model = build_model("torchvision/mobilenet_v2", weights=data_file("imagenet/mobilenet_v2.safetensors"))
    return same_padding_(model).eval()


data = functools.partial(imagenet, TF_NORM)
training = functools.partial(imagenet_training, TF_NORM)

ADAPTER = Adapter(
    name="mobilenet_v2",
    task="classification",
    build=build,
    data=data,
    training=training,
    input_shape=(3, 224, 224),
    baseline={"top1": 79.22, "top5": 94.56},
    preprocessing=TF_NORM,
)
