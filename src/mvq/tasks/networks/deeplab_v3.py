"""DeepLab-V3 with a MobileNet-V2 backbone at output stride 8 (Chen et al., 2017; Sandler et al., 2018)."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

N_CLASSES = 21
#: Channels, expansion, stride of the first, dilation, number of blocks.
STAGES = (
    (16, 1, 1, 1, 1),
    (24, 6, 2, 1, 2),
    (32, 6, 2, 1, 3),
    (64, 6, 1, 1, 1),
    (64, 6, 1, 2, 3),
    (96, 6, 1, 2, 3),
    (160, 6, 1, 2, 1),
    (160, 6, 1, 4, 2),
    (320, 6, 1, 4, 1),
)


class ConvBN(nn.Module):
    """A convolution, batch norm and an activation."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int = 1,
        *,
        stride: int = 1,
        dilation: int = 1,
        groups: int = 1,
        activation: nn.Module | None = None,
    ) -> None:
        super().__init__()
        padding = dilation * (kernel // 2)
        self.conv = nn.Conv2d(channels_in, channels_out, kernel, stride, padding, dilation, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(channels_out)
        self.activation = activation or nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(N, C, H, W)` to `(N, C', H / stride, W / stride)`."""
        return self.activation(self.bn(self.conv(x)))


class InvertedResidual(nn.Module):
    """1x1 expansion, depth-wise 3x3, 1x1 projection; a shortcut where the shape stays."""

    def __init__(self, channels_in: int, channels_out: int, *, expansion: int, stride: int, dilation: int) -> None:
        super().__init__()
        hidden = channels_in * expansion
        self.expand = ConvBN(channels_in, hidden, activation=nn.ReLU6()) if expansion > 1 else nn.Identity()
        self.depthwise = ConvBN(
            hidden, hidden, 3, stride=stride, dilation=dilation, groups=hidden, activation=nn.ReLU6()
        )
        self.project = ConvBN(hidden, channels_out)
        self.shortcut = stride == 1 and channels_in == channels_out

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`(N, C, H, W)` to `(N, C', H / stride, W / stride)`."""
        out = self.project(self.depthwise(self.expand(x)))
        return x + out if self.shortcut else out


class DeepLabV3(nn.Module):
    """Backbone, image pooling and one 1x1 branch; gives scores `(N, num_classes, H, W)` at the input's size."""

    def __init__(self, num_classes: int = N_CLASSES) -> None:
        super().__init__()
        self.stem = ConvBN(3, 32, 3, stride=2, activation=nn.ReLU6())
        blocks, channels = [], 32
        for channels_out, expansion, stride, dilation, n in STAGES:
            for i in range(n):
                first = stride if i == 0 else 1
                blocks.append(
                    InvertedResidual(channels, channels_out, expansion=expansion, stride=first, dilation=dilation)
                )
                channels = channels_out
        self.blocks = nn.Sequential(*blocks)
        self.aspp0 = ConvBN(channels, 256, activation=nn.ReLU())
        self.image_pooling = ConvBN(channels, 256, activation=nn.ReLU())
        self.concat_projection = ConvBN(512, 256, activation=nn.ReLU())
        self.classifier = nn.Conv2d(256, num_classes, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Images `(N, 3, H, W)` to scores `(N, num_classes, H, W)`."""
        features = self.blocks(self.stem(x))
        height, width = features.shape[2], features.shape[3]  # Not `*shape[2:]`, which torch.fx cannot trace.
        pooled = self.image_pooling(features.mean((2, 3), keepdim=True)).expand(-1, -1, height, width)
        out = self.concat_projection(torch.cat([pooled, self.aspp0(features)], dim=1))
        return functional.interpolate(self.classifier(out), size=x.shape[2:], mode="bilinear", align_corners=True)
