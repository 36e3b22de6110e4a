"""`mvq eval`."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from mvq.cli.models import build, from_file, load, note_random_weights, pick_device, task_of
from mvq.cli.options import DataOptions, ModelOptions
from mvq.cli.output import console, make_table, number, print_json


def run(file: Path | None, model_options: ModelOptions, *, data: DataOptions, split: str, as_json: bool) -> None:
    """Measure a file, or a model as it is built.

    Raises:
        MvqError: on wrong input.
    """
    place = pick_device(model_options.device)
    stored: dict[str, Any] = {}
    if file is not None:
        network, stored = from_file(file, model_options, data.image_size)
    else:
        network = build(model_options, task=task_of(model_options), image_size=data.image_size)
        note_random_weights(model_options)
    from mvq.tasks import evaluate

    task = task_of(model_options, stored)
    loader = load(data, split, task=task, stored=stored.get("preprocessing"))
    start = time.perf_counter()
    result = evaluate(network, loader, task=task, device=place, progress=True)
    seconds = time.perf_counter() - start
    if as_json:
        print_json({**result.to_dict(), "seconds": round(seconds, 3), "device": place})
        return
    table = make_table("", [("task", "<"), ("metric", "<"), ("%", ">"), ("images", ">"), ("images/s", ">")])
    rate = number(result.n / seconds, ",.1f")
    for metric, value in result.metrics().items():
        table.add_row(result.task, metric, number(value, ".2f"), f"{result.n:,}", rate)
    console().print(table)
