"""RTL and models side by side: a layer through both, every partial sum, cycle and read of an input compared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mvq.accel.cycle import layer_actions, layer_cycles
from mvq.accel.functional.array import run_layer
from mvq.accel.functional.run import Machine
from mvq.accel.functional.words import StoredWeight
from mvq.accel.mapping import Mapping
from mvq.accel.network.execute import execute
from mvq.accel.network.graph import Conv, IntegerNetwork, Linear, Node
from mvq.accel.rtl.program import check_layer, program, sums
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
        inputs: that the RTL read from L1.
        modelled_inputs: that the models count.
        why_not: why the RTL cannot take the layer; empty if it was run.
    """

    layer: str
    sums: int = 0
    wrong: int = 0
    cycles: int = 0
    modelled: int = 0
    inputs: int = 0
    modelled_inputs: int = 0
    why_not: str = ""

    def agrees(self, *, stalled: bool) -> bool:
        """Whether RTL and models do; a run that was stalled takes more cycles."""
        same = self.wrong == 0 and self.inputs == self.modelled_inputs
        return same and (self.cycles >= self.modelled if stalled else self.cycles == self.modelled)


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
    wanted = run_layer(spec, layer, mapping, stored, work.stream, ifmap[None]).psums[0]
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
        inputs=done.inputs,
        modelled_inputs=layer_actions(spec, layer, mapping).arf_writes,
    )


def cosim_network(
    simulation: Simulation,
    machine: Machine,
    image: NDArray[np.floating],
    *,
    layers: Sequence[str],
    stalls: float = 0.0,
    seed: int = 0,
    waves: Path | None = None,
) -> list[Compared]:
    """Run layers of a network on what they see of an image, in RTL and in the functional view.

    Args:
        simulation: of the machine.
        machine: network and machine.
        image: `(1, C, H, W)`.
        layers: by name.
        stalls: share of cycles in which a stream withholds what it has.
        seed: of that.
        waves: file for waveforms, which the last layer's are left in.

    Returns:
        One entry a layer, in the order they run.

    Raises:
        MvqError: as `cosim`.
    """
    found = []
    for name, ifmap in inputs_of(machine, image, layers).items():
        layer, mapping, stored = machine.layers[name], machine.mappings[name], machine.stored[name]
        if faults := check_layer(simulation.spec, layer, stored):
            found.append(Compared(layer=name, why_not="; ".join(faults)))
        else:
            found.append(cosim(simulation, layer, mapping, stored, ifmap, stalls=stalls, seed=seed, waves=waves))
    return found


def inputs_of(machine: Machine, image: NDArray[np.floating], layers: Sequence[str]) -> dict[str, NDArray[np.int8]]:
    """What layers see of an image: `(C, H, W)` by name, in the order they run.

    Args:
        machine: network and machine.
        image: `(1, C, H, W)`.
        layers: by name.
    """
    found: dict[str, NDArray[np.int8]] = {}

    def compute(node: Node, inputs: list[NDArray[Any]], network: IntegerNetwork) -> NDArray[Any]:
        if isinstance(node, Conv | Linear) and node.layer in layers:
            found[node.layer] = inputs[0][0] if isinstance(node, Conv) else inputs[0][0][:, None, None]
        return machine.compute(node, inputs, network)

    execute(machine.network, image, keep=machine.network.outputs, compute=compute)
    return found
