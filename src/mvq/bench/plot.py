"""Accuracy against bytes, as a picture. Needs `mvq[report]`."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mvq.errors import MissingDependencyError

_MARKERS = "oDs^vP*X<>pd"
#: Okabe and Ito, whose colours can be told apart with colour-blindness; repeated with other markers.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mvq",
    "font.size": 10,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#dddddd",
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Curve:
    """One method over the sizes.

    Attributes:
        label: for the legend.
        bytes: of the whole model.
        percent: mean over seeds.
        deviation: over seeds, 0 for one seed.
    """

    label: str
    bytes: tuple[float, ...]
    percent: tuple[float, ...]
    deviation: tuple[float, ...]


def draw(
    panels: Mapping[str, tuple[Sequence[Curve], float]], stem: Path, *, title: str, metric: str
) -> tuple[Path, Path]:
    """Draw one panel an evaluation set, side by side.

    Args:
        panels: heading to curves and the dense network's percentage.
        stem: path without suffix.
        title: of the picture.
        metric: for the axis.

    Returns:
        The SVG and the PNG file.

    Raises:
        MissingDependencyError: without matplotlib.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError("plots need matplotlib: pip install 'mvq[report]'") from None
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(1.8 + 4.4 * len(panels), 4.2), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False)[0]
        for panel, (heading, (curves, dense)) in zip(axes, panels.items(), strict=True):
            _panel(panel, curves, dense)
            panel.set(title=f"{title}: {heading}", xlabel="whole model, kB (log scale)", ylabel=f"{metric} (%)")
        handles, labels = axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right upper")
        return _save(figure, stem)


def _panel(panel: Any, curves: Sequence[Curve], dense: float) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

    for i, curve in enumerate(curves):
        panel.errorbar(
            curve.bytes,
            curve.percent,
            curve.deviation,
            color=_COLOURS[i % len(_COLOURS)],
            marker=_MARKERS[i % len(_MARKERS)],
            label=curve.label,
            capsize=2,
            elinewidth=1,
            linewidth=1.2,
        )
    values = np.array([percent for curve in curves for percent in curve.percent])
    low = lower_fence(values)
    if n_below := int((values < low).sum()):
        shown = values[values >= low].min()
        panel.set_ylim(bottom=shown - 0.1 * (max(values.max(), dense) - shown))
        what = "point lies" if n_below == 1 else "points lie"
        panel.annotate(f"{n_below} {what} below", (0.02, 0.02), xycoords="axes fraction", color="#666666")
    panel.axhline(dense, color="#666666", linestyle="--", linewidth=1, label="dense")
    panel.set_xscale("log")
    # A decade is far more than the sizes span, so plain numbers are placed instead of powers of ten.
    panel.xaxis.set_major_locator(MaxNLocator(4))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value / 1000:,.4g}"))


def lower_fence(values: NDArray[np.floating]) -> float:
    """1.5 interquartile ranges below the first quartile: outliers beneath it would press all others together."""
    first, third = np.percentile(values, (25, 75))
    return float(first - 1.5 * (third - first))


def _save(figure: Any, stem: Path) -> tuple[Path, Path]:
    stem.parent.mkdir(parents=True, exist_ok=True)
    svg, png = stem.with_name(f"{stem.name}.svg"), stem.with_name(f"{stem.name}.png")
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg.write_text("\n".join(line.rstrip() for line in buffer.getvalue().splitlines()) + "\n", encoding="utf-8")
    figure.savefig(png, dpi=150, metadata={"Software": None})
    return svg, png
