"""The loops of a layer above a block: which weights are loaded, which steps follow, and which inputs they take.

Sizes come twice where the last part of a loop may be smaller: for the others, and for it.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out

from mvq.accel.rtl.column import ADDRESS_BITS
from mvq.accel.rtl.fetch import INPUT_BITS, PLACE_BITS, fetch_layout, slot_bits
from mvq.accel.rtl.loader import COUNT_BITS, MAX_PASSES, load_command_layout
from mvq.accel.rtl.parts import Part
from mvq.accel.rtl.sequencer import block_layout
from mvq.accel.spec import AcceleratorSpec

#: Of the parts of a loop.
LOOP_BITS = 16


def _pair(shape: object) -> data.ArrayLayout:
    """For all parts of a loop but the last, and for the last."""
    return data.ArrayLayout(shape, 2)  # type: ignore[arg-type]


def layer_layout(spec: AcceleratorSpec) -> data.StructLayout:
    """A layer's loops: how often, how large, and how far inputs move with them.

    `rows` and `last_rows` are by last step over inputs and over groups, `region` by last tile and last step over
    outputs: the partial sums of a column.
    """
    rows = spec.rows.bit_length()
    square = data.ArrayLayout(data.ArrayLayout(rows, 2), 2)
    address = signed(INPUT_BITS + 2)
    return data.StructLayout(
        {
            **dict.fromkeys(LOOPS, LOOP_BITS),
            "tile_rows": _pair(PLACE_BITS),
            "positions": _pair(ADDRESS_BITS),
            "entry_count": _pair(COUNT_BITS),
            "input_sets": _pair(COUNT_BITS),
            "column_sets": _pair(COUNT_BITS),
            "partial": _pair(1),
            "rows": square,
            "last_rows": square,
            "region": data.ArrayLayout(data.ArrayLayout(ADDRESS_BITS, 2), 2),
            "passes": MAX_PASSES.bit_length(),
            "pass_step": MAX_PASSES.bit_length(),
            "codebook": 1,
            "overlapped": 1,
            "half": max((spec.wrf_entries - 1).bit_length(), 1),
            "top": signed(PLACE_BITS + 1),
            "tile_down": PLACE_BITS,
            "first": address,
            "tile_step": address,
            "input_step": INPUT_BITS,
            "group_step": INPUT_BITS,
            "shift": _pair(slot_bits(spec)),
        }
    )


#: Outermost first.
LOOPS = ("tiles", "groups", "outputs", "inputs", "entries")


class Controller(Part):
    """Counts through the loops of a layer.

    Args:
        spec: machine.

    Ports:
        layer: its loops; taken when those before it have been counted through.
        blocks: for the sequencer.
        fetches: the same blocks for the fetching of inputs.
        idle: there is no layer.
    """

    module = "mvq_controller"

    def __init__(self, spec: AcceleratorSpec) -> None:
        self.spec = spec
        super().__init__(
            {
                "layer": In(stream.Signature(layer_layout(spec))),
                "blocks": Out(stream.Signature(block_layout(spec))),
                "fetches": Out(stream.Signature(fetch_layout(spec))),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """The controller."""
        m = Module()
        layer = Signal(layer_layout(self.spec))
        busy, first = Signal(), Signal()
        sent = {name: Signal(name=f"sent_{name}") for name in ("blocks", "fetches")}
        done = Signal()
        for name in sent:
            port = getattr(self, name)
            m.d.comb += port.valid.eq(busy & ~sent[name])
            with m.If(port.valid & port.ready):
                m.d.sync += sent[name].eq(1)
        m.d.comb += [
            self.layer.ready.eq(~busy),
            self.idle.eq(~busy),
            done.eq(busy & Cat(*(sent[n] | getattr(self, n).ready for n in sent)).all()),
        ]
        with m.If(done):
            m.d.sync += [flag.eq(0) for flag in sent.values()]
        self._count(m, layer, busy, first, done)
        return m

    def _count(self, m: Module, layer: data.View, busy: Signal, first: Signal, done: Signal) -> None:
        at = {name: Signal(LOOP_BITS, name=f"at_{name}") for name in LOOPS}
        last = {name: Signal(name=f"last_{name}") for name in LOOPS}
        m.d.comb += [last[name].eq(at[name] + 1 == layer[name]) for name in LOOPS]
        address, base, number = Signal(ADDRESS_BITS), Signal(1), Signal(range(MAX_PASSES))
        # Inputs: of the tile, of the group and of the set of channels.
        top, tile = Signal.like(layer.top), Signal.like(layer.first, name="tile_address")
        group, inputs = Signal(INPUT_BITS, name="group_address"), Signal(INPUT_BITS, name="input_address")
        # Loops that start anew after this block: those within the first, from inside, that is not at its end.
        ends: dict[str, Value] = {}
        inner: Value = done
        for name in reversed(LOOPS):
            ends[name] = inner & last[name]
            with m.If(inner):
                m.d.sync += at[name].eq(Mux(last[name], 0, at[name] + 1))
            inner = ends[name]
        ahead = Signal(MAX_PASSES.bit_length() + 1)
        m.d.comb += ahead.eq(number + layer.pass_step)
        with m.If(done):
            m.d.sync += [
                first.eq(0),
                base.eq(~base),
                number.eq(Mux(last["entries"], 0, Mux(ahead >= layer.passes, ahead - layer.passes, ahead))),
            ]
        with m.If(ends["entries"]):
            m.d.sync += inputs.eq(Mux(last["inputs"], 0, inputs + layer.input_step))
        with m.If(ends["inputs"]):
            m.d.sync += address.eq(address + layer.region[last["tiles"]][last["outputs"]])
        with m.If(ends["outputs"]):
            m.d.sync += group.eq(Mux(last["groups"], 0, group + layer.group_step))
        with m.If(ends["groups"]):
            m.d.sync += [top.eq(top + layer.tile_down), tile.eq(tile + layer.tile_step)]
        with m.If(ends["tiles"]):
            m.d.sync += busy.eq(0)
        with m.If(self.layer.valid & ~busy):
            given = self.layer.payload
            m.d.sync += [layer.eq(given), busy.eq(1), first.eq(1), base.eq(0), address.eq(0)]
            m.d.sync += [top.eq(given.top), tile.eq(given.first), number.eq(0)]
        load = Signal(load_command_layout(self.spec))
        fresh = Signal()
        m.d.comb += [
            fresh.eq((at["inputs"] == 0) & (at["entries"] == 0)),
            load.entries.eq(layer.entry_count[last["entries"]]),
            load.first_pass.eq(number),
            load.input_sets.eq(layer.input_sets[last["inputs"]]),
            load.column_sets.eq(layer.column_sets[last["outputs"]]),
            load.rows.eq(layer.rows[last["inputs"]][last["groups"]]),
            load.last_rows.eq(layer.last_rows[last["inputs"]][last["groups"]]),
            load.partial.eq(layer.partial[last["outputs"]]),
            load.codebook.eq(layer.codebook & first),
            load.base.eq(Mux(base, layer.half, 0)),
        ]
        block, fetch = self.blocks.payload, self.fetches.payload
        m.d.comb += [
            block.load.eq(load),
            block.positions.eq(layer.positions[last["tiles"]]),
            block.address.eq(address),
            block.fresh.eq(fresh),
            block.overlapped.eq(layer.overlapped),
            fetch.top.eq(top),
            fetch.address.eq(tile + group + inputs),
            fetch.tile_rows.eq(layer.tile_rows[last["tiles"]]),
            fetch.entries.eq(load.entries),
            fetch.fresh.eq(at["entries"] == 0),
            fetch.first_pass.eq(number),
            fetch.passes.eq(layer.passes),
            fetch.input_sets.eq(load.input_sets),
            fetch.rows.eq(load.rows),
            fetch.last_rows.eq(load.last_rows),
            fetch.shift.eq(layer.shift[last["inputs"]]),
        ]
