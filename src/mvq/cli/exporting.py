"""`mvq export`."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path
from typing import Any

from mvq.cli.models import build, check_folder, from_file, load, note_random_weights, pick_device, task_of
from mvq.cli.options import DataOptions, ModelOptions
from mvq.cli.output import console, make_table, print_json

_IMAGES = 256


def run(
    file: Path | None,
    model_options: ModelOptions,
    *,
    data: DataOptions,
    split: str,
    onnx: Path | None,
    output: Path | None,
    method: Any,
    psum_bits: int,
    as_json: bool,
) -> None:
    """Write a network in integers.

    Raises:
        MvqError: on wrong input.
    """
    place = pick_device(model_options.device)
    for option, path in (("--onnx", onnx), ("--output", output)):
        if path is not None:
            check_folder(path, option)
    stored: dict[str, Any] = {}
    if file is not None:
        network, stored = from_file(file, model_options, data.image_size, dense=False)
    else:
        network = build(model_options, task=task_of(model_options), image_size=data.image_size)
        note_random_weights(model_options)
    data = dataclasses.replace(data, limit=_IMAGES if data.limit is None else data.limit)
    loader = load(data, split, task=task_of(model_options, stored), stored=stored.get("preprocessing"))
    from mvq import api
    from mvq.accel.network import save, write_onnx

    made = api.integer_network(network.to(place), loader, method=method, psum_bits=psum_bits, provenance=stored)
    written = {}
    if onnx is not None:
        written[str(onnx)] = write_onnx(made, onnx)
    if output is not None:
        written[str(output)] = save(made, output)
    kinds = Counter(node.kind for node in made.nodes)
    if as_json:
        print_json({"files": written, "operations": dict(sorted(kinds.items())), "psum_bits": psum_bits})
        return
    table = make_table("Integer network", [("operation", "<"), ("number", ">")])
    for kind, number in sorted(kinds.items()):
        table.add_row(kind.replace("_", " "), str(number))
    console().print(table)
    for path, n_bytes in written.items():
        console().print(f"{path}  {n_bytes:,} bytes", markup=False)
