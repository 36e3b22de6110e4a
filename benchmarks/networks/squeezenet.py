"""SqueezeNet 1.1, torchvision's module. It has no batch norm, and its classifier is a convolution."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.networks.adapter import Adapter, data_file
from benchmarks.networks.images import TORCH_NORM, imagenet, imagenet_training
from mvq.tasks import build_model


def build() -> nn.Module:
    """SqueezeNet 1.1 with its weights."""
    return build_model("torchvision/squeezenet1_1", weights=data_file("imagenet/squeezenet1_1.safetensors")).eval()


def data(split: str = "val", batch_size: int = 50, limit: int | None = None) -> DataLoader[tuple[torch.Tensor, int]]:
    """ImageNet images for this network."""
    return imagenet(TORCH_NORM, split=split, batch_size=batch_size, limit=limit)


def training(batch_size: int = 32, seed: int = 0) -> DataLoader[tuple[torch.Tensor, int]]:
    """Training images for this network, in random order and random parts."""
    return imagenet_training(TORCH_NORM, batch_size=batch_size, seed=seed)


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
