"""`mvq simulate` and `mvq compare`."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mvq.accel.cost import CostTable, area, energy
from mvq.accel.cycle import NetworkRun, run_network
from mvq.accel.network import load
from mvq.accel.spec import AcceleratorSpec, preset
from mvq.accel.workload import Layer, as_the_machine_stores, layers_of, read_topology
from mvq.cli.output import console, make_table, note, print_json
from mvq.errors import ConfigError
from mvq.patterns import Pattern
from mvq.report.machine import Simulated, write_machine_report


def simulate(
    network: Path,
    arch: str,
    *,
    table: str,
    pattern: str,
    explain: bool,
    html: Path | None,
    as_json: bool,
    as_csv: bool,
) -> None:
    """Time, energy and area of one network on one machine.

    Raises:
        MvqError: on wrong input.
    """
    spec, costs = _spec(arch), CostTable.load(table)
    one = _simulated(spec, _layers(network, pattern), costs)
    run = one.run
    _write_html(html, network, [one], costs)
    if as_json:
        print_json({"machine": spec.to_dict(), **_summary(one), "layers": [_row(run, i) for i in _indices(run)]})
    elif as_csv:
        _write_csv([{**_row(run, i), **_areas(one)} for i in _indices(run)])
    else:
        columns = [
            ("layer", "<"),
            ("cycles", ">"),
            ("compute", ">"),
            ("bubble", ">"),
            ("weights", ">"),
            ("memory", ">"),
        ]
        shown = make_table(f"{network.name} on {spec.name}", [*columns, ("dram", ">"), ("mapping", "<")])
        for each in run.layers:
            c, m = each.cycles, each.mapping
            text = f"a={m.a} b={m.b} d={m.d} fold={m.fold} rows={m.tile_rows}"
            numbers = (c.total, c.compute, c.bubble, c.weights, c.memory, c.dram)
            shown.add_row(each.layer.name, *(f"{n:,}" for n in numbers), text)
        console().print(shown)
        console().print(_text(_summary(one)), markup=False, highlight=False)
        if explain:
            lines = f"{one.bill.explain()}\n\n{one.area.explain()}"
            console().print(lines, markup=False, highlight=False, soft_wrap=True)


def compare(
    network: Path,
    archs: Sequence[str],
    *,
    table: str,
    pattern: str,
    html: Path | None,
    as_json: bool,
    as_csv: bool,
) -> None:
    """One network on several machines, each of which stores it in its own way.

    Raises:
        MvqError: on wrong input.
    """
    layers = [as_the_machine_stores(layer) for layer in _layers(network, pattern)]
    costs = CostTable.load(table)
    runs = [_simulated(_spec(arch), layers, costs) for arch in archs]
    _write_html(html, network, runs, costs)
    found = []
    for one in runs:
        gains = one.gains_over(runs[0])
        row = {"machine": one.run.spec.name, **_summary(one), "speed_up": gains.speed_up, "energy_gain": gains.energy}
        found.append(row | {"energy_gain_with_dram": gains.energy_with_dram})
    if as_json:
        print_json(found)
    elif as_csv:
        _write_csv(found)
    else:
        names = {
            "ms": "ms",
            "speed_up": "speed-up",
            "chip_uj": "chip uJ",
            "dram_uj": "DRAM uJ",
            "equivalent_tops_per_watt": "equiv. TOPS/W",
            "energy_gain": "gain",
            "energy_gain_with_dram": "gain with DRAM",
            "array_mm2": "array mm2",
            "total_mm2": "total mm2",
        }
        shown = make_table(
            f"{network.name}: modelled, table {table}", [("machine", "<"), *((n, ">") for n in names.values())]
        )
        for row in found:
            shown.add_row(row["machine"], *(f"{row[key]:,.2f}" for key in names))
        console().print(shown)


def _spec(arch: str) -> AcceleratorSpec:
    return AcceleratorSpec.from_toml(arch) if arch.endswith(".toml") else preset(arch)


def _layers(network: Path, pattern: str) -> list[Layer]:
    if network.suffix == ".csv":
        return read_topology(network, Pattern.parse(pattern))
    layers = layers_of(load(network))
    if not layers:
        raise ConfigError(f"network {str(network)!r} has no convolution and no fully connected layer")
    return layers


def _simulated(spec: AcceleratorSpec, layers: Sequence[Layer], costs: CostTable) -> Simulated:
    run = run_network(spec, layers)
    return Simulated(run=run, bill=energy(run, costs), area=area(spec, costs))


def _write_html(html: Path | None, network: Path, runs: Sequence[Simulated], costs: CostTable) -> None:
    if html is not None:
        n_bytes = write_machine_report(html, network.stem, runs, table=costs)
        note(f"mvq: wrote {html}, {n_bytes:,} bytes")


def _indices(run: NetworkRun) -> range:
    return range(len(run.layers))


def _row(run: NetworkRun, i: int) -> dict[str, Any]:
    each = run.layers[i]
    times = {"cycles": each.cycles.total, **{f"{key}_cycles": n for key, n in asdict(each.cycles).items()}}
    return {"layer": each.layer.name, **times, **asdict(each.mapping), **asdict(each.actions)}


def _areas(one: Simulated) -> dict[str, float]:
    return {"array_mm2": one.area.array_mm2, "total_mm2": one.area.total_mm2}


def _summary(one: Simulated) -> dict[str, Any]:
    run, bill, cycles = one.run, one.bill, one.run.cycles
    return {
        "cycles": cycles.total,
        **{f"{key}_cycles": n for key, n in asdict(cycles).items()},
        "ms": run.seconds * 1e3,
        "images_per_second": 1 / run.seconds,
        "weights_resident": run.weights_resident,
        "chip_uj": bill.total_pj(dram=False) * 1e-6,
        "dram_uj": bill.by_level()["DRAM"] * 1e-6,
        "executed_tops_per_watt": bill.tops_per_watt(executed=True),
        "equivalent_tops_per_watt": bill.tops_per_watt(),
        "executed_tops_per_watt_with_dram": bill.tops_per_watt(executed=True, dram=True),
        "equivalent_tops_per_watt_with_dram": bill.tops_per_watt(dram=True),
        **{f"{level}_uj": pj * 1e-6 for level, pj in bill.by_level().items()},
        **_areas(one),
    }


def _text(summary: dict[str, Any]) -> str:
    """The lines under the table."""
    return (
        f"{summary['cycles']:,} cycles, {summary['ms']:.3f} ms, {summary['images_per_second']:,.0f} images/s\n"
        f"energy of an image: chip {summary['chip_uj']:,.1f} uJ, DRAM {summary['dram_uj']:,.1f} uJ\n"
        f"TOPS/W without DRAM: {summary['executed_tops_per_watt']:.2f} executed, "
        f"{summary['equivalent_tops_per_watt']:.2f} dense-equivalent; with DRAM: "
        f"{summary['executed_tops_per_watt_with_dram']:.2f} and {summary['equivalent_tops_per_watt_with_dram']:.2f}\n"
        f"area: array {summary['array_mm2']:.3f} mm2, total {summary['total_mm2']:.3f} mm2"
    )


def _write_csv(rows: Sequence[dict[str, Any]]) -> None:
    writer = csv.DictWriter(sys.stdout, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
