"""Small data sets in the layouts of COCO and PASCAL VOC, made up or cut out of real images."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

#: Official category ids, with a gap between them as in COCO.
CATEGORIES = (1, 3, 44)


def coco(root: Path, split: str = "val", n: int = 3, size: tuple[int, int] = (60, 48), *, layout: str = "2017") -> Path:
    """Bright rectangles on dark noise; image 0 has none. Outlines are polygons, the last one run lengths."""
    rng = np.random.default_rng(n)
    width, height = size
    folder, file = root / f"{split}{layout}", root / "annotations" / f"instances_{split}{layout}.json"
    if not layout:
        folder, file = root / split, root / f"{split}.json"
    folder.mkdir(parents=True)
    file.parent.mkdir(exist_ok=True)
    images, annotations = [], []
    for i in range(n):
        pixels = rng.integers(0, 60, (height, width, 3), dtype=np.uint8)
        for j in range(i):
            x, y = (int(v) for v in rng.integers(0, 20, 2))
            w, h = 12 + 4 * j, 16
            pixels[y : y + h, x : x + w] = 200 + j
            outline = [[x, y, x + w, y, x + w, y + h, x, y + h]]
            if i == n - 1 and j == i - 1:
                outline = run_lengths(pixels[..., 0] == 200 + j)
                w, h = pixels.shape[1] - x if x + w > width else w, h
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": 100 + i,
                    "category_id": CATEGORIES[j % 3],
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": outline,
                }
            )
        name = f"{i:012d}.png"
        Image.fromarray(pixels).save(folder / name)
        images.append({"id": 100 + i, "file_name": name, "height": height, "width": width})
    categories = [{"id": c, "name": str(c)} for c in CATEGORIES]
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return file


def run_lengths(mask: np.ndarray) -> dict:
    """COCO's uncompressed run lengths, column by column, first the zeros."""
    flat = mask.T.reshape(-1)
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, flat.size]).tolist()
    return {"size": list(mask.shape), "counts": counts if not flat[0] else [0, *counts]}


def voc(root: Path, split: str = "val", n: int = 3, size: tuple[int, int] = (30, 20)) -> Path:
    """Images whose left part is class 1, with a line of pixels to ignore."""
    base = root / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(n)
    names = [f"{split}_{i}" for i in range(n)]
    for i, name in enumerate(names):
        width, height = size[0] + i, size[1] + 2 * i
        classes = np.zeros((height, width), np.uint8)
        classes[:, : 10 + i] = 1
        classes[:, 10 + i] = 255
        pixels = rng.integers(0, 100, (height, width, 3)) + 100 * (classes == 1)[..., None]
        save_voc(base, name, Image.fromarray(pixels.astype(np.uint8)), Image.fromarray(classes))
    (base / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names) + "\n")
    return base


def save_voc(base: Path, name: str, pixels: Image.Image, classes: Image.Image) -> None:
    pixels.convert("RGB").save(base / "JPEGImages" / f"{name}.jpg", quality=95)
    indexed = Image.fromarray(np.array(classes), mode=None)
    indexed.putpalette([v for i in range(256) for v in (i, 255 - i, i // 2)])
    indexed.save(base / "SegmentationClass" / f"{name}.png")


def _packed(arrays: dict, field: str, offsets: str, i: int) -> Image.Image:
    start, end = arrays[offsets][i : i + 2]
    return Image.open(io.BytesIO(arrays[field][start:end].tobytes()))


def real(root: Path, data: Path, split: str, n: int) -> None:
    """The first n images with class maps of `coco/coco_{split}512`, as COCO (in `root/coco`) and VOC (`root/voc`).

    An object's outline is the part of its box that the class map gives its class, or the box where that is
    nothing or the class is not among VOC's.
    """
    with np.load(data / "coco" / f"coco_{split}512.npz") as file:
        arrays = dict(file)
    labels = json.loads((data / "coco" / f"coco_{split}512.json").read_text())
    official = {c["id"]: c["coco_id"] for c in labels["categories"]}
    base = root / "voc" / "VOCdevkit" / "VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    folder = root / "coco" / f"{split}2017"
    folder.mkdir(parents=True)
    (root / "coco" / "annotations").mkdir(exist_ok=True)
    images, annotations, names = [], [], []
    for i in np.flatnonzero(arrays["has_mask"])[:n]:
        pixels, classes = _packed(arrays, "jpeg", "offset", i), _packed(arrays, "mask_png", "mask_offset", i)
        image_id, name = int(arrays["image_id"][i]), f"{int(arrays['image_id'][i]):012d}"
        pixels.convert("RGB").save(folder / f"{name}.jpg", quality=90)
        save_voc(base, name, pixels, classes)
        names.append(name)
        images.append({"id": image_id, "file_name": f"{name}.jpg", "height": pixels.height, "width": pixels.width})
        for a in labels["annotations"]:
            if a["image_id"] == image_id:
                outline = run_lengths(_object(np.array(classes), a["bbox"]))
                annotations.append({**a, "category_id": official[a["category_id"]], "segmentation": outline})
    (base / "ImageSets" / "Segmentation" / f"{split}.txt").write_text("\n".join(names))
    categories = [{"id": c} for c in sorted(official.values())]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "coco" / "annotations" / f"instances_{split}2017.json").write_text(json.dumps(content))


def _object(classes: np.ndarray, box: list[float]) -> np.ndarray:
    """Pixels of the class most frequent in a box, background aside."""
    x, y, w, h = box
    inside = np.zeros(classes.shape, bool)
    inside[int(y) : max(int(y + h), int(y) + 1), int(x) : max(int(x + w), int(x) + 1)] = True
    found = classes[inside & (classes > 0) & (classes < 255)]
    return inside & (classes == np.bincount(found).argmax()) if found.size else inside
