"""The plots of the report on machines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from mvq.accel.cycle import Actions, LayerRun, NetworkRun
from mvq.accel.spec import AcceleratorSpec
from mvq.report.drawing import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PAPER,
    PURPLE,
    SKY,
    YELLOW,
    grouped_bars,
    legend_above,
    stacked_bars,
    svg,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mvq.report.machine import Simulated

#: In inches; narrow, so that text stays readable on a phone.
_WIDTH = 5.2
_ROW = 0.215
#: Of a name in a plot; a longer one loses its middle.
_NAME_LENGTH = 24
#: In the order of `Cycles`.
_CAUSE_COLOURS = (BLUE, SKY, ORANGE, GREEN, PURPLE)
_CAUSE_MARKERS = ("o", "v", "s", "D", "^")
#: In the order of `LEVELS` and of `AREA_LEVELS`: neighbours differ in lightness, too.
_ENERGY_COLOURS = (BLUE, SKY, ORANGE, YELLOW, GREEN, GREY, PURPLE)
_AREA_COLOURS = (BLUE, SKY, ORANGE, GREY, YELLOW, GREEN)
#: Layers that a roofline numbers: those that take the longest.
_NUMBERED = 6
#: Decades between two of those numbers.
_APART = 0.3


def network_figures(runs: Sequence[Simulated]) -> dict[str, str]:
    """SVG text of the plots with a bar a machine: `energy`, `area`, `traffic`; of several also `gains`, `areas`.

    Raises:
        MissingDependencyError: without matplotlib.
    """
    names = [_shortened(one.run.spec.name) for one in runs]
    height = 1.25 + 0.3 * len(runs)
    energies = [{level: pj * 1e-6 for level, pj in one.bill.by_level().items()} for one in runs]
    areas = [one.area.by_level() for one in runs]
    drawn = {
        "energy": svg(
            "energy",
            lambda figure: _by_level(figure, names, energies, _ENERGY_COLOURS, "energy of an image (µJ)"),
            label="energy of an image by level, for each machine",
            size=(_WIDTH, height),
        ),
        "area": svg(
            "area",
            lambda figure: _by_level(figure, names, areas, _AREA_COLOURS, "area (mm²)"),
            label="area by level, for each machine",
            size=(_WIDTH, height),
        ),
        "traffic": svg(
            "traffic",
            lambda figure: _traffic(figure, names, [one.run.actions for one in runs]),
            label="bytes read and written at L1, L2 and DRAM, for each machine",
            size=(_WIDTH, 1.2 + 3 * (0.65 + 0.25 * len(runs))),
        ),
    }
    if len(runs) > 1:
        gains = [asdict(one.gains_over(runs[0])) for one in runs]
        time = {"speed_up": "speed-up", "energy": "energy without DRAM", "energy_with_dram": "energy with DRAM"}
        space = {"array_area": "array", "total_area": "total"}
        for key, labels, what in (("gains", time, "speed-up and energy gain"), ("areas", space, "area")):
            series = {label: [gain[field] for gain in gains] for field, label in labels.items()}
            drawn[key] = svg(
                key,
                lambda figure, series=series, what=what: _gains(figure, names, series, what),
                label=f"{what} of each machine against the first",
                size=(_WIDTH, 1.25 + 0.55 * len(runs)),
            )
    return drawn


def machine_figures(prefix: str, run: NetworkRun) -> dict[str, str]:
    """SVG text of the plots with a bar or dot a layer: `cycles`, `roofline`.

    Args:
        prefix: of the ids, unique on the page.
        run: machine and layers.

    Raises:
        MissingDependencyError: without matplotlib.
    """
    return {
        "cycles": svg(
            f"{prefix}-cycles",
            lambda figure: _cycles(figure, run),
            label=f"cycles of each layer by cause on {run.spec.name}",
            size=(_WIDTH, 1.4 + _ROW * len(run.layers)),
        ),
        "roofline": svg(
            f"{prefix}-roofline",
            lambda figure: _rooflines(figure, run),
            label=f"performance of each layer against its operational intensity on {run.spec.name}",
            size=(_WIDTH, 7.0),
        ),
    }


def _by_level(
    figure: Any, names: Sequence[str], levels: Sequence[dict[str, float]], colours: Sequence[str], label: str
) -> None:
    axes = figure.add_subplot()
    stacked_bars(axes, names, {level: [each[level] for each in levels] for level in levels[0]}, colours)
    axes.xaxis.set_major_formatter("{x:,g}")
    axes.set_xlabel(f"{label}, modelled")
    legend_above(figure, axes, columns=4)


def _prefixes(axes: Axes) -> None:
    """Numbers as 20k or 3M, and few of them."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(6))


def _traffic(figure: Any, names: Sequence[str], actions: Sequence[Actions]) -> None:
    panels = figure.subplots(3, 1)
    for axes, level in zip(panels, ("l1", "l2", "dram"), strict=True):
        ways = {"read": "read", "written": "write"}
        series = {word: [getattr(each, f"{level}_{way}_bytes") for each in actions] for word, way in ways.items()}
        stacked_bars(axes, names, series, (BLUE, ORANGE))
        _prefixes(axes)
        axes.set_xlabel(f"{level.upper()} traffic of an image (bytes), modelled")
    legend_above(figure, panels[0])


def _gains(figure: Any, names: Sequence[str], series: dict[str, list[float]], what: str) -> None:
    axes = figure.add_subplot()
    grouped_bars(axes, names, series, (BLUE, ORANGE, GREEN))
    for bars in axes.containers:
        box = {"facecolor": PAPER, "edgecolor": "none", "pad": 0.5}
        axes.bar_label(bars, fmt="%.2f", padding=2, fontsize=8, color=INK, bbox=box)
    axes.axvline(1, color=INK, linewidth=1, linestyle="--")
    axes.margins(x=0.12)
    axes.set_xlabel(f"{what}: {names[0]} / machine, modelled")
    legend_above(figure, axes)


def _cycles(figure: Any, run: NetworkRun) -> None:
    axes = figure.add_subplot()
    times = [asdict(each.cycles) for each in run.layers]
    series = {cause: [each[cause] for each in times] for cause in times[0]}
    names = [f"{_shortened(each.layer.name)}  {i}" for i, each in enumerate(run.layers, 1)]
    stacked_bars(axes, names, series, _CAUSE_COLOURS)
    _prefixes(axes)
    axes.set_xlabel("cycles, modelled")
    legend_above(figure, axes)


def l2_gbytes_per_s(spec: AcceleratorSpec) -> float:
    """What L2 gives and takes at most, in 1e9 bytes a second: through the weight port and the DMA together."""
    return (spec.weight_port_bits + spec.dma_bits) / 8 * spec.clock_mhz * 1e-3


def peak_gmacs(spec: AcceleratorSpec) -> float:
    """Multiplications of all multipliers, in 1e9 a second."""
    return spec.peak_executed_tops / 2 * 1e3


def roofline_points(run: NetworkRun, level: str) -> list[tuple[float, float] | None]:
    """Operational intensity and performance of each layer (Williams et al., Communications of the ACM 52, 2009).

    Args:
        run: machine and layers.
        level: `dram` or `l2`.

    Returns:
        Multiplications a byte that the level moves, and multiplications in 1e9 a second; None for a layer for which the
        level moves nothing.
    """
    points: list[tuple[float, float] | None] = []
    for each in run.layers:
        n_bytes = getattr(each.actions, f"{level}_read_bytes") + getattr(each.actions, f"{level}_write_bytes")
        speed = each.actions.macs / each.cycles.total * run.spec.clock_mhz * 1e-3
        points.append((each.actions.macs / n_bytes, speed) if n_bytes else None)
    return points


def _rooflines(figure: Any, run: NetworkRun) -> None:
    panels = figure.subplots(2, 1)
    bandwidths = {"dram": run.spec.dram_gbytes_per_s, "l2": l2_gbytes_per_s(run.spec)}
    for axes, (level, bandwidth) in zip(panels, bandwidths.items(), strict=True):
        _roofline(axes, run, level, bandwidth)
    _causes_legend(figure, run)


def _roofline(axes: Axes, run: NetworkRun, level: str, bandwidth: float) -> None:
    peak, points = peak_gmacs(run.spec), roofline_points(run, level)
    known = [point for point in points if point is not None]
    ridge = peak / bandwidth
    left = min([ridge / 10, *(x / 2 for x, _ in known)])
    right = max([ridge * 10, *(x * 2 for x, _ in known)])
    axes.loglog([left, ridge, right], [left * bandwidth, peak, peak], color=INK, linewidth=1.5)
    axes.annotate(f"peak {peak:,.4g} GMAC/s", (right, peak), xytext=(0, 3), textcoords="offset points", ha="right")
    middle = math.sqrt(left * ridge)
    # Above the roof, where no dot can be.
    axes.annotate(
        f"{bandwidth:,.4g} GB/s", (middle, middle * bandwidth), xytext=(-6, 2), textcoords="offset points", ha="right"
    )
    for point in dict.fromkeys(known):
        cause = _cause(run.layers[points.index(point)])
        axes.plot(
            *point, _CAUSE_MARKERS[cause], color=_CAUSE_COLOURS[cause], markersize=7, markeredgecolor=PAPER, zorder=3
        )
    for point, text in _numbers(run, points).items():
        axes.annotate(text, point, xytext=(0, -7), textcoords="offset points", fontsize=8, va="top", ha="center")
    idle = len(points) - len(known)
    less = f"; {idle} layers move none" if idle else ""
    axes.set_xlabel(f"operational intensity (MACs/byte of {level.upper()}){less}")
    axes.set_ylabel("GMAC/s, modelled")
    axes.set_ylim(top=peak * 3)
    axes.set_xlim(left, right)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter("{x:,g}")
        axis.set_minor_formatter("")
    lowest = min([peak, *(y for _, y in known)])
    axes.set_ylim(bottom=10 ** math.floor(math.log10(lowest / 2)))


def _numbers(run: NetworkRun, points: Sequence[tuple[float, float] | None]) -> dict[tuple[float, float], str]:
    """Dots of the layers that take the longest -> their numbers; equal layers share a dot, near ones a number."""
    found: dict[tuple[float, float], str] = {}
    for i in sorted(range(len(points)), key=lambda i: -run.layers[i].cycles.total)[:_NUMBERED]:
        point = points[i]
        if point is None or any(math.hypot(*map(math.log10, _ratio(point, other))) < _APART for other in found):
            continue
        same = [str(j + 1) for j, other in enumerate(points) if other == point]
        found[point] = ", ".join(same[:2]) + ", \N{HORIZONTAL ELLIPSIS}" * (len(same) > 2)
    return found


def _ratio(point: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    return point[0] / other[0], point[1] / other[1]


def _cause(each: LayerRun) -> int:
    """Where most of a layer's cycles go."""
    times = list(asdict(each.cycles).values())
    return times.index(max(times))


def _causes_legend(figure: Any, run: NetworkRun) -> None:
    from matplotlib.lines import Line2D

    names = list(asdict(run.cycles))
    handles = [
        Line2D(
            [], [], linestyle="", marker=_CAUSE_MARKERS[i], color=_CAUSE_COLOURS[i], label=f"most cycles: {names[i]}"
        )
        for i in sorted({_cause(each) for each in run.layers})
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, columnspacing=1.2, handlelength=1.4)


def _shortened(name: str) -> str:
    if len(name) <= _NAME_LENGTH:
        return name
    half = _NAME_LENGTH // 2
    return f"{name[: half - 1]}\N{HORIZONTAL ELLIPSIS}{name[-half:]}"
