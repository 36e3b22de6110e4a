"""How many cycles of the RTL does Verilator simulate in a second?

    uv run python -m benchmarks.rtl_speed [--machines ews-cms-16 ...]

A convolution (64 to 64 channels, 3x3, on 28 x 28 positions, random weights and inputs) runs through the core of each
machine three times, on one processor; every partial sum is compared with the functional view. Rows go to
`results/rtl_speed.csv`.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.table import RESULTS, write_csv
from mvq.accel.cycle import best_mapping
from mvq.accel.functional import run_layer, stored_weight
from mvq.accel.network.graph import weight_codes
from mvq.accel.rtl.program import program, sums
from mvq.accel.rtl.simulation import Simulation
from mvq.accel.spec import AcceleratorSpec, preset
from mvq.accel.workload import Layer
from mvq.compressed import Codebook, CompressedModel, Int8Layer, VQLayer
from mvq.errors import MvqError
from mvq.recipe import Recipe

MACHINES = ("ews-16", "ews-cms-16", "ews-p-16", "ews-cms-32", "ews-64", "ews-cms-64")
SHAPE = (64, 64, 3, 3)


def network(spec: AcceleratorSpec, rng: np.random.Generator) -> CompressedModel:
    """Of one layer, as the machine stores it."""
    if spec.weights == "int8":
        codes = rng.integers(-127, 128, SHAPE).astype(np.int8)
        layer = Int8Layer(name="layer", kind="conv", role="conv", codes=codes, scales=np.ones(SHAPE[0], np.float32))
        return CompressedModel(recipe=Recipe(), layers=(layer,), codebooks={}, tensors={})
    n = SHAPE[0] // spec.d * SHAPE[1] * 9
    packed = VQLayer(
        name="layer",
        kind="conv",
        role="conv",
        shape=SHAPE,
        pattern=spec.nm,
        d=spec.d,
        codewords=spec.codewords,
        codebook="layer",
        n_codewords=spec.n_codewords,
        assignments=rng.integers(0, spec.n_codewords, n).astype(np.uint32),
        mask_ids=rng.integers(0, spec.nm.n_masks, (n, spec.d // spec.nm.group)).astype(np.uint32),
    )
    values = rng.integers(-127, 128, (spec.n_codewords, packed.width)).astype(np.int8)
    return CompressedModel(recipe=Recipe(), layers=(packed,), codebooks={"layer": Codebook(values, 1.0)}, tensors={})


def measure(name: str, folder: Path) -> dict[str, object]:
    """Cycles a second of one machine."""
    spec, rng = preset(name), np.random.default_rng(0)
    model = network(spec, rng)
    plain = spec.weights == "int8"
    layer = Layer(
        name="layer",
        c_in=SHAPE[1],
        c_out=SHAPE[0],
        kernel=(3, 3),
        padding=(1, 1, 1, 1),
        in_size=(28, 28),
        compressed=not plain,
        **({} if plain else {"pattern": spec.nm, "index_bits": spec.index_bits}),
    )
    mapping = best_mapping(spec, layer)[0]
    stored = stored_weight(spec, layer, model, weight_codes(model, "layer"))
    ifmap = rng.integers(-128, 128, (SHAPE[1], 28, 28)).astype(np.int8)
    work = program(spec, layer, mapping, stored, ifmap)
    wanted = run_layer(spec, layer, mapping, stored, work.stream, ifmap[None]).psums[0]
    start = time.perf_counter()
    simulation = Simulation(spec, folder)
    built = time.perf_counter() - start
    rates, cycles = [], 0
    for _ in range(3):
        start = time.perf_counter()
        done = simulation.run(work)
        cycles = done.cycles
        rates.append(cycles / (time.perf_counter() - start))
        if not np.array_equal(sums(spec, layer, mapping, done.memory), wanted):
            raise MvqError(f"{name}: RTL and functional view differ")
    return {
        "machine": name,
        "cycles": cycles,
        "cycles_per_second": round(statistics.median(rates)),
        "least": round(min(rates)),
        "most": round(max(rates)),
        "build_seconds": round(built, 1),
        "cpu": platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--machines", nargs="+", default=list(MACHINES), metavar="NAME")
    parser.add_argument("--build", type=Path, default=Path("build/rtl"), metavar="FOLDER")
    args = parser.parse_args(argv)
    rows = []
    for name in args.machines:
        rows.append(measure(name, args.build))
        print(rows[-1], flush=True)
    write_csv(RESULTS / "rtl_speed.csv", rows)


if __name__ == "__main__":
    main()
