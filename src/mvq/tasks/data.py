"""Image data sets by path or name. Nothing is downloaded.

A `package.module:callable` that gives a loader serves every task. Otherwise classification reads a `.npz` file of
arrays, a folder with CIFAR-10 or CIFAR-100 in its Python layout, or a folder of class folders, ImageNet style;
segmentation reads PASCAL VOC's layout, detection COCO's.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from mvq.errors import ConfigError, DataError
from mvq.tasks.classified import (
    CIFAR,
    SPLITS,
    ArrayImages,
    FolderImages,
    check_channels,
    class_folders,
    read_cifar,
    read_npz,
)
from mvq.tasks.coco import CocoImages, collate, find_coco
from mvq.tasks.imports import import_callable, is_import_spec
from mvq.tasks.preprocessing import Preprocessing
from mvq.tasks.sampling import EpochSampler, Images
from mvq.tasks.voc import SIDE, VocImages, find_voc

TASKS = ("classification", "detection", "segmentation")


def load_data(
    spec: str | Path,
    *,
    task: str = "classification",
    split: str = "val",
    batch_size: int = 64,
    image_size: int | None = None,
    preprocessing: Preprocessing | str | None = None,
    workers: int = 0,
    limit: int | None = None,
    shuffle: bool = False,
    augment: bool = False,
    drop_last: bool = False,
    seed: int = 0,
) -> Iterable[tuple[Any, Any]]:
    """A loader of `(inputs, targets)`; its sampler has `set_epoch`.

    Classification gives float32 `(N, C, H, W)` images and int64 `(N,)` class numbers; segmentation int64
    `(N, H, W)` class numbers, 255 where nothing counts; detection lists of `(3, H, W)` images on 0..1 and of
    targets, see `coco.CocoImages`.

    Args:
        spec: what to read. Any task: `package.module:callable` giving an iterable of `(inputs, targets)`; called
            with those of `split`, `batch_size` and `workers` that it takes by name, and it alone decides on
            preprocessing. Classification:

            * a folder with `val/` and `train/`, or directly with one folder for each class; class numbers
              follow the sorted folder names; preprocessing `imagenet` unless given;
            * a folder that is or contains `cifar-10-batches-py` or `cifar-100-python` (`val` is the test
              set); `cifar10` or `cifar100` unless given;
            * a `.npz` file with arrays `{split}_x` and `{split}_y`, or `x` and `y`, or `images` and `labels`:
              images uint8 `(N, H, W)` or `(N, H, W, C)`, or float `(N, C, H, W)`; `unit` for uint8, none for
              float unless given.

            Segmentation: see `voc.find_voc`; images lie on a square of side 513, normalised like `imagenet`
            unless given. Detection: see `coco.find_coco`.
        task: `classification`, `detection` or `segmentation`.
        split: `train` or `val`.
        batch_size: images in a batch.
        image_size: side of the network's input: sets the preprocessing's crop, and its resize in proportion;
            for segmentation the side of the square. Not for detection, where the detector resizes.
        preprocessing: a `Preprocessing` or the name of a preset, of which segmentation takes mean, deviation and
            channel order. Not for detection.
        workers: processes that read images.
        limit: use at most this many images, spread evenly over the set (over classes, in a class folder); of
            a callable's loader, the first ones.
        shuffle: new random order in each pass.
        augment: change images at random: class folders by random resized crops, arrays by shifts of an eighth
            of the side, segmentation by scale and crop; all are mirrored half of the time.
        drop_last: leave out a last batch that is smaller, unless it is the only one.
        seed: of order and augmentation; with it, epoch and image number decide everything.

    Raises:
        ConfigError: if an option is out of range or does not apply.
        DataError: if there is no such data, or not in the layout expected.
    """
    _check_options(task, split, batch_size, workers, limit, image_size)
    named = preprocessing if isinstance(preprocessing, str) else None
    if isinstance(preprocessing, str):
        preprocessing = Preprocessing.preset(preprocessing)
    if isinstance(spec, str) and is_import_spec(spec) and not Path(spec).exists():
        if preprocessing is not None or image_size is not None or shuffle or augment:
            raise ConfigError(
                f"data {spec!r}: preprocessing, image_size, shuffle and augment are up to the callable; leave them out"
            )
        return _imported(spec, limit, {"split": split, "batch_size": batch_size, "workers": workers})
    if task == "segmentation" and named is not None and preprocessing is not None:
        preprocessing = dataclasses.replace(preprocessing, resize=None, crop=SIDE)
    dataset = _dataset(Path(spec), task, split, preprocessing, image_size, augment, seed)
    n = len(dataset)
    indices = range(n) if limit is None or limit >= n else [i * n // limit for i in range(limit)]
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=EpochSampler(indices, shuffle=shuffle, seed=seed),
        num_workers=workers,
        generator=torch.Generator().manual_seed(seed),
        persistent_workers=workers > 0,
        drop_last=drop_last and len(indices) >= batch_size,
        collate_fn=_collate(dataset),
    )


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


def _check_options(
    task: str, split: str, batch_size: int, workers: int, limit: int | None, image_size: int | None
) -> None:
    faults = []
    if task not in TASKS:
        faults.append(f"task {task!r} is not known; known are {', '.join(TASKS)}")
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


def _dataset(
    path: Path,
    task: str,
    split: str,
    preprocessing: Preprocessing | None,
    image_size: int | None,
    augment: bool,
    seed: int,
) -> Images:
    if not path.exists():
        kinds = {
            "classification": "a folder of class folders, a CIFAR folder, a .npz file",
            "detection": "a folder in COCO's layout, a .json file",
            "segmentation": "a folder in PASCAL VOC's layout",
        }
        raise DataError(
            f"data {str(path)!r}: there is no such file or folder; give {kinds[task]} or package.module:callable"
        )
    if task == "detection":
        if preprocessing is not None or image_size is not None:
            raise ConfigError(
                f"data {str(path)!r}: a detector resizes and normalises images itself; leave out preprocessing and "
                f"image_size"
            )
        return CocoImages(*find_coco(path, split), augment=augment, seed=seed)

    def chosen(default: Preprocessing | None) -> Any:
        value = preprocessing or default
        if image_size is None:
            return value
        return (value or Preprocessing.preset("unit")).for_size(image_size)

    if task == "segmentation":
        default = Preprocessing(resize=None, crop=SIDE)
        return VocImages(find_voc(path, split), chosen(default), augment=augment, seed=seed)
    if path.is_file():
        if path.suffix != ".npz":
            raise DataError(f"data {str(path)!r}: a data file must be a .npz of arrays; images lie in class folders")
        images, labels = read_npz(path, split)
        default = Preprocessing.preset("unit") if images.dtype == np.uint8 else None
        check_channels(path, images, chosen(default))
        return ArrayImages(images, labels, chosen(default), augment=augment, seed=seed)
    for folder, name in CIFAR.items():
        if path.name == folder or (path / folder).is_dir():
            images, labels = read_cifar(path.parent if path.name == folder else path, name, split)
            return ArrayImages(images, labels, chosen(Preprocessing.preset(name.lower())), augment=augment, seed=seed)
    default = Preprocessing.preset("imagenet")
    return FolderImages(class_folders(path, split), chosen(default), augment=augment, seed=seed)


def _collate(dataset: Images) -> Any:
    if isinstance(dataset, CocoImages):
        return collate
    return _as_is if isinstance(dataset, ArrayImages) else None


def _as_is(batch: Any) -> Any:
    """An array gives whole batches."""
    return batch
