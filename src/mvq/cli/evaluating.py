"""`mvq eval`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mvq.cli.models import DataOptions, build, from_file, pick_device
from mvq.cli.output import console, make_table, note, number, print_json


def run(
    file: Path | None,
    data: DataOptions,
    *,
    model: str | None,
    weights: Path | None,
    task: str | None,
    split: str,
    num_classes: int | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Measure a file, or a model as it is built.

    Raises:
        MvqError: on wrong input.
    """
    place = pick_device(device)
    stored: Mapping[str, Any] = {}
    if file is not None:
        network, stored = from_file(file, model, num_classes)
    else:
        assert model is not None  # checked by the parser
        network = build(model, weights=weights, num_classes=num_classes)
        if weights is None and ":" not in model:
            note("mvq: no --weights: the model has random weights")
    from mvq.tasks import evaluate

    loader = data.load(split, stored=stored.get("preprocessing"))
    start = time.perf_counter()
    chosen = str(task or stored.get("task") or "classification")
    result = evaluate(network, loader, task=chosen, device=place, progress=True)
    seconds = time.perf_counter() - start
    if as_json:
        print_json({**result.to_dict(), "seconds": round(seconds, 3), "device": place})
        return
    table = make_table("", [("task", "<"), ("metric", "<"), ("%", ">"), ("images", ">"), ("images/s", ">")])
    rate = number(result.n / seconds, ",.1f")
    for metric, value in {result.metric: result.value, **result.extra}.items():
        table.add_row(result.task, metric, number(value, ".2f"), f"{result.n:,}", rate)
    console().print(table)
