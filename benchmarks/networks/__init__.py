"""Real pretrained networks with the images they are measured on, in the folder that `MVQ_DATA` names.

`REGISTRY` maps a name to an `Adapter`. The functions behind it take no argument, so that they also serve as
`--model benchmarks.networks.cifar_resnet:build_resnet20` and `--data benchmarks.networks.cifar_resnet:data`.
"""

from benchmarks.networks import (
    cifar_resnet,
    deeplab_v3,
    mobilenet_v1,
    mobilenet_v2,
    squeezenet,
    vq_reference,
    yolox_nano,
)
from benchmarks.networks.adapter import Adapter

REGISTRY: dict[str, Adapter] = {
    adapter.name: adapter
    for adapter in (
        *cifar_resnet.ADAPTERS,
        mobilenet_v1.ADAPTER,
        mobilenet_v2.ADAPTER,
        squeezenet.ADAPTER,
        yolox_nano.ADAPTER,
        deeplab_v3.ADAPTER,
        *vq_reference.ADAPTERS,
    )
}

__all__ = ["REGISTRY", "Adapter"]
