"""How do our weight-stationary cycles compare with SCALE-Sim's, layer by layer?

    uv run --with scalesim python -m benchmarks.scalesim [--tool-positions 800]

ResNet-18/50, VGG-16, AlexNet and MobileNet-V1 on the presets `ws-16`, `ws-32` and `ws-64`, mapped for cycles, DRAM and
transfers between L1 and L2 left out, as in SCALE-Sim's compute cycles. Both columns are models; the difference is split
into causes that add up to it. `tool_cycles` is what SCALE-Sim's own code (PyPI `scalesim`) counts, where it is
installed and the layer has few positions: it lists every operand of every cycle. Rows go to `results/scalesim.csv`.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np
import torchvision

from benchmarks.table import RESULTS, write_csv
from mvq.accel.cycle import best_mapping
from mvq.accel.cycle.scalesim import difference, weight_stationary
from mvq.accel.shapes import shapes_of
from mvq.accel.spec import preset
from mvq.accel.workload import Layer
from mvq.progress import track
from mvq.tasks.networks.mobilenet_v1 import MobileNetV1

SIDES = (16, 32, 64)


def workloads() -> dict[str, list[Layer]]:
    """Layers of each network, all int8."""
    models = torchvision.models
    names = ("resnet18", "resnet50", "vgg16", "alexnet")
    found = {name: shapes_of(models.get_model(name), (224, 224)) for name in names}
    return {**found, "mobilenet_v1": shapes_of(MobileNetV1(), (224, 224))}


def tool_cycles(layer: Layer, rows: int, columns: int) -> int | None:
    """What SCALE-Sim's weight-stationary class counts; None without it or with groups of channels."""
    try:
        from scalesim.compute.systolic_compute_ws import systolic_compute_ws
        from scalesim.scale_config import scale_config
    except ImportError:
        return None
    if layer.groups > 1:
        return None
    config, system = scale_config(), systolic_compute_ws()
    config.array_rows, config.array_cols, config.valid_conf_flag = rows, columns, True
    config.sparsity_support = config.sparsity_optimized_mapping = False
    depth = layer.c_in * layer.n_points
    shapes = ((layer.n_positions, depth), (layer.n_positions, layer.c_out), (depth, layer.c_out))
    ifmap, ofmap, weights = (np.zeros(shape) for shape in shapes)
    system.set_params(config, ifmap_op_mat=ifmap, ofmap_op_mat=ofmap, filter_op_mat=weights)
    system.create_demand_matrices()
    return len(system.get_demand_matrices()[0])


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--tool-positions",
        type=int,
        default=200,
        metavar="N",
        help="layers up to so many positions also go to the tool",
    )
    args = parser.parse_args(argv)
    rows: list[dict[str, Any]] = []
    jobs = [(name, layer, side) for name, layers in workloads().items() for side in SIDES for layer in layers]
    for name, layer, side in track(jobs, "layers"):
        spec = preset(f"ws-{side}")
        _, cycles, _ = best_mapping(spec, layer, objective="cycles")
        theirs = weight_stationary(layer, side, side)
        ours = cycles.compute + cycles.bubble + cycles.weights
        causes = difference(cycles, theirs)
        measured = tool_cycles(layer, side, side) if layer.n_positions <= args.tool_positions else None
        rows.append(
            {
                "network": name,
                "layer": layer.name,
                "side": side,
                "ours_cycles": ours,
                "scalesim_cycles": theirs.total,
                "tool_cycles": "" if measured is None else measured,
                **{f"from_{key.replace(' ', '_')}": value for key, value in causes.items()},
            }
        )
    write_csv(RESULTS / "scalesim.csv", rows)
    checked = [row for row in rows if row["tool_cycles"] != ""]
    wrong = [row for row in checked if row["tool_cycles"] != row["scalesim_cycles"]]
    print(f"{len(rows)} layers; the closed form is the tool's count in {len(checked) - len(wrong)} of {len(checked)}")
    print("| network | side | ours, M cycles | SCALE-Sim, M cycles | quotient | rows | fill and drain | weights |")
    print("|---|---|---|---|---|---|---|---|")
    for name in dict.fromkeys(row["network"] for row in rows):
        for side in SIDES:
            part = [row for row in rows if (row["network"], row["side"]) == (name, side)]
            keys = ("ours_cycles", "scalesim_cycles", "from_rows", "from_fill_and_drain", "from_weights")
            ours, theirs, *causes = (sum(row[key] for row in part) * 1e-6 for key in keys)
            cells = " | ".join(f"{cause:+.2f}" for cause in causes)
            print(f"| {name} | {side} | {ours:.2f} | {theirs:.2f} | {ours / theirs:.2f} | {cells} |")


if __name__ == "__main__":
    main()
