"""Sums into activations: bias, requantization, addition of a residual, clamp."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Signal, Value, signed
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out

from mvq.accel.network.arithmetic import MANTISSA_BITS
from mvq.accel.rtl.column import ADDRESS_BITS
from mvq.accel.rtl.parts import Part
from mvq.accel.rtl.registers import ones_below
from mvq.accel.spec import AcceleratorSpec

#: A bias has a magnitude of 2^28 at most, a mantissa of 2^24; shifts reach 62.
BIAS_BITS, FACTOR_BITS, SHIFT_BITS = 30, MANTISSA_BITS + 2, 6


def output_lanes(spec: AcceleratorSpec) -> int:
    """Activations that leave in a cycle: as many as the port to L2 takes."""
    return max(spec.dma_bits // spec.activation_bits, 1)


def factors_layout(spec: AcceleratorSpec) -> data.StructLayout:
    """What the values of some positions are changed by.

    `positions` values a lane are `clamp(round(((sum + bias) * factor + other * other_factor) / 2^shift))` with the
    clamp to `low` ... `high`.
    """
    lane = data.StructLayout(
        {
            "bias": signed(BIAS_BITS),
            "factor": signed(FACTOR_BITS),
            "other_factor": signed(FACTOR_BITS),
            "shift": SHIFT_BITS,
        }
    )
    code = signed(spec.activation_bits)
    return data.StructLayout(
        {"positions": ADDRESS_BITS, "low": code, "high": code, "lanes": data.ArrayLayout(lane, output_lanes(spec))}
    )


def values_layout(spec: AcceleratorSpec) -> data.StructLayout:
    """A value a lane: a partial sum or a code, and the code of what is added to it."""
    lane = data.StructLayout({"sum": signed(spec.psum_bits), "other": signed(spec.activation_bits)})
    return data.StructLayout({"lanes": data.ArrayLayout(lane, output_lanes(spec))})


class OutputUnit(Part):
    """Makes activations, an item a cycle, four cycles after it was taken.

    Layers (`other_factor` 0), the addition of a residual and the rescaling of codes (`bias` 0) of
    docs/spec/integer-network.md.

    Args:
        spec: machine.

    Ports:
        factors: for the values that follow; taken when those before them have been.
        values: sums.
        codes: activations.
    """

    module = "mvq_output"

    def __init__(self, spec: AcceleratorSpec) -> None:
        self.spec = spec
        self.lanes = output_lanes(spec)
        super().__init__(
            {
                "factors": In(stream.Signature(factors_layout(spec))),
                "values": In(stream.Signature(values_layout(spec))),
                "codes": Out(stream.Signature(data.ArrayLayout(signed(spec.activation_bits), self.lanes))),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """The unit."""
        m = Module()
        factors = Signal(factors_layout(self.spec))
        left = Signal(ADDRESS_BITS)
        # Of the four stages, which hold a value; they move together.
        valid = Signal(4)
        moves, takes = Signal(), Signal()
        m.d.comb += [
            moves.eq(~valid[-1] | self.codes.ready),
            self.codes.valid.eq(valid[-1]),
            self.values.ready.eq(moves & (left != 0)),
            takes.eq(self.values.ready & self.values.valid),
            # The factors of a layer are used in every stage.
            self.factors.ready.eq((left == 0) & (valid == 0)),
        ]
        with m.If(moves):
            m.d.sync += valid.eq(Cat(takes, valid[:-1]))
        with m.If(takes):
            m.d.sync += left.eq(left - 1)
        with m.If(self.factors.valid & self.factors.ready):
            m.d.sync += [factors.eq(self.factors.payload), left.eq(self.factors.payload.positions)]
        for i in range(self.lanes):
            m.d.comb += self.codes.payload[i].eq(self._lane(m, i, factors, moves))
        return m

    def _lane(self, m: Module, i: int, factors: data.View, moves: Signal) -> Signal:
        lane, value = factors.lanes[i], self.values.payload.lanes[i]
        bits = max(self.spec.psum_bits, BIAS_BITS) + 1
        based = Signal(signed(bits), reset_less=True, name=f"based_{i}")
        other = Signal(signed(self.spec.activation_bits), reset_less=True, name=f"other_{i}")
        product = Signal(signed(bits + FACTOR_BITS + 1), reset_less=True, name=f"product_{i}")
        whole = Signal(signed(len(product) + 1), reset_less=True, name=f"whole_{i}")
        up = Signal(reset_less=True, name=f"up_{i}")
        code = Signal(signed(self.spec.activation_bits), reset_less=True, name=f"code_{i}")
        # One more bit below the point: half of a unit.
        halves = Signal(signed(len(product) + 1), name=f"halves_{i}")
        below = ones_below(m, lane.shift, (1 << SHIFT_BITS) - 1, f"below_{i}")
        rest = Signal(name=f"rest_{i}")
        rounded = Signal(signed(len(product) + 1), name=f"rounded_{i}")
        m.d.comb += [
            halves.eq(Cat(Const(0, 1), product).as_signed() >> lane.shift),
            rest.eq((_fit(product, len(below)) & below[1:]).any()),
            rounded.eq(whole + up),
        ]
        with m.If(moves):
            m.d.sync += [
                based.eq(value.sum + lane.bias),
                other.eq(value.other),
                product.eq(based * lane.factor + other * lane.other_factor),
                whole.eq(halves >> 1),
                up.eq(halves[0] & (rest | halves[1])),
            ]
            with m.If(rounded < factors.low):
                m.d.sync += code.eq(factors.low)
            with m.Elif(rounded > factors.high):
                m.d.sync += code.eq(factors.high)
            with m.Else():
                m.d.sync += code.eq(rounded)
        return code


def _fit(value: Value, width: int) -> Value:
    """The low bits of a signed value, or its sign above them."""
    return value.as_unsigned()[:width] if len(value) >= width else Cat(value, value[-1].replicate(width - len(value)))
