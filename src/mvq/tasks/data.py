"""Image data sets by path or name.

Recognised, in this order: `package.module:callable` that gives a loader; a `.npz` file of arrays; a folder
with CIFAR-10 or CIFAR-100 in its Python layout; a folder of class folders, ImageNet style. Nothing is
downloaded.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Subset

from mvq.errors import ConfigError, DataError
from mvq.tasks.imports import import_callable, is_import_spec
from mvq.tasks.preprocessing import Preprocessing

SPLITS = ("train", "val")
_CIFAR = {"cifar-10-batches-py": "CIFAR10", "cifar-100-python": "CIFAR100"}


def load_data(
    spec: str | Path,
    *,
    split: str = "val",
    batch_size: int = 64,
    image_size: int | None = None,
    preprocessing: Preprocessing | str | None = None,
    workers: int = 0,
    limit: int | None = None,
    shuffle: bool = False,
    seed: int = 0,
) -> Iterable[tuple[Any, Any]]:
    """A loader of `(inputs, targets)`: float32 `(N, C, H, W)` images and int64 `(N,)` class numbers.

    Args:
        spec: what to read:

            * a folder with `val/` and `train/`, or directly with one folder for each class; class numbers
              follow the sorted folder names; preprocessing `imagenet` unless given;
            * a folder that is or contains `cifar-10-batches-py` or `cifar-100-python` (`val` is the test
              set); `cifar10` or `cifar100` unless given;
            * a `.npz` file with arrays `{split}_x` and `{split}_y`, or `x` and `y`, or `images` and `labels`:
              images uint8 `(N, H, W)` or `(N, H, W, C)`, or float `(N, C, H, W)`; `unit` for uint8, none for
              float unless given;
            * `package.module:callable` giving an iterable of `(inputs, targets)`; called with those of
              `split`, `batch_size` and `workers` that it takes by name, and it alone decides on
              preprocessing.
        split: `train` or `val`.
        batch_size: images in a batch.
        image_size: side of the network's input: sets the preprocessing's crop, and its resize in proportion.
        preprocessing: a `Preprocessing` or the name of a preset.
        workers: processes that read images.
        limit: use at most this many images, spread evenly over the set (over classes, in a class folder); of
            a callable's loader, the first ones.
        shuffle: new random order in each pass.
        seed: of the order.

    Raises:
        ConfigError: if an option is out of range or does not apply.
        DataError: if there is no such data, or not in the layout expected.
    """
    _check_options(split, batch_size, workers, limit, image_size)
    if isinstance(preprocessing, str):
        preprocessing = Preprocessing.preset(preprocessing)
    if isinstance(spec, str) and is_import_spec(spec) and not Path(spec).exists():
        if preprocessing is not None or image_size is not None or shuffle:
            raise ConfigError(
                f"data {spec!r}: preprocessing, image_size and shuffle are up to the callable; leave them out"
            )
        return _imported(spec, limit, {"split": split, "batch_size": batch_size, "workers": workers})
    dataset = _dataset(Path(spec), split, preprocessing, image_size)
    n = len(dataset)
    if limit is not None and limit < n:
        dataset = Subset(dataset, [i * n // limit for i in range(limit)])
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle,
        num_workers=workers,
        generator=torch.Generator().manual_seed(seed),
        persistent_workers=workers > 0,
    )


class ArrayImages(Dataset[tuple[torch.Tensor, int]]):
    """Images held in memory as one array.

    Args:
        images: uint8 `(N, H, W, C)`, or float `(N, C, H, W)`.
        labels: `(N,)` class numbers.
        preprocessing: applied to each image; None for none (only float images).
    """

    def __init__(self, images: NDArray, labels: NDArray, preprocessing: Preprocessing | None) -> None:
        self.images = images
        self.labels = labels
        self.preprocessing = preprocessing

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        image = torch.from_numpy(np.array(self.images[index]))
        image = image.permute(2, 0, 1) if image.dtype == torch.uint8 else image.float()
        return image if self.preprocessing is None else self.preprocessing.array(image), int(self.labels[index])


class FirstImages(Iterable[tuple[Any, Any]]):
    """The first `limit` images of a loader, whatever the size of its batches."""

    def __init__(self, loader: Iterable[tuple[Any, Any]], limit: int) -> None:
        self.loader = loader
        self.limit = limit

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        left = self.limit
        for inputs, targets in self.loader:
            yield inputs[:left], targets[:left]
            left -= len(targets)
            if left <= 0:
                return


def _check_options(split: str, batch_size: int, workers: int, limit: int | None, image_size: int | None) -> None:
    faults = []
    if split not in SPLITS:
        faults.append(f"data: split={split!r} is not one of {', '.join(SPLITS)}")
    if batch_size < 1:
        faults.append(f"data: batch_size={batch_size} is not at least 1")
    if workers < 0:
        faults.append(f"data: workers={workers} is negative")
    for name, value in (("limit", limit), ("image_size", image_size)):
        if value is not None and value < 1:
            faults.append(f"data: {name}={value} is not at least 1")
    if faults:
        raise ConfigError("\n".join(faults))


def _imported(spec: str, limit: int | None, options: dict[str, Any]) -> Iterable[tuple[Any, Any]]:
    maker = import_callable(spec, DataError)
    named = inspect.signature(maker).parameters
    loader = maker(**{k: v for k, v in options.items() if k in named})
    if not hasattr(loader, "__iter__"):
        raise DataError(f"data {spec!r} gave a {type(loader).__name__}, not a loader of (inputs, targets)")
    return loader if limit is None else FirstImages(loader, limit)


def _dataset(path: Path, split: str, preprocessing: Preprocessing | None, image_size: int | None) -> Any:
    if not path.exists():
        raise DataError(
            f"data {str(path)!r}: there is no such file or folder; give a folder of class folders, a CIFAR "
            f"folder, a .npz file or package.module:callable"
        )

    def chosen(default: Preprocessing | None) -> Preprocessing | None:
        value = preprocessing or default
        if image_size is None:
            return value
        return (value or Preprocessing.preset("unit")).for_size(image_size)

    if path.is_file():
        if path.suffix != ".npz":
            raise DataError(f"data {str(path)!r}: a data file must be a .npz of arrays; images lie in class folders")
        images, labels = _read_npz(path, split)
        dataset = ArrayImages(
            images, labels, chosen(Preprocessing.preset("unit") if images.dtype == np.uint8 else None)
        )
        _check_channels(path, images, dataset.preprocessing)
        return dataset
    for folder, name in _CIFAR.items():
        if path.name == folder or (path / folder).is_dir():
            images, labels = _read_cifar(path.parent if path.name == folder else path, name, split)
            return ArrayImages(images, labels, chosen(Preprocessing.preset(name.lower())))
    return _class_folders(path, split, chosen(Preprocessing.preset("imagenet")))


def _class_folders(path: Path, split: str, preprocessing: Preprocessing | None) -> Sized:
    from torchvision.datasets import ImageFolder

    present = [name for name in SPLITS if (path / name).is_dir()]
    if present and split not in present:
        raise DataError(f"data {str(path)!r}: there is {present[0]}/ but no {split}/; choose split={present[0]!r}")
    root = path / split if present else path
    if not any(child.is_dir() for child in root.iterdir()):
        raise DataError(
            f"data {str(root)!r}: there is no class folder; expected one folder for each class, with its images in it"
        )
    assert preprocessing is not None  # class folders always have a default
    try:
        return ImageFolder(root, transform=preprocessing.image, loader=_open_image)
    except FileNotFoundError as error:
        raise DataError(f"data {str(root)!r}: {str(error).rstrip('. ')}; remove empty class folders") from error


def _open_image(path: str | Path) -> Any:
    from PIL import Image

    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"data: image {str(path)!r} cannot be decoded ({error}); repair or remove it") from error


def _read_cifar(root: Path, name: str, split: str) -> tuple[NDArray, NDArray]:
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


def _read_npz(path: Path, split: str) -> tuple[NDArray, NDArray]:
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


def _check_channels(path: Path, images: NDArray, preprocessing: Preprocessing | None) -> None:
    channels = images.shape[3] if images.dtype == np.uint8 else images.shape[1]
    if preprocessing is not None and len(preprocessing.mean) not in (1, channels):
        raise DataError(
            f"data {str(path)!r}: images have {channels} channel{'s' * (channels != 1)} but the "
            f"preprocessing's mean has {len(preprocessing.mean)} values; give one value, or one a channel"
        )
