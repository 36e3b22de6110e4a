"""ResNet-20 and ResNet-32 for CIFAR-10 (He et al., 2016, section 4.2), with the parameter-free shortcut A."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from benchmarks.networks.adapter import Adapter, data_file
from benchmarks.networks.images import Samples, array
from mvq.tasks import Preprocessing, load_weights_

PREPROCESSING = Preprocessing(resize=None, crop=None)


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut, which subsamples and pads with zero channels where the shape
    changes."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.stride = stride
        self.padding = (channels_out - channels_in) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = functional.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.stride != 1 or self.padding:
            x = functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.padding, self.padding))
        return functional.relu(out + x)


class CifarResNet(nn.Module):
    """`6 n + 2` layers: three stages of n blocks with 16, 32 and 64 channels."""

    def __init__(self, n: int, num_classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(*(Block(16, 16, 1) for _ in range(n)))
        self.layer2 = nn.Sequential(Block(16, 32, 2), *(Block(32, 32, 1) for _ in range(n - 1)))
        self.layer3 = nn.Sequential(Block(32, 64, 2), *(Block(64, 64, 1) for _ in range(n - 1)))
        self.linear = nn.Linear(64, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = functional.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def build_resnet20() -> nn.Module:
    """ResNet-20 with its weights."""
    return load_weights_(CifarResNet(3), data_file("cifar10/resnet20.safetensors")).eval()


def build_resnet32() -> nn.Module:
    """ResNet-32 with its weights."""
    return load_weights_(CifarResNet(5), data_file("cifar10/resnet32.safetensors")).eval()


def data(split: str = "val", batch_size: int = 100, limit: int | None = None) -> DataLoader[tuple[torch.Tensor, int]]:
    """700 test images of CIFAR-10, or 4000 training images; exact pixels."""
    path, part = data_file("cifar10/cifar10_lossless.npz"), "test" if split == "val" else "train"
    images, labels = torch.from_numpy(array(path, f"{part}_x")).permute(0, 3, 1, 2), array(path, f"{part}_y")
    samples = Samples(lambda i: (PREPROCESSING.array(images[i]), int(labels[i])), len(images), limit)
    return DataLoader(samples, batch_size=batch_size)


ADAPTERS = tuple(
    Adapter(
        name=name,
        task="classification",
        build=build,
        data=data,
        input_shape=(3, 32, 32),
        baseline={"top1": top1},
        preprocessing=PREPROCESSING,
    )
    for name, build, top1 in (("resnet20", build_resnet20, 91.71), ("resnet32", build_resnet32, 93.43))
)
