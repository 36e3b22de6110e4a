"""Tasks: building models, reading data, measuring accuracy.

`build_model` and `load_data` turn the names a command line takes into a module and a loader; `evaluate` runs
one over the other, `objective` is the loss to train it with. Every metric is a percentage, 0 to 100.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from mvq.errors import ConfigError
from mvq.tasks import classification, segmentation
from mvq.tasks.data import TASKS, load_data
from mvq.tasks.models import build_model, load_weights_, set_input_size_
from mvq.tasks.objectives import objective
from mvq.tasks.preprocessing import Preprocessing
from mvq.tasks.result import Result

__all__ = [
    "TASKS",
    "Preprocessing",
    "Result",
    "build_model",
    "evaluate",
    "load_data",
    "load_weights_",
    "objective",
    "set_input_size_",
]


def evaluate(
    model: nn.Module,
    loader: Iterable[Any],
    *,
    task: str = "classification",
    device: torch.device | str | None = None,
    progress: bool = False,
    **options: Any,
) -> Result:
    """Measure a model on every batch of a loader.

    Args:
        model: the network; evaluated in `eval` mode, its modes are restored afterwards.
        loader: yields `(inputs, targets)`; what they are is told by `evaluate` of the task's module.
        task: `classification` (top-1, top-5), `detection` (COCO box and mask AP) or `segmentation` (mIoU, pixel
            accuracy).
        device: where to run; None for where the model's parameters are. The model is moved there and stays.
        progress: show a bar.
        **options: passed on to the task's `evaluate`, e.g. `ignore_index`.

    Raises:
        ConfigError: if the task is unknown.
        DataError: if the loader yields nothing or something unusable.
        MissingDependencyError: if the task needs a package that is not installed.
    """
    if task == "classification":
        return classification.evaluate(model, loader, device=device, progress=progress, **options)
    if task == "segmentation":
        return segmentation.evaluate(model, loader, device=device, progress=progress, **options)
    if task == "detection":
        from mvq.tasks import detection

        return detection.evaluate(model, loader, device=device, progress=progress, **options)
    raise ConfigError(f"task {task!r} is not known; known are {', '.join(TASKS)}")
