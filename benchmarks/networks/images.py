"""Images packed into one `.npz` file: JPEG byte strings end to end, with their offsets."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from benchmarks.networks.adapter import data_file
from mvq.tasks import Preprocessing

TORCH_NORM = Preprocessing(resize=None, crop=224)
TF_NORM = Preprocessing(mean=(0.5,), std=(0.5,), resize=None, crop=224)


class PackedImages:
    """Byte strings of one file, decoded when asked for.

    Args:
        path: of the `.npz` file.
        field: `jpeg`, with its offsets in `offset`; or `mask_png`, with `mask_offset`.
    """

    def __init__(self, path: Path, field: str = "jpeg", offsets: str = "offset") -> None:
        with np.load(path) as arrays:
            self.data = arrays[field].tobytes()
            self.offsets = arrays[offsets].astype(np.int64)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> Image.Image:
        image = Image.open(io.BytesIO(self.data[self.offsets[i] : self.offsets[i + 1]]))
        image.load()
        return image


class Samples(Dataset[tuple[torch.Tensor, Any]]):
    """The first images of a set, each made by a function of its index."""

    def __init__(self, make: Callable[[int], tuple[torch.Tensor, Any]], n: int, limit: int | None) -> None:
        self.make = make
        self.n = n if limit is None else min(n, limit)

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, i: int) -> tuple[torch.Tensor, Any]:
        return self.make(i)


def array(path: Path, name: str) -> NDArray:
    """One array of a `.npz` file."""
    with np.load(path) as arrays:
        return arrays[name]


def imagenet(
    preprocessing: Preprocessing, *, split: str, batch_size: int, limit: int | None
) -> DataLoader[tuple[torch.Tensor, int]]:
    """900 validation images of ImageNet, or 1000 training images, one a class."""
    path = data_file("imagenet/imagenet_val227.npz" if split == "val" else "imagenet/imagenet_train256.npz")
    images, labels = PackedImages(path), array(path, "label")
    samples = Samples(lambda i: (preprocessing.image(_crop(images[i])), int(labels[i])), len(images), limit)
    return DataLoader(samples, batch_size=batch_size)


def _crop(image: Image.Image) -> Image.Image:
    """The centre 224x224, its offset rounded down.

    torchvision rounds the offset of a 227x227 image up, and the baselines were measured without that.
    """
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    return image.crop((left, top, left + 224, top + 224))
