"""A row of a tile: the weights of d columns at one input channel, and their products with an activation."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Signal, Value, signed
from amaranth.lib import data
from amaranth.lib.wiring import In, Out

from mvq.accel.rtl.parts import Part
from mvq.accel.rtl.registers import Latches
from mvq.accel.spec import AcceleratorSpec


class TileRow(Part):
    """Weight registers, multipliers and, in a sparse tile, the routing of products to columns.

    Products come two cycles after the activation: it is held, then multiplied by the weights that are read with it. A
    row that has no work, or an activation of zero, keeps its operands and its products, and gives zeros.

    Args:
        spec: machine.

    Ports:
        valid: there is work.
        activation: of the input channel.
        read: which weights.
        row: these weights are written; `entries` says where, a line for each word.
        weights: written: one a multiplier.
        lanes: in a sparse tile, the lane of its M that each of them belongs to.
        products: one a column.
    """

    module = "mvq_tile_row"

    def __init__(self, spec: AcceleratorSpec) -> None:
        self.spec = spec
        self.n = spec.multipliers_per_tile_row
        self.sparse = spec.tile == "sparse"
        ports = {
            "valid": In(1),
            "activation": In(signed(spec.activation_bits)),
            "read": In(max((spec.wrf_entries - 1).bit_length(), 1)),
            "row": In(1),
            "entries": In(spec.wrf_entries),
            "weights": In(data.ArrayLayout(signed(spec.weight_bits), self.n)),
            "products": Out(data.ArrayLayout(signed(product_bits(spec)), spec.d)),
        }
        if self.sparse:
            ports["lanes"] = In(data.ArrayLayout(spec.lane_bits, self.n))
        super().__init__(ports)

    def elaborate(self, platform: object) -> Module:
        """The row."""
        m = Module()
        spec, n = self.spec, self.n
        weight, lane = spec.weight_bits, spec.lane_bits if self.sparse else 0
        file = m.submodules.weights = Latches(spec.wrf_entries, n * (weight + lane))
        written = [self.weights[i].as_unsigned() for i in range(n)]
        if self.sparse:
            written += [self.lanes[i] for i in range(n)]
        live = Signal()
        m.d.comb += [
            file.enable.eq(self.row),
            file.lines.eq(self.entries),
            file.data.eq(Cat(*written)),
            live.eq(self.valid & self.activation.any() if spec.zero_gating else self.valid),
        ]
        # The address and the activation are held while there is nothing to multiply, and with them all that follows.
        activation = Signal(signed(spec.activation_bits), reset_less=True, name="operand")
        address = Signal.like(self.read, reset_less=True, name="address")
        multiplied, ready = Signal(), Signal()
        m.d.sync += [multiplied.eq(live), ready.eq(multiplied)]
        with m.If(live):
            m.d.sync += [activation.eq(self.activation), address.eq(self.read)]
        (word,) = file.read(m, [address])
        products, lanes = [], []
        for i in range(n):
            product = Signal(signed(product_bits(spec)), reset_less=True, name=f"product_{i}")
            with m.If(multiplied):
                m.d.sync += product.eq(word[i * weight : (i + 1) * weight].as_signed() * activation)
            products.append(product)
            if self.sparse:
                start = n * weight + i * lane
                place = Signal(lane, reset_less=True, name=f"lane_{i}")
                with m.If(multiplied):
                    m.d.sync += place.eq(word[start : start + lane])
                lanes.append(place)
        for column in range(spec.d):
            if self.sparse:
                m.d.comb += self.products[column].eq(self._routed(column, products, lanes, ready))
            else:
                m.d.comb += self.products[column].eq(_when(ready, products[column]))
        return m

    def _routed(self, column: int, products: list[Signal], lanes: list[Signal], ready: Signal) -> Value:
        """The product that belongs to a column; no two do."""
        keep, group = self.spec.nm.keep, self.spec.nm.group
        first, lane = column // group * keep, column % group
        found: Value = Const(0, product_bits(self.spec))
        for i in range(keep):
            # Kept lanes are in order: i of them lie below this one, keep - 1 - i above.
            if i <= lane <= i + group - keep:
                here = ready & (lanes[first + i] == lane)
                found = found | _when(here, products[first + i]).as_unsigned()
        return found.as_signed()


def product_bits(spec: AcceleratorSpec) -> int:
    """Of a product."""
    return spec.activation_bits + spec.weight_bits


def _when(condition: Value, value: Value) -> Value:
    """The value, or zero."""
    return value.as_unsigned() & condition.replicate(len(value))
