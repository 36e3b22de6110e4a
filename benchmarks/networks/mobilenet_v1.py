"""MobileNet-V1 1.0/224 with TensorFlow's "SAME" padding."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.networks.adapter import Adapter, data_file
from benchmarks.networks.images import TF_NORM, imagenet
from benchmarks.networks.padding import same_padding_
from mvq.tasks import load_weights_

CHANNELS = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)


def _stage(channels_in: int, channels_out: int, kernel: int, stride: int, groups: int) -> list[nn.Module]:
    convolution = nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False)
    return [convolution, nn.BatchNorm2d(channels_out), nn.ReLU6()]


class MobileNetV1(nn.Module):
    """A 3x3 convolution, 13 pairs of depth-wise 3x3 and 1x1 convolutions, average pool, classifier."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        features = [nn.Sequential(*_stage(3, 32, 3, 2, 1))]
        channels = 32
        for channels_out, stride in zip(CHANNELS, STRIDES, strict=True):
            depthwise = _stage(channels, channels, 3, stride, channels)
            features.append(nn.Sequential(*depthwise, *_stage(channels, channels_out, 1, 1, 1)))
            channels = channels_out
        self.features = nn.Sequential(*features)
        self.classifier = nn.Linear(channels, num_classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def build() -> nn.Module:
    """MobileNet-V1 with its weights."""
    model = load_weights_(MobileNetV1(), data_file("imagenet/mobilenet_v1.safetensors"))
    return same_padding_(model).eval()


def data(split: str = "val", batch_size: int = 50, limit: int | None = None) -> DataLoader[tuple[torch.Tensor, int]]:
    """ImageNet images for this network."""
    return imagenet(TF_NORM, split=split, batch_size=batch_size, limit=limit)


ADAPTER = Adapter(
    name="mobilenet_v1",
    task="classification",
    build=build,
    data=data,
    input_shape=(3, 224, 224),
    baseline={"top1": 76.00, "top5": 94.56},
    preprocessing=TF_NORM,
)
