"""Networks that torchvision does not have, by the name after `mvq/`."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from mvq.tasks.networks.cifar_resnet import CifarResNet
from mvq.tasks.networks.deeplab_v3 import DeepLabV3
from mvq.tasks.networks.mobilenet_v1 import MobileNetV1

#: Name -> builder, which takes `num_classes` by name.
NETWORKS: dict[str, Callable[..., nn.Module]] = {
    "cifar_resnet20": partial(CifarResNet, 3),
    "cifar_resnet32": partial(CifarResNet, 5),
    "cifar_resnet56": partial(CifarResNet, 9),
    "deeplabv3_mobilenet_v2": DeepLabV3,
    "mobilenet_v1": MobileNetV1,
}

__all__ = ["NETWORKS"]
