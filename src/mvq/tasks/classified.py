"""Images with one class each: arrays (`.npz`, CIFAR) and folders of classes (ImageNet style)."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mvq.errors import DataError
from mvq.tasks.augment import resized_crop, shift_and_flip
from mvq.tasks.preprocessing import Preprocessing
from mvq.tasks.sampling import Draw, Images, as_draw, epoch_numbers

SPLITS = ("train", "val")
CIFAR = {"cifar-10-batches-py": "CIFAR10", "cifar-100-python": "CIFAR100"}


class ArrayImages(Images):
    """Images held in memory as one array; a batch is read, augmented and normalised as a whole.

    Args:
        images: uint8 `(N, H, W, C)`, or float `(N, C, H, W)`.
        labels: `(N,)` class numbers.
        preprocessing: applied to each image; None for none (only float images).
        augment: shift and mirror at random, see `augment.shift_and_flip`.
        seed: of the random choices.
    """

    def __init__(
        self,
        images: NDArray,
        labels: NDArray,
        preprocessing: Preprocessing | None,
        *,
        augment: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(augment=augment, seed=seed)
        self.images = images
        self.labels = labels.astype(np.int64)
        self.preprocessing = preprocessing
        self._numbers = (-1, np.empty(0))

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: Draw | int) -> tuple[Any, Any]:
        images, labels = self.__getitems__([key])
        return images[0], int(labels[0])

    def __getitems__(self, keys: Sequence[Draw | int]) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch: float32 `(len(keys), C, H, W)` and int64 `(len(keys),)`; `DataLoader` calls it."""
        draws = [as_draw(key) for key in keys]
        rows = np.array([draw.image for draw in draws])
        images, channels_last = self.images[rows], self.images.dtype == np.uint8
        if self.augment:
            images = images if channels_last else images.transpose(0, 2, 3, 1)
            images = shift_and_flip(images, self._epoch(draws[0].epoch)[rows])
            images = images if channels_last else images.transpose(0, 3, 1, 2)
        batch = torch.from_numpy(np.ascontiguousarray(images))
        batch = batch.permute(0, 3, 1, 2).contiguous() if channels_last else batch.float()
        batch = batch if self.preprocessing is None else self.preprocessing.array(batch)
        return batch, torch.from_numpy(self.labels[rows])

    def _epoch(self, epoch: int) -> NDArray:
        if self._numbers[0] != epoch:
            self._numbers = (epoch, epoch_numbers(self.seed, epoch, len(self), 3))
        return self._numbers[1]


class FolderImages(Images):
    """Images in files.

    Args:
        samples: `(path, class number)`.
        preprocessing: makes a tensor of an image.
        augment: cut a random part out and mirror at random, see `augment.resized_crop`.
        seed: of the random choices.
    """

    def __init__(
        self, samples: list[tuple[str, int]], preprocessing: Preprocessing, *, augment: bool, seed: int
    ) -> None:
        super().__init__(augment=augment, seed=seed)
        self.samples = samples
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.samples)

    def sample(self, index: int, rng: np.random.Generator | None) -> tuple[torch.Tensor, int]:
        """Float32 `(3, H, W)` and the class number."""
        path, label = self.samples[index]
        image = open_image(path)
        if rng is not None:
            return resized_crop(image, self.preprocessing, rng), label
        return self.preprocessing.image(image), label


def open_image(path: str | Path) -> Any:
    """An image file as a PIL image in RGB.

    Raises:
        DataError: if it is missing or cannot be decoded.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"data: image {str(path)!r} cannot be decoded ({error}); repair or remove it") from error


def class_folders(path: Path, split: str) -> list[tuple[str, int]]:
    """Image files and class numbers of a folder with `train/` and `val/`, or of class folders.

    Raises:
        DataError: if there is no class folder, or one without an image.
    """
    from torchvision.datasets import ImageFolder

    present = [name for name in SPLITS if (path / name).is_dir()]
    if present and split not in present:
        raise DataError(f"data {str(path)!r}: there is {present[0]}/ but no {split}/; choose split={present[0]!r}")
    root = path / split if present else path
    if not any(child.is_dir() for child in root.iterdir()):
        raise DataError(
            f"data {str(root)!r}: there is no class folder; expected one folder for each class, with its images in it"
        )
    try:
        return ImageFolder(root).samples
    except FileNotFoundError as error:
        raise DataError(f"data {str(root)!r}: {str(error).rstrip('. ')}; remove empty class folders") from error


def read_cifar(root: Path, name: str, split: str) -> tuple[NDArray, NDArray]:
    """Images uint8 `(N, 32, 32, 3)` and class numbers of CIFAR-10 or CIFAR-100.

    Raises:
        DataError: if a file is missing or damaged.
    """
    from torchvision import datasets

    try:
        with warnings.catch_warnings():
            # The pickles were written by a NumPy of long ago, about which newer ones warn.
            warnings.simplefilter("ignore")
            data = getattr(datasets, name)(root, train=split == "train", download=False)
    except (RuntimeError, FileNotFoundError) as error:
        raise DataError(
            f"data {str(root)!r}: {name} is incomplete or damaged; unpack its Python version there again"
        ) from error
    return data.data, np.asarray(data.targets)


def read_npz(path: Path, split: str) -> tuple[NDArray, NDArray]:
    """Images, uint8 `(N, H, W, C)` or float `(N, C, H, W)`, and class numbers of a `.npz` file.

    Raises:
        DataError: if it cannot be read or does not hold such arrays.
    """
    pairs = ((f"{split}_x", f"{split}_y"), ("x", "y"), ("images", "labels"))
    try:
        with np.load(path, allow_pickle=False) as arrays:
            pair = next((p for p in pairs if all(k in arrays for k in p)), None)
            if pair is None:
                raise DataError(
                    f"data {str(path)!r}: it has {', '.join(map(repr, arrays.files)) or 'no array'}; "
                    f"expected {' or '.join(f'{a!r} and {b!r}' for a, b in pairs)}"
                )
            images, labels = arrays[pair[0]], arrays[pair[1]]
    except (OSError, ValueError, EOFError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"data {str(path)!r} cannot be read as .npz: {error}") from error
    if images.dtype == np.uint8 and images.ndim == 3:
        images = images[..., None]
    _check_arrays(path, pair, images, labels)
    return images, labels


def _check_arrays(path: Path, keys: tuple[str, str], images: NDArray, labels: NDArray) -> None:
    if images.ndim != 4 or not (images.dtype == np.uint8 or np.issubdtype(images.dtype, np.floating)):
        raise DataError(
            f"data {str(path)!r}: {keys[0]!r} is {images.dtype} {images.shape}; expected uint8 (N, H, W) or "
            f"(N, H, W, C), or float (N, C, H, W)"
        )
    if not np.issubdtype(labels.dtype, np.integer) or labels.shape != images.shape[:1]:
        raise DataError(
            f"data {str(path)!r}: {keys[1]!r} is {labels.dtype} {labels.shape} for {len(images)} images; "
            f"expected one whole number an image"
        )
    if not len(images):
        raise DataError(f"data {str(path)!r}: {keys[0]!r} holds no image")


def check_channels(path: Path, images: NDArray, preprocessing: Preprocessing | None) -> None:
    """Check that mean and deviation fit the images.

    Raises:
        DataError: if they do not.
    """
    channels = images.shape[3] if images.dtype == np.uint8 else images.shape[1]
    if preprocessing is not None and len(preprocessing.mean) not in (1, channels):
        raise DataError(
            f"data {str(path)!r}: images have {channels} channel{'s' * (channels != 1)} but the "
            f"preprocessing's mean has {len(preprocessing.mean)} values; give one value, or one a channel"
        )
