"""`mvq demo`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from mvq.cli.output import console, make_table, note, number, print_json
from mvq.errors import MissingDependencyError

if TYPE_CHECKING:
    from rich.table import Table

    from mvq.demo import DemoReport


def run(folder: Path, *, seed: int, epochs: int | None, as_json: bool) -> None:
    """Run the demo, print its table, write its report.

    Raises:
        MvqError: on wrong options.
    """
    from mvq import demo

    report = demo.run(
        folder,
        seed=seed,
        epochs=demo.DENSE_EPOCHS if epochs is None else epochs,
        on_step=lambda text: note(f"mvq: {text}"),
        progress=True,
    )
    (folder / "results.json").write_text(json.dumps(report.to_dict(), indent=2) + "\n", encoding="utf-8")
    html: Path | None = folder / "report.html"
    try:
        from mvq.report import write_html

        write_html(report, folder / "report.html")
    except MissingDependencyError as error:
        note(f"mvq: no HTML report: {error}")
        html = None
    if as_json:
        print_json(report.to_dict() | {"report": None if html is None else str(html)})
        return
    out = console()
    out.print(_table(report))
    best = next(case for case in report.cases if case.name == report.best)
    same = "the same" if report.reloaded == best.after else f"before saving it was {best.after:.2f}%"
    out.print(f"{folder / best.file}, loaded into a new network: {report.reloaded:.2f}% ({same})", markup=False)
    out.print(f"dense network: {report.dense:.2f}% +- {report.standard_error:.2f}, {report.dense_bytes:,} bytes")
    out.print(f"{report.n_test} test images; {report.seconds:.0f} s in all")
    if html is not None:
        out.print(f"report: {html}", markup=False)


def _table(report: DemoReport) -> Table:
    headers = ["case", "before %", "after %", "file bytes", "x convs", "x whole", "x file", "bits/weight"]
    headers += ["rel. error", "MACs"]
    table = make_table("Handwritten digits", list(zip(headers, "<" + ">" * 9, strict=True)))
    table.add_row(
        "dense",
        "",
        number(report.dense, ".2f"),
        f"{report.dense_bytes:,}",
        "1.0",
        "1.0",
        "1.0",
        "32.00",
        "0",
        f"{report.flops_dense:,}",
    )
    for case in report.cases:
        ratios = [number(case.sizes[k].ratio, ".1f") for k in ("compressed_convs", "whole_model", "on_disk")]
        table.add_row(
            case.title,
            number(case.before, ".2f"),
            number(case.after, ".2f"),
            f"{case.sizes['on_disk'].bytes:,}",
            *ratios,
            number(case.bits_per_weight, ".2f"),
            number(case.relative_sse, ".3f"),
            f"{case.flops_executed:,}",
        )
    return table
