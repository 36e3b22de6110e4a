"""The machine: controller, fetching of inputs, core and output unit between the memories."""

from __future__ import annotations

from amaranth.hdl import Module, signed
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out

from mvq.accel.rtl.column import ADDRESS_BITS
from mvq.accel.rtl.controller import Controller, layer_layout
from mvq.accel.rtl.core import Core
from mvq.accel.rtl.fetch import INPUT_BITS, Fetch, point_layout, shape_layout
from mvq.accel.rtl.loader import storage_layout
from mvq.accel.rtl.output import OutputUnit, factors_layout, output_lanes, values_layout
from mvq.accel.rtl.parts import Part, place
from mvq.accel.spec import AcceleratorSpec


class Machine(Part):
    """Runs a layer at a time.

    Args:
        spec: machine.

    Ports:
        storage, shape, points: of the layer; stable until the machine rests.
        layer: its loops.
        words: of the codebook and of weights, from L2.
        reads, found: inputs in the banks of L1, which lie on `found` in the cycle after they were asked for.
        read, read_address, memory, write, write_address, results: partial sums in L1, as of the core.
        factors, values, codes: of the output unit, between L1 and L2.
        resting: all steps are done, and their sums are in memory.
        overflow: a partial sum has left `psum_bits` since the last reset.
    """

    module = "mvq_machine"

    def __init__(self, spec: AcceleratorSpec) -> None:
        self.spec = spec
        tiles, code = spec.words_per_row, signed(spec.activation_bits)
        sums = data.ArrayLayout(data.ArrayLayout(signed(spec.psum_bits), spec.d), tiles)
        addresses = data.ArrayLayout(ADDRESS_BITS, tiles)
        reads = data.StructLayout({"rows": spec.rows, "addresses": data.ArrayLayout(INPUT_BITS, spec.rows)})
        super().__init__(
            {
                "storage": In(storage_layout(spec)),
                "shape": In(shape_layout()),
                "points": In(data.ArrayLayout(point_layout(), spec.rows)),
                "layer": In(stream.Signature(layer_layout(spec))),
                "words": In(stream.Signature(spec.weight_port_bits)),
                "reads": Out(stream.Signature(reads)),
                "found": In(data.ArrayLayout(code, spec.rows)),
                "read": Out(tiles),
                "read_address": Out(addresses),
                "memory": In(sums),
                "write": Out(tiles),
                "write_address": Out(addresses),
                "results": Out(sums),
                "factors": In(stream.Signature(factors_layout(spec))),
                "values": In(stream.Signature(values_layout(spec))),
                "codes": Out(stream.Signature(data.ArrayLayout(code, output_lanes(spec)))),
                "resting": Out(1),
                "overflow": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """The machine."""
        m = Module()
        controller = place(m, platform, "controller", Controller, self.spec)
        fetch = place(m, platform, "fetch", Fetch, self.spec)
        core = place(m, platform, "core", Core, self.spec)
        output = place(m, platform, "output", OutputUnit, self.spec)
        for source, sink in (
            (self.layer, controller.layer),
            (controller.blocks, core.blocks),
            (controller.fetches, fetch.blocks),
            (self.words, core.words),
            (fetch.reads, self.reads),
            (fetch.activations, core.activations),
            (self.factors, output.factors),
            (self.values, output.values),
            (output.codes, self.codes),
        ):
            m.d.comb += [
                sink.payload.eq(source.payload),
                sink.valid.eq(source.valid),
                source.ready.eq(sink.ready),
            ]
        m.d.comb += [
            core.storage.eq(self.storage),
            fetch.shape.eq(self.shape),
            fetch.points.eq(self.points),
            fetch.found.eq(self.found),
            core.memory.eq(self.memory),
            *(getattr(self, name).eq(getattr(core, name)) for name in ("read", "read_address", "write")),
            *(getattr(self, name).eq(getattr(core, name)) for name in ("write_address", "results", "overflow")),
            self.resting.eq(controller.idle & fetch.idle & core.resting),
        ]
        return m
