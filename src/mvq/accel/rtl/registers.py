"""Register files of latches.

A latch takes little more than half the area of a flip-flop. Both the data and the word that is written come from
flip-flops, and the latches are open in the low phase of the clock alone: what is written in a cycle is read in the
next.
"""

from __future__ import annotations

from collections.abc import Sequence

from amaranth.hdl import Array, Cat, ClockSignal, Const, Instance, Module, Mux, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from mvq.accel.rtl.parts import Parts

#: The module that `Latches` is an instance of; part of every emitted file.
LATCHES_VERILOG = """\
// Words of latches, written in the low phase of the clock; all inputs change with its rising edge.
module mvq_latches #(
  parameter WORDS = 16, parameter WIDTH = 8, parameter PORTS = 1, parameter ADDRESS = 4
) (
  input  wire                     clk,
  input  wire                     enable,
  input  wire [WORDS-1:0]         lines,
  input  wire [WIDTH-1:0]         data,
  input  wire [PORTS*ADDRESS-1:0] addresses,
  output wire [PORTS*WIDTH-1:0]   values
);
  wire open = enable & ~clk;
  (* mem2reg *) reg [WIDTH-1:0] words [0:WORDS-1];
  genvar i;
  generate
    for (i = 0; i < WORDS; i = i + 1) begin : gen_word
      always_latch if (lines[i] & open) words[i] = data;
    end
    for (i = 0; i < PORTS; i = i + 1) begin : gen_port
      assign values[i*WIDTH +: WIDTH] = words[addresses[i*ADDRESS +: ADDRESS]];
    end
  endgenerate
endmodule
"""


class Latches(wiring.Component):
    """Words of latches with a line for each word, and read ports without latency.

    Args:
        words: there are.
        width: bits of a word.
        ports: to read.

    Ports:
        enable: words are written. This, `lines` and `data` are stable through the cycle.
        lines: one for each word that is written.
        data: written to them.
        addresses: of the words to read, port by port.
        values: read.
    """

    def __init__(self, words: int, width: int, ports: int = 1) -> None:
        self.n_words, self.width, self.n_ports = words, width, ports
        self.address_bits = max((words - 1).bit_length(), 1)
        super().__init__(
            {
                "enable": In(1),
                "lines": In(words),
                "data": In(width),
                "addresses": In(ports * self.address_bits),
                "values": Out(ports * width),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """The latches; in simulation by Amaranth, flip-flops that are written and read in the same cycles."""
        m = Module()
        if not isinstance(platform, Parts):
            words = Array(Signal(self.width, name=f"word_{i}") for i in range(self.n_words))
            for i in range(self.n_words):
                with m.If(self.enable & self.lines[i]):
                    m.d.sync += words[i].eq(self.data)
            for i in range(self.n_ports):
                address = self.addresses.word_select(i, self.address_bits)
                m.d.comb += self.values.word_select(i, self.width).eq(words[address])
            return m
        m.submodules.latches = Instance(
            "mvq_latches",
            p_WORDS=self.n_words,
            p_WIDTH=self.width,
            p_PORTS=self.n_ports,
            p_ADDRESS=self.address_bits,
            i_clk=ClockSignal(),
            i_enable=self.enable,
            i_lines=self.lines,
            i_data=self.data,
            i_addresses=self.addresses,
            o_values=self.values,
        )
        return m

    def read(self, m: Module, addresses: Sequence[Value]) -> list[Value]:
        """The words at addresses, one a port."""
        m.d.comb += self.addresses.eq(Cat(*(fit(address, self.address_bits) for address in addresses)))
        return [self.values[i * self.width : (i + 1) * self.width] for i in range(self.n_ports)]


def fit(value: Value, width: int) -> Value:
    """The low bits of a value, or zeros above it."""
    return value[:width] if len(value) >= width else Cat(value, Const(0, width - len(value)))


def shifted_up(m: Module, value: Value, amount: Value, width: int, name: str) -> Signal:
    """A value times a power of two, cut to a width: Amaranth's own shift is as wide as the greatest amount makes it."""
    shifted = Signal(width, name=f"{name}_0")
    m.d.comb += shifted.eq(value)
    for i in range(len(amount)):
        further = Signal(width, name=f"{name}_{i + 1}")
        m.d.comb += further.eq(Mux(amount[i], Cat(Const(0, min(1 << i, width)), shifted)[:width], shifted))
        shifted = further
    return shifted


def line_of(m: Module, number: Value, n: int, name: str) -> Signal:
    """A line for each number, of which one is set."""
    lines = Signal(n, name=name)
    m.d.comb += [lines[i].eq(number == i) for i in range(n)]
    return lines


def ones_below(m: Module, number: Value, n: int, name: str) -> Signal:
    """As many low bits as a number says."""
    ones = Signal(n, name=name)
    m.d.comb += [ones[i].eq(number > i) for i in range(n)]
    return ones
