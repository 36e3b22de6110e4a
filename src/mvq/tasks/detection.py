"""COCO average precision of boxes and masks, by pycocotools (the optional extra `mvq[detection]`)."""

from __future__ import annotations

import contextlib
import dataclasses
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from mvq.errors import DataError, MissingDependencyError
from mvq.progress import track
from mvq.tasks.coco import mask_tools
from mvq.tasks.result import Result
from mvq.tasks.running import loader_length, running

Postprocess = Callable[[Any, Sequence[Mapping[str, Any]]], Sequence[Mapping[str, torch.Tensor]]]


def box_ap(ground_truth: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]]) -> Result:
    """COCO box AP of predictions, in percent.

    Args:
        ground_truth: COCO annotations, as read from their JSON file: `images`, `annotations`, `categories`.
        predictions: each with `image_id`, `category_id`, `bbox` `[x, y, width, height]` and `score`.

    Returns:
        Metric `box_ap` (mean over IoU 0.50:0.95, 100 detections an image), with `ap50` and `ap75` in `extra`.

    Raises:
        DataError: if there is no annotation, or a prediction is for an unknown image.
        MissingDependencyError: without pycocotools.
    """
    ap, ap50, ap75 = _average_precision(ground_truth, predictions, "bbox")
    return Result("detection", "box_ap", ap, len(ground_truth["images"]), {"ap50": ap50, "ap75": ap75})


def mask_ap(ground_truth: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]]) -> Result:
    """COCO mask AP of predictions, in percent.

    Args:
        ground_truth: as in `box_ap`; images with `height` and `width`, annotations with `segmentation`.
        predictions: each with `image_id`, `category_id`, `segmentation` (run lengths) and `score`.

    Returns:
        Metric `mask_ap`, with `mask_ap50` and `mask_ap75` in `extra`.

    Raises:
        DataError: as `box_ap`.
        MissingDependencyError: without pycocotools.
    """
    # A box would make pycocotools rank by the area of the box, not of the mask.
    masks = [{k: v for k, v in p.items() if k != "bbox"} for p in predictions]
    ap, ap50, ap75 = _average_precision(ground_truth, masks, "segm")
    return Result("detection", "mask_ap", ap, len(ground_truth["images"]), {"mask_ap50": ap50, "mask_ap75": ap75})


def _average_precision(
    ground_truth: Mapping[str, Any], predictions: Sequence[Mapping[str, Any]], kind: str
) -> tuple[float, float, float]:
    """AP, AP50 and AP75 of pycocotools' kind `bbox` or `segm`."""
    coco, evaluation = _pycocotools()
    n = len(ground_truth["images"])
    if not ground_truth["annotations"]:
        raise DataError(f"detection: the {n} images have no annotated box to compare with")
    known = {image["id"] for image in ground_truth["images"]}
    foreign = sorted({p["image_id"] for p in predictions} - known)
    if foreign:
        raise DataError(f"detection: predictions for image {foreign[0]}, which is not among the {n} annotated images")
    if not predictions:
        return 0.0, 0.0, 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco()
        truth.dataset = {"info": {}, **ground_truth}
        truth.createIndex()
        # Copies, because loadRes adds keys to what it is given.
        run = evaluation(truth, truth.loadRes([dict(p) for p in predictions]), kind)
        run.evaluate()
        run.accumulate()
        run.summarize()
    ap, ap50, ap75 = (100 * float(v) for v in run.stats[:3])
    return ap, ap50, ap75


def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    device: torch.device | str | None = None,
    progress: bool = False,
    postprocess: Postprocess | None = None,
) -> Result:
    """COCO box AP, and mask AP, of a detector that follows torchvision's conventions, in percent.

    Args:
        model: in `eval` mode gives, for each image, a dictionary of `boxes` `(n, 4)` as `x1, y1, x2, y2`,
            `labels` `(n,)` and `scores` `(n,)`, and optionally `masks` `(n, 1, H, W)`, of which pixels above
            0.5 belong to the object.
        loader: yields `(inputs, targets)`; inputs one tensor or a list of tensors; for each image a
            dictionary of the true `boxes` and `labels`, and optionally `iscrowd` and `area`, each `(n,)`, and
            `masks` `(n, H, W)`. Labels are category ids, alike in outputs and targets.
        device: where to run; None for where the model's parameters are.
        progress: show a bar.
        postprocess: `(output, targets) -> dictionaries` as above, for models that give something else; None
            for the model's own method `postprocess`, if it has one.

    Returns:
        Metric `box_ap`, with `ap50` and `ap75` in `extra`; and `mask_ap`, `mask_ap50`, `mask_ap75` where all
        outputs and targets have masks.

    Raises:
        DataError: if the loader yields nothing, or the model's output has not that form.
        MissingDependencyError: without pycocotools.
    """
    _pycocotools()
    postprocess = postprocess or getattr(model, "postprocess", None)
    images, annotations, predictions = [], [], []
    masks = True
    with running(model, device) as place:
        for inputs, targets in track(loader, "evaluate", total=loader_length(loader), enabled=progress):
            moved = inputs.to(place) if isinstance(inputs, torch.Tensor) else [x.to(place) for x in inputs]
            outputs = model(moved)
            outputs = outputs if postprocess is None else postprocess(outputs, targets)
            _check(outputs, len(targets))
            for output, target in zip(outputs, targets, strict=True):
                masks = masks and "masks" in output and "masks" in target
                image_id = len(images) + 1
                height, width = target["masks"].shape[1:] if masks else (0, 0)
                images.append({"id": image_id, "height": int(height), "width": int(width)})
                annotations += _annotations(image_id, target, len(annotations), masks)
                predictions += _predictions(image_id, output, masks)
    if not images:
        raise DataError("evaluation: the loader yields no image")
    labels = {a["category_id"] for a in annotations} | {p["category_id"] for p in predictions}
    categories = [{"id": label} for label in sorted(labels)]
    truth = {"images": images, "annotations": annotations, "categories": categories}
    boxes = box_ap(truth, predictions)
    if not masks:
        return boxes
    return dataclasses.replace(boxes, extra={**boxes.extra, **mask_ap(truth, predictions).metrics()})


def _check(outputs: Any, n: int) -> None:
    keys = ("boxes", "labels", "scores")
    if (
        not isinstance(outputs, list | tuple)
        or len(outputs) != n
        or not all(isinstance(o, Mapping) and all(k in o for k in keys) for o in outputs)
    ):
        raise DataError(
            f"evaluation: the model gives a {type(outputs).__name__}; detection needs a list of {n} "
            f"dictionaries with {', '.join(keys)}, or a postprocess that makes them"
        )


def _xywh(boxes: torch.Tensor) -> list[list[float]]:
    boxes = boxes.reshape(-1, 4).double().cpu()
    return torch.cat([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], dim=1).tolist()


def _run_lengths(masks: torch.Tensor) -> list[dict[str, Any]]:
    """COCO's run lengths of boolean `(n, H, W)`; pycocotools wants columns to be contiguous."""
    columns = np.asfortranarray(masks.permute(1, 2, 0).to(torch.uint8).cpu().numpy())
    return mask_tools().encode(columns) if columns.shape[2] else []


def _annotations(image_id: int, target: Mapping[str, Any], start: int, masks: bool) -> list[dict[str, Any]]:
    boxes, labels = _xywh(target["boxes"]), target["labels"].tolist()
    crowds = target["iscrowd"].tolist() if "iscrowd" in target else [0] * len(boxes)
    areas = target["area"].tolist() if "area" in target else [w * h for _, _, w, h in boxes]
    outlines = [{"segmentation": o} for o in _run_lengths(target["masks"] > 0)] if masks else [{}] * len(boxes)
    return [
        # Ids start at 1: pycocotools takes 0 for "not matched".
        {
            "id": start + i + 1,
            "image_id": image_id,
            "category_id": int(labels[i]),
            "bbox": boxes[i],
            "area": areas[i],
            "iscrowd": int(crowds[i]),
            **outlines[i],
        }
        for i in range(len(boxes))
    ]


def _predictions(image_id: int, output: Mapping[str, torch.Tensor], masks: bool) -> list[dict[str, Any]]:
    boxes, labels, scores = _xywh(output["boxes"]), output["labels"].tolist(), output["scores"].tolist()
    outlines = [{"segmentation": o} for o in _run_lengths(output["masks"][:, 0] > 0.5)] if masks else [{}] * len(boxes)
    return [
        {"image_id": image_id, "category_id": int(label), "bbox": box, "score": score, **outline}
        for box, label, score, outline in zip(boxes, labels, scores, outlines, strict=True)
    ]


def _pycocotools() -> tuple[Any, Any]:
    try:
        from pycocotools.coco import COCO
        from pycocotools.cocoeval import COCOeval
    except ImportError as error:
        raise MissingDependencyError(
            "detection needs pycocotools; install it with: pip install 'mvq[detection]'"
        ) from error
    return COCO, COCOeval
