"""MobileNet-V1 1.0/224 (Howard et al., 2017), padded symmetrically."""

from __future__ import annotations

import torch
from torch import nn

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
        """Images `(N, 3, H, W)` to scores `(N, num_classes)`."""
        return self.classifier(self.features(x).mean((2, 3)))
