"""The plots of the demo's report."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from mvq.report.drawing import BLUE, GREEN, INK, ORANGE, PAPER, grouped_bars, legend_above, name_rows, stacked_bars, svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from mvq.demo import CaseResult, DemoReport

_KINDS = {"vq": "conventional VQ", "masked": "MVQ, masked codewords", "packed": "MVQ, packed codewords"}
_KIND_COLOURS = {"vq": ORANGE, "masked": BLUE, "packed": GREEN}
_MARKERS = {"vq": "s", "masked": "o", "packed": "D"}


def figures(report: DemoReport) -> dict[str, str]:
    """SVG text of every plot: `accuracy`, `tuning`, `usage`, `error`, `bits`.

    Raises:
        MissingDependencyError: without matplotlib.
    """
    draw = {"accuracy": _accuracy, "tuning": _tuning, "usage": _usage, "error": _error, "bits": _bits}

    def plot(name: str) -> str:
        return svg(name, lambda figure: draw[name](figure.add_subplot(), report), label=name)

    return {name: plot(name) for name in draw}


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
    name_rows(axes, [f"{case.title}, {case.sizes['on_disk'].bytes / 1000:.0f} kB" for case in cases])
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
    series = {case.title: [layer.relative_sse for layer in case.layers] for case in shown}
    grouped_bars(axes, [layer.name for layer in shown[0].layers], series, [ORANGE, BLUE, GREEN])
    axes.set_xlabel("error of kept weights / their energy (lower is better)")
    legend_above(axes.get_figure(), axes)


def _bits(axes: Axes, report: DemoReport) -> None:
    """Bits of the best case by layer, and of the codebook they share."""
    best = _best(report)
    names = [layer.name for layer in best.layers] + ["shared codebook"]
    parts = {
        "assignments": [layer.bits_assign / 8000 for layer in best.layers] + [0.0],
        "masks": [layer.bits_mask / 8000 for layer in best.layers] + [0.0],
        "codebook": [0.0] * len(best.layers) + [best.bits_codebook / 8000],
    }
    stacked_bars(axes, names, parts, [BLUE, ORANGE, GREEN])
    axes.set_xlabel("size (kB)")
    legend_above(axes.get_figure(), axes)


def _best(report: DemoReport) -> CaseResult:
    return next(case for case in report.cases if case.name == report.best)
