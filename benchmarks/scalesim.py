"""How far are cycles of a weight-stationary array from those of SCALE-Sim, and why?

    uv run python -m benchmarks.scalesim [--tool PYTHON]

ResNet-18/50, VGG-16, AlexNet and MobileNet-V1, dense, at 224 x 224, on the presets `ws-16`, `ws-32` and `ws-64`, mapped
for cycles. Ours are those of the array itself: work, pipeline, weights. SCALE-Sim's (`scalesim_cycles`) are by its
published closed form for an array of the same size: `folds (2 R + C + T - 2)`. `difference` is theirs minus ours; the
columns after it are the causes of `mvq.accel.cycle.scalesim.Causes` and add up to it. Memory is in neither: ours is in
columns of its own.

`scalesim_report` is what the tool should print as `Total Cycles`, `scalesim_measured` what it did print: with
`--tool`, the interpreter of an environment that has `scalesim` (`pip install scalesim==3.0.0 'numpy<2.4'`), it runs
the layers of `MEASURED` at 32 x 32, with 4 MiB for each memory and bandwidth as needed, so that nothing stalls, in some
minutes. Without, figures measured earlier stay. Either way they must equal `scalesim_report`. A layer of several groups
runs as one layer a group, whose cycles are added. Rows go to `results/scalesim.csv`.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import torchvision

from benchmarks.table import RESULTS, write_csv
from mvq.accel.cycle import LayerRun, run_network
from mvq.accel.cycle.scalesim import Causes, array_cycles, causes, folds, topology
from mvq.accel.shapes import shapes_of
from mvq.accel.spec import AcceleratorSpec, preset
from mvq.accel.workload import Layer
from mvq.cli.output import console, make_table
from mvq.errors import MvqError
from mvq.tasks.networks.mobilenet_v1 import MobileNetV1

SIDES = (16, 32, 64)
#: What the tool runs, at `MEASURED_SIDE`: a layer of each kind that takes it no more than a minute.
MEASURED = {
    "resnet18": ("conv1", "layer1.0.conv1", "layer2.0.downsample.0", "layer3.0.conv1", "layer4.0.downsample.0", "fc"),
    "resnet50": ("layer1.0.conv3", "layer4.2.conv1"),
    "alexnet": ("features.0", "features.3"),
    "vgg16": ("features.0",),
    "mobilenet_v1": ("features.4.3", "features.13.0"),
}
MEASURED_SIDE = 32
#: Run by the tool's interpreter: configuration, topology, folder.
SCRIPT = """
import sys
from scalesim.scale_sim import scalesim
config, layers, folder = sys.argv[1:]
tool = scalesim(save_disk_space=True, verbose=False, config=config, topology=layers, layout=layers)
tool.run_scale(top_path=folder)
"""
CONFIG = """
[general]
run_name = run
[architecture_presets]
ArrayHeight = {side}
ArrayWidth = {side}
IfmapSramSzkB = 4096
FilterSramSzkB = 4096
OfmapSramSzkB = 4096
IfmapOffset = 0
FilterOffset = 10000000
OfmapOffset = 20000000
Dataflow = ws
ReadRequestBuffer = 64
WriteRequestBuffer = 64
[layout]
IfmapCustomLayout = False
IfmapSRAMBankBandwidth = 10
IfmapSRAMBankNum = 10
IfmapSRAMBankPort = 2
FilterCustomLayout = False
FilterSRAMBankBandwidth = 10
FilterSRAMBankNum = 10
FilterSRAMBankPort = 2
[sparsity]
SparsitySupport = false
[run_presets]
InterfaceBandwidth = CALC
UseRamulatorTrace = False
"""

Key = tuple[str, str]


def workloads() -> dict[str, list[Layer]]:
    """Layers of each network, all dense."""
    names = ("resnet18", "resnet50", "vgg16", "alexnet")
    found = {name: shapes_of(torchvision.models.get_model(name), (224, 224)) for name in names}
    return {**found, "mobilenet_v1": shapes_of(MobileNetV1(), (224, 224))}


def run_tool(python: str, layers: Sequence[Layer], side: int) -> list[int]:
    """Cycles without stalls that the real tool reports, one a layer."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tool.cfg").write_text(CONFIG.format(side=side))
        (folder / "layers.csv").write_text(topology(layers))
        command = [python, "-W", "ignore", "-c", SCRIPT, "tool.cfg", "layers.csv", "out"]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        with (folder / "out" / "run" / "COMPUTE_REPORT.csv").open(newline="") as file:
            lines = list(csv.DictReader(file, skipinitialspace=True))
    cycles = iter(int(line["Total Cycles"]) - int(line["Stall Cycles"]) for line in lines)
    return [sum(next(cycles) for _ in range(layer.groups)) for layer in layers]


def measure(python: str, layers: Mapping[str, Sequence[Layer]]) -> dict[Key, int]:
    """Run the tool on all of `MEASURED`."""
    found: dict[Key, int] = {}
    for network, names in MEASURED.items():
        chosen = [layer for layer in layers[network] if layer.name in names]
        if len(chosen) != len(names):
            raise MvqError(f"{network}: not all of {', '.join(names)} are layers that run once; name those that do")
        for layer in chosen:
            found[network, layer.name] = run_tool(python, [layer], MEASURED_SIDE)[0]
            print(f"{network} {layer.name}: {found[network, layer.name]:,} cycles measured", flush=True)
    return found


def measured_before(path: Path) -> dict[Key, int]:
    """Figures of an earlier file."""
    if not path.is_file():
        return {}
    with path.open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["scalesim_measured"]]
    return {(line["network"], line["layer"]): int(line["scalesim_measured"]) for line in lines}


def row(network: str, spec: AcceleratorSpec, run: LayerRun, measured: int | None) -> dict[str, Any]:
    """A line of the file.

    Raises:
        MvqError: if what was measured is not what the closed form says.
    """
    layer, theirs, why = run.layer, folds(run.layer, rows=spec.rows, cols=spec.cols), causes(spec, run)
    difference = theirs.cycles - array_cycles(run)
    if why.total != difference:
        raise MvqError(f"{network} {layer.name} on {spec.name}: causes add up to {why.total}, not to {difference}")
    if measured not in (None, theirs.reported):
        raise MvqError(f"{network} {layer.name} at {spec.rows}: measured {measured}, expected {theirs.reported}")
    return {
        "network": network,
        "side": spec.rows,
        "layer": layer.name,
        "ours_compute": run.cycles.compute,
        "ours_bubble": run.cycles.bubble,
        "ours_weights": run.cycles.weights,
        "ours_cycles": array_cycles(run),
        "ours_memory": run.cycles.memory,
        "ours_dram": run.cycles.dram,
        "scalesim_folds": theirs.n,
        "scalesim_cycles": theirs.cycles,
        "scalesim_report": theirs.reported,
        "scalesim_measured": "" if measured is None else measured,
        "difference": difference,
        **asdict(why),
    }


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """Networks, with causes in percent of SCALE-Sim's cycles."""
    names = [f.name for f in fields(Causes)]
    columns = [("network", "<"), ("side", ">"), ("ours", ">"), ("SCALE-Sim", ">"), ("ratio", ">")]
    table = make_table("Cycles of the array; causes in % of SCALE-Sim's", [*columns, *((n, ">") for n in names)])
    for network, side in dict.fromkeys((line["network"], line["side"]) for line in rows):
        lines = [line for line in rows if (line["network"], line["side"]) == (network, side)]
        ours, theirs = (sum(line[key] for line in lines) for key in ("ours_cycles", "scalesim_cycles"))
        shares = (f"{100 * sum(line[name] for line in lines) / theirs:.1f}" for name in names)
        table.add_row(network, str(side), f"{ours:,}", f"{theirs:,}", f"{theirs / ours:.2f}", *shares)
    console().print(table)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tool", metavar="PYTHON", help="interpreter that has scalesim")
    parser.add_argument("--output", type=Path, default=RESULTS / "scalesim.csv", help="CSV file")
    options = parser.parse_args(arguments)
    layers = workloads()
    measured = measure(options.tool, layers) if options.tool else measured_before(options.output)
    rows = []
    for name in layers:
        for side in SIDES:
            spec = preset(f"ws-{side}")
            for run in run_network(spec, layers[name], objective="cycles").layers:
                known = measured.get((name, run.layer.name)) if side == MEASURED_SIDE else None
                rows.append(row(name, spec, run, known))
    partial = options.output.with_suffix(".partial")
    write_csv(partial, rows)
    partial.replace(options.output)
    show(rows)


if __name__ == "__main__":
    main()
