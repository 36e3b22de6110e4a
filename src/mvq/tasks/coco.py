"""Object detection and instance segmentation in the layout of COCO."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mvq.errors import DataError, MissingDependencyError
from mvq.tasks.classified import open_image
from mvq.tasks.sampling import Images


class CocoImages(Images):
    """Images with boxes, and with masks where every annotation has its outline.

    Inputs are float32 `(3, H, W)` on 0..1; resizing and normalising is up to the detector. Targets hold `boxes`
    float32 `(n, 4)` as `x1, y1, x2, y2`, `labels` int64 `(n,)`, which are the category ids of the file,
    `masks` uint8 `(n, H, W)`, `area`, `iscrowd`, and `image_id`.

    Args:
        path: the JSON file.
        folder: holds the images.
        augment: mirror half of the images.
        seed: of the random choices.

    Raises:
        DataError: if the file is not in COCO's form, holds no image, or images are missing.
    """

    preprocessing = None

    def __init__(self, path: Path, folder: Path, *, augment: bool, seed: int) -> None:
        super().__init__(augment=augment, seed=seed)
        self.folder = folder
        content = _read(path)
        self.entries: list[dict[str, Any]] = content["images"]
        self.annotations: dict[Any, list[dict[str, Any]]] = {entry["id"]: [] for entry in self.entries}
        categories = {c["id"] for c in content["categories"]}
        for annotation in content["annotations"]:
            _check_annotation(path, annotation, self.annotations, categories)
            self.annotations[annotation["image_id"]].append(annotation)
        self.has_masks = bool(content["annotations"]) and all(a.get("segmentation") for a in content["annotations"])
        _check_files(path, folder, [entry["file_name"] for entry in self.entries])

    def __len__(self) -> int:
        return len(self.entries)

    def sample(self, index: int, rng: np.random.Generator | None) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """One image and its target."""
        entry = self.entries[index]
        pixels = np.array(open_image(self.folder / entry["file_name"]))
        if pixels.shape[:2] != (entry["height"], entry["width"]):
            raise DataError(
                f"data: image {entry['file_name']!r} is {pixels.shape[1]}x{pixels.shape[0]}, its annotations are for "
                f"{entry['width']}x{entry['height']}; they must be equal"
            )
        image = torch.from_numpy(pixels).permute(2, 0, 1).float() / 255
        target = self._target(entry)
        return (image, target) if rng is None or rng.random() < 0.5 else _mirror(image, target)

    def _target(self, entry: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        found = self.annotations[entry["id"]]
        corners = torch.tensor([a["bbox"] for a in found], dtype=torch.float64).reshape(-1, 4)
        corners[:, 2:] += corners[:, :2]
        target = {
            "boxes": corners.float(),
            "labels": torch.tensor([a["category_id"] for a in found], dtype=torch.int64),
            "area": torch.tensor([a.get("area", a["bbox"][2] * a["bbox"][3]) for a in found], dtype=torch.float64),
            "iscrowd": torch.tensor([a.get("iscrowd", 0) for a in found], dtype=torch.int64),
            "image_id": torch.tensor(entry["id"]),
        }
        if self.has_masks:
            size = (int(entry["height"]), int(entry["width"]))
            masks = [decode_outline(a["segmentation"], size, f"annotation {a.get('id')}") for a in found]
            stacked = np.stack(masks) if masks else np.zeros((0, *size), np.uint8)
            target["masks"] = torch.from_numpy(stacked)
        return target


def collate(samples: Sequence[tuple[Any, Any]]) -> tuple[list[Any], list[Any]]:
    """A list of images and a list of targets: images differ in size."""
    return [image for image, _ in samples], [target for _, target in samples]


def decode_outline(outline: Any, size: tuple[int, int], where: str) -> np.ndarray:
    """Mask uint8 `(H, W)` of COCO polygons or run lengths, by pycocotools.

    Raises:
        DataError: if it is neither.
        MissingDependencyError: without pycocotools.
    """
    masks = mask_tools()
    try:
        if isinstance(outline, list):
            outline = masks.merge(masks.frPyObjects(outline, *size))
        elif isinstance(outline["counts"], list):
            outline = masks.frPyObjects(outline, *size)
        with warnings.catch_warnings():
            # pycocotools reads its own arrays in a way of which NumPy 2 warns.
            warnings.simplefilter("ignore", DeprecationWarning)
            mask = masks.decode(outline)
    except (TypeError, KeyError, ValueError, IndexError) as error:
        raise DataError(f"data: {where}: its segmentation is neither polygons nor run lengths ({error})") from error
    if mask.shape != size:
        raise DataError(
            f"data: {where}: its segmentation is for {mask.shape[1]}x{mask.shape[0]}, not {size[1]}x{size[0]}"
        )
    return mask


def mask_tools() -> Any:
    """The module `pycocotools.mask`.

    Raises:
        MissingDependencyError: if it is not installed.
    """
    try:
        from pycocotools import mask
    except ImportError as error:
        raise MissingDependencyError("masks need pycocotools; install it with: pip install 'mvq[detection]'") from error
    return mask


def find_coco(path: Path, split: str) -> tuple[Path, Path]:
    """The JSON file of a split and the folder of its images.

    Args:
        path: a folder with `annotations/instances_{split}2017.json` (or of another year) and `{split}2017/`; a
            folder with `{split}.json` and `{split}/`; or a `.json` file with its images beside it, in a folder
            of its name, or in `images/`.
        split: `train` or `val`; without meaning for a file.

    Raises:
        DataError: if there is no such file, or several.
    """
    if path.is_file():
        return path, _first_folder(path.with_suffix(""), path.parent / "images", path.parent)
    if (path / f"{split}.json").is_file():
        return path / f"{split}.json", _first_folder(path / split, path / "images", path)
    files = sorted((path / "annotations").glob(f"instances_{split}*.json"))
    latest = path / "annotations" / f"instances_{split}2017.json"
    if not files:
        raise DataError(
            f"data {str(path)!r}: no COCO annotations of split {split!r} there; expected "
            f"annotations/instances_{split}2017.json with {split}2017/, or {split}.json with {split}/, or a .json file"
        )
    if len(files) > 1 and latest not in files:
        names = ", ".join(file.name for file in files)
        raise DataError(f"data {str(path)!r}: {names} are there; give the one to use as a .json file")
    file = latest if latest in files else files[0]
    name = file.stem.removeprefix("instances_")
    return file, _first_folder(path / name, path / "images" / name)


def _first_folder(*candidates: Path) -> Path:
    return next((folder for folder in candidates if folder.is_dir()), candidates[0])


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"data {str(path)!r} cannot be read as JSON: {error}") from error
    keys = ("images", "annotations", "categories")
    if not isinstance(content, dict) or not all(isinstance(content.get(k), list) for k in keys):
        raise DataError(f"data {str(path)!r} is not in COCO's form; expected lists {', '.join(map(repr, keys))}")
    if not content["images"]:
        raise DataError(f"data {str(path)!r}: it names no image")
    for entry in content["images"]:
        if not isinstance(entry, dict) or not all(k in entry for k in ("id", "file_name", "height", "width")):
            raise DataError(f"data {str(path)!r}: an image without id, file_name, height and width: {entry!r}")
    if not all(isinstance(c, dict) and "id" in c for c in content["categories"]):
        raise DataError(f"data {str(path)!r}: a category without id")
    return content


def _check_annotation(path: Path, annotation: Any, images: Mapping[Any, Any], categories: set[Any]) -> None:
    where = f"data {str(path)!r}: annotation {annotation.get('id') if isinstance(annotation, dict) else annotation!r}"
    if not isinstance(annotation, dict) or not all(k in annotation for k in ("image_id", "category_id", "bbox")):
        raise DataError(f"{where} has no image_id, category_id or bbox")
    if annotation["image_id"] not in images:
        raise DataError(f"{where} is for image {annotation['image_id']!r}, which the file does not name")
    label, box = annotation["category_id"], annotation["bbox"]
    if label not in categories:
        raise DataError(f"{where} has category {label!r}, which is not among the {len(categories)} of the file")
    if not isinstance(label, int) or label < 1:
        raise DataError(f"{where} has category {label!r}; ids start at 1, because 0 is the background of detectors")
    numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(v, int | float) for v in box)
    if not numbers or not all(map(math.isfinite, box)):
        raise DataError(f"{where} has the box {box!r}; expected [x, y, width, height]")


def _check_files(path: Path, folder: Path, names: list[str]) -> None:
    present = {file.name for file in folder.iterdir()} if folder.is_dir() else set()
    missing = [name for name in names if name not in present and not (folder / name).is_file()]
    if missing:
        raise DataError(
            f"data {str(path)!r}: {len(missing)} of {len(names)} images are not in {str(folder)!r}, the first is "
            f"{missing[0]!r}"
        )


def _mirror(image: torch.Tensor, target: dict[str, torch.Tensor]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    left, top, right, bottom = target["boxes"].unbind(1)
    width = image.shape[2]
    flipped = {**target, "boxes": torch.stack([width - right, top, width - left, bottom], dim=1)}
    if "masks" in target:
        flipped["masks"] = target["masks"].flip(2)
    return image.flip(2), flipped
