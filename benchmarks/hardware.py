"""How large is the RTL after synthesis, part by part?

    uv run python -m benchmarks.hardware --liberty FILE.lib[.gz] [--liberty ...] [--sides 16 32 64] [--kinds ews ...]

Yosys maps each machine to the cells of each library (`mvq synth`). Rows go to `results/hardware_area.csv`;
those that are there stay unless `--force` is given; `--only COMPONENT` measures a component of these machines again,
by itself. `--sram FILE.lib` adds what a library says of its memories to `results/hardware_sram.csv`.
`docs/results-hardware.md` is made from them; without `--liberty` and `--sram` only that.
"""

from __future__ import annotations

import argparse
import dataclasses
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torchvision

from benchmarks import gates
from benchmarks.table import RESULTS, read_csv, write_csv
from mvq.accel.cost import CostTable, area, energy
from mvq.accel.cost.scaling import energy_factor
from mvq.accel.cycle import run_network
from mvq.accel.rtl.gates.liberty import read_library
from mvq.accel.rtl.synthesis import ARRAY, COMPONENTS, Synthesis, synthesise
from mvq.accel.shapes import shapes_of
from mvq.accel.spec import preset
from mvq.accel.workload import Layer
from mvq.patterns import Pattern

KINDS = ("ws", "ews", "ews-nm", "ews-c", "ews-cm", "ews-cms", "ws-cms", "ews-p")
PATH, SRAM = RESULTS / "hardware_area.csv", RESULTS / "hardware_sram.csv"
REPORT = RESULTS.parents[1] / "docs" / "results-hardware.md"

INTRODUCTION = """\
# Area and energy of the RTL

Made by `python -m benchmarks.hardware` from `hardware_area.csv` and `hardware_energy.csv` in `benchmarks/results`: the
machines that `mvq rtl` writes, mapped by yosys to cell libraries without a constraint on time, all multipliers in Booth
form unless the table says that none is. Sums over cells: before placement, clock tree and wires. The core is sequencer,
loader, array and the registers of inputs; the machine has the controller, the fetching of inputs and the output unit
besides. L1 and L2 are in neither.
"""
RATIOS = """\
The paper has 0.50 of EWS and 0.45 of EWS-CM for its sparse array at 64 x 64 (quoted, another flow and node); the goal
is to be at or below both. Its arrays have loader and codebook in them, since that of EWS-CM is larger than that of EWS:
they are the cores here. Machines differ in the tile rows and the loader alone: trees, partial sums and control are the
same."""
BY_COMPONENT = """\
Tile rows hold weight registers, multipliers, products and their routing. The codebook lies in latches with a read port
for each tile; that of packed codewords is smaller by what they leave out."""
MODEL = """\
`mvq.accel.cost.area` counts parts whose areas `benchmarks.cells` took from the same library, each synthesised alone;
here without what the core does not have, and taken back from the table's node to the library's by the square of its
length."""
#: Components that are not in the core.
OUTSIDE = ("controller", "fetch of inputs", "output unit", "machine")
#: Registers of the fetching of inputs; they are.
INPUTS = "registers of inputs"
#: Levels of the model's areas.
IN_THE_CORE = ("array", "registers", "loader")
#: The library that the model's parts come from, and its node.
MODELLED, LIBRARY_NM = "nangate45_typ", 45.0
ENERGY = """\
A 3x3 convolution of ResNet-20 with its image on the gates of a core of H rows and 16 columns (`benchmarks.gates`):
every change of every net with the delays of its gates, so that glitches count, priced by the library; every partial sum
is the functional view's. Register files, clock gates and clock pins are in, wires, clock tree, the registers of inputs
and what lies outside the core are not. `dense` weights are those of the network as it was trained, `masked` and
`packed` are pruned 4:16 and clustered; a dense tile computes the masked weights with their zeros. Energy is that of
switching, over the products of the unpruned convolution; about half of the activations are zero and gate their row in
all machines."""
ENERGY_BOUND = """\
Beside the unpruned network the sparse tile takes about half of the energy. On the same masked weights the goal of one
half is not met, and cannot be with these parts: both tiles compute the same products that are not zero and add the same
sums, and a zero weight costs a dense tile little. The last column is the bound: adder trees, partial sums, loader and
control as they are, and each product at what it costs the dense tile with unpruned weights, nothing for routing and for
reading weights. Multipliers decide what a zero costs: those in Booth form recode the activation whatever the weight,
arrays of adders stay still. What was tried without gain is in `docs/decisions.md`."""
MODELLED_ENERGY = """\
The cost table `gates` is made from the runs of H = 64 in Booth form. Here it prices what the models count for the other
layer and array, without inputs and memories, beside what its gates took:"""
NETWORK = """\
ResNet-18 at 224 x 224 on arrays of 64 x 64, modelled, half of the activations zero, DRAM left out: what it takes with
the table `cited`, from sources that know nothing of these machines, and with `gates` (`mvq compare --table gates`). The
array is multipliers, adders and control with their registers and the loader; memories are the same in both tables.
`ews` has the unpruned weights."""
MEMORIES = """\
Single-port macros of IHP's 130 nm process, as their library has them (`--sram`), beside what the tables take from CACTI
at 40 nm for the same size; not scaled to one node. Reads and writes are of a word of 64 bits; a write changes half of
the bits at the port. Below 4 KiB, CACTI's least here, its column goes on as a power of the size."""
REST = """\
## What bounds it

A sparse row has a quarter of the multipliers and weights, but keeps a lane with each weight (12 bits for 8) and routes
products; adder trees and partial sums do not shrink, since every column still adds all rows. `docs/accelerator.md` has
the same ratios as modelled from parts.
"""


def rows(one: Synthesis, seconds: float) -> list[dict[str, Any]]:
    """One a component."""
    kind, _, side = one.spec.name.rpartition("-")
    return [
        {
            "liberty": one.liberty,
            "kind": kind,
            "side": int(side),
            "booth": one.booth,
            "component": part.name,
            "instances": part.instances,
            "um2_each": f"{part.um2:.1f}",
            "of_it_latches_um2": f"{part.latches_um2:.1f}",
            "total_um2": f"{part.total_um2:.0f}",
            "seconds": f"{seconds:.0f}",
        }
        for part in one.components
    ]


def memories(path: Path) -> list[dict[str, Any]]:
    """Single-port memories of a library: energy of a word at the clock pin, and of its data where half of it changes.

    Raises:
        FileError: if the library cannot be read.
    """
    library, found = read_library(path), []
    for name, group in library.groups.items():
        words, width = (int(n) for n in re.search(r"_(\d+)x(\d+)", name).groups())  # type: ignore[union-attr]
        pins = {pin.name: pin for pin in group.of("pin", "bus")}
        clock = {
            "".join(power.values["when"].split()): sum(float(e.values["values"]) for e in power.groups)
            for power in pins["A_CLK"].of("internal_power")
        }
        # A bit of the input that changes; rising and falling it costs both.
        data = next(
            sum(float(e.values["values"]) for e in power.groups) / 2
            for pin in pins["A_DIN"].of("pin")
            for power in pin.of("internal_power")
            if power.values["when"] == "A_MEN"
        )
        pj, nw = library.units[2] * 1e-3, library.units[3]
        found.append(
            {
                "memory": name,
                "kib": words * width / 8192,
                "width_bits": width,
                "voltage": library.voltage,
                "read_pj": f"{clock['A_MEN&!A_WEN&A_REN'] * pj:.3f}",
                "write_pj": f"{(clock['A_MEN&A_WEN&!A_REN'] + data * width / 2) * pj:.3f}",
                "leak_mw": f"{float(group.values['cell_leakage_power']) * nw * 1e-6:.6f}",
                "area_mm2": f"{float(group.values['area']) * 1e-6:.4f}",
            }
        )
    return found


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--liberty", type=Path, action="append", default=[], metavar="FILE", help="cell library")
    parser.add_argument("--sides", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--kinds", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--no-booth", action="store_true", help="multipliers as arrays of adders")
    alone = {COMPONENTS[module]: module for module in ("mvq_controller", "mvq_fetch", "mvq_output")}
    parser.add_argument("--only", choices=alone, help="measure a component again, of machines that have rows")
    parser.add_argument("--force", action="store_true", help="measure again what was measured")
    parser.add_argument("--sram", type=Path, action="append", default=[], metavar="FILE", help="library of memories")
    args = parser.parse_args(argv)
    if args.sram:
        rows_of = [row for path in args.sram for row in memories(path)]
        write_csv(SRAM, sorted(rows_of, key=lambda row: row["kib"]))
    for side in args.sides:
        for liberty in args.liberty:
            for kind in args.kinds:
                name = liberty.name.removesuffix(".gz").removesuffix(".lib")
                key = (name, kind, str(side), str(not args.no_booth))
                others = [
                    row for row in read_csv(PATH) if _key(row) != key or args.only not in (None, row["component"])
                ]
                if args.only is None and len(others) < len(read_csv(PATH)) and not args.force:
                    continue
                if args.only is not None and len(others) == len(read_csv(PATH)):
                    continue
                start = time.perf_counter()
                top = "mvq_machine" if args.only is None else alone[args.only]
                one = synthesise(preset(f"{kind}-{side}"), liberty, top=top, booth=not args.no_booth)
                found = rows(one, time.perf_counter() - start)
                write_csv(PATH, sorted([*others, *found], key=_order))
                print(
                    f"{name} {kind}-{side}: {args.only or 'machine'} {one.total_um2 * 1e-6:.3f} mm2, "
                    f"{time.perf_counter() - start:.0f} s",
                    flush=True,
                )
    REPORT.write_text(report(read_csv(PATH)), encoding="utf-8")


def report(found: Sequence[dict[str, Any]]) -> str:
    """The document."""
    areas: dict[tuple[str, int, str], dict[str, float]] = {}
    for row in sorted(found, key=_order):
        liberty = row["liberty"] + ", no Booth" * (row["booth"] != "True")
        place = areas.setdefault((liberty, int(row["side"]), row["kind"]), {})
        place[row["component"]] = float(row["total_um2"]) * 1e-6
        if row["component"] == COMPONENTS["mvq_fetch"]:
            place[INPUTS] = float(row["of_it_latches_um2"]) * 1e-6
            place[row["component"]] -= place[INPUTS]
    lines = [INTRODUCTION, "## Arrays and cores", "", _table(areas), "", "## Ratios", "", RATIOS, "", _ratios(areas)]
    lines += ["", "## By component", "", BY_COMPONENT, "", _components(areas)]
    lines += ["", "## Energy", "", ENERGY, "", _energies(read_csv(gates.PATH)), "", _energy_parts(read_csv(gates.PATH))]
    lines += ["", ENERGY_BOUND]
    lines += ["", "## Beside the model", "", MODEL, "", _modelled(areas), "", MODELLED_ENERGY, ""]
    lines += [_modelled_energy(read_csv(gates.PATH)), "", "## A network", "", NETWORK, "", _network(), ""]
    lines += ["## Memories", "", MEMORIES, "", _memories(), "", REST]
    return "\n".join(lines)


def _array(parts: dict[str, float]) -> float:
    return sum(parts.get(name, 0.0) for name in ARRAY)


def _core(parts: dict[str, float]) -> float:
    return sum(area for name, area in parts.items() if name not in OUTSIDE)


def _table(areas: dict[tuple[str, int, str], dict[str, float]]) -> str:
    lines = ["| library | side | machine | array mm2 | core mm2 | whole mm2 |", "|---|---|---|---|---|---|"]
    for (liberty, side, kind), parts in areas.items():
        sizes = (_array(parts), _core(parts), sum(parts.values()))
        lines.append(f"| {liberty} | {side} | {kind} | {' | '.join(f'{size:.3f}' for size in sizes)} |")
    return "\n".join(lines)


def _ratios(areas: dict[tuple[str, int, str], dict[str, float]]) -> str:
    lines = ["| library | side | machine | array / `ews` | core / `ews` | array / `ews-cm` | core / `ews-cm` |"]
    lines.append("|---|---|---|---|---|---|---|")
    for (liberty, side, kind), parts in areas.items():
        cells = []
        for base in ("ews", "ews-cm"):
            other = areas.get((liberty, side, base))
            cells += (
                ["", ""]
                if other is None or kind in ("ews", "ews-cm")
                else [
                    f"{_array(parts) / _array(other):.3f}",
                    f"{_core(parts) / _core(other):.3f}",
                ]
            )
        if any(cells):
            lines.append(f"| {liberty} | {side} | {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _components(areas: dict[tuple[str, int, str], dict[str, float]]) -> str:
    liberty = MODELLED
    side = max((key[1] for key in areas if key[0] == liberty), default=0)
    chosen = {key[2]: parts for key, parts in areas.items() if key[:2] == (liberty, side)}
    names = list(dict.fromkeys(name for parts in chosen.values() for name in parts))
    lines = [f"| mm2, {liberty}, {side} | {' | '.join(chosen)} |", "|---|" + "---|" * len(chosen)]
    for name in names:
        cells = (f"{parts[name]:.3f}" if name in parts else "" for parts in chosen.values())
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


Key = tuple[str, str, int, str, str]


def _run(row: dict[str, Any]) -> Key:
    return row["liberty"], row["booth"], int(row["rows"]), row["kind"], row["weights"]


def _by_run(found: Sequence[dict[str, Any]]) -> dict[Key, dict[str, float]]:
    """Picojoules a product of the unpruned layer, by component, of each run."""
    runs: dict[Key, dict[str, float]] = {}
    for row in found:
        runs.setdefault(_run(row), {})[row["component"]] = float(row["energy_pj"]) / int(row["dense_macs"])
    order = {name: i for i, name in enumerate(gates.RUNS)}
    return dict(
        sorted(runs.items(), key=lambda item: (*item[0][:1], item[0][1] != "True", order[":".join(item[0][3:])]))
    )


def _energies(found: Sequence[dict[str, Any]]) -> str:
    runs, zeros = _by_run(found), {_run(row): float(row["zero_activations"]) for row in found}
    lines = [
        "| library | multipliers | H | machine | weights | pJ a product | / `ews` dense | / `ews` masked | bound |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|---|")
    for (liberty, booth, rows, kind, weights), parts in sorted(runs.items(), key=lambda item: item[0][2]):
        total, cells = sum(parts.values()), []
        for base in ("dense", "masked"):
            other = runs.get((liberty, booth, rows, "ews", base))
            same = kind == "ews" and (weights == base or base == "masked")
            cells.append("" if other is None or same else f"{total / sum(other.values()):.3f}")
        other, unpruned = (runs.get((liberty, booth, rows, "ews", base)) for base in ("masked", "dense"))
        if kind == "ews" or other is None or unpruned is None:
            cells.append("")
        else:
            live = [1 - zeros[liberty, booth, rows, *one] for one in ((kind, weights), ("ews", "dense"))]
            product = unpruned["tile rows"] / live[1]
            rest = total - parts["tile rows"] - parts["tile rows: registers"]
            cells.append(f"{(rest + live[0] / 4 * product) / sum(other.values()):.3f}")
        form = "Booth" if booth == "True" else "arrays"
        lines.append(f"| {liberty} | {form} | {rows} | {kind} | {weights} | {total:.3f} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _energy_parts(found: Sequence[dict[str, Any]]) -> str:
    runs = {key: parts for key, parts in _by_run(found).items() if key[0] == MODELLED}
    lines = []
    for rows, booth in sorted({(key[2], key[1]) for key in runs}, reverse=True):
        chosen = {key[3:]: parts for key, parts in runs.items() if (key[2], key[1]) == (rows, booth)}
        names = list(dict.fromkeys(name for parts in chosen.values() for name in parts))
        form = "Booth" if booth == "True" else "arrays"
        heads = " | ".join(f"{kind}, {weights}" for kind, weights in chosen)
        lines += [f"| fJ a product, H = {rows}, {form} | {heads} |", "|---|" + "---|" * len(chosen)]
        for name in names:
            cells = (f"{1e3 * parts[name]:.1f}" if name in parts else "" for parts in chosen.values())
            lines.append(f"| {name} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines).rstrip()


def _modelled(areas: dict[tuple[str, int, str], dict[str, float]]) -> str:
    table = CostTable.load("cited")
    scale = (LIBRARY_NM / table.node_nm) ** 2
    lines = ["| machine | RTL mm2 | modelled mm2 | difference % |", "|---|---|---|---|"]
    for (liberty, side, kind), parts in areas.items():
        if liberty != MODELLED:
            continue
        entries = area(preset(f"{kind}-{side}"), table).entries
        chosen = [e for e in entries if e.level in IN_THE_CORE]
        modelled, found = scale * sum(e.count * e.um2 for e in chosen) * 1e-6, _core(parts)
        lines.append(f"| {kind}-{side} | {found:.3f} | {modelled:.3f} | {100 * (modelled / found - 1):+.1f} |")
    return "\n".join(lines)


def _modelled_energy(found: Sequence[dict[str, Any]]) -> str:
    table = CostTable.load("gates")
    scale = energy_factor(gates.NODE_NM, gates.VOLTAGE, table.node_nm, table.voltage)
    lines = ["| machine, weights | gates pJ a product | modelled pJ a product | difference % |", "|---|---|---|---|"]
    for (liberty, booth, rows, kind, weights), parts in _by_run(found).items():
        if (liberty, booth, rows) != (MODELLED, "True", min(gates.LAYERS)):
            continue
        wanted = (liberty, booth, rows, kind, weights)
        zeros = next(float(row["zero_activations"]) for row in found if _run(row) == wanted)
        # The models know of zero weights in a dense tile by its masks.
        zeros_known = "ews-cm" if kind == "ews" and weights != "dense" else kind
        spec = dataclasses.replace(preset(f"{zeros_known}-16"), rows=rows)
        pattern = Pattern(1, 1) if weights == "dense" else Pattern(4, 16)
        index_bits = None if weights == "dense" else 9
        layer = Layer(
            name="layer",
            c_in=32,
            c_out=32,
            kernel=(3, 3),
            padding=(1, 1, 1, 1),
            in_size=(16, 16),
            compressed=weights != "dense",
            pattern=pattern,
            index_bits=index_bits,
        )
        bill = energy(run_network(spec, [layer]), table, activation_zeros=zeros)
        left_out = {"activations", *(["codeword values"] if kind == "ews" else [])}
        counted = [e for e in bill.entries if e.level in IN_THE_CORE and e.what not in left_out]
        modelled = sum(e.total_pj for e in counted) / scale / layer.dense_macs
        total = sum(parts.values())
        lines.append(f"| {kind}, {weights} | {total:.3f} | {modelled:.3f} | {100 * (modelled / total - 1):+.1f} |")
    return "\n".join(lines)


def _network() -> str:
    layers = shapes_of(torchvision.models.resnet18(), (224, 224), pattern="4:16")
    tables = {name: CostTable.load(name) for name in ("cited", "gates")}
    heads = [f"{what} `{name}`" for name in tables for what in ("array uJ", "all uJ", "TOPS/W", "/ ews")]
    lines = [f"| machine | {' | '.join(heads)} |", "|---|" + "---|" * len(heads)]
    bases: dict[str, float] = {}
    for kind in ("ews", "ews-cm", "ews-cms", "ews-p"):
        run, cells = run_network(preset(f"{kind}-64"), layers), []
        for name, table in tables.items():
            bill = energy(run, table, activation_zeros=0.5)
            array, total = sum(bill.by_level()[level] for level in IN_THE_CORE), bill.total_pj(dram=False)
            base = bases.setdefault(name, total)
            cells += [
                f"{array * 1e-6:.0f}",
                f"{total * 1e-6:.0f}",
                f"{bill.tops_per_watt():.2f}",
                f"{base / total:.2f}",
            ]
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _memories() -> str:
    table = CostTable.load("cells")
    lines = ["| KiB | 130 nm: read pJ | write pJ | leak uW | mm2 | CACTI, 40 nm: read pJ | write pJ | leak uW | mm2 |"]
    lines.append("|---|" + "---|" * 8)
    for row in read_csv(SRAM):
        other = table.sram(round(1024 * float(row["kib"])))
        cells = [f"{float(row['kib']):g}", row["read_pj"], row["write_pj"], f"{1e3 * float(row['leak_mw']):.2f}"]
        cells += [row["area_mm2"], f"{other.read_pj:.2f}", f"{other.write_pj:.2f}", f"{1e3 * other.leak_mw:.0f}"]
        lines.append(f"| {' | '.join([*cells, f'{other.area_mm2:.4f}'])} |")
    return "\n".join(lines)


def _key(row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[name]) for name in ("liberty", "kind", "side", "booth"))


def _order(row: dict[str, Any]) -> tuple[Any, ...]:
    part = list(dict.fromkeys(COMPONENTS.values())).index(row["component"])
    return row["liberty"], str(row["booth"]) != "True", int(row["side"]), KINDS.index(row["kind"]), part


if __name__ == "__main__":
    main()
