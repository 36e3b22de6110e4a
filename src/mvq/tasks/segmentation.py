"""Mean intersection over union and pixel accuracy, from a confusion matrix that grows batch by batch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from mvq.errors import DataError
from mvq.progress import track
from mvq.tasks.result import Result
from mvq.tasks.running import loader_length, running


class ConfusionMatrix:
    """Counts of pixels by true and predicted class.

    Args:
        n_classes: number of classes.
        ignore_index: true class of pixels that do not count; None for none.
    """

    def __init__(self, n_classes: int, *, ignore_index: int | None = 255) -> None:
        self.n_classes = n_classes
        self.ignore_index = ignore_index
        self.counts = torch.zeros(n_classes, n_classes, dtype=torch.int64)
        """`(true, predicted)`."""

    def update(self, predicted: torch.Tensor, target: torch.Tensor) -> None:
        """Add pixels; both tensors hold class numbers and have the same shape.

        Raises:
            DataError: if shapes differ or a class number is out of range.
        """
        if predicted.shape != target.shape:
            raise DataError(
                f"segmentation: predicted {tuple(predicted.shape)} and target {tuple(target.shape)} differ in shape"
            )
        target, predicted = target.reshape(-1).long(), predicted.reshape(-1).long()
        if self.ignore_index is not None:
            keep = target != self.ignore_index
            target, predicted = target[keep], predicted[keep]
        for what, classes in (("target", target), ("predicted", predicted)):
            if classes.numel() and not 0 <= int(classes.min()) <= int(classes.max()) < self.n_classes:
                raise DataError(
                    f"segmentation: {what} classes {int(classes.min())}..{int(classes.max())} are not in "
                    f"0..{self.n_classes - 1}; pixels to ignore must hold {self.ignore_index}"
                )
        cells = torch.bincount(target * self.n_classes + predicted, minlength=self.n_classes**2)
        self.counts += cells.reshape(self.n_classes, self.n_classes).cpu()

    def iou(self) -> torch.Tensor:
        """`(n_classes,)` float64, 0..1; NaN for a class that neither occurs nor is predicted."""
        hits = self.counts.diagonal().double()
        return hits / (self.counts.sum(0) + self.counts.sum(1) - hits)

    def result(self, n: int) -> Result:
        """Metric `miou`, the mean over classes that occur or are predicted, with `pixel_accuracy` in `extra`.

        Args:
            n: images counted.

        Raises:
            DataError: if no pixel was counted.
        """
        total = int(self.counts.sum())
        if total == 0:
            raise DataError("evaluation: the loader yields no labelled pixel")
        accuracy = 100 * int(self.counts.diagonal().sum()) / total
        return Result("segmentation", "miou", 100 * float(self.iou().nanmean()), n, {"pixel_accuracy": accuracy})


def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    device: torch.device | str | None = None,
    progress: bool = False,
    ignore_index: int | None = 255,
) -> Result:
    """Mean intersection over union in percent, over all pixels of all images.

    Args:
        model: gives scores `(N, n_classes, H, W)`, or a dictionary that has them as `out`, as torchvision's
            models do.
        loader: yields `(inputs, targets)`, targets `(N, H, W)` class numbers.
        device: where to run; None for where the model's parameters are.
        progress: show a bar.
        ignore_index: class number of pixels that do not count.

    Returns:
        Metric `miou`, with `pixel_accuracy` in `extra`.

    Raises:
        DataError: if the loader yields no labelled pixel, or targets that do not fit the scores.
    """
    matrix: ConfusionMatrix | None = None
    n = 0
    with running(model, device) as place:
        for inputs, targets in track(loader, "evaluate", total=loader_length(loader), enabled=progress):
            scores = model(inputs.to(place))
            scores = scores["out"] if isinstance(scores, dict) and "out" in scores else scores
            if not isinstance(scores, torch.Tensor) or scores.ndim != 4:
                got = (
                    f"shape {tuple(scores.shape)}" if isinstance(scores, torch.Tensor) else f"a {type(scores).__name__}"
                )
                raise DataError(f"evaluation: the model gives {got}; segmentation needs scores (N, n_classes, H, W)")
            matrix = matrix or ConfusionMatrix(scores.shape[1], ignore_index=ignore_index)
            matrix.update(scores.argmax(1), targets.to(place))
            n += len(targets)
    if matrix is None:
        raise DataError("evaluation: the loader yields no image")
    return matrix.result(n)
