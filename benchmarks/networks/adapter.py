"""One network with its data, and the folder both come from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from mvq.errors import DataError
from mvq.tasks import Preprocessing, Result
from mvq.tasks import evaluate as evaluate_task

ENVIRONMENT = "MVQ_DATA"


def data_file(name: str) -> Path:
    """A file of the data folder.

    Raises:
        DataError: if `MVQ_DATA` is not set or the file is missing.
    """
    root = os.environ.get(ENVIRONMENT)
    if not root:
        raise DataError(f"{ENVIRONMENT} is not set; set it to the folder that holds {name!r}")
    path = Path(root) / name
    if not path.is_file():
        raise DataError(f"{ENVIRONMENT}={root!r}: {name!r} is not there; set it to the folder that holds that file")
    return path


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A network that can be built with its pretrained weights and measured.

    Attributes:
        name: key in the registry.
        task: `classification`, `detection` or `segmentation`.
        build: gives the network with pretrained weights, in `eval` mode.
        data: gives a loader; takes `split` (`val`, `train`), `batch_size`, `limit` by name.
        input_shape: of one image, `(C, H, W)`.
        baseline: the metrics of the unchanged network on all images, in percent, the task's own metric first.
        preprocessing: what the loader does to an image, where a `Preprocessing` can say it.
        options: passed to the evaluation.
        training: gives a loader of training images in random order, changed at random; takes `batch_size` and `seed` by
            name. None where there is none.
        score: of outputs, as `mvq.allocate.fisher` takes it; None where they are logits.
        loss: of outputs and the dense network's, as `mvq.recover` takes it, and what training minimises; None where
            they are logits and there are labels.
    """

    name: str
    task: str
    build: Callable[[], nn.Module]
    data: Callable[..., Iterable[tuple[Any, Any]]]
    input_shape: tuple[int, int, int]
    baseline: dict[str, float]
    preprocessing: Preprocessing | None = None
    options: dict[str, Any] = field(default_factory=dict)
    training: Callable[..., Iterable[tuple[Any, Any]]] | None = None
    score: Callable[[Any, torch.Generator], torch.Tensor] | None = None
    loss: Callable[[Any, Any], torch.Tensor] | None = None

    @property
    def example_input(self) -> torch.Tensor:
        """Zeros `(1, C, H, W)`."""
        return torch.zeros(1, *self.input_shape)

    def calibration(self, limit: int | None = None) -> Iterable[tuple[Any, Any]]:
        """Loader over training images."""
        return self.data(split="train", limit=limit)

    def evaluate(
        self, model: nn.Module, limit: int | None = None, *, device: str | None = None, progress: bool = False
    ) -> Result:
        """Measure a model on the first `limit` evaluation images, or all."""
        loader = self.data(split="val", limit=limit)
        return evaluate_task(model, loader, task=self.task, device=device, progress=progress, **self.options)
