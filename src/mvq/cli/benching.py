"""`mvq bench`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mvq.cli.output import console, note, print_json
from mvq.errors import MissingDependencyError

if TYPE_CHECKING:
    from mvq.bench import Study

app = typer.Typer(no_args_is_help=True, help="Compare methods on equal terms.")

_EXAMPLES = """[bold]Examples[/bold]

mvq bench accuracy --jobs 2

mvq bench accuracy benchmarks/accuracy/cifar10.toml --jobs 2 --only ours --only D --seeds 0

mvq bench accuracy benchmarks/accuracy/cifar10.toml --report-only"""


@app.callback()
def group() -> None:
    """Compare methods on equal terms."""


@app.command(epilog=_EXAMPLES)
def accuracy(
    study: Annotated[
        Path | None, typer.Argument(help="A study as TOML; without it, handwritten digits.", metavar="[STUDY.toml]")
    ] = None,
    jobs: Annotated[int, typer.Option("--jobs", "-j", help="Rows measured at a time, each in a process.", min=1)] = 1,
    only: Annotated[list[str] | None, typer.Option("--only", help="A method; repeat for more.")] = None,
    networks: Annotated[list[str] | None, typer.Option("--networks", help="A network; repeat for more.")] = None,
    sizes: Annotated[list[float] | None, typer.Option("--sizes", help="A ratio; repeat for more.")] = None,
    seeds: Annotated[list[int] | None, typer.Option("--seeds", help="A seed; repeat for more.", min=0)] = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the digits study; a file names its own.")
    ] = Path("mvq-bench"),
    device: Annotated[str, typer.Option("--device", help="cpu or cuda.")] = "cpu",
    force: Annotated[bool, typer.Option("--force", help="Measure again what was measured.")] = False,
    report_only: Annotated[bool, typer.Option("--report-only", help="Only write the report anew.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Accuracy of methods at equal size, with equal data, steps and teacher.

    Rows already measured are kept, so that an interrupted run goes on. A row that fails is recorded with its error; the
    exit code is 1 then.
    """
    from mvq import bench

    whole = bench.digits_study(output) if study is None else bench.Study.from_toml(study)
    part = whole.only(
        networks=tuple(networks or ()), sizes=tuple(sizes or ()), methods=tuple(only or ()), seeds=tuple(seeds or ())
    )
    rows: list[dict[str, str]] = []
    if not report_only:
        rows = bench.run(part, n_jobs=jobs, device=device, force=force, progress=True, on_row=_teller(part))
    _report(whole)
    failed = sum(bool(row["error"]) for row in rows)
    if as_json:
        print_json({"rows": rows, "failed": failed, "table": whole.output.rows})
    else:
        console().print(_summary(whole), markup=False)
    if failed:
        note(f"mvq: {failed} of {len(rows)} rows failed; run again to retry them")
        raise typer.Exit(1)


def _report(study: Study) -> None:
    """Of all rows of the study, also those of other selections."""
    from mvq import bench

    try:
        for path in bench.write_report(study):
            note(f"mvq: wrote {path}")
    except MissingDependencyError as error:
        note(f"mvq: no report: {error}")


def _summary(study: Study) -> str:
    from mvq.bench import Rows
    from mvq.bench.report import short_table

    return short_table(study, Rows(Path(study.output.rows), list(study.evaluate)))


def _teller(study: Study) -> Callable[[Mapping[str, str], int, int], None]:
    """Tells each row in a line."""

    def tell(row: Mapping[str, str], number: int, total: int) -> None:
        head = f"mvq: [{number}/{total}] {row['network']} {row['size_ratio']}x {row['method']} seed {row['seed']}"
        if row["error"]:
            note(f"{head}: failed: {row['error']}")
            return
        values = ", ".join(f"{name} {float(row[f'{name}_percent']):.2f}%" for name in study.evaluate)
        note(f"{head}: {values}, {row['bytes']} bytes, {float(row['seconds']):.0f} s")

    return tell
