"""The codebook register file: written by the chunk that the weight port brings, read by the codeword."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Signal, Value
from amaranth.lib.wiring import In, Out

from mvq.accel.rtl.parts import Part
from mvq.accel.rtl.registers import Latches, fit, line_of
from mvq.accel.spec import AcceleratorSpec


class Codebook(Part):
    """Codewords with a read port for each tile.

    A chunk is as wide as the weight port: several codewords, or a part of one. Chunks are written in their order.

    Args:
        spec: machine; of the widths of port and codeword, one is a power of two times the other.

    Ports:
        valid: a chunk is written in the next cycle.
        chunk: its number.
        data: it.
        indices: of codewords, one a tile.
        codewords: read.
    """

    module = "mvq_codebook"

    def __init__(self, spec: AcceleratorSpec) -> None:
        self.port, self.width = spec.weight_port_bits, spec.codeword_width * spec.weight_bits
        self.n_codewords, self.n_ports = spec.n_codewords, spec.words_per_row
        self.n_chunks = chunks(spec)
        self.index_bits = max(spec.index_bits, 1)
        super().__init__(
            {
                "valid": In(1),
                "chunk": In(max((self.n_chunks - 1).bit_length(), 1)),
                "data": In(self.port),
                "indices": In(self.n_ports * self.index_bits),
                "codewords": Out(self.n_ports * self.width),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """The file, in banks that are written side by side or one after the other."""
        m = Module()
        valid, chunk = Signal(), Signal.like(self.chunk, reset_less=True)
        data = Signal.like(self.data, reset_less=True)
        m.d.sync += valid.eq(self.valid)
        with m.If(self.valid):
            m.d.sync += [chunk.eq(self.chunk), data.eq(self.data)]
        indices = [self.indices[i * self.index_bits : (i + 1) * self.index_bits] for i in range(self.n_ports)]
        if self.port >= self.width:
            found = self._wide_port(m, valid, chunk, data, indices)
        else:
            found = self._narrow_port(m, valid, chunk, data, indices)
        m.d.comb += self.codewords.eq(Cat(*found))
        return m

    def _wide_port(self, m: Module, valid: Signal, chunk: Signal, data: Signal, indices: list[Value]) -> list[Value]:
        """A bank for each codeword of a chunk."""
        n = self.port // self.width
        low = (n - 1).bit_length()
        per_port: list[list[Value]] = [[] for _ in indices]
        for bank in range(n):
            held = -(-(self.n_codewords - bank) // n)
            if held < 1:
                continue
            file = Latches(held, self.width, self.n_ports)
            m.submodules[f"bank_{bank}"] = file
            m.d.comb += [
                file.enable.eq(valid),
                file.lines.eq(line_of(m, chunk, held, f"line_{bank}")),
                file.data.eq(data[bank * self.width : (bank + 1) * self.width]),
            ]
            for port, value in enumerate(file.read(m, [fit(index[low:], file.address_bits) for index in indices])):
                per_port[port].append(value)
        if n == 1:
            return [values[0] for values in per_port]
        return [
            _chosen(m, values, index[:low], f"codeword_{i}")
            for i, (values, index) in enumerate(zip(per_port, indices, strict=True))
        ]

    def _narrow_port(self, m: Module, valid: Signal, chunk: Signal, data: Signal, indices: list[Value]) -> list[Value]:
        """A bank for each chunk of a codeword."""
        n = self.width // self.port
        low = (n - 1).bit_length()
        per_port: list[list[Value]] = [[] for _ in indices]
        for bank in range(n):
            file = Latches(self.n_codewords, self.port, self.n_ports)
            m.submodules[f"bank_{bank}"] = file
            here = valid & (chunk[:low] == bank)
            m.d.comb += [
                file.enable.eq(here),
                file.lines.eq(line_of(m, chunk[low:], self.n_codewords, f"line_{bank}")),
                file.data.eq(data),
            ]
            for port, value in enumerate(file.read(m, indices)):
                per_port[port].append(value)
        return [Cat(*values) for values in per_port]


def chunks(spec: AcceleratorSpec) -> int:
    """Cycles of the weight port that a codebook takes."""
    return -(-spec.codebook_bits // spec.weight_port_bits)


def _chosen(m: Module, values: list[Value], which: Value, name: str) -> Signal:
    found = Signal(len(values[0]), name=name)
    with m.Switch(which):
        for i, value in enumerate(values):
            with m.Case(i):
                m.d.comb += found.eq(value)
    return found
