"""The inputs of the blocks: which kernel points they belong to, where they lie, and which of them rows have kept."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal, Value, signed
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out

from mvq.accel.rtl.loader import COUNT_BITS, MAX_PASSES
from mvq.accel.rtl.parts import Part
from mvq.accel.rtl.registers import Latches, line_of, ones_below
from mvq.accel.spec import AcceleratorSpec

#: Of an input in its bank of L1, and of a place in the input, which may lie in its padding.
INPUT_BITS, PLACE_BITS = 20, 12
#: Inputs that were asked for and not used yet.
AHEAD = 4


def shape_layout() -> data.StructLayout:
    """What inputs look like and how kernel points move over them; offsets are addresses in a bank.

    `width` outputs lie in a row, `right` and `down` apart; a bank holds planes of `plane` inputs, `columns` by `rows`.
    From step to step of a folded kernel a point goes on by `over` columns and `under` rows, by `offset`; where it
    leaves the kernel's columns (`kernel_columns`, dilated), it goes back by them and down by `dilation`, by `wrapped`
    in all. Below `kernel_rows` there are no more points. The step of a block that, one output before, took the input of
    a step's is `reach` entries after it; 0 if there is none.
    """
    place, address = PLACE_BITS, signed(INPUT_BITS + 2)
    return data.StructLayout(
        {
            "width": place,
            "right": place,
            "down": place,
            "next_row": address,
            "plane": INPUT_BITS,
            "rows": place,
            "columns": place,
            "left": place,
            "over": place,
            "under": place,
            "dilation": place,
            "kernel_rows": place,
            "kernel_columns": place,
            "offset": address,
            "wrapped": address,
            "reach": COUNT_BITS,
        }
    )


def point_layout() -> data.StructLayout:
    """The kernel point of a row of the array in the first step."""
    return data.StructLayout({"row": PLACE_BITS, "column": PLACE_BITS, "offset": signed(INPUT_BITS + 2)})


def slot_bits(spec: AcceleratorSpec) -> int:
    """Of a register of activations."""
    return max((spec.arf_entries - 1).bit_length(), 1)


def fetch_layout(spec: AcceleratorSpec) -> data.StructLayout:
    """The inputs of a block.

    For each of `tile_rows` rows of outputs from input row `top` on, and their columns: `entries` steps over kernel
    points, from the first where `fresh` and otherwise from where the block before ended, a new one in each `passes`
    from pass `first_pass` on; for each of them `input_sets` planes from `address` on. So many rows of the array take
    part: `rows`, of the last set `last_rows`. From output to output the registers of inputs go on by `shift`.
    """
    rows = spec.rows.bit_length()
    return data.StructLayout(
        {
            "top": signed(PLACE_BITS + 1),
            "address": signed(INPUT_BITS + 2),
            "tile_rows": PLACE_BITS,
            "entries": COUNT_BITS,
            "fresh": 1,
            "first_pass": (MAX_PASSES - 1).bit_length(),
            "passes": MAX_PASSES.bit_length(),
            "input_sets": COUNT_BITS,
            "rows": rows,
            "last_rows": rows,
            "shift": slot_bits(spec),
        }
    )


class Fetch(Part):
    """Reads inputs for the rows of the array from banks of L1, one for each row, and gives zeros for padding.

    Each row keeps what it read in `arf_entries` registers. A block has one for each kernel point and set of channels.
    From output to output they turn, so that a point finds in its own what the point `reach` entries later read there
    for the output before: the same input, if it lies in the same row of the kernel. Only what is not there is read.

    Args:
        spec: machine.

    Ports:
        shape, points: of the layer; stable through it.
        blocks: whose inputs are read.
        reads: an address for each row and whether it is read; a step a cycle at most.
        found: what was read, in the cycle after it was asked for.
        activations: for the core.
        idle: nothing is read or held.
    """

    module = "mvq_fetch"

    def __init__(self, spec: AcceleratorSpec) -> None:
        self.spec, self.asked = spec, Signal(name="asked")
        values = data.ArrayLayout(signed(spec.activation_bits), spec.rows)
        reads = data.StructLayout({"rows": spec.rows, "addresses": data.ArrayLayout(INPUT_BITS, spec.rows)})
        super().__init__(
            {
                "shape": In(shape_layout()),
                "points": In(data.ArrayLayout(point_layout(), spec.rows)),
                "blocks": In(stream.Signature(fetch_layout(spec))),
                "reads": Out(stream.Signature(reads)),
                "found": In(values),
                "activations": Out(stream.Signature(values)),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """The fetching."""
        m = Module()
        spec = self.spec
        block, busy = Signal(fetch_layout(spec), name="block"), Signal()
        counts = {"set": Signal(COUNT_BITS), "entry": Signal(COUNT_BITS), "x": Signal(PLACE_BITS)}
        counts["y"] = Signal(PLACE_BITS)
        limits = {
            "set": block.input_sets,
            "entry": block.entries,
            "x": self.shape.width,
            "y": block.tile_rows,
        }
        last = {name: Signal(name=f"last_{name}") for name in counts}
        m.d.comb += [last[name].eq(counts[name] + 1 == limits[name]) for name in counts]
        asks, over = Signal(), Signal()
        ends: dict[str, Value] = {"asks": asks}
        inner: Value = asks
        for name, count in counts.items():
            ends[name] = inner & last[name]
            with m.If(inner):
                m.d.sync += count.eq(Mux(last[name], 0, count + 1))
            inner = ends[name]
        # The next block waits here, so that the controller can be one ahead for the weights.
        then, waits, takes = Signal(fetch_layout(spec), name="then"), Signal(), Signal()
        m.d.comb += [
            over.eq(ends["y"]),
            takes.eq(waits & (~busy | over)),
            self.blocks.ready.eq(~waits | takes),
        ]
        with m.If(self.blocks.valid & self.blocks.ready):
            m.d.sync += [then.eq(self.blocks.payload), waits.eq(1)]
        with m.Elif(takes):
            m.d.sync += waits.eq(0)
        with m.If(takes):
            m.d.sync += [block.eq(then), busy.eq(1)]
        with m.Elif(over):
            m.d.sync += busy.eq(0)
        number, move, reset = self._passes(m, block, then, ends, takes)
        slot, again, near = self._slots(m, block, counts, number, ends, takes)
        place = self._place(m, then, ends, takes)
        inside, reached = Signal(spec.rows, name="inside"), Signal(spec.rows, name="reached")
        for i in range(spec.rows):
            self._row(m, i, place, move, ends, takes, reset, inside, reached)
        rows = Mux(last["set"], block.last_rows, block.rows)
        wanted, kept = (Signal(spec.rows, name=name) for name in ("wanted", "kept"))
        m.d.comb += [
            wanted.eq(inside & ones_below(m, rows, spec.rows, "taking")),
            kept.eq(again.replicate(spec.rows) | near.replicate(spec.rows) & reached),
            self.reads.payload.rows.eq(wanted & ~kept),
        ]
        self._answers(m, busy, asks, wanted, slot)
        m.d.comb += self.idle.eq(~busy & ~waits & ~self.activations.valid & ~self.asked)
        return m

    def _passes(
        self, m: Module, block: data.View, then: data.View, ends: dict[str, Value], takes: Signal
    ) -> tuple[Signal, Signal, Signal]:
        """The pass; whether kernel points move with this step, and whether they begin anew with the block taken."""
        number = Signal(range(MAX_PASSES), name="pass_number")
        wraps, move, reset = Signal(), Signal(), Signal()
        m.d.comb += [
            wraps.eq(number + 1 == block.passes),
            move.eq(ends["set"] & wraps),
            reset.eq(takes & then.fresh),
        ]
        with m.If(ends["set"]):
            m.d.sync += number.eq(Mux(wraps, 0, number + 1))
        with m.If(ends["entry"]):
            m.d.sync += number.eq(block.first_pass)
        with m.If(takes):
            m.d.sync += number.eq(then.first_pass)
        return number, move, reset

    def _slots(
        self,
        m: Module,
        block: data.View,
        counts: dict[str, Signal],
        number: Signal,
        ends: dict[str, Value],
        takes: Signal,
    ) -> tuple[Signal, Signal, Signal]:
        """The register of a step; whether an earlier pass has filled it, or may have for the output before."""
        entries, bits = self.spec.arf_entries, slot_bits(self.spec)
        # Of this step, of the first set of its point, and of the first point of its output.
        slot, point, line = (Signal(bits, name=f"slot{name}") for name in ("", "_of_point", "_of_output"))
        asks = ends["asks"]
        after, turned = (Signal(bits, name=f"slot_{name}") for name in ("after", "turned"))
        further = Signal(bits + 1)
        m.d.comb += [
            after.eq(Mux(slot == entries - 1, 0, slot + 1)),
            further.eq(line + block.shift),
            turned.eq(Mux(further >= entries, further - entries, further)),
        ]
        again, near = (Signal(name=name) for name in ("again", "near"))
        passes_left = number + 1 != block.passes
        with m.If(asks):
            m.d.sync += slot.eq(after)
        with m.If(ends["set"]):
            m.d.sync += [slot.eq(Mux(passes_left, point, after)), point.eq(Mux(passes_left, point, after))]
        with m.If(ends["entry"]):
            m.d.sync += [register.eq(turned) for register in (slot, point, line)]
        with m.If(takes):
            m.d.sync += [register.eq(0) for register in (slot, point, line)]
        reach = self.shape.reach
        m.d.comb += [
            again.eq((counts["entry"] != 0) & (number != 0)),
            near.eq((counts["x"] != 0) & (reach != 0) & (counts["entry"] + reach < block.entries + number)),
        ]
        return slot, again, near

    def _place(self, m: Module, then: data.View, ends: dict[str, Value], takes: Signal) -> dict[str, Signal]:
        """Of the upper left kernel point: row, column and address, and the address of the plane's set."""
        shape = self.shape
        place = {
            "row": Signal(signed(PLACE_BITS + 2), name="input_row"),
            "column": Signal(signed(PLACE_BITS + 2), name="input_column"),
            "address": Signal(signed(INPUT_BITS + 2), name="input_address"),
            "plane": Signal(signed(INPUT_BITS + 2), name="plane_address"),
        }
        with m.If(ends["x"]):
            m.d.sync += [
                place["row"].eq(place["row"] + shape.down),
                place["column"].eq(-shape.left),
                place["address"].eq(place["address"] + shape.next_row),
                place["plane"].eq(place["address"] + shape.next_row),
            ]
        with m.Elif(ends["entry"]):
            m.d.sync += [
                place["column"].eq(place["column"] + shape.right),
                place["address"].eq(place["address"] + shape.right),
                place["plane"].eq(place["address"] + shape.right),
            ]
        with m.Elif(ends["set"]):
            m.d.sync += place["plane"].eq(place["address"])
        with m.Elif(self.reads.valid & self.reads.ready):
            m.d.sync += place["plane"].eq(place["plane"] + shape.plane)
        with m.If(takes):
            m.d.sync += [
                place["row"].eq(then.top),
                place["column"].eq(-shape.left),
                place["address"].eq(then.address),
                place["plane"].eq(then.address),
            ]
        return place

    def _row(
        self,
        m: Module,
        i: int,
        place: dict[str, Signal],
        move: Signal,
        ends: dict[str, Value],
        takes: Signal,
        reset: Signal,
        inside: Signal,
        reached: Signal,
    ) -> None:
        """A row's kernel point: where it is, where the block began with it, and where it goes.

        Whether it lies `inside` the input, and whether an output `reached` this input before in the same kernel row.
        """
        shape, start = self.shape, self.points[i]
        now, began, later = (Signal(point_layout(), name=f"{name}_{i}") for name in ("point", "began", "later"))
        wraps = Signal(name=f"wraps_{i}")
        column = now.column + shape.over
        m.d.comb += [
            wraps.eq(column >= shape.kernel_columns),
            later.eq(now),
        ]
        with m.If(move):
            m.d.comb += [
                later.column.eq(Mux(wraps, column - shape.kernel_columns, column)),
                later.row.eq(now.row + shape.under + Mux(wraps, shape.dilation, 0)),
                later.offset.eq(now.offset + Mux(wraps, shape.wrapped, shape.offset)),
            ]
        over = ends["y"]
        m.d.sync += now.eq(Mux(ends["entry"] & ~over, began, later))
        with m.If(takes):
            # A block goes on where the one before it ended, unless it begins with the first kernel point.
            m.d.sync += [now.eq(Mux(reset, start, later)), began.eq(Mux(reset, start, later))]
        row, at = Signal(signed(PLACE_BITS + 3), name=f"row_{i}"), Signal(signed(PLACE_BITS + 3), name=f"column_{i}")
        m.d.comb += [
            row.eq(place["row"] + now.row),
            at.eq(place["column"] + now.column),
            self.reads.payload.addresses[i].eq(place["plane"] + now.offset),
            reached[i].eq(now.column + shape.right < shape.kernel_columns),
            inside[i].eq(
                (row >= 0) & (row < shape.rows) & (at >= 0) & (at < shape.columns) & (now.row < shape.kernel_rows)
            ),
        ]

    def _answers(self, m: Module, busy: Signal, asks: Signal, wanted: Signal, slot: Signal) -> None:
        """What was read comes a cycle later; with what was kept it waits here until the core takes it."""
        spec = self.spec
        values = data.ArrayLayout(signed(spec.activation_bits), spec.rows)
        asked, takes, read = self.asked, Signal(spec.rows, name="takes"), Signal(spec.rows, name="was_read")
        lines, at = Signal(spec.arf_entries, name="slot_lines"), Signal.like(slot, name="slot_at")
        held = [Signal(values, name=f"held_{i}", reset_less=True) for i in range(AHEAD)]
        n = Signal(range(AHEAD + 1), name="n_held")
        put, get = (Signal(range(AHEAD), name=f"{name}_at") for name in ("put", "get"))
        room, gone, given = Signal(), Signal(), Signal(values, name="given")
        m.d.comb += [
            room.eq(n + asked < AHEAD),
            self.reads.valid.eq(busy & room),
            asks.eq(self.reads.valid & self.reads.ready),
            self.activations.valid.eq(n != 0),
            gone.eq(self.activations.valid & self.activations.ready),
        ]
        for i in range(spec.rows):
            file = m.submodules[f"kept_{i}"] = Latches(spec.arf_entries, spec.activation_bits)
            (kept,) = file.read(m, [at])
            m.d.comb += [
                file.enable.eq(asked & read[i]),
                file.lines.eq(lines),
                file.data.eq(self.found[i]),
                given[i].eq(Mux(takes[i], Mux(read[i], self.found[i], kept.as_signed()), 0)),
            ]
        m.d.sync += [asked.eq(asks), n.eq(n + asked - gone)]
        with m.If(asks):
            m.d.sync += [
                takes.eq(wanted),
                read.eq(self.reads.payload.rows),
                at.eq(slot),
                lines.eq(line_of(m, slot, spec.arf_entries, "next_lines")),
            ]
        for i, value in enumerate(held):
            with m.If(asked & (put == i)):
                m.d.sync += value.eq(given)
            with m.If(get == i):
                m.d.comb += self.activations.payload.eq(value)
        with m.If(asked):
            m.d.sync += put.eq(put + 1)
        with m.If(gone):
            m.d.sync += get.eq(get + 1)
