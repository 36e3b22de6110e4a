"""The page around the plots."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import mvq
from mvq.errors import MissingDependencyError

if TYPE_CHECKING:
    from mvq.demo import DemoReport


def render(report: DemoReport) -> str:
    """The whole page: no scripts, nothing loaded from elsewhere.

    Raises:
        MissingDependencyError: without the packages of `mvq[report]`.
    """
    try:
        from jinja2 import Environment, StrictUndefined
    except ImportError:
        raise MissingDependencyError("reports need jinja2: pip install 'mvq[report]'") from None
    from mvq.report.figures import figures

    source = resources.files("mvq.report").joinpath("template.html").read_text(encoding="utf-8")
    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    best = next(case for case in report.cases if case.name == report.best)
    return environment.from_string(source).render(
        report=report, best=best, figures=figures(report), version=mvq.__version__
    )


def write_html(report: DemoReport, path: str | Path) -> None:
    """Write `render`'s page.

    Raises:
        MissingDependencyError: without the packages of `mvq[report]`.
    """
    Path(path).write_text(render(report), encoding="utf-8")
