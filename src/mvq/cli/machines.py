"""The commands that model a machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mvq.cli.options import DataOptions, JsonOption, grouped, need_data

app = typer.Typer()

_DATA = DataOptions()
_ARCHES = ("ws-64", "ews-64", "ews-nm-64", "ews-c-64", "ews-cm-64", "ews-cms-64", "ews-p-64")
_MachineTable = Annotated[
    str, typer.Option("--table", help="Costs: cited, published, gates, or a TOML file.", metavar="TABLE")
]
_NetworkFile = Annotated[
    Path,
    typer.Argument(help="A network in integers (mvq export -o), or a topology CSV of SCALE-Sim.", metavar="NETWORK"),
]
_PatternOption = Annotated[
    str, typer.Option("--pattern", help="N:M of a topology's layers but the first; 1:1 for int8.", metavar="N:M")
]
_ObjectiveOption = Annotated[
    str, typer.Option("--objective", help="Of mappings: edp (energy times delay), cycles or energy.", metavar="NAME")
]
_CsvOption = Annotated[bool, typer.Option("--csv", help="Print CSV.")]
_HtmlOption = Annotated[
    Path | None, typer.Option("--html", help="Write a report with plots, one HTML file.", metavar="FILE")
]


@app.command(
    "run",
    epilog="[bold]Example[/bold]\n\nmvq run r18-int8.mvq --arch ews-p-64 --data imagenet/ --limit 64 --check",
)
@grouped
def run(
    network: Annotated[Path, typer.Argument(help="A network in integers (mvq export -o).", metavar="NETWORK")],
    data: DataOptions = _DATA,
    arch: Annotated[str, typer.Option("--arch", help="A preset such as ews-cms-64, or a .toml file.")] = "ews-cms-64",
    split: Annotated[str, typer.Option(help="train or val.")] = "val",
    check: Annotated[bool, typer.Option("--check", help="Compare every result with the integer network's.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Compute images as a machine does, bit for bit, from its packed weight words."""
    from mvq.cli import running

    need_data(data, "say which images to compute")
    running.run(network, arch, data=data, split=split, check=check, as_json=as_json)


@app.command(
    "simulate",
    epilog="[bold]Examples[/bold]\n\nmvq simulate r18-int8.mvq --arch ews-cms-64 --explain\n\n"
    "mvq simulate resnet18.csv --pattern 4:16 --arch my-machine.toml --csv\n\n"
    "mvq simulate r18-int8.mvq --html r18.html",
)
def simulate(
    network: _NetworkFile,
    arch: Annotated[str, typer.Option("--arch", help="A preset such as ews-cms-64, or a .toml file.")] = "ews-cms-64",
    table: _MachineTable = "cited",
    pattern: _PatternOption = "1:1",
    objective: _ObjectiveOption = "edp",
    explain: Annotated[
        bool, typer.Option("--explain", help="Show where each energy and each area comes from.")
    ] = False,
    html: _HtmlOption = None,
    as_json: JsonOption = False,
    as_csv: _CsvOption = False,
    scale_sim: Annotated[
        bool, typer.Option("--scale-sim", help="Print CSV in the columns of SCALE-Sim's COMPUTE_REPORT.csv.")
    ] = False,
) -> None:
    """Model time, energy and area of a network on a machine, layer by layer."""
    from mvq.cli import simulating

    simulating.simulate(
        network,
        arch,
        table=table,
        pattern=pattern,
        objective=objective,
        explain=explain,
        html=html,
        as_json=as_json,
        as_csv=as_csv,
        scale_sim=scale_sim,
    )


@app.command(
    "compare",
    epilog="[bold]Examples[/bold]\n\nmvq compare r18-int8.mvq\n\n"
    "mvq compare r18-int8.mvq --arch ews-64 --arch ews-cms-64 --table published --html machines.html",
)
def compare(
    network: _NetworkFile,
    arch: Annotated[
        list[str] | None, typer.Option("--arch", help="A machine; repeat for more. The first is what gains refer to.")
    ] = None,
    table: _MachineTable = "cited",
    pattern: _PatternOption = "1:1",
    objective: _ObjectiveOption = "edp",
    html: _HtmlOption = None,
    as_json: JsonOption = False,
    as_csv: _CsvOption = False,
) -> None:
    """Model a network on several machines, each of which stores the weights in its own way."""
    from mvq.cli import simulating

    simulating.compare(
        network,
        arch or _ARCHES,
        table=table,
        pattern=pattern,
        objective=objective,
        html=html,
        as_json=as_json,
        as_csv=as_csv,
    )


@app.command(
    "sweep",
    epilog="[bold]Examples[/bold]\n\nmvq sweep r18-int8.mvq --vary rows=16,32,64 --vary cols=16,32,64 --jobs 2\n\n"
    "mvq sweep resnet18.csv --pattern 4:16 --vary n_codewords=128,256,512 --vary l1_bytes=65536,131072 --csv",
)
def sweep(
    network: _NetworkFile,
    vary: Annotated[
        list[str], typer.Option("--vary", help="A field of the machine and its values; repeat.", metavar="FIELD=V,V")
    ],
    arch: Annotated[str, typer.Option("--arch", help="What to start from: a preset, or a .toml file.")] = "ews-p-64",
    table: _MachineTable = "cited",
    pattern: _PatternOption = "1:1",
    objective: _ObjectiveOption = "edp",
    jobs: Annotated[int, typer.Option("--jobs", "-j", help="Processes.", min=1)] = 1,
    as_json: JsonOption = False,
    as_csv: _CsvOption = False,
) -> None:
    """Model a network on every combination of values, and show the best in time, energy and area."""
    from mvq.cli import simulating

    simulating.sweep(
        network,
        arch,
        vary,
        table=table,
        pattern=pattern,
        objective=objective,
        jobs=jobs,
        as_json=as_json,
        as_csv=as_csv,
    )


_ArchsOption = Annotated[list[str], typer.Option("--arch", help="A preset or a .toml file; repeat for more.")]


@app.command("rtl", epilog="[bold]Example[/bold]\n\nmvq rtl --arch ews-cms-16 --arch ews-p-64 -o verilog/")
def rtl(
    arch: _ArchsOption = ["ews-cms-16"],  # noqa: B006
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder; a file is named after its machine.", metavar="FOLDER")
    ] = Path(),
    as_json: JsonOption = False,
) -> None:
    """Write a machine as SystemVerilog: controller, fetching of inputs, weight loader, array and output unit."""
    from mvq.cli import hardware

    hardware.rtl(arch, output, as_json=as_json)


@app.command(
    "cosim",
    epilog="[bold]Examples[/bold]\n\nmvq cosim r18-int8.mvq --arch ews-cms-16 --data imagenet/\n\n"
    "mvq cosim r18-int8.mvq --data imagenet/ --layer layer1.0.conv1 --stalls 0.3 --waves conv1.vcd\n\n"
    "mvq cosim r18-int8.mvq --data imagenet/ --layer layer1.0.conv1 --liberty cells.lib.gz",
)
@grouped
def cosim(
    network: Annotated[Path, typer.Argument(help="A network in integers (mvq export -o).", metavar="NETWORK")],
    data: DataOptions = _DATA,
    arch: Annotated[str, typer.Option("--arch", help="A preset such as ews-cms-16, or a .toml file.")] = "ews-cms-16",
    split: Annotated[str, typer.Option(help="Where the image comes from: train or val.")] = "val",
    layer: Annotated[list[str] | None, typer.Option("--layer", help="A layer; repeat for more, none for all.")] = None,
    stalls: Annotated[
        float, typer.Option("--stalls", help="Share of cycles in which streams wait, at random.", min=0.0, max=0.95)
    ] = 0.0,
    seed: Annotated[int, typer.Option(help="Seed of that.", min=0)] = 0,
    waves: Annotated[
        Path | None, typer.Option("--waves", help="Write the waveforms of one layer.", metavar="FILE.vcd")
    ] = None,
    build: Annotated[
        Path, typer.Option("--build", help="Folder for compiled simulators, used again.", metavar="FOLDER")
    ] = Path("build/rtl"),
    liberty: Annotated[
        Path | None,
        typer.Option("--liberty", help="Run one layer on gates of this library, too: energy.", metavar="FILE.lib"),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run an image through the RTL and compare every partial sum and every cycle with the models."""
    from mvq.cli import hardware

    need_data(data, "say which image to compute")
    hardware.cosim(
        network,
        arch,
        data=data,
        split=split,
        layers=layer or [],
        stalls=stalls,
        seed=seed,
        waves=waves,
        liberty=liberty,
        build=build,
        as_json=as_json,
    )


@app.command(
    "synth",
    epilog="[bold]Example[/bold]\n\nmvq synth --arch ews-64 --arch ews-cms-64 --top mvq_tile --liberty cells.lib.gz",
)
def synth(
    liberty: Annotated[Path, typer.Option("--liberty", help="Cell library, may be gzip.", metavar="FILE.lib")],
    arch: _ArchsOption = ["ews-16", "ews-cm-16", "ews-cms-16", "ews-p-16"],  # noqa: B006
    top: Annotated[str, typer.Option("--top", help="mvq_machine, or a module of it such as mvq_tile.")] = "mvq_machine",
    booth: Annotated[bool, typer.Option("--booth/--no-booth", help="Multipliers in Booth form.")] = True,
    timing: Annotated[bool, typer.Option("--timing", help="The longest path between registers, too.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Map the RTL to a cell library with yosys and show the area of each component."""
    from mvq.cli import hardware

    hardware.synth(arch, liberty, top=top, booth=booth, timing=timing, as_json=as_json)
