"""From the options of a command to models, data and devices."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mvq.cli.options import DataOptions, ModelOptions
from mvq.cli.output import note
from mvq.errors import ConfigError, DataError, ModelError

if TYPE_CHECKING:
    from torch import nn


def load(
    data: DataOptions,
    split: str,
    *,
    task: str = "classification",
    train: bool = False,
    augment: bool = False,
    stored: Mapping[str, Any] | None = None,
    seed: int = 0,
) -> Iterable[Any]:
    """The loader of a split.

    Args:
        data: what to read.
        split: `train` or `val`.
        task: what for.
        train: shuffle, and leave out a smaller last batch.
        augment: change images at random.
        stored: the preprocessing that a file names, for where the user names none.
        seed: of the order and the random changes.

    Raises:
        MvqError: as `mvq.tasks.load_data`, or if the data can be gone through only once.
    """
    from mvq.tasks import Preprocessing, load_data

    assert data.data is not None  # checked by the parser
    chosen: Any = data.preprocessing
    is_callable = ":" in data.data and not Path(data.data).exists()
    if chosen is None and stored is not None and data.image_size is None and not is_callable:
        chosen = Preprocessing.from_dict(stored)
    loader = load_data(
        data.data,
        task=task,
        split=split,
        batch_size=data.batch_size,
        # A detector resizes images itself, see `build`.
        image_size=None if task == "detection" else data.image_size,
        preprocessing=chosen,
        workers=data.workers,
        limit=data.limit,
        shuffle=train and not is_callable,
        augment=augment and not is_callable,
        drop_last=train,
        seed=seed,
    )
    if iter(loader) is loader:
        raise DataError(
            f"data {data.data!r} gave an iterator, which ends after one pass; return a list or a loader instead"
        )
    return loader


def full_spec(spec: str) -> str:
    """`torchvision/NAME` for a bare name."""
    return spec if "/" in spec or ":" in spec else f"torchvision/{spec}"


def task_of(options: ModelOptions, stored: Mapping[str, Any] | None = None) -> str:
    """The task the user names, else the file, else classification.

    Raises:
        ConfigError: if there is no such task.
    """
    from mvq.tasks import TASKS

    task = str(options.task or (stored or {}).get("task") or "classification")
    if task not in TASKS:
        raise ConfigError(f"task {task!r} is not known; known are {', '.join(TASKS)}")
    return task


def build(options: ModelOptions, *, task: str, image_size: int | None = None) -> nn.Module:
    """`mvq.tasks.build_model` for the network that the user names; a detector gets its input size."""
    from mvq.tasks import build_model, set_input_size_

    assert options.spec is not None  # checked by the parser
    spec = full_spec(options.spec)
    model = build_model(spec, weights=options.weights, num_classes=options.num_classes)
    if task == "detection" and image_size is not None:
        set_input_size_(model, image_size)
    return model


def note_random_weights(options: ModelOptions) -> None:
    """Say so if a network without code of the user's was given no weights."""
    if options.weights is None and ":" not in (options.spec or ""):
        note("mvq: no --weights: the model has random weights")


def from_file(
    path: Path, options: ModelOptions, image_size: int | None = None, *, dense: bool = True
) -> tuple[nn.Module, dict[str, Any]]:
    """The network of a `.mvq` file, and the facts that the file notes about it.

    A `package.module:callable` that only the file names is not imported, unless it is part of mvq.

    Args:
        path: of the file.
        options: what the user says goes before what the file says.
        image_size: of a detector.
        dense: decode; otherwise the weights stay compressed, for training.

    Raises:
        FormatError: if the file is damaged.
        ModelError: if no model is named, or it does not fit.
    """
    from mvq import api
    from mvq.format import open_file

    with open_file(path) as reader:
        stored = dict(reader.provenance)
    spec, num_classes = options.spec, options.num_classes
    if spec is None:
        spec = stored.get("model")
        if not isinstance(spec, str):
            raise ModelError(f"file {str(path)!r} names no model; say which with --model")
        if ":" in spec and not spec.startswith("mvq."):
            raise ModelError(
                f"file {str(path)!r} names the model {spec!r}, whose code would be run; "
                f"if you trust it, pass --model {spec}"
            )
    if num_classes is None and isinstance(stored.get("num_classes"), int):
        num_classes = stored["num_classes"]
    if image_size is None and isinstance(stored.get("image_size"), int):
        image_size = stored["image_size"]
    named = dataclasses.replace(options, spec=spec, num_classes=num_classes, weights=None)
    model = build(named, task=task_of(options, stored), image_size=image_size)
    return api.load_into(model, path, dense=dense), stored


def pick_device(name: str | None) -> str:
    """The device to run on: the named one, or CUDA where there is one.

    Raises:
        ConfigError: if it is not there.
    """
    import torch

    if name is None:
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"--device {name!r} is not a device; write cpu, cuda or cuda:0") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"--device {name!r}: there are {torch.cuda.device_count()} CUDA devices; use cpu")
    return name


def check_folder(output: Path, option: str = "--output") -> None:
    """Check before the long work that the output can be written.

    Raises:
        ConfigError: if its folder does not exist.
    """
    if not output.parent.is_dir():
        raise ConfigError(f"{option} {str(output)!r}: there is no folder {str(output.parent)!r}; make it first")
