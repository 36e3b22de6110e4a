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
from torch.utils.data import DataLoader, Dataset, default_collate

from benchmarks.networks.adapter import data_file
from mvq.tasks import Preprocessing
from mvq.tasks.augment import resized_crop
from mvq.tasks.sampling import EpochSampler, Images

TORCH_NORM = Preprocessing(resize=None, crop=224)
TF_NORM = Preprocessing(mean=(0.5,), std=(0.5,), resize=None, crop=224)
_LEAST_AREA = 0.35


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
    preprocessing: Preprocessing, split: str = "val", batch_size: int = 50, limit: int | None = None
) -> DataLoader[tuple[torch.Tensor, int]]:
    """900 validation images of ImageNet, or 1000 training images, one a class."""
    path = data_file("imagenet/imagenet_val227.npz" if split == "val" else "imagenet/imagenet_train256.npz")
    images, labels = PackedImages(path), array(path, "label")
    samples = Samples(lambda i: (preprocessing.image(_crop(images[i])), int(labels[i])), len(images), limit)
    return DataLoader(samples, batch_size=batch_size, collate_fn=channels_last)


def imagenet_training(preprocessing: Preprocessing, batch_size: int = 32, seed: int = 0) -> DataLoader[Any]:
    """The 1000 training images in random order and random parts, which the seed and the epoch decide."""
    path = data_file("imagenet/imagenet_train256.npz")
    images = RandomParts(PackedImages(path), array(path, "label"), preprocessing, seed=seed)
    order = EpochSampler(range(len(images)), shuffle=True, seed=seed)
    return DataLoader(images, batch_size=batch_size, sampler=order, drop_last=True, collate_fn=channels_last)


class RandomParts(Images):
    """Labelled images, each time cut and mirrored at random.

    Few passes over few images are no place for parts as small as training from scratch takes.
    """

    def __init__(self, images: PackedImages, labels: NDArray, preprocessing: Preprocessing, *, seed: int) -> None:
        super().__init__(augment=True, seed=seed)
        self.images, self.labels, self.preprocessing = images, labels, preprocessing

    def __len__(self) -> int:
        return len(self.images)

    def sample(self, index: int, rng: np.random.Generator | None) -> tuple[torch.Tensor, int]:
        assert rng is not None
        return resized_crop(self.images[index], self.preprocessing, rng, least_area=_LEAST_AREA), int(
            self.labels[index]
        )


class Mirrored(Images):
    """Images without targets, half of them mirrored; each is made by a function of its index."""

    def __init__(self, make: Callable[[int], torch.Tensor], n: int, *, seed: int) -> None:
        super().__init__(augment=True, seed=seed)
        self.make, self.n = make, n

    def __len__(self) -> int:
        return self.n

    def sample(self, index: int, rng: np.random.Generator | None) -> tuple[torch.Tensor, int]:
        image = self.make(index)
        return (image.flip(2) if rng is not None and rng.random() < 0.5 else image), 0


def channels_last(samples: list[tuple[torch.Tensor, Any]]) -> tuple[torch.Tensor, Any]:
    """A batch in the layout in which CPUs run convolutions fastest."""
    inputs, targets = default_collate(samples)
    return inputs.contiguous(memory_format=torch.channels_last), targets


def _crop(image: Image.Image) -> Image.Image:
    """The centre 224x224, its offset rounded down.

    torchvision rounds the offset of a 227x227 image up, and the baselines were measured without that.
    """
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    return image.crop((left, top, left + 224, top + 224))
