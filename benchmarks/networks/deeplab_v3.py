"""DeepLab-V3 with a MobileNet-V2 backbone (output stride 8), 21 classes of PASCAL VOC."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader

from benchmarks.networks.adapter import Adapter, data_file
from benchmarks.networks.images import PackedImages, Samples, array
from mvq.tasks import Preprocessing, load_weights_

SIZE = 513
N_CLASSES = 21
IGNORE = 255
BACKGROUND = 128
NORM = Preprocessing(mean=(0.5,), std=(0.5,), resize=None, crop=None)
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
        out = self.project(self.depthwise(self.expand(x)))
        return x + out if self.shortcut else out


class DeepLabV3(nn.Module):
    """Backbone, image pooling and one 1x1 branch; gives scores `(N, 21, H, W)` at the input's size."""

    def __init__(self) -> None:
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
        self.classifier = nn.Conv2d(256, N_CLASSES, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        features = self.blocks(self.stem(x))
        pooled = self.image_pooling(features.mean((2, 3), keepdim=True)).expand(-1, -1, *features.shape[2:])
        out = self.concat_projection(torch.cat([pooled, self.aspp0(features)], dim=1))
        return functional.interpolate(self.classifier(out), size=x.shape[2:], mode="bilinear", align_corners=True)


def build() -> nn.Module:
    """DeepLab-V3 with its weights."""
    return load_weights_(DeepLabV3(), data_file("coco/deeplabv3_mobilenetv2_voc.safetensors")).eval()


def data(
    split: str = "val", batch_size: int = 2, limit: int | None = None
) -> DataLoader[tuple[torch.Tensor, torch.Tensor]]:
    """182 COCO validation images with masks, or 160 training images, top left on a canvas; the rest is
    ignored."""
    path = data_file(f"coco/coco_{split}512.npz")
    images, masks = PackedImages(path), PackedImages(path, "mask_png", "mask_offset")
    with_mask = np.flatnonzero(array(path, "has_mask"))

    def sample(i: int) -> tuple[torch.Tensor, torch.Tensor]:
        pixels = np.asarray(images[with_mask[i]].convert("RGB"))
        height, width = pixels.shape[:2]
        canvas = np.full((SIZE, SIZE, 3), BACKGROUND, np.uint8)
        canvas[:height, :width] = pixels
        target = np.full((SIZE, SIZE), IGNORE, np.int64)
        target[:height, :width] = np.asarray(masks[with_mask[i]])
        return NORM.array(torch.from_numpy(canvas).permute(2, 0, 1)), torch.from_numpy(target)

    return DataLoader(Samples(sample, len(with_mask), limit), batch_size=batch_size)


ADAPTER = Adapter(
    name="deeplab_v3",
    task="segmentation",
    build=build,
    data=data,
    input_shape=(3, SIZE, SIZE),
    baseline={"miou": 51.63, "pixel_accuracy": 88.55},
    options={"ignore_index": IGNORE},
)
