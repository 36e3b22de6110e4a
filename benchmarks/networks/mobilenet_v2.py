"""MobileNet-V2 1.0/224, torchvision's module with TensorFlow's "SAME" padding."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.networks.adapter import Adapter, data_file
from benchmarks.networks.images import TF_NORM, imagenet, imagenet_training
from benchmarks.networks.padding import same_padding_
from mvq.tasks import build_model


def build() -> nn.Module:
    """MobileNet-V2 with its weights."""
    model = build_model("torchvision/mobilenet_v2", weights=data_file("imagenet/mobilenet_v2.safetensors"))
    return same_padding_(model).eval()


def data(split: str = "val", batch_size: int = 50, limit: int | None = None) -> DataLoader[tuple[torch.Tensor, int]]:
    """ImageNet images for this network."""
    return imagenet(TF_NORM, split=split, batch_size=batch_size, limit=limit)


def training(batch_size: int = 32, seed: int = 0) -> DataLoader[tuple[torch.Tensor, int]]:
    """Training images for this network, in random order and random parts."""
    return imagenet_training(TF_NORM, batch_size=batch_size, seed=seed)


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
