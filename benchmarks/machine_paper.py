"""How far are modelled machines from what the paper of the method reports?

    MVQ_DATA=FOLDER uv run python -m benchmarks.machine_paper

ResNet-18/50, VGG-16, AlexNet and MobileNet-V1 (point-wise layers alone, as in the paper, and whole) run on the presets
at 16, 32 and 64. 4:16 (1:2 for MobileNet-V1), all convolutions but the first compressed, in VGG-16 and AlexNet
the fully connected layers too. `modelled` is ours, `quoted` is printed in MVQ (ASPLOS 2025) or read off its figures;
rows without a quoted figure answer what the paper leaves open. Rows go to `results/machine_paper.csv`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torchvision
from mvq.accel.shapes import shapes_of
from rich.progress import track

from benchmarks.table import RESULTS, write_csv
from mvq.accel.cost import Area, Bill, CostTable, area, energy
from mvq.accel.cycle import run_network
from mvq.accel.spec import preset
from mvq.accel.workload import Layer
from mvq.tasks.networks.mobilenet_v1 import MobileNetV1

SIDES = (16, 32, 64)
KINDS = ("ws", "ws-cms", "ews", "ews-nm", "ews-c", "ews-cm", "ews-cms", "ews-p")
MAIN = ("resnet18", "resnet50", "vgg16", "alexnet", "mobilenet_v1_pointwise")
NETWORKS = (*MAIN, "mobilenet_v1")

#: Every quoted figure: metric -> (network, machine) -> values at the sides, of MVQ (ASPLOS 2025).
QUOTED: dict[str, dict[tuple[str, str], tuple[float | None, ...]]] = {
    "data access cost of EWS / EWS-CMS": {
        (name, "ews-cms"): values
        for name, values in zip(
            MAIN,
            ((2.9, 3.6, 4.1), (2.7, 3.2, 3.4), (1.7, 1.9, 2.4), (1.9, 2.3, 3.0), (1.9, 2.0, 1.9)),
            strict=True,
        )
    },
    "speed-up over WS": {
        (name, machine): (None, None, values[i])
        for name, values in zip(
            MAIN, ((1.4, 1.2, 2.2), (1.2, 1.3, 1.9), (1.2, 1.3, 1.9), (1.1, 1.4, 1.7), (1.1, 1.3, 1.5)), strict=True
        )
        for i, machine in enumerate(("ws-cms", "ews", "ews-cms"))
    },
    "TOPS/W without DRAM": {
        ("resnet18", "ws"): (0.7, 1.5, 2.1),
        ("resnet18", "ws-cms"): (0.9, 2.1, 4.5),
        ("resnet18", "ews"): (1.5, 2.2, 2.9),
        ("resnet18", "ews-c"): (1.8, 2.6, 3.8),
        ("resnet18", "ews-cm"): (1.9, 3.0, 4.3),
        ("resnet18", "ews-cms"): (2.3, 4.1, 6.9),
        ("resnet50", "ws"): (0.9, 1.4, 1.9),
        ("resnet50", "ws-cms"): (1.1, 2.1, 3.2),
        ("resnet50", "ews"): (1.8, 2.3, 2.6),
        ("resnet50", "ews-c"): (1.8, 2.7, 3.4),
        ("resnet50", "ews-cm"): (1.9, 3.1, 4.0),
        ("resnet50", "ews-cms"): (2.4, 4.1, 5.7),
    },
    "efficiency over WS without DRAM": {
        ("vgg16", "ws-cms"): (1.3, 1.6, 2.1),
        ("vgg16", "ews"): (2.4, 1.6, 1.4),
        ("vgg16", "ews-cms"): (4.8, 3.9, 4.3),
        ("alexnet", "ws-cms"): (1.2, 1.3, 1.4),
        ("alexnet", "ews"): (2.4, 2.0, 1.4),
        ("alexnet", "ews-cms"): (3.4, 3.3, 2.6),
        ("mobilenet_v1_pointwise", "ws-cms"): (1.3, 1.3, 1.7),
        ("mobilenet_v1_pointwise", "ews"): (2.1, 1.6, 1.3),
        ("mobilenet_v1_pointwise", "ews-cms"): (2.5, 2.3, 2.7),
    },
    "array mm2": {
        ("", "ws"): (0.188, 0.734, 2.812),
        ("", "ews"): (0.36, 1.14, 4.236),
        ("", "ews-c"): (0.65, 1.505, 4.776),
        ("", "ews-cm"): (0.65, 1.505, 4.776),
        ("", "ews-cms"): (0.469, 0.828, 2.129),
    },
    "L1 mm2": {("", "ews-cms"): (0.484, 0.968, 0.968)},
    "L2 mm2": {("", "ews-cms"): (6.924, 6.924, 6.924)},
}
#: What of the efficiencies the paper gives is its quotient over EWS: a ratio needs no absolute scale.
for _name in ("resnet18", "resnet50"):
    _tops = QUOTED["TOPS/W without DRAM"]
    QUOTED.setdefault("efficiency over EWS without DRAM", {}).update(
        {
            (_name, machine): tuple(a / b for a, b in zip(_tops[_name, machine], _tops[_name, "ews"], strict=True))  # type: ignore[operator]
            for machine in ("ews-c", "ews-cm", "ews-cms")
        }
    )


@dataclass(frozen=True, kw_only=True)
class Figures:
    """A machine on a network."""

    seconds: float
    bill: Bill
    area: Area


def workloads() -> dict[str, list[Layer]]:
    """Layers of each network."""
    models = torchvision.models
    mobile = shapes_of(MobileNetV1(), (224, 224), pattern="1:2")
    return {
        "resnet18": shapes_of(models.resnet18(), (224, 224), pattern="4:16"),
        "resnet50": shapes_of(models.resnet50(), (224, 224), pattern="4:16"),
        "vgg16": shapes_of(models.vgg16(), (224, 224), pattern="4:16", linear=True),
        "alexnet": shapes_of(models.alexnet(), (224, 224), pattern="4:16", linear=True),
        "mobilenet_v1_pointwise": [layer for layer in mobile if layer.kernel == (1, 1) and layer.in_size != (1, 1)],
        "mobilenet_v1": mobile,
    }


def simulate(layers: Sequence[Layer], machine: str, side: int, table: CostTable, pattern: str) -> Figures:
    """One machine on one network."""
    spec = preset(f"{machine}-{side}")
    if spec.has_masks:
        spec = replace(spec, pattern=pattern)
    run = run_network(spec, layers)
    return Figures(seconds=run.seconds, bill=energy(run, table), area=area(spec, table))


def metrics(found: Mapping[str, Figures]) -> Iterator[tuple[str, str, float]]:
    """Metric, machine and value, from the figures of all machines at one side."""
    ws, ews = found["ws"], found["ews"]
    for machine, each in found.items():
        bill = each.bill
        accesses = bill.total_pj() - bill.by_level()["array"]
        yield (
            "data access cost of EWS / EWS-CMS",
            machine,
            (ews.bill.total_pj() - ews.bill.by_level()["array"]) / accesses,
        )
        yield "speed-up over WS", machine, ws.seconds / each.seconds
        yield "speed-up over EWS", machine, ews.seconds / each.seconds
        yield "ms", machine, each.seconds * 1e3
        yield "images/s", machine, 1 / each.seconds
        for executed in (False, True):
            for dram in (False, True):
                name = ("executed " if executed else "") + "TOPS/W with" + ("" if dram else "out") + " DRAM"
                yield name, machine, bill.tops_per_watt(executed=executed, dram=dram)
        for dram in (False, True):
            with_it = "with" if dram else "without"
            for base, other in (("WS", ws), ("EWS", ews)):
                value = other.bill.total_pj(dram=dram) / bill.total_pj(dram=dram)
                yield f"efficiency over {base} {with_it} DRAM", machine, value


def areas(found: Mapping[str, Figures]) -> Iterator[tuple[str, str, float]]:
    """The same of areas."""
    for machine, each in found.items():
        levels = each.area.by_level()
        yield "array mm2", machine, each.area.array_mm2
        yield "array / EWS", machine, each.area.array_mm2 / found["ews"].area.array_mm2
        yield "array / EWS-CM", machine, each.area.array_mm2 / found["ews-cm"].area.array_mm2
        yield "L1 mm2", machine, levels["L1"]
        yield "L2 mm2", machine, levels["L2"]
        yield "chip mm2", machine, each.area.total_mm2


def cause(metric: str, network: str, machine: str, side: int, difference: float) -> str:
    """Why a figure is more than 15% off."""
    return ""


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args(argv)
    started, rows = time.perf_counter(), []
    jobs = [(table, name, side) for table in ("published", "cited") for name in NETWORKS for side in SIDES]
    layers = workloads()
    for table, name, side in track(jobs, "machines"):
        costs = CostTable.load(table)
        pattern = "1:2" if name.startswith("mobilenet") else "4:16"
        found = {kind: simulate(layers[name], kind, side, costs, pattern) for kind in KINDS}
        for metric, machine, value in metrics(found):
            rows.append(row(table, metric, name, machine, side, value))
        if (table, name) == ("cited", "resnet18"):
            rows += [row("cells", metric, "", machine, side, value) for metric, machine, value in areas(found)]
    write_csv(RESULTS / "machine_paper.csv", rows)
    print(f"{len(rows)} rows in {time.perf_counter() - started:.0f} s")


def row(table: str, metric: str, network: str, machine: str, side: int, value: float) -> dict[str, Any]:
    """A line of the file."""
    quoted = QUOTED.get(metric, {}).get((network, machine), (None,) * 3)[SIDES.index(side)]
    difference = None if quoted is None else 100 * (value / quoted - 1)
    return {
        "table": table,
        "metric": metric,
        "network": network,
        "machine": machine,
        "side": side,
        "modelled": f"{value:.4g}",
        "quoted": "" if quoted is None else f"{quoted:.3g}",
        "difference_percent": "" if difference is None else f"{difference:.0f}",
        "cause": ""
        if difference is None or abs(difference) <= 15
        else cause(metric, network, machine, side, difference),
    }


if __name__ == "__main__":
    main()
