"""How long do the models take?

    uv run python -m benchmarks.machine_speed

ResNet-50 on seven machines of 64 x 64, mapping search included, in one process; and a sweep over 1,000 machines on
ResNet-18 in two processes. Rows go to `results/machine_speed.csv`.
"""

from __future__ import annotations

import os
import platform
import time

import torchvision

from benchmarks.table import RESULTS, write_csv
from mvq.accel.cost import CostTable, energy
from mvq.accel.cycle import run_network
from mvq.accel.shapes import shapes_of
from mvq.accel.spec import preset
from mvq.accel.sweep import Point, grid, sweep

VARIANTS = ("ws", "ews", "ews-nm", "ews-c", "ews-cm", "ews-cms", "ws-cms")
AXES = {
    "rows": [16, 24, 32, 48, 64],
    "cols": [16, 32, 48, 64],
    "wrf_entries": [8, 16],
    "l1_bytes": [1 << 16, 1 << 17, 1 << 18, 1 << 19, 1 << 20],
    "dma_bits": [64, 128, 256, 512, 1024],
}


def main() -> None:
    table, rows = CostTable.load("cited"), []
    layers = shapes_of(torchvision.models.resnet50(), (224, 224), pattern="4:16")
    start = time.perf_counter()
    for name in VARIANTS:
        energy(run_network(preset(f"{name}-64"), layers), table)
    rows.append(("ResNet-50, seven variants", len(VARIANTS), 1, time.perf_counter() - start))
    layers = shapes_of(torchvision.models.resnet18(), (224, 224), pattern="4:16")
    specs, _ = grid(preset("ews-p-64"), AXES)
    start = time.perf_counter()
    found = list(sweep(specs, layers, table, jobs=2))
    rows.append(("ResNet-18, sweep", len(found), 2, time.perf_counter() - start))
    assert all(isinstance(point, Point) for point in found)
    columns = ("what", "machines", "processes", "seconds")
    facts = {"cores": os.cpu_count(), "cpu": platform.processor() or platform.machine()}
    write_csv(
        RESULTS / "machine_speed.csv",
        [{**dict(zip(columns, (*row[:3], f"{row[3]:.2f}"), strict=True)), **facts} for row in rows],
    )
    for what, n, jobs, seconds in rows:
        print(f"{what}: {n} machines in {seconds:.2f} s on {jobs} processes")


if __name__ == "__main__":
    main()
