"""The core: weight loader, sequencer and array between streams of words, activations and partial sums."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, signed
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out

from mvq.accel.cycle.model import FETCH_CYCLES, pipeline_depth
from mvq.accel.rtl.column import ADDRESS_BITS, TileColumn, step_layout
from mvq.accel.rtl.loader import WeightLoader, storage_layout
from mvq.accel.rtl.parts import Part, place
from mvq.accel.rtl.sequencer import Sequencer, block_layout
from mvq.accel.spec import AcceleratorSpec


class Core(Part):
    """The array with what feeds it.

    A step goes through `FETCH_CYCLES` stages before it enters the array, a row of weights through one more, since the
    array reads them in the cycle after. There a step takes activations; where they are late, it and all before it wait.

    Args:
        spec: machine.

    Ports:
        storage: how the layer's weights are stored; stable while it is at work.
        blocks: of work.
        words: of the codebook and of weights.
        activations: one for each row, in the order of the steps; each is used for all sets of columns of a step.
        read, read_address: a tile needs the partial sums of its columns in the next cycle, on `memory`.
        write, write_address, results: a tile's partial sums are written.
        resting: nothing is left to do.
        overflow: a partial sum has left `psum_bits` since the last reset.
    """

    module = "mvq_core"

    def __init__(self, spec: AcceleratorSpec) -> None:
        self.spec = spec
        tiles = spec.words_per_row
        sums = data.ArrayLayout(data.ArrayLayout(signed(spec.psum_bits), spec.d), tiles)
        addresses = data.ArrayLayout(ADDRESS_BITS, tiles)
        super().__init__(
            {
                "storage": In(storage_layout(spec)),
                "blocks": In(stream.Signature(block_layout(spec))),
                "words": In(stream.Signature(spec.weight_port_bits)),
                "activations": In(stream.Signature(data.ArrayLayout(signed(spec.activation_bits), spec.rows))),
                "read": Out(tiles),
                "read_address": Out(addresses),
                "memory": In(sums),
                "write": Out(tiles),
                "write_address": Out(addresses),
                "results": Out(sums),
                "resting": Out(1),
                "overflow": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """The core."""
        m = Module()
        spec = self.spec
        sequencer = place(m, platform, "sequencer", Sequencer, spec)
        loader = place(m, platform, "loader", WeightLoader, spec)
        tiles = [place(m, platform, f"tile_{i}", TileColumn, spec) for i in range(spec.words_per_row)]
        run = Signal()
        stages = [data.StructLayout({"step": step_layout(spec), "renew": 1})(_joined(sequencer.step, sequencer.renew))]
        for i in range(FETCH_CYCLES):
            stage = Signal(stages[0].shape(), name=f"stage_{i + 1}")
            with m.If(run):
                m.d.sync += stage.eq(stages[-1])
            stages.append(stage)
        entering = stages[-1]
        takes = Signal()
        held = Signal(data.ArrayLayout(signed(spec.activation_bits), spec.rows), reset_less=True)
        m.d.comb += [
            takes.eq(entering.step.valid & entering.renew),
            run.eq(~takes | self.activations.valid),
            self.activations.ready.eq(takes),
            sequencer.run.eq(run),
            loader.run.eq(run),
            loader.storage.eq(self.storage),
            loader.start.eq(sequencer.start),
            loader.command.eq(sequencer.command),
            sequencer.finishing.eq(loader.finishing),
            loader.words.payload.eq(self.words.payload),
            loader.words.valid.eq(self.words.valid),
            self.words.ready.eq(loader.words.ready),
            sequencer.blocks.payload.eq(self.blocks.payload),
            sequencer.blocks.valid.eq(self.blocks.valid),
            self.blocks.ready.eq(sequencer.blocks.ready),
        ]
        with m.If(takes & run):
            m.d.sync += held.eq(self.activations.payload)
        m.d.comb += [
            tiles[0].step.eq(entering.step),
            tiles[0].step.valid.eq(entering.step.valid & run),
            tiles[0].activations.eq(Mux(entering.renew, self.activations.payload.as_value(), held.as_value())),
        ]
        for i, tile in enumerate(tiles):
            if i:
                m.d.comb += [
                    tile.step.eq(tiles[i - 1].next_step),
                    tile.activations.eq(tiles[i - 1].next_activations),
                ]
            m.d.comb += [
                tile.load.eq(loader.loads[i]),
                tile.memory.eq(self.memory[i]),
                self.read[i].eq(tile.read),
                self.read_address[i].eq(tile.read_address),
                self.write[i].eq(tile.write),
                self.write_address[i].eq(tile.write_address),
                self.results[i].eq(tile.results),
            ]
        with m.If(Cat(*(tile.overflow for tile in tiles)).any()):
            m.d.sync += self.overflow.eq(1)
        under_way = [stage.step.valid for stage in stages[1:]]
        draining = Signal(8)
        with m.If(entering.step.valid):
            m.d.sync += draining.eq(pipeline_depth(spec) - FETCH_CYCLES)
        with m.Elif(draining != 0):
            m.d.sync += draining.eq(draining - 1)
        m.d.comb += self.resting.eq(sequencer.resting & ~Cat(*under_way).any() & (draining == 0))
        return m


def _joined(step: data.View, renew: Signal) -> Signal:
    return Cat(step.as_value(), renew)
