"""Gate area of the RTL: synthesis by yosys to a cell library, module by module."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvq.accel.rtl.emit import run_yosys, scratch, verilog
from mvq.accel.rtl.gates.liberty import read_library, read_text
from mvq.accel.rtl.gates.netlist import Netlist, flatten
from mvq.accel.rtl.gates.timing import Timing, analyse
from mvq.accel.spec import AcceleratorSpec
from mvq.errors import MvqError

#: Modules by what they are a part of.
COMPONENTS = {
    "mvq_tile_row": "tile rows",
    "mvq_adder_tree": "adder trees",
    "mvq_accumulator": "accumulators",
    "mvq_tile": "tile control",
    "mvq_weight_loader": "loader",
    "mvq_codebook": "codebook",
    "mvq_mask_decoder": "mask decoding",
    "mvq_mask_table": "mask decoding",
    "mvq_sequencer": "sequencer",
    "mvq_core": "core control",
    "mvq_controller": "controller",
    "mvq_fetch": "fetch of inputs",
    "mvq_output": "output unit",
    "mvq_machine": "machine",
}
#: Module of register files.
LATCHES = "mvq_latches"
#: Registers with an enable of their own that get a clock gate, where the library has them; fewer keep a multiplexer.
GATED = 4
#: Those that make up the array.
ARRAY = ("tile rows", "adder trees", "accumulators", "tile control")


@dataclass(frozen=True, kw_only=True, slots=True)
class Component:
    """A kind of module after synthesis.

    Attributes:
        name: of `COMPONENTS`.
        instances: modules of it in the design.
        um2: area of one with its register files, without other components.
        latches_um2: that of its register files.
    """

    name: str
    instances: int
    um2: float
    latches_um2: float

    @property
    def total_um2(self) -> float:
        """Of all instances."""
        return self.instances * self.um2


@dataclass(frozen=True, kw_only=True, slots=True)
class Synthesis:
    """A machine after synthesis.

    Attributes:
        spec: machine.
        liberty: name of the library.
        booth: whether multipliers are of Booth form.
        components: in the order of `COMPONENTS`.
        cells: how many of each cell there are.
        timing: of its paths, where that was asked for.
    """

    spec: AcceleratorSpec
    liberty: str
    booth: bool
    components: tuple[Component, ...]
    cells: dict[str, int]
    timing: Timing | None = None

    @property
    def array_um2(self) -> float:
        """Of the array."""
        return sum(part.total_um2 for part in self.components if part.name in ARRAY)

    @property
    def total_um2(self) -> float:
        """Of all that was mapped."""
        return sum(part.total_um2 for part in self.components)


def synthesise(
    spec: AcceleratorSpec, liberty: Path, *, top: str = "mvq_machine", booth: bool = True, timing: bool = False
) -> Synthesis:
    """Map a machine to cells; areas are sums over cells, before placement, clock tree and wires.

    Args:
        spec: machine.
        liberty: cell library, may be gzip.
        top: `mvq_machine`, or a module in it, such as `mvq_tile`.
        booth: multipliers in Booth form; otherwise as arrays of adders.
        timing: find the longest path, too.

    Raises:
        ConfigError: if there is no RTL of such a machine.
        FileError: if the library cannot be read or is none; for timing also if it lacks units or functions.
        MissingDependencyError: if yosys is not installed.
        MvqError: if yosys fails, or leaves something that is no cell of the library.
    """
    report, design = _mapped(spec, liberty, top, booth)
    found = _counted(spec, liberty, top, booth, {_plain(key): value for key, value in report["modules"].items()})
    if not timing:
        return found
    return dataclasses.replace(found, timing=analyse(flatten(design, top, read_library(liberty))))


def netlist(spec: AcceleratorSpec, liberty: Path, *, top: str, booth: bool = True) -> Netlist:
    """Map a machine to cells, as `synthesise` does, and take its netlist.

    Raises:
        As `synthesise`; FileError also if the library lacks units, or what is known of a cell.
    """
    return flatten(_mapped(spec, liberty, top, booth)[1], top, read_library(liberty))


def _mapped(spec: AcceleratorSpec, liberty: Path, top: str, booth: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """Statistics of the mapped design, and the design, as yosys writes them."""
    text = read_text(liberty)
    with scratch() as name:
        folder = Path(name)
        (folder / "cells.lib").write_text(text, encoding="utf-8")
        (folder / "core.sv").write_text(verilog(spec), encoding="utf-8")
        gated = f"clockgate -liberty cells.lib -min_net_size {GATED}; " if "clock_gating_integrated" in text else ""
        run_yosys(
            f"read_verilog -sv core.sv; hierarchy -top {top}; synth -noabc {'-booth ' if booth else ''}-top {top}; "
            f"{gated}dfflibmap -liberty cells.lib; abc -liberty cells.lib; opt_clean -purge; "
            "tee -q -o stat.json stat -json -liberty cells.lib; write_json design.json",
            folder,
        )
        report = (folder / "stat.json").read_text(encoding="utf-8")
        return json.loads(report[report.index("{") :]), json.loads((folder / "design.json").read_text(encoding="utf-8"))


def component_of(path: tuple[str, ...]) -> str:
    """What a cell belongs to that lies in a path of modules; the latches of register files apart."""
    inner = next((COMPONENTS[_plain(name)] for name in reversed(path) if _plain(name) in COMPONENTS), path[-1])
    return f"{inner}: registers" if LATCHES in path[-1] and inner != "codebook" else inner


def _plain(name: str) -> str:
    """A module's name as it was written, without the sign of a public name; parameters keep it apart from others."""
    return name.removeprefix("\\")


def _counted(spec: AcceleratorSpec, liberty: Path, top: str, booth: bool, modules: dict[str, Any]) -> Synthesis:
    instances: dict[str, int] = {}
    cells: dict[str, int] = {}

    def below(module: str) -> list[tuple[str, int]]:
        """Modules in a module, and how many of each."""
        return [(_plain(key), n) for key, n in modules[module]["num_cells_by_type"].items() if _plain(key) in modules]

    def visit(module: str, n: int) -> None:
        instances[module] = instances.get(module, 0) + n
        for inner, count in below(module):
            visit(inner, n * count)
        for kind, count in modules[module]["num_cells_by_type"].items():
            if _plain(kind) in modules:
                continue
            if kind.startswith("$"):
                raise MvqError(f"yosys left {count} of {kind} in {module}: {liberty.name} has no cell for it")
            cells[kind] = cells.get(kind, 0) + n * count

    visit(top, 1)
    totals: dict[str, list[float]] = {}
    for module, n in instances.items():
        if module not in COMPONENTS:
            continue
        # The report counts the area of what is in a module, too.
        area = float(modules[module]["area"])
        area -= sum(count * float(modules[inner]["area"]) for inner, count in below(module) if inner in COMPONENTS)
        files = sum(count * float(modules[inner]["area"]) for inner, count in below(module) if inner not in COMPONENTS)
        entry = totals.setdefault(COMPONENTS[module], [0, 0.0, 0.0])
        for i, more in enumerate((n, n * area, n * files)):
            entry[i] += more
    order = list(dict.fromkeys(COMPONENTS.values()))
    found = [
        Component(name=name, instances=int(n), um2=area / n, latches_um2=inner / n)
        for name, (n, area, inner) in sorted(totals.items(), key=lambda item: order.index(item[0]))
    ]
    name = liberty.name.removesuffix(".gz").removesuffix(".lib")
    return Synthesis(spec=spec, liberty=name, booth=booth, components=tuple(found), cells=dict(sorted(cells.items())))
