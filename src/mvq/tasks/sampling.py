"""Order of images and random choices of an epoch, all fixed by `(seed, epoch, image)`.

The sampler sends `(image, epoch)` to the data set, so worker processes need not be told of a new epoch, and an
image is augmented alike whatever batch or process it comes in.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import Dataset, Sampler

_ORDER, _IMAGE, _EPOCH = range(3)


class Draw(NamedTuple):
    """One image in one epoch."""

    image: int
    epoch: int


class EpochSampler(Sampler[Draw]):
    """Images of an epoch, in order or shuffled.

    Args:
        indices: of the images to use.
        shuffle: another order in each epoch.
        seed: of the order.
    """

    def __init__(self, indices: Sequence[int], *, shuffle: bool, seed: int) -> None:
        self.indices = indices
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Make the next pass this epoch's; without a call each pass is the epoch after the last one."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Draw]:
        epoch, n = self.epoch, len(self.indices)
        self.epoch += 1
        order = _generator(_ORDER, self.seed, epoch).permutation(n) if self.shuffle else range(n)
        return (Draw(self.indices[i], epoch) for i in order)


class Images(Dataset[tuple[Any, Any]]):
    """A set of images that knows how to augment one; subclasses give `sample` and `__len__`.

    Args:
        augment: change images at random.
        seed: of the random choices.
    """

    def __init__(self, *, augment: bool, seed: int) -> None:
        self.augment = augment
        self.seed = seed

    def __len__(self) -> int:
        raise NotImplementedError

    def __getitem__(self, key: Draw | int) -> tuple[Any, Any]:
        draw = as_draw(key)
        rng = _generator(_IMAGE, self.seed, draw.epoch, draw.image) if self.augment else None
        return self.sample(draw.image, rng)

    def sample(self, index: int, rng: np.random.Generator | None) -> tuple[Any, Any]:
        """One input and its target, augmented where there is a generator."""
        raise NotImplementedError


def as_draw(key: Draw | int) -> Draw:
    """A plain index means epoch 0."""
    return key if isinstance(key, Draw) else Draw(key, 0)


def epoch_numbers(seed: int, epoch: int, n: int, n_each: int) -> np.ndarray:
    """Float64 `(n, n_each)` in 0..1: the random numbers of all n images in an epoch, made at once."""
    return _generator(_EPOCH, seed, epoch).random((n, n_each))


def _generator(use: int, seed: int, epoch: int, index: int = 0) -> np.random.Generator:
    return np.random.default_rng([use, seed, epoch, index])
