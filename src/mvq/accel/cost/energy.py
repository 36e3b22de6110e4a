"""Energy of a network on a machine: what was done times what it costs, every entry with its source."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from mvq.accel.cost.area import Line, parts, tree_bits
from mvq.accel.cost.table import CostTable, Memory, Row
from mvq.accel.cycle import Actions, NetworkRun
from mvq.accel.spec import AcceleratorSpec

#: Levels that energy is summed over, from the multipliers outwards.
LEVELS = ("array", "registers", "loader", "L1", "L2", "leakage", "DRAM")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the bill.

    Attributes:
        level: one of `LEVELS`.
        what: was done.
        count: how often.
        pj: energy of one.
        source: of that number.
    """

    level: str
    what: str
    count: float
    pj: float
    source: str

    @property
    def total_pj(self) -> float:
        """Energy of all."""
        return self.count * self.pj


@dataclass(frozen=True, slots=True)
class Bill:
    """Energy of one image.

    Attributes:
        entries: lines.
        seconds: time of the image.
        dense_macs: multiply-accumulates with every weight.
        macs: those with a weight that was not pruned.
    """

    entries: tuple[Entry, ...]
    seconds: float
    dense_macs: int
    macs: int

    def by_level(self) -> dict[str, float]:
        """PJ of each level."""
        return {level: sum(e.total_pj for e in self.entries if e.level == level) for level in LEVELS}

    def total_pj(self, *, dram: bool = True) -> float:
        """PJ of the image, with or without DRAM."""
        return sum(entry.total_pj for entry in self.entries if dram or entry.level != "DRAM")

    def tops_per_watt(self, *, executed: bool = False, dram: bool = False) -> float:
        """Operations (two a multiply-accumulate) per pJ: those of the dense network, or those executed."""
        return 2 * (self.macs if executed else self.dense_macs) / self.total_pj(dram=dram)

    def explain(self) -> str:
        """Every entry, with where its number comes from."""
        lines = ["level      what                    count          pJ each      uJ  source"]
        for e in self.entries:
            lines.append(
                f"{e.level:<10} {e.what:<20} {e.count:>14,.0f} {e.pj:>12.5f} {e.total_pj * 1e-6:>9.3f}  {e.source}"
            )
        return "\n".join(lines)


def energy(run: NetworkRun, table: CostTable, *, activation_zeros: float = 0.0) -> Bill:
    """Energy of a network that was mapped and timed.

    Args:
        run: counts and cycles.
        table: costs.
        activation_zeros: share of activations that are zero; with zero gating their multiplications cost nothing.

    Returns:
        A bill whose entries add up to the energy of one image.

    Raises:
        ConfigError: if the table lacks a row.
    """
    actions, spec = run.actions, run.spec
    # A dense tile holds the zeros of the masks, too.
    active = actions.nonzero_macs * (1 - activation_zeros) if spec.zero_gating else actions.macs
    entries = list(datapath(actions, active, _pipeline_bits(spec, actions, active), table, tile=spec.tile))
    entries += _measured_alone(spec, actions, run.cycles.total, activation_zeros, table)
    entries += [*_codebook(spec, actions, run.seconds, table), *memories(spec, actions, table)]
    entries += leakage(spec, parts(spec), run.seconds, table)
    return Bill(tuple(entries), run.seconds, actions.dense_macs, actions.nonzero_macs)


def datapath(
    actions: Actions, active: float, pipeline_bits: float, table: CostTable, *, tile: str = ""
) -> Iterator[Entry]:
    """Multipliers, adders and registers.

    Args:
        actions: counts.
        active: multiplications whose operands are not held.
        pipeline_bits: clocked; free where the table has no cost of them.
        table: costs.
        tile: kind of tile, whose own rows come before those of the same name without it.
    """
    yield entry("array", "multiplications", active, _row(table, "multiply", tile))
    yield entry("array", "additions", active, _row(table, "add", tile))
    if ("flip_flop_bit", "energy") in table.rows:
        yield entry("array", "pipeline bits", pipeline_bits, table.get("flip_flop_bit", "energy"))
    yield entry("registers", "weights", actions.wrf_reads + actions.wrf_writes, _row(table, "wrf_access", tile))
    yield entry("registers", "activations", actions.arf_reads + actions.arf_writes, table.get("arf_access", "energy"))
    yield entry("registers", "partial sums", actions.prf_accesses, table.get("prf_access", "energy"))


def _measured_alone(
    spec: AcceleratorSpec, actions: Actions, cycles: int, activation_zeros: float, table: CostTable
) -> Iterator[Entry]:
    """What tables of measured gates have, and those of single operations lack."""
    zeros = (actions.macs - actions.nonzero_macs) * (1 - activation_zeros)
    counts = {
        "multiply_zero": ("array", "products of zeros", zeros if spec.zero_gating else 0),
        "tile_control": ("array", "control of a tile", cycles * spec.words_per_row),
        "control": ("array", "control", cycles),
        "weight_load": ("loader", "weights loaded", actions.wrf_writes),
    }
    for part, (level, what, count) in counts.items():
        own = (f"{part}_{spec.tile}", "energy")
        if count and ((part, "energy") in table.rows or own in table.rows):
            yield entry(level, what, count, _row(table, part, spec.tile))


def _row(table: CostTable, part: str, tile: str) -> Row:
    """The row of a part of a kind of tile, or that of any."""
    own = (f"{part}_{tile}", "energy")
    return table.rows[own] if own in table.rows else table.get(part, "energy")


def _codebook(spec: AcceleratorSpec, actions: Actions, seconds: float, table: CostTable) -> Iterator[Entry]:
    if not spec.has_codebook:
        return
    values = actions.crf_reads * spec.codeword_width
    if spec.codebook_memory == "registers":
        yield entry("loader", "codeword values", values, table.get("crf_access", "energy"))
    else:
        memory = table.sram(spec.codebook_bits // 8)
        each = memory.read_pj / memory.width_bits
        yield Entry("loader", "codeword bits", values * spec.weight_bits, each, table.memory_line(memory))
        if table.leakage:
            copies = spec.words_per_row * memory.leak_mw * 1e3
            yield Entry("leakage", "codebook, us", seconds * 1e6, copies, table.memory_line(memory))


def _pipeline_bits(spec: AcceleratorSpec, actions: Actions, active: float) -> float:
    """Bits of the array's pipeline that are clocked where there is work.

    Products, activations held beside the tiles and on their way past them, and the registers of the adder tree in each
    column that makes a partial sum.
    """
    product = spec.activation_bits + spec.weight_bits
    tree = tree_bits(spec.rows, product)[1]
    passed = 2 * actions.arf_reads * spec.words_per_row * spec.activation_bits
    return active * product + passed + actions.prf_accesses * tree


def memories(spec: AcceleratorSpec, actions: Actions, table: CostTable) -> Iterator[Entry]:
    """L1, L2 and DRAM, of the sizes of a machine."""
    levels = {
        "L1": (spec.l1_bytes, actions.l1_read_bytes, actions.l1_write_bytes),
        "L2": (spec.l2_bytes, actions.l2_read_bytes, actions.l2_write_bytes),
    }
    for level, (size, read, written) in levels.items():
        part = f"{level.lower()}_byte"
        if (part, "energy") in table.rows:
            yield entry(level, "bytes", read + written, table.get(part, "energy"))
            continue
        memory: Memory = table.sram(size)
        source = table.memory_line(memory)
        yield Entry(level, "bytes read", read, 8 * memory.read_pj / memory.width_bits, source)
        yield Entry(level, "bytes written", written, 8 * memory.write_pj / memory.width_bits, source)
    moved = actions.dram_read_bytes + actions.dram_write_bytes
    # A table prices each kind of DRAM, or all of them alike.
    part = f"dram_byte_{spec.dram}"
    yield entry("DRAM", "bytes", moved, table.get(part if (part, "energy") in table.rows else "dram_byte", "energy"))


def leakage(spec: AcceleratorSpec, logic: Iterable[Line], seconds: float, table: CostTable) -> Iterator[Entry]:
    """Of logic, by level of its area, and of the memories of a machine; a mW leaks 1000 pJ in a us."""
    if not table.leakage:
        return
    us, levels = seconds * 1e6, dict[str, float]()
    sources: dict[str, None] = {}
    for level, _, count, part, scale in logic:
        row = table.get(part, "leakage")
        levels[level] = levels.get(level, 0.0) + count * scale * row.value
        sources[row.source] = None
    for level, milliwatts in levels.items():
        yield Entry("leakage", f"{level}, us", us, milliwatts * 1e3, "; ".join(sources))
    for level, size in (("L1", spec.l1_bytes), ("L2", spec.l2_bytes)):
        memory = table.sram(size)
        yield Entry("leakage", f"{level}, us", us, memory.leak_mw * 1e3, table.memory_line(memory))


def entry(level: str, what: str, count: float, row: Row) -> Entry:
    """A line priced by a row."""
    return Entry(
        level, what, count, row.value, f"{row.source}: {row.cited}" + (f", {row.conditions}" * bool(row.conditions))
    )
