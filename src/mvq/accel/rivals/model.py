"""What all models of prior accelerators share: memories, timing and the bill.

Every machine has the L1, L2, DRAM, port widths and clock of the machine it is compared with, and as many multipliers.
Where a paper is silent the model takes the rival's best case: each stored byte of a layer enters L1 once an image, all
transfers run beside the work, and multipliers have work in every cycle but for what the machine's own principle costs.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from mvq.accel.cost.area import Line
from mvq.accel.cost.energy import Bill, datapath, entry, leakage, memories
from mvq.accel.cost.table import CostTable
from mvq.accel.cycle import Actions, Cycles, dram_traffic
from mvq.accel.spec import AcceleratorSpec
from mvq.accel.workload import Layer
from mvq.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class Sparsity:
    """What a network is like on a machine.

    Attributes:
        weights: share of weights that are not zero; for channel gating, of multiplications that are not skipped.
        activations: share of activations that are not zero.
        source: of the numbers.

    Raises:
        ConfigError: listing every share outside of (0, 1].
    """

    weights: float
    activations: float
    source: str

    def __post_init__(self) -> None:
        faults = [
            f"{key}={value!r} is not in (0, 1]"
            for key, value in (("weights", self.weights), ("activations", self.activations))
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1
        ]
        if faults:
            raise ConfigError("\n".join(f"sparsity: {fault}" for fault in faults))


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """One layer on a rival, memories beyond L1 left out.

    Attributes:
        compute: cycles with every multiplier at work.
        idle: cycles more, as multipliers wait for one another.
        macs: multiplications whose operands are fetched.
        active: those of two operands that are not zero.
        weight_reads: values read from operand registers.
        activation_reads: likewise.
        psum_accesses: partial sums read and written back in registers.
        l1_read_bytes: of operands and partial sums.
        l1_write_bytes: of partial sums.
        index_adds: additions of 8 bits to find operands or to decide what to skip.
        weight_bytes: as stored.
        activation_share: bytes of a stored feature map over those of a dense one.
    """

    compute: float
    idle: float = 0.0
    macs: float
    active: float
    weight_reads: float
    activation_reads: float
    psum_accesses: float
    l1_read_bytes: float
    l1_write_bytes: float = 0.0
    index_adds: float = 0.0
    weight_bytes: float
    activation_share: float = 1.0


class Rival(ABC):
    """A prior accelerator.

    Attributes:
        name: of its paper.
        default: sparsity as its paper has it.
    """

    name: str
    default: Sparsity

    @abstractmethod
    def work(self, layer: Layer, sparsity: Sparsity, multipliers: int) -> Work:
        """A layer with so many multipliers."""

    @abstractmethod
    def parts(self, multipliers: int, spec: AcceleratorSpec) -> Iterator[Line]:
        """What its logic consists of, for area and leakage."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RivalRun:
    """A network on a rival.

    Attributes:
        name: of the rival.
        sparsity: of the network on it.
        multipliers: it has.
        cycles: of an image; `bubble` is where multipliers wait for one another.
        actions: counts.
        bill: energy of an image.
    """

    name: str
    sparsity: Sparsity
    multipliers: int
    cycles: Cycles
    actions: Actions
    bill: Bill


def run_rival(
    rival: Rival,
    layers: Iterable[Layer],
    *,
    like: AcceleratorSpec,
    table: CostTable,
    sparsity: Sparsity | None = None,
    multipliers: int | None = None,
) -> RivalRun:
    """Time and energy of one image of many.

    Args:
        rival: of `RIVALS`.
        layers: in order; how they are stored on our machines does not matter.
        like: machine whose memories, widths and clock it gets.
        table: costs.
        sparsity: of the network; by default that of the rival's paper.
        multipliers: by default as many as `like` has.

    Raises:
        ConfigError: if the table lacks a row.
    """
    given, n = sparsity or rival.default, like.n_multipliers if multipliers is None else multipliers
    todo = list(layers)
    works = [rival.work(layer, given, n) for layer in todo]
    cycles, actions = _timed(todo, works, like)
    seconds = cycles.total / (like.clock_mhz * 1e6)
    entries = list(datapath(actions, sum(w.active for w in works), _pipeline_bits(works, like), table))
    finding = sum(w.index_adds for w in works)
    if finding:
        entries.append(entry("array", "index additions", finding, table.get("index_add", "energy")))
    entries += [*memories(like, actions, table), *leakage(like, rival.parts(n, like), seconds, table)]
    nonzero = round(sum(w.active for w in works))
    bill = Bill(tuple(entries), seconds, actions.dense_macs, nonzero)
    return RivalRun(name=rival.name, sparsity=given, multipliers=n, cycles=cycles, actions=actions, bill=bill)


def _timed(layers: Sequence[Layer], works: Sequence[Work], like: AcceleratorSpec) -> tuple[Cycles, Actions]:
    maps = [_maps(layer, work.activation_share) for layer, work in zip(layers, works, strict=True)]
    weights = [round(work.weight_bytes) for work in works]
    traffic, _ = dram_traffic(like.l2_bytes, weights, [0] * len(works), maps)
    cycles, actions = Cycles(), Actions()
    for layer, work, moved, stored, (read, written) in zip(layers, works, maps, weights, traffic, strict=True):
        compute, idle = -int(-work.compute // 1), -int(-work.idle // 1)
        busy = compute + idle
        loading = -(-8 * stored // like.weight_port_bits)
        moving = -(-8 * sum(moved) // like.dma_bits)
        stall = max(loading - busy, 0)
        memory = max(moving - busy - stall, 0)
        dram = max(-int(-(read + written) // like.dram_bytes_per_cycle) - busy - stall - memory, 0)
        cycles += Cycles(compute=compute, bubble=idle, weights=stall, memory=memory, dram=dram)
        taken, made, added = moved
        actions += Actions(
            dense_macs=layer.dense_macs,
            macs=round(work.macs),
            nonzero_macs=round(work.active),
            wrf_reads=round(work.weight_reads),
            arf_reads=round(work.activation_reads),
            prf_accesses=round(work.psum_accesses),
            requantizations=layer.output_bytes,
            l1_read_bytes=round(work.l1_read_bytes) + made,
            l1_write_bytes=round(work.l1_write_bytes) + taken + added + made + stored,
            l2_read_bytes=stored + taken + added,
            l2_write_bytes=made,
            dram_read_bytes=read,
            dram_write_bytes=written,
        )
    return cycles, actions


def _maps(layer: Layer, share: float) -> tuple[int, int, int]:
    """Bytes of input, output and what is added, as they are stored."""
    return round(layer.input_bytes * share), round(layer.output_bytes * share), round(layer.residual_bytes * share)


def _pipeline_bits(works: Sequence[Work], like: AcceleratorSpec) -> float:
    """Operands and products of multiplications, as they are counted in our machines."""
    width = like.weight_bits + (like.activation_bits + like.weight_bits)
    return sum(work.active for work in works) * width
