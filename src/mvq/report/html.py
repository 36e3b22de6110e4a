"""The page around the plots."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mvq
from mvq.errors import MissingDependencyError

if TYPE_CHECKING:
    from mvq.demo import DemoReport


def page(template: str, **values: Any) -> str:
    """A whole page: no scripts, nothing loaded from elsewhere.

    Args:
        template: name of a file of this package, which extends `base.html`.
        values: what it shows, besides the `version` of mvq.

    Raises:
        MissingDependencyError: without jinja2.
    """
    try:
        from jinja2 import Environment, FunctionLoader, StrictUndefined
    except ImportError:
        raise MissingDependencyError("reports need jinja2: pip install 'mvq[report]'") from None
    environment = Environment(
        loader=FunctionLoader(_source),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(template).render(version=mvq.__version__, **values)


def render(report: DemoReport) -> str:
    """The demo's page.

    Raises:
        MissingDependencyError: without the packages of `mvq[report]`.
    """
    from mvq.report.figures import figures

    best = next(case for case in report.cases if case.name == report.best)
    return page("demo.html", report=report, best=best, figures=figures(report))


def write_html(report: DemoReport, path: str | Path) -> None:
    """Write `render`'s page.

    Raises:
        MissingDependencyError: without the packages of `mvq[report]`.
    """
    Path(path).write_text(render(report), encoding="utf-8")


def _source(name: str) -> str:
    return resources.files("mvq.report").joinpath(name).read_text(encoding="utf-8")
