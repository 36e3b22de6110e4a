"""RTL and models side by side: a layer through both, every partial sum and every cycle compared."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mvq.accel.cycle import layer_cycles
from mvq.accel.functional.array import run_layer
from mvq.accel.functional.words import StoredWeight, load_order, pack
from mvq.accel.mapping import Mapping
from mvq.accel.rtl.program import program, sums
from mvq.accel.rtl.simulation import Simulation
from mvq.accel.workload import Layer
from mvq.errors import MvqError


@dataclass(frozen=True, kw_only=True, slots=True)
class Compared:
    """A layer in RTL and models.

    Attributes:
        layer: name.
        sums: partial sums compared.
        wrong: of them, those that differ.
        cycles: of the RTL, from the first load to the last sum in memory.
        modelled: of the cycle view, without the waits for memory that lie outside the core.
    """

    layer: str
    sums: int
    wrong: int
    cycles: int
    modelled: int


def cosim(
    simulation: Simulation,
    layer: Layer,
    mapping: Mapping,
    stored: StoredWeight,
    ifmap: NDArray[np.int8],
    *,
    stalls: float = 0.0,
    seed: int = 0,
    waves: Path | None = None,
) -> Compared:
    """Run a layer in RTL and in the functional view.

    Args:
        simulation: of the machine.
        layer: shape.
        mapping: loop nest.
        stored: weights.
        ifmap: `(C, H, W)` of an image.
        stalls: share of cycles in which a stream withholds what it has.
        seed: of that.
        waves: file for waveforms.

    Raises:
        ConfigError: if the mapping does not fit, or the RTL cannot take the layer.
        PsumOverflowError: if a sum leaves its register in the functional view.
        MvqError: if the RTL stops early, or sees an overflow where there is none.
    """
    spec = simulation.spec
    work = program(spec, layer, mapping, stored, ifmap)
    stream = pack(stored, load_order(spec, layer, mapping, stored), spec.weight_port_bits)
    wanted = run_layer(spec, layer, mapping, stored, stream, ifmap[None]).psums[0]
    done = simulation.run(work, stalls=stalls, seed=seed, waves=waves)
    if done.overflow:
        raise MvqError(f"layer {layer.name!r}: the RTL saw a partial sum leave psum_bits={spec.psum_bits}")
    modelled = layer_cycles(spec, layer, mapping)
    found = sums(spec, layer, mapping, done.memory)
    return Compared(
        layer=layer.name,
        sums=wanted.size,
        wrong=int((found != wanted).sum()),
        cycles=done.cycles,
        modelled=modelled.compute + modelled.bubble + modelled.weights,
    )
