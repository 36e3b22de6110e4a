"""Prior sparse accelerators on equal terms: the memories, clock, DRAM and cost table of the machine compared with.

`RIVALS` are analytical models of SparTen, CGNet, SPOTS and S2TA; `QUOTED` is what papers print.
`docs/rivals-hardware.md` lists what is assumed.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mvq.accel.cost import CostTable
from mvq.accel.rivals.cgnet import CGNet, ChannelGating
from mvq.accel.rivals.common import LayerWork, Rival, RivalRun, run, with_parts
from mvq.accel.rivals.quoted import QUOTED, Quoted
from mvq.accel.rivals.s2ta import S2TA, DensityBounds
from mvq.accel.rivals.sparsity import Sparsity
from mvq.accel.rivals.sparten import RandomSparsity, SparTen
from mvq.accel.rivals.spots import GroupSparsity, Spots
from mvq.accel.spec import AcceleratorSpec
from mvq.accel.workload import Layer
from mvq.errors import ConfigError

RIVALS: dict[str, Rival[Any]] = {"sparten": SparTen(), "cgnet": CGNet(), "spots": Spots(), "s2ta": S2TA()}


def run_rival(
    name: str,
    layers: Iterable[Layer],
    *,
    like: AcceleratorSpec,
    table: CostTable,
    sparsity: Sparsity | str | None = None,
    multipliers: int | None = None,
    objective: str = "edp",
) -> RivalRun:
    """Run a network, one image of many, on a prior machine.

    Args:
        name: of `RIVALS`.
        layers: in order; how they say their weights are compressed is not used, `sparsity` says it.
        like: the machine whose memories, ports, DRAM and clock it gets.
        table: of costs.
        sparsity: of the machine's kind, or a network that it has values for; None for that of its paper.
        multipliers: None for as many as `like` has; `like.rows * like.cols` for as many as it has lanes.
        objective: of `mvq.accel.cycle.OBJECTIVES`, by which the best way of running a layer is chosen.

    Returns:
        Cycles, counts and bill.

    Raises:
        ConfigError: listing every fault of what was asked for, or every layer that does not fit.
    """
    if name not in RIVALS:
        raise ConfigError(f"prior machine {name!r} is not one of {', '.join(RIVALS)}")
    return run(
        RIVALS[name],
        layers,
        like=like,
        table=table,
        sparsity=sparsity,
        multipliers=multipliers,
        objective=objective,
    )


__all__ = [
    "QUOTED",
    "RIVALS",
    "ChannelGating",
    "DensityBounds",
    "GroupSparsity",
    "LayerWork",
    "Quoted",
    "RandomSparsity",
    "Rival",
    "RivalRun",
    "Sparsity",
    "run_rival",
    "with_parts",
]
