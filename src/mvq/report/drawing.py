"""Plots as inline SVG that follows the page's colours, light and dark."""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mvq.errors import MissingDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: Stand-ins in the drawing -> the page's CSS variables, so that plots are readable on light and dark pages.
#: The series follow Okabe and Ito, whose colours can be told apart with colour-blindness.
_COLOURS = {
    "#010101": "--ink",
    "#020202": "--grid",
    "#030303": "--s1",
    "#040404": "--s2",
    "#050505": "--s3",
    "#060606": "--paper",
    "#070707": "--s4",
    "#080808": "--s5",
    "#090909": "--s6",
    "#0a0a0a": "--s7",
}
INK, GRID, BLUE, ORANGE, GREEN, PAPER, PURPLE, YELLOW, SKY, GREY = _COLOURS
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "mvq",
    "font.family": "sans-serif",
    "font.size": 11,
    "text.color": INK,
    # Names of layers and machines are text, whatever signs they have.
    "text.parse_math": False,
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


def svg(name: str, draw: Callable[[Figure], object], *, label: str, size: tuple[float, float] = (6.2, 4.0)) -> str:
    """An `<svg>` element.

    Args:
        name: unique on the page; ids start with it.
        draw: fills an empty figure.
        label: what the plot shows, for those who do not see it.
        size: width and height in inches; text has 11 points, and the page scales all of it.

    Raises:
        MissingDependencyError: without matplotlib.
    """
    try:
        import matplotlib as mpl
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingDependencyError("reports need matplotlib: pip install 'mvq[report]'") from None
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline(buffer.getvalue(), name, label)


def _inline(text: str, name: str, label: str) -> str:
    """The `<svg>` element alone, scalable, with page colours and ids of its own."""
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text))
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", text)
    for colour, variable in _COLOURS.items():
        text = text.replace(colour, f"var({variable})")
    return text.replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"', 1)


def stacked_bars(
    axes: Axes, names: Sequence[str], series: Mapping[str, Sequence[float]], colours: Sequence[str]
) -> None:
    """A horizontal bar for each name, made of a part for each series."""
    rows, left = np.arange(len(names)), np.zeros(len(names))
    for (label, values), colour in zip(series.items(), colours, strict=True):
        axes.barh(rows, values, 0.7, left=left, color=colour, edgecolor=PAPER, linewidth=0.4, label=label)
        left = left + np.asarray(values, float)
    # A part of no length at the end of the longest bar would hold the frame there.
    axes.use_sticky_edges = False
    axes.set_xlim(left=0)
    name_rows(axes, names)


def grouped_bars(
    axes: Axes, names: Sequence[str], series: Mapping[str, Sequence[float]], colours: Sequence[str]
) -> None:
    """Horizontal bars side by side for each name, one of each series."""
    rows = np.arange(len(names))
    height = 0.8 / len(series)
    for i, ((label, values), colour) in enumerate(zip(series.items(), colours, strict=False)):
        axes.barh(rows - 0.4 + (i + 0.5) * height, values, height, color=colour, label=label)
    name_rows(axes, names)


def name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Names along the vertical axis, the first on top."""
    axes.set_yticks(np.arange(len(names)), names)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def legend_above(figure: Any, axes: Axes, *, columns: int = 3) -> None:
    """Over the whole width of the figure, which is wider than the axes."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=columns, columnspacing=1.2, handlelength=1.4)
