"""`mvq run`."""

from __future__ import annotations

import time
from pathlib import Path

from mvq.accel.functional import Machine, run_images
from mvq.accel.network import load as load_network
from mvq.accel.spec import machine_of
from mvq.cli.models import load
from mvq.cli.options import DataOptions
from mvq.cli.output import console, make_table, number, print_json
from mvq.errors import DataError
from mvq.progress import track


def run(file: Path, arch: str, *, data: DataOptions, split: str, check: bool, as_json: bool) -> None:
    """Compute images on a machine from its packed weight words.

    Raises:
        MvqError: on wrong input, or where a psum leaves its register.
    """
    network = load_network(file)
    machine = Machine(network, machine_of(arch))
    loader = load(data, split, task="classification", stored=network.provenance.get("preprocessing"))
    start, right, total, results, different = time.perf_counter(), 0, 0, 0, 0
    for images, labels in track(loader, "images"):
        pixels = images.numpy()
        found = run_images(machine, pixels)[network.outputs[0]]
        right += int((found.argmax(1) == labels.numpy()).sum())
        total += len(found)
        results += found.size
        if check:
            different += int((found != network.run(pixels)).sum())
    if not total:
        raise DataError(f"data {data.data!r}: it has no image; give a folder with some")
    seconds = time.perf_counter() - start
    facts = {
        "machine": machine.spec.name,
        "images": total,
        "top1": 100 * right / total,
        "macs_per_image": sum(machine.macs.values()),
        "weight_word_bytes": sum(len(stream) for stream in machine.streams.values()),
        "seconds": round(seconds, 3),
        **({"results_that_differ": different} if check else {}),
    }
    if as_json:
        print_json(facts)
        return
    columns = [("machine", "<"), ("images", ">"), ("top-1 %", ">"), ("MACs an image", ">"), ("words, bytes", ">")]
    table = make_table(f"{file.name}, computed", columns)
    sizes = (facts["macs_per_image"], facts["weight_word_bytes"])
    table.add_row(machine.spec.name, f"{total:,}", number(facts["top1"], ".2f"), *(f"{size:,}" for size in sizes))
    console().print(table)
    if check:
        console().print(f"{different:,} of {results:,} results differ from the integer network's")
