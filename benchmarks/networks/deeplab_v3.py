"""DeepLab-V3 with a MobileNet-V2 backbone (output stride 8), 21 classes of PASCAL VOC."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.networks.adapter import Adapter, data_file
from benchmarks.networks.images import Mirrored, PackedImages, Samples, array, channels_last
from mvq.outputs import divergence, drawn_cross_entropy
from mvq.tasks import Preprocessing, load_weights_
from mvq.tasks.networks.deeplab_v3 import DeepLabV3
from mvq.tasks.sampling import EpochSampler

SIZE = 513
IGNORE = 255
BACKGROUND = 128
NORM = Preprocessing(mean=(0.5,), std=(0.5,), resize=None, crop=None)


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
        mask = np.asarray(masks[with_mask[i]])
        target = np.full((SIZE, SIZE), IGNORE, np.int64)
        target[: mask.shape[0], : mask.shape[1]] = mask
        return _on_canvas(images[with_mask[i]]), torch.from_numpy(target)

    return DataLoader(Samples(sample, len(with_mask), limit), batch_size=batch_size, collate_fn=channels_last)


def training(batch_size: int = 8, seed: int = 0) -> DataLoader[Any]:
    """Training images in random order, which the seed and the epoch decide; half mirrored, without masks."""
    images = PackedImages(data_file("coco/coco_train512.npz"))
    samples = Mirrored(lambda i: _on_canvas(images[i]), len(images), seed=seed)
    order = EpochSampler(range(len(images)), shuffle=True, seed=seed)
    return DataLoader(samples, batch_size=batch_size, sampler=order, drop_last=True, collate_fn=channels_last)


def _on_canvas(image: Image.Image) -> torch.Tensor:
    pixels = np.asarray(image.convert("RGB"))
    canvas = np.full((SIZE, SIZE, 3), BACKGROUND, np.uint8)
    canvas[: pixels.shape[0], : pixels.shape[1]] = pixels
    return NORM.array(torch.from_numpy(canvas).permute(2, 0, 1))


ADAPTER = Adapter(
    name="deeplab_v3",
    task="segmentation",
    build=build,
    data=data,
    input_shape=(3, SIZE, SIZE),
    baseline={"miou": 51.63, "pixel_accuracy": 88.55},
    options={"ignore_index": IGNORE},
    training=training,
    score=drawn_cross_entropy,
    loss=divergence,
)
