"""The report's plots, as SVG that follows the page's colours."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mvq.errors import MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mvq.demo import CaseResult, DemoReport

#: Stand-ins in the drawing -> the page's CSS variables, so that plots are readable on light and dark pages.
#: The series follow Okabe and Ito, whose colours can be told apart with colour-blindness.
_COLOURS = {
    "#010101": "--ink",
    "#020202": "--grid",
    "#030303": "--s1",
    "#040404": "--s2",
    "#050505": "--s3",
    "#060606": "--paper",
}
INK, GRID, BLUE, ORANGE, GREEN, PAPER = _COLOURS
_KINDS = {"vq": "conventional VQ", "masked": "MVQ, masked codewords", "packed": "MVQ, packed codewords"}
_KIND_COLOURS = {"vq": ORANGE, "masked": BLUE, "packed": GREEN}
_MARKERS = {"vq": "s", "masked": "o", "packed": "D"}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mvq",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "xtick.color": INK,
    "ytick.color": INK,
    "legend.frameon": False,
    "legend.labelcolor": INK,
}


def figures(report: DemoReport) -> dict[str, str]:
    """SVG text of every plot: `accuracy`, `tuning`, `usage`, `error`, `bits`.

    Raises:
        MissingDependencyError: without matplotlib.
    """
    draw = {"accuracy": _accuracy, "tuning": _tuning, "usage": _usage, "error": _error, "bits": _bits}
    return {name: _svg(name, function, report) for name, function in draw.items()}


def _svg(name: str, draw: Any, report: DemoReport) -> str:
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError("reports need matplotlib: pip install 'mvq[report]'") from None
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(6.2, 4.0), layout="constrained")
        draw(figure.add_subplot(), report)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline(buffer.getvalue(), name)


def _inline(svg: str, name: str) -> str:
    """The `<svg>` element alone, scalable, with page colours and ids of its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg))
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    for colour, variable in _COLOURS.items():
        svg = svg.replace(colour, f"var({variable})")
    return svg


def _kind(case: CaseResult) -> str:
    return "vq" if case.kmeans == "plain" else case.codewords


def _accuracy(axes: Axes, report: DemoReport) -> None:
    """File size against accuracy after fine-tuning, with standard errors."""
    seen: set[str] = set()
    for case in report.cases:
        kind, share = _kind(case), case.after / 100
        axes.errorbar(
            case.sizes["on_disk"].bytes / 1000,
            case.after,
            100 * math.sqrt(share * (1 - share) / report.n_test),
            fmt=_MARKERS[kind],
            color=_KIND_COLOURS[kind],
            markersize=8,
            elinewidth=1,
            label=None if kind in seen else _KINDS[kind],
        )
        seen.add(kind)
    axes.axhline(
        report.dense, color=INK, linewidth=1, linestyle="--", label=f"dense, {report.dense_bytes / 1000:.0f} kB"
    )
    axes.set(xlabel="file size (kB)", ylabel="top-1 after fine-tuning (%)")
    axes.set_xlim(left=0)
    axes.margins(y=0.15)
    axes.legend(loc="lower left")


def _tuning(axes: Axes, report: DemoReport) -> None:
    """Accuracy before and after fine-tuning, smallest file first."""
    cases = sorted(report.cases, key=lambda case: case.sizes["on_disk"].bits)
    for row, case in enumerate(cases):
        colour, marker = _KIND_COLOURS[_kind(case)], _MARKERS[_kind(case)]
        axes.plot([case.before, case.after], [row, row], color=colour, linewidth=2)
        axes.plot(case.before, row, marker, color=colour, markersize=8, markerfacecolor=PAPER)
        axes.plot(case.after, row, marker, color=colour, markersize=8)
    _layer_axis(axes, [f"{case.title}, {case.sizes['on_disk'].bytes / 1000:.0f} kB" for case in cases])
    axes.set(xlabel="top-1 accuracy (%)", xlim=(0, 103))


def _usage(axes: Axes, report: DemoReport) -> None:
    """Share of subvectors by codeword rank, of the best case."""
    best = _best(report)
    usage = np.array(best.usage)
    axes.fill_between(np.arange(len(usage)), usage, step="mid", color=BLUE, alpha=0.25, linewidth=0)
    axes.step(np.arange(len(usage)), usage, where="mid", color=BLUE)
    mean = usage.mean()
    axes.axhline(mean, color=INK, linewidth=1, linestyle="--")
    axes.annotate(
        f"equal use: {mean:.1f}",
        (1, mean),
        xycoords=("axes fraction", "data"),
        xytext=(0, 4),
        textcoords="offset points",
        ha="right",
    )
    axes.set(xlabel="codeword, most used first", ylabel="subvectors")
    axes.set_xlim(0, len(usage) - 1)
    axes.set_ylim(bottom=0)


def _error(axes: Axes, report: DemoReport) -> None:
    """Relative error by layer: the best case, and conventional VQ of the same pruned weights where it was run."""
    plain = [c for c in report.cases if c.kmeans == "plain" and not c.pattern.startswith("1:1")]
    masked = [c for c in report.cases if c.kmeans == "masked" and c.pattern in {p.pattern for p in plain}]
    shown = [*plain[:1], *masked[:2]] or [_best(report)]
    _bars(axes, [layer.name for layer in shown[0].layers], shown, [ORANGE, BLUE, GREEN])
    axes.set_xlabel("error of kept weights / their energy (lower is better)")
    _legend_above(axes)


def _bars(axes: Axes, names: Sequence[str], cases: Sequence[CaseResult], colours: Sequence[str]) -> None:
    rows = np.arange(len(names))
    height = 0.8 / len(cases)
    for i, (case, colour) in enumerate(zip(cases, colours, strict=False)):
        values = [layer.relative_sse for layer in case.layers]
        axes.barh(rows - 0.4 + (i + 0.5) * height, values, height, color=colour, label=case.title)
    _layer_axis(axes, names)


def _legend_above(axes: Axes) -> None:
    """One row over the whole width of the figure, which is wider than the axes."""
    figure: Any = axes.get_figure()
    figure.legend(loc="outside upper center", ncols=3, columnspacing=1.2, handlelength=1.4)


def _layer_axis(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(np.arange(len(names)), names)
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def _bits(axes: Axes, report: DemoReport) -> None:
    """Bits of the best case by layer, and of the codebook they share."""
    best = _best(report)
    names = [layer.name for layer in best.layers] + ["shared codebook"]
    rows = np.arange(len(names))
    index = np.array([layer.bits_assign for layer in best.layers] + [0]) / 8000
    mask = np.array([layer.bits_mask for layer in best.layers] + [0]) / 8000
    codebook = np.array([0] * len(best.layers) + [best.bits_codebook]) / 8000
    axes.barh(rows, index, 0.7, color=BLUE, label="assignments")
    axes.barh(rows, mask, 0.7, left=index, color=ORANGE, label="masks")
    axes.barh(rows, codebook, 0.7, color=GREEN, label="codebook")
    _layer_axis(axes, names)
    axes.set_xlabel("size (kB)")
    _legend_above(axes)


def _best(report: DemoReport) -> CaseResult:
    return next(case for case in report.cases if case.name == report.best)
