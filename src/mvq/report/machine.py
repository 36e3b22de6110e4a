"""HTML report of a network on one or several modelled machines. Needs `mvq[report]`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from mvq.accel.cost import Area, Bill, CostTable
from mvq.accel.cycle import LayerRun, NetworkRun
from mvq.accel.spec import AcceleratorSpec
from mvq.accel.workload import Layer
from mvq.errors import ConfigError
from mvq.format.writer import replace_file
from mvq.report.html import page


@dataclass(frozen=True, kw_only=True, slots=True)
class Gains:
    """What a machine has over another one on the same network; more than 1 is better.

    Attributes:
        speed_up: time of the other one over its own.
        energy: likewise of energy without DRAM.
        energy_with_dram: likewise with DRAM.
        array_area: likewise of the array with its registers and loader.
        total_area: likewise of everything modelled.
    """

    speed_up: float
    energy: float
    energy_with_dram: float
    array_area: float
    total_area: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Simulated:
    """A network on a modelled machine.

    Attributes:
        run: mapping, cycles and counts of each layer.
        bill: energy of an image.
        area: of the machine.
    """

    run: NetworkRun
    bill: Bill
    area: Area

    def gains_over(self, other: Simulated) -> Gains:
        """Time, energy and area of another machine over those of this one."""
        return Gains(
            speed_up=other.run.seconds / self.run.seconds,
            energy=other.bill.total_pj(dram=False) / self.bill.total_pj(dram=False),
            energy_with_dram=other.bill.total_pj() / self.bill.total_pj(),
            array_area=other.area.array_mm2 / self.area.array_mm2,
            total_area=other.area.total_mm2 / self.area.total_mm2,
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """Text of a table; the first column names the row.

    Attributes:
        caption: above it.
        headers: of the columns, with units.
        rows: of cells, as many as headers.
        texts: how many columns on the left are words.
        marked: rows that stand out.
        sourced: whether the last column is words, too.
    """

    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    texts: int = 1
    marked: frozenset[int] = frozenset()
    sourced: bool = False


def write_machine_report(
    path: str | os.PathLike[str], network_name: str, runs: Sequence[Simulated], *, table: CostTable | None = None
) -> int:
    """Write `render_machine_report`'s page, atomically; gives its length in bytes.

    Raises:
        ConfigError: as `render_machine_report`.
        MissingDependencyError: without the packages of `mvq[report]`.
        FileError: if it cannot be written; a file that was there stays as it was.
    """
    return replace_file(path, [render_machine_report(network_name, runs, table=table).encode()])


def render_machine_report(network_name: str, runs: Sequence[Simulated], *, table: CostTable | None = None) -> str:
    """The whole page: no scripts, nothing loaded from elsewhere.

    Every number in it is modelled, but for the specifications and the costs, which have columns of their own.

    Args:
        network_name: in the title.
        runs: machines on that network; gains refer to the first.
        table: that energy and area were made from, to be named.

    Raises:
        ConfigError: without a machine, or if the machines ran different networks.
        MissingDependencyError: without the packages of `mvq[report]`.
    """
    if not runs:
        raise ConfigError("machine report: there is no machine in it; give at least one simulated run")
    works = [[_work(each.layer) for each in one.run.layers] for one in runs]
    for one, work in zip(runs, works, strict=True):
        if work != works[0]:
            names = f"{runs[0].run.spec.name!r} and {one.run.spec.name!r}"
            raise ConfigError(f"machine report: {names} ran different layers; give runs of one network")
    from mvq.report.machine_figures import machine_figures, network_figures

    machines = [
        {
            "name": one.run.spec.name,
            "figures": machine_figures(f"m{i}", one.run),
            "tables": [layer_table(one.run), traffic_table(one.run)],
            "sources": [energy_table(one.bill), area_table(one.area)],
        }
        for i, one in enumerate(runs)
    ]
    return page(
        "machine.html",
        network=network_name,
        costs=table,
        runs=runs,
        summary=summary_table(runs),
        comparison=comparison_table(runs) if len(runs) > 1 else None,
        specification=specification_table([one.run.spec for one in runs]),
        levels=[energy_levels_table(runs), area_levels_table(runs)],
        figures=network_figures(runs),
        machines=machines,
    )


def _work(layer: Layer) -> tuple[object, ...]:
    """What has to agree; each machine may store the weights in its own way."""
    shape = layer.kernel, layer.stride, layer.dilation, layer.padding, layer.in_size
    return layer.name, layer.c_in, layer.c_out, layer.groups, *shape


def summary_table(runs: Sequence[Simulated]) -> Table:
    """Time, energy, efficiency and area, a row a machine."""
    headers = ["machine", "cycles", "time (ms)", "images/s", "energy without DRAM (µJ)", "energy of DRAM (µJ)"]
    headers += [
        f"{what} TOPS/W {dram} DRAM" for dram in ("without", "with") for what in ("executed", "dense-equivalent")
    ]
    headers += ["array area (mm²)", "total area (mm²)"]
    rows = []
    for one in runs:
        run, bill = one.run, one.bill
        chip = bill.total_pj(dram=False)
        rates = [bill.tops_per_watt(executed=e, dram=d) for d in (False, True) for e in (True, False)]
        rows.append(
            [
                run.spec.name,
                f"{run.cycles.total:,}",
                f"{run.seconds * 1e3:,.3f}",
                f"{1 / run.seconds:,.1f}",
                f"{chip * 1e-6:,.1f}",
                f"{(bill.total_pj() - chip) * 1e-6:,.1f}",
                *(f"{rate:.3f}" for rate in rates),
                f"{one.area.array_mm2:.3f}",
                f"{one.area.total_mm2:.3f}",
            ]
        )
    return Table(caption="Modelled: one image of many", headers=headers, rows=rows)


def comparison_table(runs: Sequence[Simulated]) -> Table:
    """Gains over the first machine."""
    headers = ["machine", "speed-up", "energy gain without DRAM", "energy gain with DRAM"]
    headers += ["array area, first over this", "total area, first over this"]
    rows = [[one.run.spec.name, *(f"{gain:.2f}x" for gain in asdict(one.gains_over(runs[0])).values())] for one in runs]
    return Table(
        caption=f"Modelled: {runs[0].run.spec.name} over each machine; more than 1 is better",
        headers=headers,
        rows=rows,
    )


def specification_table(specs: Sequence[AcceleratorSpec]) -> Table:
    """Fields of the specifications, a column a machine; rows in which machines differ are marked."""
    values = [_specified(spec) for spec in specs]
    keys = list(values[0])
    rows = [[key, *(column[key] for column in values)] for key in keys]
    marked = frozenset(i for i, row in enumerate(rows) if len(set(row[1:])) > 1)
    note = "; marked: where machines differ" if len(specs) > 1 else ""
    return Table(
        caption=f"Specified, or following from it{note}",
        headers=["field", *(spec.name for spec in specs)],
        rows=rows,
        marked=marked,
    )


def _specified(spec: AcceleratorSpec) -> dict[str, str]:
    given = {key: _plain(value) for key, value in spec.to_dict().items() if key != "name"}
    return given | {
        "multipliers": f"{spec.n_multipliers:,}",
        "stored bits of d weights": f"{spec.word_bits:,}",
        "codebook bits": f"{spec.codebook_bits:,}",
        "peak executed TOPS": f"{spec.peak_executed_tops:.3f}",
        "peak dense-equivalent TOPS": f"{spec.peak_equivalent_tops:.3f}",
    }


def _plain(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def layer_table(run: NetworkRun) -> Table:
    """Shape, cycles by cause, use of the multipliers and mapping, a row a layer and one for all."""
    causes = list(asdict(run.cycles))
    headers = ["layer", "no.", "shape", "stored", "cycles", *causes, "share (%)", "multipliers in use (%)"]
    headers += ["dense MACs", "executed MACs", "mapping"]
    rows = [[each.layer.name, str(i), *_layer_cells(run, each)] for i, each in enumerate(run.layers, 1)]
    cycles, actions = run.cycles, run.actions
    total = [f"{n:,}" for n in (cycles.total, *asdict(cycles).values())]
    use = 100 * actions.macs / (cycles.total * run.spec.n_multipliers)
    counts = [f"{actions.dense_macs:,}", f"{actions.nonzero_macs:,}"]
    rows.append(["all", "", "", "", *total, "100.0", f"{use:.1f}", *counts, ""])
    return Table(
        caption="Modelled: cycles by cause",
        headers=headers,
        rows=rows,
        marked=frozenset({len(run.layers)}),
        sourced=True,
    )


def _layer_cells(run: NetworkRun, each: LayerRun) -> list[str]:
    layer, m, total = each.layer, each.mapping, each.cycles.total
    kernel, out = "x".join(map(str, layer.kernel)), "x".join(map(str, layer.out_size))
    shape = f"{layer.c_in} to {layer.c_out}, {kernel}, {out}" + (f", {layer.groups} groups" * (layer.groups > 1))
    stored = f"{run.spec.weights} {layer.pattern}" if layer.compressed else "int8"
    return [
        shape,
        stored,
        f"{total:,}",
        *(f"{n:,}" for n in asdict(each.cycles).values()),
        f"{100 * total / run.cycles.total:.1f}",
        f"{100 * each.actions.macs / (total * run.spec.n_multipliers):.1f}",
        f"{each.actions.dense_macs:,}",
        f"{each.actions.nonzero_macs:,}",
        f"A={m.a} B={m.b} D={m.d} fold={m.fold} rows={m.tile_rows}",
    ]


def traffic_table(run: NetworkRun) -> Table:
    """Bytes read and written at each level, a row a layer and one for all."""
    levels = ("l1", "l2", "dram")
    keys = [f"{level}_{way}_bytes" for level in levels for way in ("read", "write")]
    words = {"read": "read", "write": "written"}
    headers = ["layer", *(f"{level.upper()} {word} (bytes)" for level in levels for word in words.values())]
    counted = [(each.layer.name, each.actions) for each in run.layers] + [("all", run.actions)]
    rows = [[name, *(f"{getattr(actions, key):,}" for key in keys)] for name, actions in counted]
    marked = frozenset({len(run.layers)})
    return Table(caption="Modelled: traffic by level", headers=headers, rows=rows, marked=marked)


def energy_levels_table(runs: Sequence[Simulated]) -> Table:
    """Energy of an image by level, a row a machine."""
    levels = list(runs[0].bill.by_level())
    rows = [[one.run.spec.name, *(f"{pj * 1e-6:,.2f}" for pj in one.bill.by_level().values())] for one in runs]
    headers = ["machine", *(f"{level} (µJ)" for level in levels)]
    return Table(caption="Modelled: energy of an image by level", headers=headers, rows=rows)


def area_levels_table(runs: Sequence[Simulated]) -> Table:
    """Area by level, a row a machine."""
    levels = list(runs[0].area.by_level())
    rows = [[one.run.spec.name, *(f"{mm2:.4f}" for mm2 in one.area.by_level().values())] for one in runs]
    headers = ["machine", *(f"{level} (mm²)" for level in levels)]
    return Table(caption="Modelled: area by level", headers=headers, rows=rows)


def energy_table(bill: Bill) -> Table:
    """Every line of a bill: what `Bill.explain` says."""
    rows = [
        [e.level, e.what, f"{e.count:,.0f}", f"{e.pj:,.5f}", f"{e.total_pj * 1e-6:,.3f}", e.source]
        for e in bill.entries
    ]
    return Table(
        caption="Energy of an image",
        headers=["level", "what", "count, modelled", "cost of one (pJ)", "energy, modelled (µJ)", "source of the cost"],
        rows=rows,
        texts=2,
        sourced=True,
    )


def area_table(area: Area) -> Table:
    """Every line of an area: what `Area.explain` says."""
    rows = [
        [e.level, e.what, f"{e.count:,.0f}", f"{e.um2:,.4f}", f"{e.total_um2 * 1e-6:,.4f}", e.source]
        for e in area.entries
    ]
    return Table(
        caption="Area",
        headers=["level", "what", "count, modelled", "area of one (µm²)", "area, modelled (mm²)", "source of the area"],
        rows=rows,
        texts=2,
        sourced=True,
    )
