"""Top-1 and top-5 accuracy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from mvq.errors import DataError
from mvq.progress import track
from mvq.tasks.result import Result
from mvq.tasks.running import loader_length, running


def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    device: torch.device | str | None = None,
    progress: bool = False,
) -> Result:
    """Share of images whose class the model ranks first (and among the first five), in percent.

    Args:
        model: gives scores `(N, n_classes)` for inputs `(N, ...)`.
        loader: yields `(inputs, targets)`, targets `(N,)` class numbers.
        device: where to run; None for where the model's parameters are.
        progress: show a bar.

    Returns:
        Metric `top1`, with `top5` in `extra` where there are more than five classes.

    Raises:
        DataError: if the loader yields nothing, or targets that do not fit the scores.
    """
    n = first = fifth = n_classes = 0
    with running(model, device) as place:
        for inputs, targets in track(loader, "evaluate", total=loader_length(loader), enabled=progress):
            scores = model(inputs.to(place))
            targets = torch.as_tensor(targets).to(place)
            _check(scores, targets)
            n_classes = scores.shape[1]
            ranked = scores.topk(min(5, n_classes), dim=1).indices
            hits = ranked == targets[:, None]
            first += int(hits[:, 0].sum())
            fifth += int(hits.sum())
            n += len(targets)
    if n == 0:
        raise DataError("evaluation: the loader yields no image")
    extra = {"top5": 100 * fifth / n} if n_classes > 5 else {}
    return Result("classification", "top1", 100 * first / n, n, extra)


def _check(scores: Any, targets: torch.Tensor) -> None:
    if not isinstance(scores, torch.Tensor) or scores.ndim != 2:
        got = f"shape {tuple(scores.shape)}" if isinstance(scores, torch.Tensor) else f"a {type(scores).__name__}"
        raise DataError(f"evaluation: the model gives {got}; classification needs scores (N, n_classes)")
    if targets.shape != scores.shape[:1] or targets.is_floating_point():
        raise DataError(
            f"evaluation: targets {targets.dtype} {tuple(targets.shape)} for scores {tuple(scores.shape)}; "
            f"classification needs one whole class number an image"
        )
    if len(targets) and not 0 <= int(targets.min()) <= int(targets.max()) < scores.shape[1]:
        raise DataError(
            f"evaluation: class numbers {int(targets.min())}..{int(targets.max())} are not in "
            f"0..{scores.shape[1] - 1}; model and data have different classes"
        )
