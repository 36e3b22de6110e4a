"""Handwritten digits (8x8, UCI Optical Recognition test set as shipped in scikit-learn)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mvq.errors import ConfigError

#: Of the training pixels, on the 0..1 scale.
_MEAN, _STD = 0.306, 0.376


class Batches:
    """Images in memory, in batches.

    Args:
        images: `(N, 1, 8, 8)`.
        labels: `(N,)`.
        batch_size: images in a batch; the last one may be smaller.
        augment: new random order in each pass, each image moved by up to one pixel.
        seed: of order and moves.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, batch_size: int, *, augment: bool = False, seed: int = 0
    ) -> None:
        self.images = images
        self.labels = labels
        self.batch_size = batch_size
        self.augment = augment
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return -(-len(self.labels) // self.batch_size)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        n = len(self.labels)
        order = torch.randperm(n, generator=self.generator) if self.augment else torch.arange(n)
        for rows in order.split(self.batch_size):
            images = self.images[rows]
            yield (self._moved(images) if self.augment else images), self.labels[rows]

    def _moved(self, images: Tensor) -> Tensor:
        n, _, height, width = images.shape
        padded = torch.nn.functional.pad(images, (1, 1, 1, 1), value=-_MEAN / _STD)
        down, right = torch.randint(0, 3, (2, n, 1), generator=self.generator)
        rows = (down + torch.arange(height))[:, :, None]
        columns = (right + torch.arange(width))[:, None, :]
        return padded[torch.arange(n)[:, None, None], 0, rows, columns][:, None]


def digits(split: str = "val", batch_size: int = 64, seed: int = 0) -> Batches:
    """The digits, normalised, in a fixed split: two of every seven images are for testing.

    Args:
        split: `val` (514 images, in order) or `train` (1,283 images, shuffled and moved by up to one pixel).
        batch_size: images in a batch.
        seed: of order and moves.

    Returns:
        Batches of float32 `(N, 1, 8, 8)` images and int64 `(N,)` digits.

    Raises:
        ConfigError: if the split is unknown.
    """
    from sklearn.datasets import load_digits

    if split not in ("train", "val"):
        raise ConfigError(f"digits: split={split!r} is not one of train, val")
    data: Any = load_digits()
    images = (torch.from_numpy(data.images).float()[:, None] / 16 - _MEAN) / _STD
    labels = torch.from_numpy(data.target).long()
    chosen = (torch.arange(len(labels)) % 7 < 2) == (split == "val")
    return Batches(images[chosen], labels[chosen], batch_size, augment=split == "train", seed=seed)
