"""How far are modelled machines from what the paper of the method reports?

    MVQ_DATA=FOLDER uv run python -m benchmarks.machine_paper

ResNet-18/50, VGG-16, AlexNet and MobileNet-V1 (point-wise layers alone, as in the paper, and whole) run on the presets
at 16, 32 and 64. 4:16 (1:2 for MobileNet-V1), all convolutions but the first compressed. Of VGG-16 and AlexNet the
convolutions, which must be what the paper ran, as its speed-ups leave no room for the weights of their fully connected
layers; and the whole, with those layers compressed. `modelled` is ours, `quoted` is printed in MVQ (ASPLOS 2025) or
read off its figures; rows without a quoted figure answer what the paper leaves open. Rows go to
`results/machine_paper.csv`, the tables of `docs/accelerator.md` are made of them.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torchvision

from benchmarks.table import RESULTS, read_csv, write_csv
from mvq.accel.cost import Area, Bill, CostTable, area, energy
from mvq.accel.cycle import run_network
from mvq.accel.rivals import QUOTED as QUOTED_RIVALS
from mvq.accel.rivals import RIVALS, run_rival
from mvq.accel.rivals.sparsity import ACTIVATIONS
from mvq.accel.shapes import shapes_of
from mvq.accel.spec import preset
from mvq.accel.workload import Layer
from mvq.patterns import Pattern
from mvq.progress import track
from mvq.tasks.networks.mobilenet_v1 import MobileNetV1

SIDES = (16, 32, 64)
KINDS = ("ws", "ws-cms", "ews", "ews-nm", "ews-c", "ews-cm", "ews-cms", "ews-p")
MAIN = ("resnet18", "resnet50", "vgg16", "alexnet", "mobilenet_v1_pointwise")
NETWORKS = (*MAIN, "vgg16_whole", "alexnet_whole", "mobilenet_v1")

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
    """A machine on a network: mapped for energy times delay, but `fastest`, which is mapped for cycles."""

    seconds: float
    fastest: float
    bill: Bill
    area: Area


def workloads() -> dict[str, list[Layer]]:
    """Layers of each network."""
    models = torchvision.models
    mobile = shapes_of(MobileNetV1(), (224, 224), pattern="1:2")
    vgg = shapes_of(models.vgg16(), (224, 224), pattern="4:16", linear=True)
    alexnet = shapes_of(models.alexnet(), (224, 224), pattern="4:16", linear=True)
    return {
        "resnet18": shapes_of(models.resnet18(), (224, 224), pattern="4:16"),
        "resnet50": shapes_of(models.resnet50(), (224, 224), pattern="4:16"),
        "vgg16": [layer for layer in vgg if layer.name.startswith("features")],
        "vgg16_whole": vgg,
        "alexnet": [layer for layer in alexnet if layer.name.startswith("features")],
        "alexnet_whole": alexnet,
        "mobilenet_v1_pointwise": [layer for layer in mobile if layer.kernel == (1, 1) and layer.in_size != (1, 1)],
        "mobilenet_v1": mobile,
    }


def simulate(layers: Sequence[Layer], machine: str, side: int, table: CostTable, pattern: str) -> Figures:
    """One machine on one network."""
    spec = preset(f"{machine}-{side}")
    if spec.has_masks and spec.nm != Pattern.parse(pattern):
        spec = replace(spec, pattern=pattern, d=8)  # 16.8x, as the paper compresses MobileNet-V1 with 1:2
    run = run_network(spec, layers)
    fast = run_network(spec, layers, objective="cycles")
    return Figures(seconds=run.seconds, fastest=fast.seconds, bill=energy(run, table), area=area(spec, table))


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
        yield "speed-up over WS", machine, ws.fastest / each.fastest
        yield "speed-up over EWS", machine, ews.fastest / each.fastest
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


RIVAL_NETWORKS = ("resnet18", "vgg16", "alexnet")


def against_rivals(name: str, layers: Sequence[Layer], table: CostTable) -> Iterator[tuple[str, str, float]]:
    """Metric, machine and value of ours and prior machines: same memories, node, clock, multipliers and activations."""
    for machine in ("ews", "ews-cms", "ews-p"):
        run = run_network(preset(f"{machine}-64"), layers)
        kept = [each.actions.nonzero_macs for each in run.layers]
        zeros = 1 - sum(n * _activations(name, i) for i, n in enumerate(kept)) / sum(kept)
        yield from _efficiencies(machine, energy(run, table, activation_zeros=zeros))
    for rival, model in RIVALS.items():
        stated = model.published[name]
        # A statement of the whole network, of which the first layers run here.
        sparsity = replace(stated, **{k: tuple(stated.value(k, i) for i in range(len(layers))) for k in stated.BOUNDS})
        found = run_rival(rival, layers, like=preset("ews-p-64"), table=table, sparsity=sparsity)
        yield from _efficiencies(model.name, found.bill)


def _activations(name: str, i: int) -> float:
    """Share of a layer's input that is not zero; the image has no zeros."""
    share = ACTIVATIONS[name]
    if isinstance(share, tuple):
        return share[i]
    return share if i else 1.0


def _efficiencies(machine: str, bill: Bill) -> Iterator[tuple[str, str, float]]:
    yield "rivals: TOPS/W without DRAM", machine, bill.tops_per_watt()
    yield "rivals: TOPS/W with DRAM", machine, bill.tops_per_watt(dram=True)
    yield "rivals: ms", machine, bill.seconds * 1e3


#: Why a figure is more than 15% off: (table, metric, machine or network), each a prefix -> cause; the first that fits.
CAUSES = {
    ("", "speed-up", "alexnet"): "five layers of which the first, int8 in four passes on a sparse tile, is the longest",
    (
        "",
        "speed-up",
        "ews",
    ): "WS is not held up here: weights load beside the work and L1 serves partial sums every cycle",
    ("", "speed-up", ""): "64 bits between L2 and L1 bind feature maps of all machines alike; WS loads beside the work",
    ("published", "TOPS/W", ""): "the printed access energies alone: no clock, control, pipeline or leakage",
    (
        "cited",
        "TOPS/W",
        "",
    ): "registers of flip-flops (Aladdin) and CACTI memories: more energy and leakage than in the paper",
    (
        "published",
        "efficiency over EWS",
        "ews-cm",
    ): "gated multiplications cost nothing, so masks save as much in a dense tile",
    ("published", "efficiency over EWS", ""): "what all machines share (clock, control, leakage) is not in the table",
    ("published", "efficiency over WS", "ws-cms"): "partial sums in L1 weigh more: the table has little else",
    (
        "published",
        "efficiency over WS",
        "",
    ): "partial sums of WS in L1 at the printed energies; no clock, control or leakage",
    ("cited", "efficiency", ""): "leakage of 2 MiB of L2 and of logic is in every machine and goes with time",
    (
        "published",
        "data access",
        "resnet",
    ): "classifier and first convolution stay int8; both machines map for reuse of L1",
    (
        "published",
        "data access",
        "mobilenet",
    ): "nearly all access is weights from DRAM; d and k of the paper are not printed",
    ("published", "data access", ""): "mapping for reuse of L1 leaves mostly weights from DRAM, which masks shrink",
    ("cited", "data access", ""): "leakage counts as access here",
    ("cells", "array", ""): "unplaced synthesis without wires and clock tree, latches for registers",
    ("cells", "L", ""): "CACTI's low-power cells; the paper's macros are of a memory compiler",
}


def cause(table: str, metric: str, network: str, machine: str) -> str:
    """Why a figure is more than 15% off."""
    return next(
        text
        for (one, two, three), text in CAUSES.items()
        if table.startswith(one) and metric.startswith(two) and (network.startswith(three) or machine.startswith(three))
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--report-only", action="store_true", help="make the document of the rows there are")
    if parser.parse_args(argv).report_only:
        rows_there = read_csv(RESULTS / "machine_paper.csv")
        DOCUMENT.write_text(document([{**r, "side": int(r["side"])} for r in rows_there]), encoding="utf-8")
        return
    started, rows = time.perf_counter(), []
    jobs = [(table, name, side) for table in ("published", "cited") for name in NETWORKS for side in SIDES]
    layers = workloads()
    for table, name, side in track(jobs, "machines"):
        costs = CostTable.load(table)
        pattern = "1:2" if name.startswith("mobilenet") else "4:16"
        found = {kind: simulate(layers[name], kind, side, costs, pattern) for kind in KINDS}
        for metric, machine, value in metrics(found):
            rows.append(row(table, metric, name, machine, side, value))
        if side == 64 and name in RIVAL_NETWORKS:
            found_here = against_rivals(name, layers[name], costs)
            rows += [row(table, metric, name, machine, side, value) for metric, machine, value in found_here]
        if (table, name) == ("cited", "resnet18"):
            rows += [row("cells", metric, "", machine, side, value) for metric, machine, value in areas(found)]
    write_csv(RESULTS / "machine_paper.csv", rows)
    DOCUMENT.write_text(document(rows), encoding="utf-8")
    print(f"{len(rows)} rows in {time.perf_counter() - started:.0f} s")


DOCUMENT = Path(__file__).parents[1] / "docs" / "accelerator.md"
_INTRO = """# What the machines do

Made by `MVQ_DATA=FOLDER uv run python -m benchmarks.machine_paper`. *Modelled* figures are of this package, with the
cost table named; *quoted* ones are printed in MVQ (ASPLOS 2025) or read off its figures. Nothing here was measured on
silicon; areas of logic are sums of synthesised parts. `docs/spec/machine.md` says what is counted.

Machines: `ws` and `ews` int8; `ews-nm` kept int8 weights and masks, without vector quantization; `ews-c` common vector
quantization; `ews-cm` masked codewords on a dense tile; `ews-cms` and `ws-cms` on a sparse tile, the published machine;
`ews-p` packed codewords and a table of positions, ours.
"""


def document(rows: Sequence[Mapping[str, Any]]) -> str:
    """The tables as Markdown."""
    value = {(r["table"], r["metric"], r["network"], r["machine"], r["side"]): float(r["modelled"]) for r in rows}

    def of(table: str, metric: str, machine: str, *, network: str = "resnet18", side: int = 64) -> float:
        return value[table, metric, network, machine, side]

    lines = [_INTRO, "## Goals, on ResNet-18 at 64 x 64", ""]
    lines += ["| quotient (modelled) | goal | " + " | ".join(KINDS[3:]) + " |", "|---|---|" + "---|" * len(KINDS[3:])]
    goals = [
        ("published", "efficiency over EWS without DRAM", "2.3 or more"),
        ("published", "efficiency over EWS with DRAM", "3 or more"),
        ("cited", "efficiency over EWS without DRAM", ""),
        ("cited", "efficiency over EWS with DRAM", ""),
        ("cells", "array / EWS", "0.5 or less"),
        ("cells", "array / EWS-CM", "0.45 or less"),
    ]
    for table, metric, goal in goals:
        network = "" if table == "cells" else "resnet18"
        cells = " | ".join(f"{of(table, metric, machine, network=network):.3f}" for machine in KINDS[3:])
        lines.append(f"| {metric} (`{table}`) | {goal} | {cells} |")
    lines += ["", "## Time and efficiency at 64 x 64, modelled", "", _TIMES, ""]
    columns = ("ms", "images/s", *(f"{e}TOPS/W {d} DRAM" for e in ("", "executed ") for d in ("without", "with")))
    for table in ("published", "cited"):
        lines += [f"Table `{table}`:", "", "| network | machine | " + " | ".join(columns) + " |"]
        lines.append("|---|---|" + "---|" * len(columns))
        for network in NETWORKS:
            for machine in KINDS:
                cells = " | ".join(f"{of(table, c, machine, network=network):.3g}" for c in columns)
                lines.append(f"| {network} | {machine} | {cells} |")
        lines.append("")
    lines += ["## What the paper leaves open", "", *_open_points(of), ""]
    lines += ["## Prior sparse accelerators", "", _RIVALS, "", *_rival_tables(of)]
    lines += ["## Modelled and quoted", "", _QUOTING, ""]
    for table in ("published", "cells", "cited"):
        lines += [f"Table `{table}`, sides 16 / 32 / 64:", ""]
        lines += [
            "| metric | network | machine | modelled | quoted | difference % | cause |",
            "|---|---|---|---|---|---|---|",
        ]
        groups: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
        for r in rows:
            if r["table"] == table and r["quoted"]:
                groups.setdefault((r["metric"], r["network"], r["machine"]), []).append(r)
        for key in sorted(groups):
            group = groups[key]
            joined = (" / ".join(r[k] for r in group) for k in ("modelled", "quoted", "difference_percent"))
            causes = "; ".join(dict.fromkeys(r["cause"] for r in group if r["cause"]))
            lines.append(f"| {' | '.join((*key, *joined, causes))} |")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


_TIMES = """TOPS/W count two operations a multiply-accumulate: of the dense network, or executed (of weights that are
not pruned). `mobilenet_v1` has its depth-wise layers in."""
_QUOTING = """Quotients compare better than absolute values: `published` has the energy of accesses and
multiplications alone, `cited` adds pipeline and leakage but takes registers and memories from other sources than the
paper."""


_RIVALS = """Modelled with the memories, widths, node and clock of the 64 x 64 machines, 1024 multipliers, the same
zeros among the activations for all, and weights as sparse as each paper has them.
[rivals-hardware.md](rivals-hardware.md) says what is assumed, in the rival's favour where its paper is silent.
Dense-equivalent TOPS/W, convolutions of VGG-16 and AlexNet. The goal of 1.73 times the best is reached on ResNet-18
with DRAM and the energies of the paper, not elsewhere. What bounds it: S2TA skips zero activations, which ours only
holds, so that it needs fewer cycles, accesses of registers and leakage; all its transfers are taken to run beside its
work, ours wait tile by tile. Ours moves fewer weights, which counts where they come from DRAM."""


def _rival_tables(of: Callable[..., float]) -> list[str]:
    rivals = [model.name for model in RIVALS.values()]
    machines = ("ews", "ews-cms", "ews-p", *rivals)
    lines = ["| table | network | DRAM | " + " | ".join(machines) + " | ews-p / best rival |"]
    lines.append("|---|---|---|" + "---|" * (len(machines) + 1))
    for table in ("published", "cited"):
        for network in RIVAL_NETWORKS:
            for dram in ("without", "with"):
                each = {m: of(table, f"rivals: TOPS/W {dram} DRAM", m, network=network) for m in machines}
                cells = " | ".join(f"{each[m]:.3g}" for m in machines)
                quotient = each["ews-p"] / max(each[name] for name in rivals)
                lines.append(f"| {table} | {network} | {dram} | {cells} | {quotient:.2f} |")
    lines += ["", "Quoted, each on its own memories, workload and node:", ""]
    columns = ("nm", "GHz", "multipliers", "workload", "TOPS/W", "at 40 nm", "mm2")
    lines += ["| machine | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for q in QUOTED_RIVALS:
        cells = (q.node_nm, q.clock_ghz, q.macs, q.workload, q.tops_per_watt, q.tops_per_watt_40nm, q.mm2)
        lines.append(f"| {' | '.join(map(str, (q.machine, *cells)))} |")
    return [*lines, ""]


def _open_points(of: Callable[..., float]) -> list[str]:
    """What the paper leaves open, with our figures."""
    sides = {
        machine: " / ".join(f"{of('cells', 'array / EWS', machine, network='', side=side):.2f}" for side in SIDES)
        for machine in ("ews-cms", "ews-p")
    }
    gains = {
        (metric, machine): of("published", f"efficiency over EWS {metric} DRAM", machine)
        for metric in ("without", "with")
        for machine in ("ews-nm", "ews-cms")
    }
    return [
        f"* Array over EWS at 16 / 32 / 64: `ews-cms` {sides['ews-cms']}, as in the paper larger than the baseline "
        f"where the array is small; `ews-p`, whose codebook is a quarter, {sides['ews-p']}.",
        f"* Sparsity alone (`ews-nm`) gives {gains['without', 'ews-nm']:.2f} of the {gains['without', 'ews-cms']:.2f} "
        f"times without DRAM; vector quantization shows with DRAM, {gains['with', 'ews-nm']:.2f} against "
        f"{gains['with', 'ews-cms']:.2f}.",
        "* Per executed operation the sparse machines are no better than EWS: see the executed columns above.",
        "* Depth-wise layers use the diagonal of the array: see `mobilenet_v1` beside `mobilenet_v1_pointwise`.",
        "* Memories are the same for all machines of a side.",
    ]


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
        "cause": "" if difference is None or abs(difference) <= 15 else cause(table, metric, network, machine),
    }


if __name__ == "__main__":
    main()
