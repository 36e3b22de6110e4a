"""MobileNet-V1 1.0/224 with TensorFlow's "SAME" padding."""

from __future__ import annotations

import functools

from torch import nn

from benchmarks.networks.adapter import Adapter, data_file
from benchmarks.networks.images import TF_NORM, imagenet, imagenet_training
from benchmarks.networks.padding import same_padding_
from mvq.tasks import load_weights_
from mvq.tasks.networks.mobilenet_v1 import MobileNetV1


def build() -> nn.Module:
    """MobileNet-V1 with its weights."""
    model = load_weights_(MobileNetV1(), data_file("imagenet/mobilenet_v1.safetensors"))
    return same_padding_(model).eval()


data = functools.partial(imagenet, TF_NORM)
training = functools.partial(imagenet_training, TF_NORM)

ADAPTER = Adapter(
    name="mobilenet_v1",
    task="classification",
    build=build,
    data=data,
    input_shape=(3, 224, 224),
    baseline={"top1": 76.00, "top5": 94.56},
    preprocessing=TF_NORM,
    training=training,
)
