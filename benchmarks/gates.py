"""What energy do the gates of a machine take for a real layer, part by part?

    MVQ_DATA=FOLDER uv run python -m benchmarks.gates --liberty FILE.lib[.gz] [--rows 16 64] [--runs ews:dense ...]

A 3x3 convolution of ResNet-20 with its image runs on the mapped netlist of a core of H rows and 16 columns, gate by
gate with the delays of the library; every partial sum is compared with the functional view. `dense` weights are those
of the network in int8, `masked` and `packed` those of 4:16 with 512 codewords, clustered without training. Rows go to
`results/hardware_energy.csv`; those that are there stay unless `--force` is given. `benchmarks.hardware` reports them.
The cost table `gates` is made from them in the end; without `--liberty` only that.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, cast

import mvq
from benchmarks.networks import REGISTRY
from benchmarks.table import RESULTS, read_csv, write_csv
from mvq.accel.functional import Machine
from mvq.accel.network.graph import IntegerNetwork
from mvq.accel.rtl.gates.measure import Measured, measure
from mvq.accel.spec import preset
from mvq.errors import MvqError
from mvq.recipe import Recipe

PATH = RESULTS / "hardware_energy.csv"
RUNS = ("ews:dense", "ews:masked", "ews-cms:masked", "ews-p:packed")
#: By rows of the array: a layer that has as many input channels.
LAYERS = {16: "layer2.0.conv2", 64: "layer3.1.conv1"}


@functools.cache
def network(weights: Literal["dense", "masked", "packed"]) -> IntegerNetwork:
    """ResNet-20 in integers."""
    stated: dict[str, Any] = {"first_conv": "int8", "classifier": "int8"}
    recipe = (
        Recipe(**stated, overrides={"*": {"treatment": "int8"}})
        if weights == "dense"
        else Recipe(pattern="4:16", d=16, n_codewords=512, codewords=weights, scope="network", **stated)
    )
    adapter = REGISTRY["resnet20"]
    model = adapter.build()
    mvq.cluster_(model, recipe)
    images = [inputs for inputs, _ in adapter.data(split="train", limit=32, batch_size=16)]
    return mvq.integer_network(model, images)


def rows(one: Measured, key: dict[str, Any], seconds: float) -> list[dict[str, Any]]:
    """One a component."""
    stated = {
        "period_ns": f"{one.period_ns:.3f}",
        "longest_path_ns": f"{one.longest_ns:.3f}",
        "cycles": one.cycles,
        "words": one.words,
        "dense_macs": one.dense_macs,
        "zero_activations": f"{one.zero_activations:.4f}",
        "nonzero_weights": f"{one.nonzero_weights:.4f}",
        "sums_equal": one.sums,
    }
    return [
        {
            **key,
            **stated,
            "component": part.name,
            "um2": f"{part.um2:.1f}",
            "energy_pj": f"{part.energy_pj:.2f}",
            "leakage_pj": f"{part.leakage_pj:.2f}",
            "seconds": f"{seconds:.0f}",
        }
        for part in one.parts
    ]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--liberty", type=Path, action="append", default=[], metavar="FILE", help="cell library")
    parser.add_argument("--rows", type=int, nargs="+", default=list(LAYERS), choices=list(LAYERS))
    parser.add_argument("--runs", nargs="+", default=list(RUNS), metavar="MACHINE:WEIGHTS")
    parser.add_argument("--no-booth", action="store_true", help="multipliers as arrays of adders")
    parser.add_argument("--force", action="store_true", help="measure again what was measured")
    args = parser.parse_args(argv)
    for liberty in args.liberty:
        for height in args.rows:
            for one in args.runs:
                kind, _, weights = one.partition(":")
                name = liberty.name.removesuffix(".gz").removesuffix(".lib")
                key = {
                    "liberty": name,
                    "booth": not args.no_booth,
                    "kind": kind,
                    "rows": height,
                    "weights": weights,
                    "layer": LAYERS[height],
                }
                others = [row for row in read_csv(PATH) if any(row[field] != str(key[field]) for field in key)]
                if len(others) < len(read_csv(PATH)) and not args.force:
                    continue
                start = time.perf_counter()
                spec = dataclasses.replace(preset(f"{kind}-16"), rows=height, name=f"{kind}-{height}x16")
                machine = Machine(network(cast(Any, weights)), spec)
                image = next(iter(REGISTRY["resnet20"].data(split="val", limit=1, batch_size=1)))[0].numpy()
                found = measure(machine, LAYERS[height], image, liberty, booth=not args.no_booth)
                seconds = time.perf_counter() - start
                write_csv(PATH, [*others, *rows(found, key, seconds)])
                print(
                    f"{name} {spec.name} {weights}, Booth {not args.no_booth}: {found.sums} sums equal, "
                    f"{found.energy_pj / found.dense_macs:.4f} pJ a dense MAC, {seconds:.0f} s",
                    flush=True,
                )
    TABLE.write_text(table(read_csv(PATH)), encoding="utf-8")


def table(found: Sequence[dict[str, Any]]) -> str:
    """The cost table: energies of what the models count, from the array of most rows on the library it is for."""
    runs = {
        name: Run.of([row for row in found if _is(row, name)])
        for name in ("ews:dense", "ews:masked", "ews-cms:masked", "ews-p:packed")
    }
    dense, masked, unpacked, packed = runs.values()
    live, kept = dense.live, packed.live / 4
    rows, latches = "tile rows", "tile rows: registers"
    multiply = dense.pj[rows] / live
    sums = ("accumulators", "accumulators: registers")
    load = ("loader", "mask decoding")
    control = ("core control", "sequencer")
    reading = "with what a product of a zero weight beside it costs in multiply_zero"
    values = (
        ("multiply_dense", multiply, "product", f"weights of 8 bits, unpruned; {reading}"),
        ("multiply_zero", (masked.pj[rows] - masked.live / 4 * multiply) / (masked.live * 3 / 4), "product", "4:16"),
        ("multiply_sparse", packed.pj[rows] / kept, "product", "4:16, with the routing to columns"),
        ("add_dense", dense.pj["adder trees"] / live, "product", "adder tree over 64 rows, unpruned"),
        ("add_sparse", packed.pj["adder trees"] / kept, "product", "adder tree over 64 rows, 4:16"),
        ("wrf_access_dense", dense.pj[latches] / (dense.macs + dense.weights), "weight", "16 entries of latches"),
        (
            "wrf_access_sparse",
            packed.pj[latches] / (packed.macs / 4 + packed.weights / 4),
            "weight and its lane",
            "16 entries of latches",
        ),
        ("prf_access", sum(packed.pj[part] for part in sums) / packed.sums, "partial sum", "read, added, written"),
        (
            "crf_access",
            unpacked.pj["codebook"] / unpacked.weights,
            "value of a codeword",
            "512 codewords of 16 values in latches, with their writing",
        ),
        ("weight_load_dense", dense.pj["loader"] / dense.weights, "weight", "int8"),
        ("weight_load_sparse", sum(packed.pj[part] for part in load) / (packed.weights / 4), "weight", "packed words"),
        ("tile_control", packed.pj["tile control"] / packed.cycles, "tile and cycle", ""),
        ("control", sum(packed.pj[part] for part in control) / packed.cycles, "cycle", "without fetching of inputs"),
        ("flip_flop_bit", 0.0, "bit and cycle", "in the energies of products and sums"),
    )
    library, layer = packed.rows[0]["liberty"], packed.rows[0]["layer"]
    source = f"gates of the RTL in {library}, {layer} of ResNet-20, benchmarks.gates"
    lines = ['name = "gates"', 'extends = "cited"', "", *TABLE_TEXT, ""]
    for part, value, per, conditions in values:
        lines += ["[[row]]", f'part = "{part}"', 'kind = "energy"', f"value = {value:.6g}", 'unit = "pJ"']
        lines += [f"node_nm = {NODE_NM:g}", f"voltage = {VOLTAGE:g}", f'per = "{per}"']
        lines += [*([f'conditions = "{conditions}"'] if conditions else []), f'source = "{source}"', ""]
    return "\n".join(lines)


TABLE = Path(mvq.__file__).parent / "accel" / "cost" / "tables" / "gates.toml"
TABLE_TEXT = (
    "# Energies of the array, its registers and the loader: switching of the mapped RTL with the delays of its gates,",
    "# without wires and clock tree, made by `python -m benchmarks.gates`. The rest is that of the table it extends.",
)
#: The library that the table is for.
LIBRARY, NODE_NM, VOLTAGE = "nangate45_typ", 45.0, 1.1


@dataclasses.dataclass(frozen=True)
class Run:
    """A layer on gates, from its rows: energies by component, and what was done."""

    rows: list[dict[str, Any]]
    pj: dict[str, float]
    macs: int
    live: float
    weights: int
    sums: int
    cycles: int

    @classmethod
    def of(cls, rows: list[dict[str, Any]]) -> Run:
        """From rows of one run.

        Raises:
            MvqError: if there are none.
        """
        if not rows:
            raise MvqError(f"benchmarks/results/{PATH.name} lacks runs of 64 rows on {LIBRARY}; name it with --liberty")
        one = rows[0]
        macs, positions = int(one["dense_macs"]), int(one["sums_equal"]) // 64
        return cls(
            rows=rows,
            pj={row["component"]: float(row["energy_pj"]) for row in rows},
            macs=macs,
            live=macs * (1 - float(one["zero_activations"])),
            weights=macs // positions,
            sums=int(one["sums_equal"]) * 9,
            cycles=int(one["cycles"]),
        )


def _is(row: dict[str, Any], name: str) -> bool:
    """Whether a row belongs to the table."""
    kind, _, weights = name.partition(":")
    wanted = {"liberty": LIBRARY, "booth": "True", "kind": kind, "weights": weights, "rows": str(max(LAYERS))}
    return all(row[key] == value for key, value in wanted.items())


if __name__ == "__main__":
    main()
