"""`mvq rtl`, `mvq cosim` and `mvq synth`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mvq.accel.functional import Machine
from mvq.accel.network import load as load_network
from mvq.accel.spec import AcceleratorSpec, machine_of
from mvq.cli.models import check_folder, load
from mvq.cli.options import DataOptions
from mvq.cli.output import console, make_table, note, number, print_json
from mvq.errors import ConfigError, DataError, MissingDependencyError, MvqError
from mvq.format.writer import replace_file
from mvq.progress import track


def rtl(archs: Sequence[str], output: Path, *, as_json: bool) -> None:
    """Write machines as Verilog, a file each.

    Raises:
        MvqError: on wrong input, or if yosys is missing or fails.
    """
    emit = _amaranth("emit")
    specs = [machine_of(arch) for arch in archs]
    if not output.is_dir():
        raise ConfigError(f"--output {str(output)!r} is no folder; make it first")
    written = []
    for spec in track(specs, "machines"):
        text, path = emit.verilog(spec), output / f"{spec.name}.sv"
        replace_file(path, [text.encode()])
        written.append({"machine": spec.name, "file": str(path), "lines": text.count("\n")})
        note(f"mvq: wrote {path}, {text.count(chr(10)):,} lines")
    if as_json:
        print_json(written)


def cosim(
    file: Path,
    arch: str,
    *,
    data: DataOptions,
    split: str,
    layers: Sequence[str],
    stalls: float,
    seed: int,
    waves: Path | None,
    liberty: Path | None,
    build: Path,
    as_json: bool,
) -> None:
    """Run layers of a network on an image in RTL and models, and compare.

    Raises:
        MvqError: on wrong input, a missing tool, or where RTL and models differ.
    """
    cosimulation, simulation = _amaranth("cosim"), _amaranth("simulation")
    if waves is not None:
        check_folder(waves, "--waves")
        if len(layers) != 1:
            raise ConfigError("--waves is for one layer; name it with --layer")
    if liberty is not None and len(layers) != 1:
        raise ConfigError("--liberty is for one layer; name it with --layer")
    network = load_network(file)
    machine = Machine(network, machine_of(arch))
    if unknown := [name for name in layers if name not in machine.layers]:
        raise ConfigError(f"--layer {unknown[0]!r} is not one of {', '.join(machine.layers)}")
    loader = load(data, split, task="classification", stored=network.provenance.get("preprocessing"))
    images = next(iter(loader), None)
    if images is None:
        raise DataError(f"data {data.data!r}: it has no image; give a folder with some")
    note(f"mvq: building {machine.spec.name} with Verilator")
    core = simulation.Simulation(machine.spec, build, trace=waves is not None)
    found = cosimulation.cosim_network(
        core,
        machine,
        images[0].numpy()[:1],
        layers=layers or list(machine.layers),
        stalls=stalls,
        seed=seed,
        waves=waves,
    )
    spent = None
    if liberty is not None and found[0].why_not == "":
        note(f"mvq: running {layers[0]} on the gates of {machine.spec.name}")
        spent = _amaranth("gates.measure").measure(machine, layers[0], images[0].numpy()[:1], liberty)
    if as_json:
        rows = [dataclasses.asdict(one) for one in found]
        print_json(rows if spent is None else [rows[0] | {"gates": dataclasses.asdict(spent)}])
    else:
        names = ("partial sums", "differ", "cycles", "modelled", "inputs read", "modelled")
        columns = [("layer", "<"), *((name, ">") for name in names)]
        table = make_table(f"{file.name} on {machine.spec.name}, RTL beside models", [*columns, ("not run", "<")])
        for one in found:
            numbers = (one.sums, one.wrong, one.cycles, one.modelled, one.inputs, one.modelled_inputs)
            table.add_row(one.layer, *(f"{n:,}" if one.why_not == "" else "" for n in numbers), one.why_not)
        console().print(table)
        if spent is not None:
            _energy(spent, liberty)
    if any(not one.agrees(stalled=stalls > 0) for one in found):
        raise MvqError("RTL and models differ")


def _energy(one: Any, liberty: Path | None) -> None:
    columns = [(name, "<" if i == 0 else ">") for i, name in enumerate(("part", "um2", "pJ", "share %", "leakage pJ"))]
    title = f"{one.layer} on gates of {liberty}, {1e3 / one.period_ns:.0f} MHz, without wires and clock tree"
    table = make_table(title, columns)
    for part in one.parts:
        values = (part.um2, part.energy_pj, 100 * part.energy_pj / one.energy_pj, part.leakage_pj)
        table.add_row(part.name, *(number(value, ".1f") for value in values))
    leakage, um2 = sum(part.leakage_pj for part in one.parts), sum(part.um2 for part in one.parts)
    table.add_row("core", *(number(value, ".1f") for value in (um2, one.energy_pj, 100.0, leakage)))
    console().print(table)
    console().print(
        f"{one.energy_pj / one.dense_macs:.4f} pJ each of {one.dense_macs:,} multiply-accumulates, pruned ones too; "
        f"{100 * one.zero_activations:.0f}% of activations and {100 - 100 * one.nonzero_weights:.0f}% of weights "
        f"are zero; longest path {one.longest_ns:.2f} ns"
    )


def synth(archs: Sequence[str], liberty: Path, *, top: str, booth: bool, timing: bool, as_json: bool) -> None:
    """Map machines to cells and show the area of their components.

    Raises:
        MvqError: on wrong input, or if yosys is missing or fails.
    """
    synthesis = _amaranth("synthesis")
    specs = [machine_of(arch) for arch in archs]
    results = [
        synthesis.synthesise(spec, liberty, top=top, booth=booth, timing=timing) for spec in track(specs, "machines")
    ]
    if as_json:
        print_json([_synthesis(one) for one in results])
        return
    names = list(dict.fromkeys(part.name for one in results for part in one.components))
    columns = [("mm2", "<"), *((one.spec.name, ">") for one in results)]
    table = make_table(f"{results[0].liberty}, {top}, cells before placement", columns)
    for name in names:
        cells = []
        for one in results:
            area = sum(part.total_um2 for part in one.components if part.name == name)
            cells.append(number(area * 1e-6, ".4f"))
        table.add_row(name, *cells)
    table.add_row("array", *(number(one.array_um2 * 1e-6, ".4f") for one in results))
    table.add_row("total", *(number(one.total_um2 * 1e-6, ".4f") for one in results))
    table.add_row("array, ratio", *(number(one.array_um2 / results[0].array_um2, ".3f") for one in results))
    table.add_row("total, ratio", *(number(one.total_um2 / results[0].total_um2, ".3f") for one in results))
    if timing:
        table.add_row("longest path, ns", *(number(one.timing.longest, ".2f") for one in results))
        table.add_row("gates on it", *(str(one.timing.levels) for one in results))
    console().print(table)


def _synthesis(one: Any) -> dict[str, Any]:
    spec: AcceleratorSpec = one.spec
    parts = [dataclasses.asdict(part) | {"total_um2": part.total_um2} for part in one.components]
    totals = {"array_um2": one.array_um2, "total_um2": one.total_um2}
    if one.timing is not None:
        totals |= {"longest_path_ns": one.timing.longest, "gates_on_it": one.timing.levels}
    return {"machine": spec.name, "liberty": one.liberty, "booth": one.booth, "components": parts, **totals}


def _amaranth(name: str) -> Any:
    """A module of the RTL, which needs Amaranth.

    Raises:
        MissingDependencyError: if it is not installed.
    """
    import importlib

    try:
        return importlib.import_module(f"mvq.accel.rtl.{name}")
    except ModuleNotFoundError as error:
        if error.name is None or not error.name.startswith("amaranth"):
            raise
        raise MissingDependencyError("the RTL needs Amaranth; run: pip install 'mvq[rtl]'") from None
