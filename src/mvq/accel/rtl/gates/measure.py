"""Energy of a layer of a network on the gates of a machine, part by part."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mvq.accel.functional.array import run_layer
from mvq.accel.functional.run import Machine
from mvq.accel.rtl.cosim import inputs_of
from mvq.accel.rtl.gates.run import run
from mvq.accel.rtl.gates.timing import analyse
from mvq.accel.rtl.program import activations, program, sums
from mvq.accel.rtl.synthesis import component_of, netlist
from mvq.errors import MvqError

#: Of the longest path, that a library is given which is too slow for the clock of the machine.
MARGIN = 1.1


@dataclass(frozen=True, kw_only=True, slots=True)
class Spent:
    """By a component of the core.

    Attributes:
        name: of the component; register files are apart.
        um2: area of its cells.
        energy_pj: of switching, of all cycles.
        leakage_pj: likewise.
    """

    name: str
    um2: float
    energy_pj: float
    leakage_pj: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """A layer on gates, all sums of which are those of the functional view.

    Attributes:
        layer: name.
        period_ns: of the clock.
        longest_ns: path between registers, without set-up time and wires.
        cycles: from reset on.
        words: beats of the weight port.
        dense_macs: with pruned weights.
        zero_activations: share of those that went into the array, padding among them.
        nonzero_weights: share of the codes.
        sums: partial sums compared.
        parts: of the core.
    """

    layer: str
    period_ns: float
    longest_ns: float
    cycles: int
    words: int
    dense_macs: int
    zero_activations: float
    nonzero_weights: float
    sums: int
    parts: tuple[Spent, ...]

    @property
    def energy_pj(self) -> float:
        """Of switching, of all parts."""
        return sum(part.energy_pj for part in self.parts)


def measure(machine: Machine, name: str, image: NDArray[np.floating], liberty: Path, *, booth: bool = True) -> Measured:
    """Run a layer on the gates of the core: controller, memories and output unit are not among them.

    Args:
        machine: network and machine.
        name: of the layer.
        image: `(1, C, H, W)`.
        liberty: cell library, may be gzip.
        booth: multipliers in Booth form.

    Raises:
        ConfigError: if there is no RTL of such a machine, or it cannot take the layer.
        FileError: if the library cannot be read, or lacks something.
        MissingDependencyError: if yosys is not installed.
        MvqError: if yosys fails, or a sum differs from that of the functional view.
    """
    spec, layer, mapping, stored = machine.spec, machine.layers[name], machine.mappings[name], machine.stored[name]
    ifmap = inputs_of(machine, image, [name])[name]
    work = program(spec, layer, mapping, stored, ifmap)
    wanted = run_layer(spec, layer, mapping, stored, work.stream, ifmap[None]).psums[0]
    gates = netlist(spec, liberty, top="mvq_core", booth=booth)
    timing, inputs = analyse(gates), activations(spec, layer, mapping, ifmap)
    longest, period = timing.longest, 1e3 / spec.clock_mhz
    if longest * MARGIN > period:
        period = longest * MARGIN
    done = run(spec, gates, work, inputs, ns=period, timing=timing)
    wrong = int((sums(spec, layer, mapping, done.memory) != wanted).sum())
    if wrong:
        raise MvqError(f"{wrong} of {wanted.size} partial sums of {name!r} on the gates of {spec.name!r} are wrong")
    component = np.array([done.components.index(component_of(path)) for path in gates.modules])[gates.module]
    areas = np.bincount(component, np.array([cell.area for cell in gates.kinds])[gates.kind])
    cycles = len(done.energy)
    parts = [
        Spent(
            name=part,
            um2=float(areas[i]),
            energy_pj=float(done.energy[:, i].sum()) * 1e-3,
            # nW times ns are attojoules.
            leakage_pj=float(done.leakage[i]) * period * cycles * 1e-6,
        )
        for i, part in enumerate(done.components)
    ]
    return Measured(
        layer=name,
        period_ns=period,
        longest_ns=longest,
        cycles=cycles,
        words=int(done.taken[:, 1].sum()),
        dense_macs=layer.dense_macs,
        zero_activations=float((inputs == 0).mean()),
        nonzero_weights=float((machine.network.codes[name] != 0).mean()),
        sums=wanted.size,
        parts=tuple(parts),
    )
