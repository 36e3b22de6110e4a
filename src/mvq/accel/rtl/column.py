"""The columns of a tile: adder trees over the rows, and the partial sums."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from mvq.accel.cycle.model import TREE_LEVELS, tree_cycles
from mvq.accel.rtl.parts import Part, place
from mvq.accel.rtl.registers import Latches, line_of
from mvq.accel.rtl.tile import TileRow, product_bits
from mvq.accel.spec import AcceleratorSpec


def tree_levels(rows: int) -> int:
    """Levels of an adder tree."""
    return (rows - 1).bit_length()


def step_layout(spec: AcceleratorSpec) -> data.StructLayout:
    """What goes along with an activation.

    `read` is the weight, `slot` the partial sum and `address` its place in memory; it is `first` or `last` of the
    visits to that sum in a block; a sum starts `fresh` or from memory.
    """
    return data.StructLayout(
        {
            "valid": 1,
            "first": 1,
            "last": 1,
            "fresh": 1,
            "read": max((spec.wrf_entries - 1).bit_length(), 1),
            "slot": max((spec.prf_entries - 1).bit_length(), 1),
            "address": ADDRESS_BITS,
        }
    )


#: Of a partial sum in memory.
ADDRESS_BITS = 20


class AdderTree(Part):
    """Sum over the rows of a column, `tree_cycles` later.

    Args:
        spec: machine.

    Ports:
        terms: a product of each row.
        sum: of them.
    """

    module = "mvq_adder_tree"

    def __init__(self, spec: AcceleratorSpec) -> None:
        self.spec = spec
        width = product_bits(spec)
        super().__init__(
            {
                "terms": In(data.ArrayLayout(signed(width), spec.rows)),
                "sum": Out(signed(width + tree_levels(spec.rows))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """The tree."""
        m = Module()
        terms: list[Value] = [self.terms[i] for i in range(self.spec.rows)]
        level = 0
        while len(terms) > 1:
            pairs = [terms[i : i + 2] for i in range(0, len(terms), 2)]
            terms = [pair[0] + pair[1] if len(pair) == 2 else pair[0] for pair in pairs]
            level += 1
            if level % TREE_LEVELS == 0 or len(terms) == 1:
                for i, value in enumerate(terms):
                    held = Signal(signed(len(value)), reset_less=True, name=f"level_{level}_{i}")
                    m.d.sync += held.eq(value)
                    terms[i] = held
        m.d.comb += self.sum.eq(terms[0])
        return m


class Accumulator(Part):
    """Partial sums of a column.

    Args:
        spec: machine.

    Ports:
        step: of the sum.
        lines: where the sum before it is kept, a line for each place; `keep` says whether it is to be.
        again: that sum is the one of this step.
        sum: of the rows.
        memory: partial sum that was read for the step.
        result: that is written to memory, a cycle later, where the step is the last.
        overflow: the result leaves `psum_bits`.
    """

    module = "mvq_accumulator"

    def __init__(self, spec: AcceleratorSpec) -> None:
        self.spec = spec
        super().__init__(
            {
                "step": In(step_layout(spec)),
                "keep": In(1),
                "lines": In(spec.prf_entries),
                "again": In(1),
                "sum": In(signed(product_bits(spec) + tree_levels(spec.rows))),
                "memory": In(signed(spec.psum_bits)),
                "result": Out(signed(spec.psum_bits)),
                "overflow": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """The accumulator."""
        m = Module()
        spec, step = self.spec, self.step
        bits = spec.psum_bits
        base = Signal(signed(bits))
        held = Signal(signed(bits), reset_less=True)
        if spec.prf_entries > 1:
            file = m.submodules.sums = Latches(spec.prf_entries, bits)
            m.d.comb += [
                file.data.eq(held),
                file.enable.eq(self.keep),
                file.lines.eq(self.lines),
                # The latest sum may still be on its way into the file.
                base.eq(Mux(self.again, held, file.read(m, [step.slot])[0].as_signed())),
            ]
        else:
            m.d.comb += base.eq(held)
        start = Signal(signed(bits))
        with m.If(~step.first):
            m.d.comb += start.eq(base)
        with m.Elif(~step.fresh):
            m.d.comb += start.eq(self.memory)
        wide = Signal(signed(max(bits, len(self.sum)) + 1))
        m.d.comb += wide.eq(start + self.sum)
        with m.If(step.valid):
            m.d.sync += [held.eq(wide), self.overflow.eq(wide != wide[:bits].as_signed())]
        with m.Else():
            m.d.sync += self.overflow.eq(0)
        m.d.comb += self.result.eq(held)
        return m


class TileColumn(Part):
    """A tile: H rows of d columns with their trees and partial sums.

    Args:
        spec: machine.

    Ports:
        step, activations: work.
        next_step, next_activations: the same a cycle later, for the next tile.
        load: a row of weights is written: which row, which entries, and the weights.
        read: a partial sum is needed in the next cycle, at `read_address`; it is `memory` then.
        write: `results` are written to `write_address`.
        overflow: a partial sum left `psum_bits`.
    """

    module = "mvq_tile"

    def __init__(self, spec: AcceleratorSpec) -> None:
        self.spec = spec
        sums = data.ArrayLayout(signed(spec.psum_bits), spec.d)
        activations = data.ArrayLayout(signed(spec.activation_bits), spec.rows)
        super().__init__(
            {
                "step": In(step_layout(spec)),
                "activations": In(activations),
                "next_step": Out(step_layout(spec)),
                "next_activations": Out(activations),
                "load": In(load_layout(spec)),
                "read": Out(1),
                "read_address": Out(ADDRESS_BITS),
                "memory": In(sums),
                "write": Out(1),
                "write_address": Out(ADDRESS_BITS),
                "results": Out(sums),
                "overflow": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """The tile."""
        m = Module()
        spec = self.spec
        rows = [place(m, platform, f"row_{i}", TileRow, spec) for i in range(spec.rows)]
        passed = Signal.like(self.next_activations, reset_less=True)
        m.d.sync += self.next_step.eq(self.step)
        with m.If(self.step.valid):
            m.d.sync += passed.eq(self.activations)
        m.d.comb += self.next_activations.eq(passed)
        for i, row in enumerate(rows):
            m.d.comb += [
                row.valid.eq(self.step.valid),
                row.activation.eq(self.activations[i]),
                row.read.eq(self.step.read),
                row.row.eq(self.load.valid & (self.load.row == i)),
                row.entries.eq(self.load.entries),
                row.weights.eq(self.load.weights),
            ]
            if spec.tile == "sparse":
                m.d.comb += row.lanes.eq(self.load.lanes)
        # Operands and products take a cycle each; the sum is asked for a cycle before it is changed.
        cycles = 1 + tree_cycles(spec.rows)
        steps = [self.next_step]
        for i in range(cycles):
            later = Signal(step_layout(spec), name=f"step_{i + 2}")
            m.d.sync += later.eq(steps[-1])
            steps.append(later)
        now = steps[-1]
        asked = steps[-2]
        m.d.comb += [
            self.read.eq(asked.valid & asked.first & ~asked.fresh),
            self.read_address.eq(asked.address),
        ]
        m.d.sync += [self.write.eq(now.valid & now.last), self.write_address.eq(now.address)]
        slot, keep, lines = Signal.like(now.slot), Signal(), Signal(spec.prf_entries)
        m.d.sync += keep.eq(now.valid & ~now.last)
        with m.If(now.valid):
            m.d.sync += slot.eq(now.slot)
        m.d.comb += lines.eq(line_of(m, slot, spec.prf_entries, "line"))
        overflows = []
        for column in range(spec.d):
            tree = place(m, platform, f"tree_{column}", AdderTree, spec)
            sums = place(m, platform, f"sums_{column}", Accumulator, spec)
            m.d.comb += [tree.terms[i].eq(row.products[column]) for i, row in enumerate(rows)]
            m.d.comb += [
                sums.step.eq(now),
                sums.keep.eq(keep),
                sums.lines.eq(lines),
                sums.again.eq(slot == now.slot),
                sums.sum.eq(tree.sum),
                sums.memory.eq(self.memory[column]),
                self.results[column].eq(sums.result),
            ]
            overflows.append(sums.overflow)
        m.d.comb += self.overflow.eq(Cat(*overflows).any())
        return m


def load_layout(spec: AcceleratorSpec) -> data.StructLayout:
    """A row of weights on its way into a tile."""
    n = spec.multipliers_per_tile_row
    fields = {
        "valid": 1,
        "row": max((spec.rows - 1).bit_length(), 1),
        "entries": spec.wrf_entries,
        "weights": data.ArrayLayout(signed(spec.weight_bits), n),
    }
    if spec.tile == "sparse":
        fields["lanes"] = data.ArrayLayout(spec.lane_bits, n)
    return data.StructLayout(fields)
