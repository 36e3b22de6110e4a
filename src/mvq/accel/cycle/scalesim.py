"""SCALE-Sim beside ours: its weight-stationary cycles in closed form, and its report's columns for ours.

Samajdar et al., "A systematic methodology for characterizing scalability of DNN accelerators using SCALE-Sim",
ISPASS 2020. There a layer is a product of matrices: kernel points and input channels on the rows of the array, output
channels on its columns, positions in time. A fold is a filling of the array.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from mvq.accel.cycle.model import Cycles
from mvq.accel.cycle.network import LayerRun, NetworkRun
from mvq.accel.workload import Layer


@dataclass(frozen=True, kw_only=True, slots=True)
class WeightStationary:
    """Cycles of a layer in SCALE-Sim's model.

    Attributes:
        folds: fillings of the array.
        compute: positions in all folds.
        load: weights, a row a cycle, in which nothing else happens.
        skew: activations and sums on their way into and out of the array.
    """

    folds: int
    compute: int
    load: int
    skew: int

    @property
    def total(self) -> int:
        """All cycles: folds times `2 rows + columns + positions - 2`."""
        return self.compute + self.load + self.skew


def weight_stationary(layer: Layer, rows: int, columns: int) -> WeightStationary:
    """SCALE-Sim's weight-stationary model; groups of channels follow one another.

    Args:
        layer: shape.
        rows: of the array.
        columns: of the array.
    """
    depth = layer.c_in // layer.groups * layer.n_points
    folds = layer.groups * -(-depth // rows) * -(-(layer.c_out // layer.groups) // columns)
    return WeightStationary(
        folds=folds, compute=folds * layer.n_positions, load=folds * rows, skew=folds * (rows + columns - 2)
    )


def difference(ours: Cycles, theirs: WeightStationary) -> dict[str, int]:
    """Why ours differs, memory left out; the parts add up to the difference.

    Returns:
        `rows`: channels and kernel points are rounded up to the rows apart, unless a kernel row fits, instead of
        together; `fill and drain`: once a block or layer instead of in every fold; `weights`: loaded beside the work.
    """
    return {
        "rows": ours.compute - theirs.compute,
        "fill and drain": ours.bubble - theirs.skew,
        "weights": ours.weights - theirs.load,
    }


#: Columns of SCALE-Sim's COMPUTE_REPORT.csv.
REPORT = (
    "LayerID",
    "Total Cycles (incl. prefetch)",
    "Total Cycles",
    "Stall Cycles",
    "Overall Util %",
    "Mapping Efficiency %",
    "Compute Util %",
)


def compute_report(run: NetworkRun) -> list[dict[str, Any]]:
    """One of our runs in the columns of SCALE-Sim's COMPUTE_REPORT.csv.

    Utilization is of H x L positions, dense-equivalent as there; stalls are waits for weights, memory and DRAM.
    """
    positions = run.spec.rows * run.spec.cols
    return [dict(zip(REPORT, _row(i, each, positions), strict=True)) for i, each in enumerate(run.layers)]


def _row(i: int, each: LayerRun, positions: int) -> tuple[Any, ...]:
    cycles, macs = each.cycles, each.layer.dense_macs
    working = cycles.compute + cycles.bubble
    shares = (macs / (n * positions) * 100 for n in (cycles.total, cycles.compute, working))
    return (i, cycles.total, cycles.total, cycles.total - working, *(f"{share:.4f}" for share in shares))
