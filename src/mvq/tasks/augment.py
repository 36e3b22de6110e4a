"""Random changes of training images. Each takes its random numbers from outside."""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

    from mvq.tasks.preprocessing import Preprocessing

_LEAST_AREA = 0.08
_LOG_RATIO = (math.log(3 / 4), math.log(4 / 3))
_TRIES = 10
_SCALE = (0.5, 2.0)


def shift_and_flip(images: NDArray, numbers: NDArray) -> NDArray:
    """Pad by an eighth of the side (4 pixels of 32), cut the old size out at random, mirror half of the images.

    Args:
        images: `(N, H, W, C)`; new pixels are zero.
        numbers: `(N, 3)` in 0..1: position down, position right, mirrored from 0.5 on.

    Returns:
        The same shape and type. Source of the choice: He et al., 2016, section 4.2.
    """
    n, height, width, _ = images.shape
    down, right = height // 8, width // 8
    padded = np.pad(images, ((0, 0), (down, down), (right, right), (0, 0)))
    rows = (numbers[:, :1] * (2 * down + 1)).astype(np.intp) + np.arange(height)
    columns = (numbers[:, 1:2] * (2 * right + 1)).astype(np.intp) + np.arange(width)
    columns = np.where(numbers[:, 2:] >= 0.5, columns[:, ::-1], columns)
    return padded[np.arange(n)[:, None, None], rows[:, :, None], columns[:, None, :]]


def resized_crop(
    image: Image, preprocessing: Preprocessing, rng: np.random.Generator, *, least_area: float = _LEAST_AREA
) -> torch.Tensor:
    """A random part of an image at the preprocessing's crop size, mirrored or not (Szegedy et al., 2015).

    Args:
        image: of any mode.
        preprocessing: its crop is the size of the result.
        rng: decides on the part and on mirroring.
        least_area: of the part, as a share of the image's.

    Returns:
        Float32 `(3, crop, crop)`, normalised; without a crop size the whole image, mirrored or not.
    """
    from torchvision.transforms import functional

    rgb: Any = image.convert("RGB")
    if preprocessing.crop is not None:
        size = [preprocessing.crop, preprocessing.crop]
        mode = functional.InterpolationMode(preprocessing.interpolation)
        rgb = functional.resized_crop(rgb, *_part(image.height, image.width, rng, least_area), size, mode)
    if rng.random() < 0.5:
        rgb = functional.hflip(rgb)
    return dataclasses.replace(preprocessing, resize=None, crop=None).image(rgb)


def _part(height: int, width: int, rng: np.random.Generator, least_area: float) -> tuple[int, int, int, int]:
    """Top, left, height and width of a random part; the central square where none fits."""
    for _ in range(_TRIES):
        area, ratio = height * width * rng.uniform(least_area, 1.0), math.exp(rng.uniform(*_LOG_RATIO))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(rng.integers(height - h + 1)), int(rng.integers(width - w + 1)), h, w
    side = min(height, width)
    return (height - side) // 2, (width - side) // 2, side, side


def scale_crop_flip(pixels: Image, classes: Image, side: int, rng: np.random.Generator) -> tuple[Any, Any]:
    """An image and its class map, scaled by 0.5 to 2, cut to at most `side` pixels, mirrored or not.

    The scale is relative to the size at which the image fits into a square of that side, at most its own
    (Chen et al., 2017, section 4.1).
    """
    from torchvision.transforms import functional

    scale = rng.uniform(*_SCALE) * min(1.0, side / max(pixels.size))
    pixels, classes = resize_pair(pixels, classes, scale)
    left = int(rng.integers(max(pixels.width - side, 0) + 1))
    top = int(rng.integers(max(pixels.height - side, 0) + 1))
    box = (left, top, min(left + side, pixels.width), min(top + side, pixels.height))
    image: Any = pixels.crop(box)
    target: Any = classes.crop(box)
    return (functional.hflip(image), functional.hflip(target)) if rng.random() < 0.5 else (image, target)


def resize_pair(pixels: Image, classes: Image, scale: float) -> tuple[Image, Image]:
    """Both in another size: bilinear for pixels, nearest for classes."""
    from PIL import Image

    if scale == 1:
        return pixels, classes
    size = (max(1, round(pixels.width * scale)), max(1, round(pixels.height * scale)))
    return pixels.resize(size, Image.Resampling.BILINEAR), classes.resize(size, Image.Resampling.NEAREST)
