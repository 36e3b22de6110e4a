"""Area of a machine: how many of each small part it has times how large one is, every line with its source.

The parts are those of `docs/spec/machine.md`: what the registers, trees, routing and tables of a specification come to
in bits and gates. Controller, DMA engine and interconnect are not modelled.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from mvq.accel.cost.table import CostTable
from mvq.accel.cycle.model import TREE_LEVELS
from mvq.accel.spec import AcceleratorSpec

#: Levels that area is summed over.
AREA_LEVELS = ("array", "registers", "loader", "output", "L1", "L2")
#: Multipliers of 8 by 8 bits in one of 32 by 32, as requantization has.
_WIDE_MULTIPLIER = 16


#: Level, what, count, row of the table, factor on it.
Line = tuple[str, str, float, str, float]


@dataclass(frozen=True, slots=True)
class AreaEntry:
    """One line.

    Attributes:
        level: one of `AREA_LEVELS`.
        what: it is.
        count: how many, or how many bits.
        um2: area of one.
        source: of that number.
    """

    level: str
    what: str
    count: float
    um2: float
    source: str

    @property
    def total_um2(self) -> float:
        """Area of all."""
        return self.count * self.um2


@dataclass(frozen=True, slots=True)
class Area:
    """Area of a machine.

    Attributes:
        entries: lines.
    """

    entries: tuple[AreaEntry, ...]

    def by_level(self) -> dict[str, float]:
        """mm2 of each level."""
        return {level: sum(e.total_um2 for e in self.entries if e.level == level) * 1e-6 for level in AREA_LEVELS}

    @property
    def array_mm2(self) -> float:
        """Array with its registers and weight loader: what the paper calls the array."""
        levels = self.by_level()
        return levels["array"] + levels["registers"] + levels["loader"]

    @property
    def total_mm2(self) -> float:
        """Of everything modelled."""
        return sum(self.by_level().values())

    def explain(self) -> str:
        """Every line, with where its number comes from."""
        lines = ["level      what                            count      um2 each       mm2  source"]
        for e in self.entries:
            lines.append(
                f"{e.level:<10} {e.what:<26} {e.count:>10,.0f} {e.um2:>13.4f} {e.total_um2 * 1e-6:>9.4f}  {e.source}"
            )
        return "\n".join(lines)


def area(spec: AcceleratorSpec, table: CostTable) -> Area:
    """Area of a machine.

    Args:
        spec: machine.
        table: areas of its parts.

    Returns:
        Lines that add up to it.

    Raises:
        ConfigError: if the table lacks a row or memories.
    """
    found = []
    for level, what, count, part, scale in parts(spec):
        row = table.get(part, "area")
        source = f"{row.source}: {row.cited} a {row.per}" + (f", {row.conditions}" * bool(row.conditions))
        if count:
            found.append(AreaEntry(level, what, count, row.value * scale, source))
    memories = [("L1", "memory", 1, spec.l1_bytes), ("L2", "memory", 1, spec.l2_bytes)]
    if spec.has_codebook and spec.codebook_memory == "sram":
        memories.append(("loader", "codebook, copies", spec.words_per_row, spec.codebook_bits // 8))
    for level, what, count, size in memories:
        memory = table.sram(size)
        found.append(AreaEntry(level, what, count, memory.area_mm2 * 1e6, table.memory_line(memory)))
    return Area(tuple(found))


def parts(spec: AcceleratorSpec) -> Iterator[Line]:
    """What the logic of a machine consists of."""
    yield from _array(spec)
    yield from _registers(spec)
    yield from _loader(spec)
    yield from _output(spec)


def tree_bits(rows: int, width: int) -> tuple[int, int]:
    """Bits of the adders over the rows of a column, and of the registers in it.

    Args:
        rows: products.
        width: of a product.
    """
    adders = registers = 0
    n, level = rows, 0
    while n > 1:
        adders += n // 2 * (width + 1)
        n, width, level = -(-n // 2), width + 1, level + 1
        if level % TREE_LEVELS == 0 or n == 1:
            registers += n * width
    return adders, registers


def route_candidates(spec: AcceleratorSpec) -> int:
    """Lanes that the products of a sparse tile row may go to, summed over its multipliers.

    Kept lanes are listed in order, so that the i-th of N in M lanes is one of M - N + 1.
    """
    return spec.q * (spec.nm.group - spec.nm.keep + 1)


def _array(spec: AcceleratorSpec) -> Iterator[Line]:
    product = spec.activation_bits + spec.weight_bits
    adders, registers = tree_bits(spec.rows, product)
    tile_rows = spec.rows * spec.words_per_row
    yield "array", "multipliers", spec.n_multipliers, "multiply", spec.activation_bits * spec.weight_bits / 64
    kept = spec.n_multipliers * (product + (spec.lane_bits if spec.tile == "sparse" else 0))
    held = spec.activation_bits + (spec.wrf_entries - 1).bit_length()
    yield "array", "bits of products, their lanes", kept, "flip_flop_bit", 1.0
    yield "array", "bits of operands held", tile_rows * held, "flip_flop_bit", 1.0
    yield "array", "activation bits passed on", tile_rows * spec.activation_bits, "flip_flop_bit", 1.0
    if spec.tile == "sparse":
        yield "array", "product routing", tile_rows * route_candidates(spec) * product, "route_bit", 1.0
    yield "array", "adder tree bits", spec.cols * adders, "adder_bit", 1.0
    yield "array", "adder tree registers", spec.cols * registers, "flip_flop_bit", 1.0
    yield "array", "accumulator bits", spec.cols * spec.psum_bits, "adder_bit", 1.0


def _registers(spec: AcceleratorSpec) -> Iterator[Line]:
    lanes = spec.lane_bits if spec.tile == "sparse" else 0
    files = {
        "weights": spec.n_multipliers * spec.wrf_entries * (spec.weight_bits + lanes),
        "activations": spec.rows * spec.arf_entries * spec.activation_bits,
        "partial sums": spec.cols * spec.prf_entries * spec.psum_bits,
    }
    for what, bits in files.items():
        yield "registers", f"{what}, stored bits", bits, "latch_bit", 1.0
        yield "registers", f"{what}, read ports", bits, "read_port_bit", 1.0


def _loader(spec: AcceleratorSpec) -> Iterator[Line]:
    ports = spec.words_per_row
    port = spec.weight_port_bits
    yield "loader", "word buffer bits", 2 * port, "flip_flop_bit", 1.0
    yield "loader", "word alignment", 2 * port * (port - 1).bit_length(), "read_port_bit", 1.0
    if spec.has_codebook and spec.codebook_memory == "registers":
        yield "loader", "codebook, stored bits", spec.codebook_bits, "latch_bit", 1.0
        yield "loader", "codebook, read ports", spec.codebook_bits * ports, "read_port_bit", 1.0
    if not spec.has_masks or spec.nm.is_dense:
        return
    blocks, group, keep = spec.d // spec.nm.group, spec.nm.group, spec.nm.keep
    if spec.tile == "sparse" and spec.mask_decode == "position-lut":
        bits = spec.nm.n_masks * keep * (group - 1).bit_length()
        yield "loader", "table of positions", bits * blocks * ports, "position_table_bit", 1.0
    else:
        yield "loader", "table of masks", spec.nm.n_masks * group * blocks * ports, "mask_table_bit", 1.0
    if spec.tile == "sparse" and spec.mask_decode == "lzc":
        yield "loader", "zero counters", keep * group * blocks * ports, "zero_counter_bit", 1.0
    if spec.tile == "dense" and spec.weights == "mvq":
        yield "loader", "mask gates", spec.d * spec.weight_bits * ports, "and_bit", 1.0
    if spec.tile == "sparse" and spec.codeword_width == spec.d:
        yield "loader", "choice of kept values", route_candidates(spec) * spec.weight_bits * ports, "route_bit", 1.0
    if spec.tile == "dense" and spec.weights == "nm":
        yield "loader", "placing of kept values", route_candidates(spec) * spec.weight_bits * ports, "route_bit", 1.0


def _output(spec: AcceleratorSpec) -> Iterator[Line]:
    """As many requantization units as outputs leave L1 in a cycle."""
    units = max(spec.dma_bits // spec.activation_bits, 1)
    scale = _WIDE_MULTIPLIER
    yield "output", "requantization multipliers", units, "multiply", scale
