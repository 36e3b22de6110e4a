"""The scalar loss of one batch, for each task, as the training functions take it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mvq.errors import ConfigError, DataError, ModelError

Objective = Callable[[nn.Module, Any], Tensor]


@dataclass(frozen=True, kw_only=True)
class Classification:
    """Cross entropy of scores `(N, n_classes)` and class numbers `(N,)`.

    Attributes:
        label_smoothing: share of the target spread over all classes, 0..1.

    Raises:
        ConfigError: if it is out of range.
    """

    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"objective: label_smoothing={self.label_smoothing} is not in 0..1")

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss; DataError on class numbers the model does not have."""
        inputs, targets = batch
        return self.loss(model(inputs), targets)

    def loss(self, scores: Tensor, targets: Any) -> Tensor:
        """The same of the model's scores."""
        targets = torch.as_tensor(targets, device=scores.device).long()
        _check_classes(targets, scores.shape[1])
        return cross_entropy(scores, targets, label_smoothing=self.label_smoothing)


@dataclass(frozen=True, kw_only=True)
class Segmentation:
    """Cross entropy over pixels, plus that of an auxiliary head where the model has one.

    Attributes:
        ignore_index: class number of pixels that do not count.
        aux_weight: of the loss on `aux`, as in torchvision's training script.

    Raises:
        ConfigError: if the weight is negative.
    """

    ignore_index: int = 255
    aux_weight: float = 0.5

    def __post_init__(self) -> None:
        if not self.aux_weight >= 0:
            raise ConfigError(f"objective: aux_weight={self.aux_weight} is negative")

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss; 0 for a batch without a pixel that counts. DataError on classes the model does not have."""
        inputs, targets = batch
        return self.loss(model(inputs), targets)

    def loss(self, outputs: Any, targets: Tensor) -> Tensor:
        """The same of the model's outputs."""
        outputs = outputs if isinstance(outputs, Mapping) else {"out": outputs}
        scores = outputs["out"]
        targets = targets.to(scores.device).long()
        counted = targets[targets != self.ignore_index]
        _check_classes(counted, scores.shape[1])
        # The mean over no pixel is 0 / 0.
        n = max(counted.numel(), 1)
        loss = cross_entropy(scores, targets, ignore_index=self.ignore_index, reduction="sum") / n
        if outputs.get("aux") is not None:
            aux = cross_entropy(outputs["aux"], targets, ignore_index=self.ignore_index, reduction="sum") / n
            loss = loss + self.aux_weight * aux
        return loss


@dataclass(frozen=True)
class Detection:
    """Sum of the losses that a torchvision detector gives in training mode.

    Crowds and boxes without area are left out; an image may have no box.
    """

    def __call__(self, model: nn.Module, batch: Any) -> Tensor:
        """The loss; DataError on class numbers the model does not have, ModelError if it gives no losses."""
        images, targets = batch
        targets = [_trainable(target, image.device) for image, target in zip(images, targets, strict=True)]
        n_classes = n_detected(model)
        if n_classes is not None:
            _check_classes(torch.cat([t["labels"] for t in targets]), n_classes)
        losses = model(list(images), targets)
        if not isinstance(losses, Mapping) or not losses:
            raise ModelError(
                f"objective: the model gives a {type(losses).__name__} for images and targets; detection needs a "
                f"model that gives a dictionary of losses in training mode"
            )
        return torch.stack([loss.reshape(()) for loss in losses.values()]).sum()


_OBJECTIVES: dict[str, Callable[..., Objective]] = {
    "classification": Classification,
    "detection": Detection,
    "segmentation": Segmentation,
}


def objective(task: str, **options: Any) -> Objective:
    """The loss of a batch `(inputs, targets)` for a task, as `(model, batch) -> scalar`.

    Args:
        task: `classification`, `detection` or `segmentation`.
        **options: of the task: `label_smoothing`; `ignore_index`, `aux_weight`.

    Raises:
        ConfigError: if the task or an option is unknown or out of range.
    """
    if task not in _OBJECTIVES:
        raise ConfigError(f"task {task!r} is not known; known are {', '.join(_OBJECTIVES)}")
    kind: Any = _OBJECTIVES[task]
    known = [f.name for f in dataclasses.fields(kind)]
    unknown = [name for name in options if name not in known]
    if unknown:
        raise ConfigError(
            f"objective of {task}: {', '.join(map(repr, unknown))} not known; known are {', '.join(known) or 'none'}"
        )
    return kind(**options)


def n_detected(model: nn.Module) -> int | None:
    """Classes of a torchvision detector, background included; None if it does not tell."""
    heads: Sequence[tuple[str, str]] = (
        ("roi_heads.box_predictor.cls_score", "out_features"),
        ("head.classification_head", "num_classes"),
        ("head.classification_head", "num_columns"),
    )
    for name, attribute in heads:
        try:
            value = getattr(model.get_submodule(name), attribute)
        except AttributeError:
            continue
        if isinstance(value, int):
            return value
    return None


def _trainable(target: Mapping[str, Any], place: torch.device) -> dict[str, Tensor]:
    boxes = target["boxes"].to(place, torch.float32).reshape(-1, 4)
    keep = (boxes[:, 2:] > boxes[:, :2]).all(1)
    if "iscrowd" in target:
        keep &= target["iscrowd"].to(place) == 0
    out = {"boxes": boxes[keep], "labels": target["labels"].to(place).long()[keep]}
    if "masks" in target:
        out["masks"] = target["masks"].to(place)[keep]
    return out


def _check_classes(classes: Tensor, n: int) -> None:
    if classes.numel() and not 0 <= int(classes.min()) <= int(classes.max()) < n:
        raise DataError(
            f"training: class numbers {int(classes.min())}..{int(classes.max())} are not in 0..{n - 1}; model and "
            f"data have different classes"
        )
