"""`mvq finetune`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from mvq.cli.models import build, check_folder, from_file, load, pick_device, task_of
from mvq.cli.options import DataOptions, ModelOptions, TrainingOptions
from mvq.cli.output import console, print_json
from mvq.cli.training import Meter, arguments


def run(
    file: Path,
    output: Path,
    model_options: ModelOptions,
    *,
    data: DataOptions,
    training: TrainingOptions,
    epochs: int,
    teacher: Path | None,
    learn_assignments: bool,
    seed: int,
    as_json: bool,
) -> None:
    """Train the codebooks of a file on, and write another.

    Raises:
        MvqError: on wrong input.
    """
    check_folder(output)
    import torch

    from mvq import api
    from mvq.train import finetune

    place = pick_device(model_options.device)
    torch.manual_seed(seed)
    model, stored = from_file(file, model_options, data.image_size, dense=False)
    model.to(place)
    task, preprocessing = task_of(model_options, stored), stored.get("preprocessing")
    dense = _teacher(teacher, model_options, stored, task, place)
    options = arguments(training, "finetune", task=task, epochs=epochs, teacher=dense)
    meter = Meter(data, task, preprocessing)
    batches = load(data, "train", task=task, train=True, augment=training.augment, stored=preprocessing, seed=seed)
    meter.measure(model, "compressed")
    finetune(model, batches, learn_assignments=learn_assignments, **options)
    meter.measure(model, "finetuned")
    n_bytes = api.save(model, output, provenance={**stored, "task": task, **meter.last})
    if as_json:
        print_json({"file": str(output), "bytes": n_bytes, "accuracy": meter.results})
        return
    out = console()
    out.print(meter.table())
    out.print(f"wrote {output}", markup=False)


def _teacher(weights: Path | None, options: ModelOptions, stored: dict[str, Any], task: str, place: str) -> Any:
    """The dense network of these weights."""
    if weights is None:
        return None
    named = dataclasses.replace(
        options,
        spec=options.spec or stored["model"],
        num_classes=options.num_classes or stored.get("num_classes"),
        weights=weights,
    )
    return build(named, task=task).to(place).eval()
