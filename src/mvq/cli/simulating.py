"""`mvq simulate`, `mvq compare` and `mvq sweep`."""

from __future__ import annotations

import csv
import sys
import tomllib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mvq.accel.cost import CostTable, area, energy
from mvq.accel.cycle import NetworkRun, run_network
from mvq.accel.cycle.scalesim import compute_report
from mvq.accel.network import load
from mvq.accel.spec import AcceleratorSpec, machine_of
from mvq.accel.sweep import Point, grid, pareto
from mvq.accel.sweep import sweep as run_sweep
from mvq.accel.workload import Layer, as_the_machine_stores, layers_of, read_topology
from mvq.cli.models import check_folder
from mvq.cli.output import console, make_table, note, print_json
from mvq.errors import ConfigError
from mvq.patterns import Pattern
from mvq.progress import track
from mvq.report.machine import Simulated, write_machine_report


def simulate(
    network: Path,
    arch: str,
    *,
    table: str,
    pattern: str,
    objective: str,
    explain: bool,
    html: Path | None,
    as_json: bool,
    as_csv: bool,
    scale_sim: bool,
) -> None:
    """Time, energy and area of one network on one machine.

    Raises:
        MvqError: on wrong input.
    """
    if html is not None:
        check_folder(html, "--html")
    spec, costs = machine_of(arch), CostTable.load(table)
    one = _simulated(spec, _layers(network, pattern), costs, objective)
    run = one.run
    _write_html(html, network, [one], costs)
    if scale_sim:
        _write_csv(compute_report(run))
    elif as_json:
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
    objective: str,
    html: Path | None,
    as_json: bool,
    as_csv: bool,
) -> None:
    """One network on several machines, each of which stores it in its own way.

    Raises:
        MvqError: on wrong input.
    """
    if html is not None:
        check_folder(html, "--html")
    layers = [as_the_machine_stores(layer) for layer in _layers(network, pattern)]
    costs = CostTable.load(table)
    runs = [_simulated(machine_of(arch), layers, costs, objective) for arch in archs]
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


def sweep(
    network: Path,
    arch: str,
    vary: Sequence[str],
    *,
    table: str,
    pattern: str,
    objective: str,
    jobs: int,
    as_json: bool,
    as_csv: bool,
) -> None:
    """One network on a grid of machines; the table shows those that no other one is better than.

    Raises:
        MvqError: on wrong input.
    """
    specs, left_out = grid(machine_of(arch), _axes(vary))
    layers = [as_the_machine_stores(layer) for layer in _layers(network, pattern)]
    running = run_sweep(specs, layers, CostTable.load(table), objective=objective, jobs=jobs)
    found = list(track(running, "machines", total=len(specs)))
    points = [point for point in found if not isinstance(point, ConfigError)]
    for fault in [*left_out, *(str(point) for point in found if isinstance(point, ConfigError))]:
        note(f"left out: {fault}")
    if not points:
        raise ConfigError("sweep: no machine can take the network; the lines above say why")
    best = pareto(points)
    rows = [{"machine": point.spec.name, **_goods(point), "pareto": point in best} for point in points]
    if as_json:
        print_json(rows)
    elif as_csv:
        _write_csv(rows)
    else:
        names = {
            "ms": "ms",
            "chip_uj": "chip uJ",
            "total_uj": "with DRAM",
            "array_mm2": "array mm2",
            "total_mm2": "mm2",
        }
        title = f"{network.name}: the best of {len(points)} machines, modelled, table {table}"
        shown = make_table(title, [("machine", "<"), *((n, ">") for n in names.values())])
        for row in rows:
            if row["pareto"]:
                shown.add_row(row["machine"], *(f"{row[key]:,.3g}" for key in names))
        console().print(shown)


def _goods(point: Point) -> dict[str, Any]:
    return {
        "cycles": point.cycles,
        "ms": point.seconds * 1e3,
        "chip_uj": point.chip_pj * 1e-6,
        "total_uj": point.total_pj * 1e-6,
        "array_mm2": point.array_mm2,
        "total_mm2": point.total_mm2,
    }


def _axes(vary: Sequence[str]) -> dict[str, list[Any]]:
    """`rows=16,32` as a field and its values."""
    axes: dict[str, list[Any]] = {}
    for text in vary:
        key, equals, values = text.partition("=")
        if not equals or key in axes:
            raise ConfigError(f"--vary {text!r}: give each field once, as FIELD=VALUE,VALUE, such as rows=16,32,64")
        axes[key] = [_value(value) for value in values.split(",") if value]
    return axes


def _value(text: str) -> Any:
    """A number, true or false as TOML has them; otherwise a text."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _layers(network: Path, pattern: str) -> list[Layer]:
    if network.suffix == ".csv":
        return read_topology(network, Pattern.parse(pattern))
    layers = layers_of(load(network))
    if not layers:
        raise ConfigError(f"network {str(network)!r} has no convolution and no fully connected layer")
    return layers


def _simulated(spec: AcceleratorSpec, layers: Sequence[Layer], costs: CostTable, objective: str) -> Simulated:
    run = run_network(spec, layers, objective=objective)
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
