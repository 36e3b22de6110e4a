"""A network on a prior machine, under the rules of the machine it is compared with.

A prior machine gets the L1, L2, DRAM, port widths and clock of an `AcceleratorSpec`, costs from the same table, and a
number of multipliers.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from mvq.accel.cost import Bill, CostTable, Entry
from mvq.accel.cost.energy import datapath, entry, leakage, memories
from mvq.accel.cycle import OBJECTIVES, Actions, Cycles, dram_traffic
from mvq.accel.rivals.cgnet import CGNet
from mvq.accel.rivals.common import Count, Job, Rival, Work
from mvq.accel.rivals.s2ta import S2TA
from mvq.accel.rivals.sparsity import Sparsity
from mvq.accel.rivals.sparten import SparTen
from mvq.accel.rivals.spots import Spots
from mvq.accel.spec import AcceleratorSpec
from mvq.accel.workload import Layer
from mvq.errors import ConfigError

RIVALS: dict[str, Rival[Any]] = {"sparten": SparTen(), "cgnet": CGNet(), "spots": Spots(), "s2ta": S2TA()}


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerWork:
    """A layer on a prior machine.

    Attributes:
        layer: what was run.
        cycles: DRAM included.
        actions: DRAM included.
        counts: of what `Actions` has no name for.
    """

    layer: Layer
    cycles: Cycles
    actions: Actions
    counts: tuple[Count, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class RivalRun:
    """A network on a prior machine, as modelled.

    Attributes:
        name: of the machine.
        multipliers: it has.
        sparsity: it was given.
        layers: in order.
        weights_resident: whether L2 holds all weights from one image to the next.
        seconds: of one image.
        bill: energy of one image; its `macs` are those executed.
    """

    name: str
    multipliers: int
    sparsity: Sparsity
    layers: tuple[LayerWork, ...]
    weights_resident: bool
    seconds: float
    bill: Bill

    @property
    def cycles(self) -> Cycles:
        """Of all layers, which run one after the other."""
        return sum((work.cycles for work in self.layers), Cycles())

    @property
    def actions(self) -> Actions:
        """Of all layers."""
        return sum((work.actions for work in self.layers), Actions())

    @property
    def entries(self) -> tuple[Entry, ...]:
        """Lines of the bill."""
        return self.bill.entries

    @property
    def dense_macs(self) -> int:
        """Multiply-accumulates with every weight and activation."""
        return self.bill.dense_macs

    @property
    def executed_macs(self) -> int:
        """Those that are left."""
        return self.bill.macs


def run_rival(
    rival: Rival[Any] | str,
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
        rival: machine, or one of `RIVALS` by name.
        layers: in order; how the layers say their weights are compressed is not used, `sparsity` says it.
        like: the machine whose memories, ports, DRAM and clock it gets.
        table: of costs.
        sparsity: of its kind, or a network of those its paper or ours has values for; None for that of its paper.
        multipliers: None for as many as `like` has; `like.rows * like.cols` for as many as it has lanes.
        objective: of `mvq.accel.cycle.OBJECTIVES`, by which the best way of running a layer is chosen.

    Returns:
        Cycles, counts and bill.

    Raises:
        ConfigError: listing every fault of what was asked for, or every layer that does not fit.
    """
    if isinstance(rival, str):
        if rival not in RIVALS:
            raise ConfigError(f"prior machine {rival!r} is not one of {', '.join(RIVALS)}")
        rival = RIVALS[rival]
    todo = list(layers)
    stated, n = _stated(rival, sparsity), like.n_multipliers if multipliers is None else multipliers
    faults = stated.faults_for(len(todo)) if isinstance(stated, Sparsity) else [stated]
    if isinstance(n, bool) or not isinstance(n, int) or n < rival.unit:
        faults.append(f"multipliers={n!r} is not a whole number of at least {rival.unit}")
    if not todo:
        faults.append("the network has no layer")
    if objective not in OBJECTIVES:
        faults.append(f"objective {objective!r} is not one of {', '.join(OBJECTIVES)}")
    if faults or isinstance(stated, str):
        raise ConfigError("\n".join(f"{rival.name}: {fault}" for fault in faults))
    jobs = _jobs(rival, todo, stated, like, n)
    found = [_best(rival, job, objective) for job in jobs]
    faults = [
        f"{rival.name}: layer {job.layer.name!r} does not fit: an output row, its inputs and weights exceed "
        f"l1_bytes={like.l1_bytes}; give it more L1"
        for job, work in zip(jobs, found, strict=True)
        if work is None
    ]
    if faults:
        raise ConfigError("\n".join(faults))
    maps = [(job.input_bytes, job.output_bytes, job.layer.residual_bytes) for job in jobs]
    traffic, resident = dram_traffic(like.l2_bytes, [job.weight_bytes for job in jobs], [0] * len(jobs), maps)
    done = []
    for job, work, (read, written) in zip(jobs, found, traffic, strict=True):
        assert work is not None
        needed = int(-(-(read + written) // like.dram_bytes_per_cycle))
        cycles = work.cycles + Cycles(dram=max(needed - work.cycles.total, 0))
        actions = work.actions + Actions(dram_read_bytes=read, dram_write_bytes=written)
        done.append(LayerWork(layer=job.layer, cycles=cycles, actions=actions, counts=work.counts))
    seconds = sum(work.cycles.total for work in done) / (like.clock_mhz * 1e6)
    return RivalRun(
        name=rival.name,
        multipliers=n,
        sparsity=stated,
        layers=tuple(done),
        weights_resident=resident,
        seconds=seconds,
        bill=_bill(rival, done, like, n, seconds, with_parts(table)),
    )


def with_parts(table: CostTable) -> CostTable:
    """A table with rows for parts of prior machines where it has none of its own."""
    text = resources.files("mvq.accel.rivals").joinpath("rows.toml").read_text(encoding="utf-8")
    more = CostTable.from_dict(tomllib.loads(text), node_nm=table.node_nm, voltage=table.voltage)
    return dataclasses.replace(table, rows={**more.rows, **table.rows})


def _stated(rival: Rival[Any], sparsity: Sparsity | str | None) -> Sparsity | str:
    """The statement, or why there is none."""
    if sparsity is None:
        return next(iter(rival.published.values()))
    if isinstance(sparsity, str):
        known = ", ".join(rival.published)
        return rival.published.get(sparsity) or f"there is no sparsity for {sparsity!r}; there is for {known}"
    if not isinstance(sparsity, rival.statement):
        return f"sparsity is of {type(sparsity).__name__}, the machine takes {rival.statement.__name__}"
    return sparsity


def _jobs(
    rival: Rival[Any], layers: Sequence[Layer], stated: Sparsity, like: AcceleratorSpec, multipliers: int
) -> list[Job[Any]]:
    at = [stated.at(i) for i in range(len(layers))]
    # What leaves the network is dense, whatever the last layer's own sparsity.
    after = [*at[1:], type(stated).dense()]
    return [
        Job(
            layer=layer,
            sparsity=here,
            after=then,
            weight_bytes=_bytes(rival.weight_bits(layer, here)),
            input_bytes=_bytes(rival.map_bits(layer.input_bytes, here)),
            output_bytes=_bytes(rival.map_bits(layer.output_bytes, then)),
            like=like,
            multipliers=multipliers,
        )
        for layer, here, then in zip(layers, at, after, strict=True)
    ]


def _bytes(bits: float) -> int:
    return int(-(-bits // 8))


def _best(rival: Rival[Any], job: Job[Any], objective: str) -> Work | None:
    least = OBJECTIVES[objective]
    return min(rival.works(job), key=lambda work: least(work.cycles, work.actions), default=None)


def _bill(
    rival: Rival[Any],
    done: Sequence[LayerWork],
    like: AcceleratorSpec,
    multipliers: int,
    seconds: float,
    table: CostTable,
) -> Bill:
    actions = sum((work.actions for work in done), Actions())
    entries = [*_logic(done, actions, table), *memories(like, actions, table)]
    entries += [*leakage(like, rival.parts(like, multipliers), seconds, table)]
    if table.leakage:
        for name, size, copies in rival.buffers(multipliers):
            memory = table.sram(size)
            each = copies * memory.leak_mw * 1e3
            entries.append(Entry("leakage", f"{name}, us", seconds * 1e6, each, table.memory_line(memory)))
    return Bill(tuple(entries), seconds, actions.dense_macs, actions.nonzero_macs)


def _logic(done: Sequence[LayerWork], actions: Actions, table: CostTable) -> Iterator[Entry]:
    """As the bill of the machine compared with: multiplications, additions, registers; then what is the rival's own."""
    summed: dict[tuple[str, str, str | int], float] = {}
    clocked = 0.0
    for count in (count for work in done for count in work.counts):
        if count.part == "flip_flop_bit":
            clocked += count.n
            continue
        key = (count.level, count.what, count.part)
        summed[key] = summed.get(key, 0.0) + count.n
    yield from datapath(actions, actions.nonzero_macs, clocked, table, tile="dense")
    for (level, what, part), n in summed.items():
        if isinstance(part, int):
            memory = table.sram(part)
            yield Entry(level, what, n, 8 * memory.read_pj / memory.width_bits, table.memory_line(memory))
        elif n:
            yield entry(level, what, n, table.get(part, "energy"))
