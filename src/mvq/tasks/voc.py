"""Semantic segmentation in the layout of PASCAL VOC: images with a class number for each pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from mvq.errors import DataError
from mvq.tasks.augment import resize_pair, scale_crop_flip
from mvq.tasks.classified import open_image
from mvq.tasks.preprocessing import Preprocessing
from mvq.tasks.sampling import Images

IGNORE = 255
#: Side of the square all images are put on; those of VOC have at most 500 pixels.
SIDE = 513


class VocImages(Images):
    """Images top left on a square canvas of the preprocessing's crop size; the rest is ignored.

    An image larger than the canvas is shrunk until it fits; a smaller one keeps its size.

    Args:
        pairs: `(image, class map)` files.
        preprocessing: its crop is the side of the canvas; its resize is not used.
        augment: scale, cut and mirror at random, see `augment.scale_crop_flip`.
        seed: of the random choices.
    """

    def __init__(
        self, pairs: list[tuple[Path, Path]], preprocessing: Preprocessing, *, augment: bool, seed: int
    ) -> None:
        super().__init__(augment=augment, seed=seed)
        self.pairs = pairs
        self.preprocessing = preprocessing
        self.side = preprocessing.crop or SIDE

    def __len__(self) -> int:
        return len(self.pairs)

    def sample(self, index: int, rng: np.random.Generator | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Float32 `(3, side, side)` and int64 `(side, side)`; pixels beside the image are 0 and ignored."""
        image_path, map_path = self.pairs[index]
        pixels, classes = open_image(image_path), _open_map(map_path)
        if pixels.size != classes.size:
            raise DataError(
                f"data: class map {str(map_path)!r} is {classes.width}x{classes.height}, its image "
                f"{pixels.width}x{pixels.height}; they must be equal"
            )
        if rng is not None:
            pixels, classes = scale_crop_flip(pixels, classes, self.side, rng)
        else:
            pixels, classes = resize_pair(pixels, classes, min(1.0, self.side / max(pixels.size)))
        image = torch.zeros(3, self.side, self.side)
        target = torch.full((self.side, self.side), IGNORE)
        rgb = torch.from_numpy(np.array(pixels)).permute(2, 0, 1).float() / 255
        image[:, : pixels.height, : pixels.width] = self.preprocessing.normalise(rgb)
        target[: pixels.height, : pixels.width] = torch.from_numpy(np.array(classes, dtype=np.int64))
        return image, target


def _open_map(path: Path) -> Any:
    from PIL import Image

    try:
        with Image.open(path) as image:
            image.load()
            if image.mode not in ("P", "L"):
                raise DataError(
                    f"data: class map {str(path)!r} has mode {image.mode}; expected class numbers, one byte a pixel"
                )
            return image
    except (OSError, SyntaxError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"data: class map {str(path)!r} cannot be decoded ({error}); repair or remove it") from error


def find_voc(path: Path, split: str) -> list[tuple[Path, Path]]:
    """Images and class maps of a split.

    Args:
        path: a folder that holds `VOCdevkit/VOC2012`, or any folder with `JPEGImages`, `SegmentationClass` and
            `ImageSets/Segmentation`.
        split: `train` or `val`.

    Raises:
        DataError: if it has not that layout, the split is empty, or files are missing.
    """
    root = next(
        (r for r in (path, *sorted(path.glob("VOC20*")), *sorted(path.glob("VOCdevkit/VOC20*"))) if _is(r)), None
    )
    if root is None:
        raise DataError(
            f"data {str(path)!r}: no VOC segmentation data there; expected JPEGImages, SegmentationClass and "
            f"ImageSets/Segmentation, in it or in VOCdevkit/VOC2012"
        )
    listing = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not listing.is_file():
        raise DataError(f"data {str(root)!r}: there is no ImageSets/Segmentation/{split}.txt, which names the images")
    names = listing.read_text(encoding="utf-8").split()
    if not names:
        raise DataError(f"data {str(listing)!r} names no image")
    pairs = [(root / "JPEGImages" / f"{n}.jpg", root / "SegmentationClass" / f"{n}.png") for n in names]
    missing = [file for pair in pairs for file in pair if not file.is_file()]
    if missing:
        raise DataError(
            f"data {str(listing)!r}: {len(missing)} of {2 * len(pairs)} files are missing, the first is "
            f"{str(missing[0])!r}"
        )
    return pairs


def _is(root: Path) -> bool:
    return (root / "SegmentationClass").is_dir() and (root / "ImageSets" / "Segmentation").is_dir()
