"""A whole network on a machine: a mapping for every layer, and what DRAM has to carry."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from mvq.accel.cycle.actions import Actions, layer_actions
from mvq.accel.cycle.loads import stored_bytes
from mvq.accel.cycle.model import Cycles, layer_cycles, least_cycles
from mvq.accel.mapping import Mapping, candidates
from mvq.accel.spec import AcceleratorSpec
from mvq.accel.workload import Layer
from mvq.errors import ConfigError

Objective = Callable[[Cycles, Actions], float | tuple[float, ...]]
#: Of an access, in multiply-accumulates (MVQ, table of access energies).
_L2_BYTE, _L1_BYTE, _PRF, _ARF, _WRF = 15.0, 6.0, 0.22, 0.11, 0.02


def access_cost(_: Cycles, actions: Actions) -> float:
    """Accesses on the chip, in energies of a multiply-accumulate: what a mapper without a cost table goes by."""
    moved = _L2_BYTE * (actions.l2_read_bytes + actions.l2_write_bytes)
    moved += _L1_BYTE * (actions.l1_read_bytes + actions.l1_write_bytes)
    moved += _PRF * actions.prf_accesses + _ARF * (actions.arf_reads + actions.arf_writes)
    return moved + _WRF * (actions.wrf_reads + actions.wrf_writes)


#: What a mapper makes least: `edp` accesses times cycles, `cycles` (then accesses), `energy` accesses.
OBJECTIVES: dict[str, Objective] = {
    "edp": lambda cycles, actions: cycles.total * access_cost(cycles, actions),
    "cycles": lambda cycles, actions: (cycles.total, access_cost(cycles, actions)),
    "energy": access_cost,
}


@dataclass(frozen=True, slots=True)
class LayerRun:
    """A layer on a machine.

    Attributes:
        layer: what was run.
        mapping: how.
        cycles: its time, DRAM included.
        actions: its counts, DRAM included.
    """

    layer: Layer
    mapping: Mapping
    cycles: Cycles
    actions: Actions


@dataclass(frozen=True, slots=True)
class NetworkRun:
    """A network on a machine.

    Attributes:
        spec: the machine.
        layers: in order.
        weights_resident: whether L2 holds all weights from one image to the next.
    """

    spec: AcceleratorSpec
    layers: tuple[LayerRun, ...]
    weights_resident: bool

    @property
    def cycles(self) -> Cycles:
        """Of all layers, which run one after the other."""
        return sum((run.cycles for run in self.layers), Cycles())

    @property
    def actions(self) -> Actions:
        """Of all layers."""
        return sum((run.actions for run in self.layers), Actions())

    @property
    def seconds(self) -> float:
        """Of one image."""
        return self.cycles.total / (self.spec.clock_mhz * 1e6)


def best_mapping(
    spec: AcceleratorSpec, layer: Layer, *, objective: Objective | str = "edp"
) -> tuple[Mapping, Cycles, Actions]:
    """The mapping for which the objective is least.

    Args:
        spec: machine.
        layer: work.
        objective: of `OBJECTIVES` by name, or one of yours, which must not fall where cycles rise.

    Raises:
        ConfigError: if no mapping fits, or there is no objective of that name.
    """
    least = _objective(objective)
    ranked = []
    for i, mapping in enumerate(candidates(spec, layer)):
        actions = layer_actions(spec, layer, mapping)
        bound = Cycles(compute=least_cycles(spec, layer, mapping))
        ranked.append((least(bound, actions), i, mapping, actions))
    if not ranked:
        raise ConfigError(
            f"layer {layer.name!r} does not fit on {spec.name!r}: one output row and its inputs exceed "
            f"l1_bytes={spec.l1_bytes}; give it more L1"
        )
    ranked.sort(key=lambda one: one[:2])
    best = None
    for bound, i, mapping, actions in ranked:
        if best is not None and bound > best[0][0]:
            break  # nor can those behind it be better
        cycles = layer_cycles(spec, layer, mapping)
        value = least(cycles, actions), i
        if best is None or value < best[0]:
            best = value, (mapping, cycles, actions)
    assert best is not None
    return best[1]


def _objective(objective: Objective | str) -> Objective:
    if not isinstance(objective, str):
        return objective
    if objective not in OBJECTIVES:
        raise ConfigError(f"objective {objective!r} is not one of {', '.join(OBJECTIVES)}")
    return OBJECTIVES[objective]


def run_network(spec: AcceleratorSpec, layers: Iterable[Layer], *, objective: Objective | str = "edp") -> NetworkRun:
    """Map and time every layer of a network, for one image of many.

    DRAM carries the first input and the last output; weights, unless all of them fit into L2 beside the largest feature
    maps; and the feature maps of layers whose input and output do not fit beside the weights held. It works while the
    array does, on the next layer's weights.

    Args:
        spec: machine.
        layers: in order; each takes what the one before makes.
        objective: as for `best_mapping`.

    Returns:
        One entry a layer.

    Raises:
        ConfigError: listing every layer that cannot be mapped.
    """
    todo, least = list(layers), _objective(objective)
    found: dict[Layer, tuple[Mapping, Cycles, Actions]] = {}
    faults = []
    for layer in todo:
        shape = dataclasses.replace(layer, name="")
        try:
            if shape not in found:
                found[shape] = best_mapping(spec, layer, objective=least)
        except ConfigError as error:
            faults.append(str(error))
    if faults:
        raise ConfigError("\n".join(faults))
    traffic, resident = _dram(spec, todo)
    runs = []
    for layer, (read, written) in zip(todo, traffic, strict=True):
        mapping, cycles, actions = found[dataclasses.replace(layer, name="")]
        needed = -(-(read + written) // spec.dram_bytes_per_cycle)
        cycles += Cycles(dram=max(int(needed) - cycles.total, 0))
        runs.append(LayerRun(layer, mapping, cycles, actions + Actions(dram_read_bytes=read, dram_write_bytes=written)))
    return NetworkRun(spec, tuple(runs), resident)


def _dram(spec: AcceleratorSpec, layers: Sequence[Layer]) -> tuple[list[tuple[int, int]], bool]:
    """Bytes read and written by each layer, and whether the weights stay in L2."""
    weights = [stored_bytes(spec, layer) for layer in layers]
    codebooks = [layer.codebook_bits(spec) // 8 for layer in layers]
    maps = [(layer.input_bytes, layer.output_bytes, layer.residual_bytes) for layer in layers]
    return dram_traffic(spec.l2_bytes, weights, codebooks, maps)


def dram_traffic(
    l2_bytes: int, weights: Sequence[int], codebooks: Sequence[int], maps: Sequence[tuple[int, int, int]]
) -> tuple[list[tuple[int, int]], bool]:
    """What DRAM carries for one image of many.

    Args:
        l2_bytes: of the memory that holds what it can.
        weights: bytes of each layer as they are stored.
        codebooks: bytes of each layer's.
        maps: bytes of each layer's input, output and what is added to it.

    Returns:
        Bytes read and written by each layer, and whether the weights stay in L2.
    """
    codebook = max(codebooks, default=0)
    resident = sum(weights) + codebook + max(map(sum, maps), default=0) <= l2_bytes
    traffic = []
    for i, (taken, made, added) in enumerate(maps):
        following = weights[i + 1] if i + 1 < len(maps) else 0
        room = l2_bytes - codebook - (sum(weights) if resident else weights[i] + following)
        spilled = taken + made + added > room
        read = 0 if resident else weights[i] + codebooks[i]
        read += taken if i == 0 or spilled else 0
        read += added if spilled else 0
        traffic.append((read, made if i == len(maps) - 1 or spilled else 0))
    return traffic, resident
