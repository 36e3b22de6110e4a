"""ResNet-20 and ResNet-32 for CIFAR-10 (He et al., 2016, section 4.2), with the parameter-free shortcut A."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from benchmarks.networks.adapter import Adapter, data_file
from benchmarks.networks.images import PackedImages, Samples, array
from mvq.tasks import Preprocessing, load_weights_
from mvq.tasks.networks.cifar_resnet import CifarResNet

PREPROCESSING = Preprocessing(resize=None, crop=None)


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


class ShiftedImages:
    """Training images in memory, moved by up to four pixels and mirrored, in batches of equal size.

    The order, moves and mirroring of an epoch depend on the seed and the epoch alone. An epoch that nobody sets
    is one more than the last.
    """

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, batch_size: int, seed: int) -> None:
        self.images = torch.nn.functional.pad(images, (4, 4, 4, 4))
        self.labels = labels
        self.batch_size = batch_size
        self.seed = seed
        self.epoch = 0
        scale = 255 * torch.tensor(PREPROCESSING.std)[:, None, None]
        self.scale, self.offset = 1 / scale, -torch.tensor(PREPROCESSING.mean)[:, None, None] * 255 / scale

    def __len__(self) -> int:
        return len(self.labels) // self.batch_size

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        generator = torch.Generator().manual_seed((self.seed << 20) + self.epoch)
        self.epoch += 1
        order = torch.randperm(len(self.labels), generator=generator)
        for rows in order.split(self.batch_size)[: len(self)]:
            down, right = torch.randint(0, 9, (2, len(rows), 1), generator=generator)
            mirrored = torch.randint(0, 2, (len(rows), 1), generator=generator) * 31
            y = (down + torch.arange(32))[:, :, None]
            x = (right + (torch.arange(32) - mirrored).abs())[:, None, :]
            images = self.images[rows[:, None, None], :, y, x].permute(0, 3, 1, 2)
            yield torch.addcmul(self.offset, images.float(), self.scale), self.labels[rows]


@functools.cache
def _lossless(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    path = data_file("cifar10/cifar10_lossless.npz")
    images = torch.from_numpy(array(path, f"{part}_x")).permute(0, 3, 1, 2).contiguous()
    return images, torch.from_numpy(array(path, f"{part}_y")).long()


@functools.cache
def _jpeg(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    path = data_file(f"cifar10/cifar10_{part}_jpeg.npz")
    packed = PackedImages(path)
    images = np.stack([np.asarray(packed[i].convert("RGB")) for i in range(len(packed))])
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(array(path, "label")).long()


def train_all(batch_size: int = 128, seed: int = 0) -> ShiftedImages:
    """All 10,000 training images, 4,000 with exact pixels and 6,000 decoded from JPEG, augmented."""
    images, labels = zip(_lossless("train"), _jpeg("train"), strict=True)
    return ShiftedImages(torch.cat(images), torch.cat(labels), batch_size, seed)


def _plain(images: torch.Tensor, labels: torch.Tensor, batch_size: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    pixels = PREPROCESSING.array(images)
    return list(zip(pixels.split(batch_size), labels.split(batch_size), strict=True))


def lossless_test(batch_size: int = 100) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The 700 test images of `data`, without decoding each time."""
    return _plain(*_lossless("test"), batch_size)


def jpeg_test(batch_size: int = 100) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """4,000 other test images as lossy JPEG copies: a shifted set on which networks score about ten points lower."""
    return _plain(*_jpeg("test"), batch_size)


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
