"""The order of work: a step of the array in each cycle, and loads of weights beside or between blocks of steps."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out

from mvq.accel.cycle.model import SETTLE_CYCLES
from mvq.accel.rtl.column import ADDRESS_BITS, step_layout
from mvq.accel.rtl.loader import COUNT_BITS, load_command_layout
from mvq.accel.rtl.parts import Part
from mvq.accel.spec import AcceleratorSpec


def block_layout(spec: AcceleratorSpec) -> data.StructLayout:
    """Work between two loads of weights: its load, and its steps.

    For each of `positions`, and of the load's `entries`, `input_sets` and `column_sets`: a step. Sums start `fresh`, or
    from memory; those of the first position lie at `address` and after. Where `overlapped`, the weights of the block
    after it are loaded beside it.
    """
    return data.StructLayout(
        {
            "load": load_command_layout(spec),
            "positions": ADDRESS_BITS,
            "address": ADDRESS_BITS,
            "fresh": 1,
            "overlapped": 1,
        }
    )


class Sequencer(Part):
    """Issues the steps of blocks.

    Args:
        spec: machine.

    Ports:
        run: the cycle counts; otherwise everything stands still.
        blocks: to do.
        start, command: of a load, which begins in the next cycle.
        finishing: the load's last row is read.
        step: issued; `renew` asks for the next activations.
        resting: there is no block.
    """

    module = "mvq_sequencer"

    def __init__(self, spec: AcceleratorSpec) -> None:
        self.spec = spec
        super().__init__(
            {
                "run": In(1),
                "blocks": In(stream.Signature(block_layout(spec))),
                "start": Out(1),
                "command": Out(load_command_layout(spec)),
                "finishing": In(1),
                "step": Out(step_layout(spec)),
                "renew": Out(1),
                "resting": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """The sequencer.

        `now` is the block whose steps are issued, `then` the one whose weights are loaded next or have been.
        """
        m = Module()
        spec, run = self.spec, self.run
        now, then = (Signal(block_layout(spec), name=name) for name in ("now", "then"))
        issuing, has_then = Signal(), Signal()
        # The load of `then` has been asked for; it has ended.
        asked, loaded = Signal(), Signal()
        idle = Signal(range(SETTLE_CYCLES + 1), init=SETTLE_CYCLES)
        counts = {
            name: Signal(COUNT_BITS if name != "position" else ADDRESS_BITS, name=name)
            for name in ("position", "entry", "input_set", "column_set")
        }
        read, address = Signal.like(self.step.read), Signal(ADDRESS_BITS)
        last_column, last_input, last_entry, last_position = (Signal(name=f"last_{n}") for n in "ABDP")
        load = now.load
        m.d.comb += [
            last_column.eq(counts["column_set"] + 1 == load.column_sets),
            last_input.eq(counts["input_set"] + 1 == load.input_sets),
            last_entry.eq(counts["entry"] + 1 == load.entries),
            last_position.eq(counts["position"] + 1 == now.positions),
        ]
        visit = Signal()
        m.d.comb += [
            visit.eq(last_input & last_entry),
            self.step.valid.eq(issuing),
            self.step.first.eq((counts["input_set"] == 0) & (counts["entry"] == 0)),
            self.step.last.eq(visit),
            self.step.fresh.eq(now.fresh),
            self.step.read.eq(read),
            self.step.slot.eq(counts["column_set"]),
            self.step.address.eq(address + counts["column_set"]),
            self.renew.eq(counts["column_set"] == 0),
            self.resting.eq(~issuing & ~has_then),
        ]
        ends = Signal()
        m.d.comb += ends.eq(issuing & last_position & visit & last_column)
        self._count(m, run & issuing, counts, read, address, now, (last_column, last_input, last_entry))
        # Of sums that are few, the first is visited again before the last has settled.
        sums, settled, go = Signal(range(SETTLE_CYCLES + 1)), Signal(), Signal()
        with m.If((now.positions >= SETTLE_CYCLES) | (load.column_sets >= SETTLE_CYCLES)):
            m.d.comb += sums.eq(SETTLE_CYCLES)
        with m.Elif(now.positions[:2] * load.column_sets[:2] >= SETTLE_CYCLES):
            m.d.comb += sums.eq(SETTLE_CYCLES)
        with m.Else():
            m.d.comb += sums.eq(now.positions[:2] * load.column_sets[:2])
        m.d.comb += [
            settled.eq(idle + sums >= SETTLE_CYCLES),
            go.eq(run & has_then & (ends | ~issuing) & (loaded | self.finishing) & settled),
        ]
        with m.If(run):
            with m.If(ends):
                m.d.sync += [issuing.eq(0), idle.eq(1)]
            with m.Elif(~issuing & (idle < SETTLE_CYCLES)):
                m.d.sync += idle.eq(idle + 1)
            with m.If(self.finishing):
                m.d.sync += loaded.eq(1)
            with m.If(go):
                m.d.sync += [
                    now.eq(then),
                    issuing.eq(1),
                    has_then.eq(0),
                    loaded.eq(0),
                    asked.eq(0),
                    idle.eq(0),
                    read.eq(then.load.base),
                    address.eq(then.address),
                    *(count.eq(0) for count in counts.values()),
                ]
        self._order(m, go, ends, now, then, issuing, has_then, asked)
        return m

    def _count(
        self,
        m: Module,
        step: Signal,
        counts: dict[str, Signal],
        read: Signal,
        address: Signal,
        now: data.View,
        last: tuple[Signal, Signal, Signal],
    ) -> None:
        """Sets of columns innermost, then of input channels, entries and positions."""
        last_column, last_input, last_entry = last
        with m.If(step):
            m.d.sync += read.eq(read + 1)
            with m.If(~last_column):
                m.d.sync += counts["column_set"].eq(counts["column_set"] + 1)
            with m.Else():
                m.d.sync += counts["column_set"].eq(0)
                with m.If(~last_input):
                    m.d.sync += counts["input_set"].eq(counts["input_set"] + 1)
                with m.Else():
                    m.d.sync += counts["input_set"].eq(0)
                    with m.If(~last_entry):
                        m.d.sync += counts["entry"].eq(counts["entry"] + 1)
                    with m.Else():
                        m.d.sync += [
                            counts["entry"].eq(0),
                            counts["position"].eq(counts["position"] + 1),
                            read.eq(now.load.base),
                            address.eq(address + now.load.column_sets),
                        ]

    def _order(
        self,
        m: Module,
        go: Signal,
        ends: Signal,
        now: data.View,
        then: data.View,
        issuing: Signal,
        has_then: Signal,
        asked: Signal,
    ) -> None:
        """Take the next block, and ask for its weights as soon as there is room for them."""
        run = self.run
        # A block is taken into `then` once the one that was there has begun.
        known = Signal(block_layout(self.spec), name="known")
        room = Signal()
        m.d.comb += [
            self.blocks.ready.eq(run & (~has_then | go)),
            known.eq(Mux(has_then & ~go, then, self.blocks.payload)),
        ]
        taking = Signal()
        m.d.comb += taking.eq(self.blocks.ready & self.blocks.valid)
        with m.If(taking):
            m.d.sync += [then.eq(self.blocks.payload), has_then.eq(1)]
        # The block whose steps are under way in the next cycle: the one that begins, or the present one.
        beside = Mux(go, then.overlapped, now.overlapped)
        free = ~go & (~issuing | ends)
        m.d.comb += [
            room.eq(Mux(go, beside, free | now.overlapped)),
            self.start.eq(run & room & Mux(go, taking, ~asked & (has_then | taking))),
            self.command.eq(known.load),
        ]
        with m.If(self.start):
            m.d.sync += asked.eq(1)
