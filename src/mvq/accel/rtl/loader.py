"""The weight loader: from the stream of stored words to rows of weights in the array.

A row goes through three stages: cut out of the stream, cut into the words of the tiles, decoded. Each tile gets its
part a cycle after the tile before it, as it does the activations.
"""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, stream
from amaranth.lib.wiring import In, Out

from mvq.accel.rtl.codebook import Codebook, chunks
from mvq.accel.rtl.column import load_layout
from mvq.accel.rtl.masks import MaskDecoder, MaskTable
from mvq.accel.rtl.parts import Part, place
from mvq.accel.rtl.registers import fit, line_of, ones_below, shifted_up
from mvq.accel.spec import AcceleratorSpec

#: Most passes of a word through the multipliers.
MAX_PASSES = 32
#: Of counts of entries, sets of channels and sets of columns in a block.
COUNT_BITS = 8


def slots(spec: AcceleratorSpec) -> int:
    """Multipliers of a row of the array."""
    return spec.words_per_row * spec.multipliers_per_tile_row


def row_bits(spec: AcceleratorSpec) -> int:
    """Most bits that are stored for a row of the array."""
    plain = slots(spec) * spec.weight_bits
    return max(plain, spec.words_per_row * spec.word_bits if spec.weights != "int8" else 0)


def unit_bits(spec: AcceleratorSpec) -> int:
    """Of a count of what a row is made of: codes of plain layers, words of compressed ones."""
    return slots(spec).bit_length()


def storage_layout(spec: AcceleratorSpec) -> data.StructLayout:
    """How a layer's weights are stored.

    `plain` codes or words of `word_bits`, of which the low `index_bits` are an index. A row of full columns is of
    `full_units`, one of the last columns of `last_units`. Where groups lie on the diagonal, they follow
    one another after `group_rows` rows and `group_columns` columns, otherwise both are zero. A row in no group
    begins at column 0.
    """
    units = unit_bits(spec)
    return data.StructLayout(
        {
            "plain": 1,
            "index_bits": 8,
            "word_bits": row_bits(spec).bit_length(),
            "passes": (MAX_PASSES).bit_length(),
            "full_units": units,
            "last_units": units,
            "group_rows": 16,
            "group_columns": 16,
        }
    )


def load_command_layout(spec: AcceleratorSpec) -> data.StructLayout:
    """A block's weights: loops over entries from a pass on, sets of input channels, sets of columns, and rows.

    The weights go to register `base` and after; before them the codebook comes where `codebook` is set. The last of
    the sets of columns has full rows unless `partial`.
    """
    rows = spec.rows.bit_length()
    return data.StructLayout(
        {
            "entries": COUNT_BITS,
            "first_pass": (MAX_PASSES - 1).bit_length(),
            "input_sets": COUNT_BITS,
            "column_sets": COUNT_BITS,
            "rows": rows,
            "last_rows": rows,
            "partial": 1,
            "codebook": 1,
            "base": max((spec.wrf_entries - 1).bit_length(), 1),
        }
    )


class WeightLoader(Part):
    """Loads the weights of a block.

    Args:
        spec: machine.

    Ports:
        run: the cycle counts; otherwise all but what is on its way to later tiles stands still.
        storage: of the layer; stable through it.
        start: a block is loaded from the next cycle on.
        command: which.
        finishing: the last row leaves the stream in this cycle.
        words: the stream. A block begins at a new beat.
        loads: rows of weights into the tiles.
    """

    module = "mvq_weight_loader"

    def __init__(self, spec: AcceleratorSpec) -> None:
        self.spec = spec
        super().__init__(
            {
                "run": In(1),
                "storage": In(storage_layout(spec)),
                "start": In(1),
                "command": In(load_command_layout(spec)),
                "finishing": Out(1),
                "words": In(stream.Signature(spec.weight_port_bits)),
                "loads": Out(data.ArrayLayout(load_layout(spec), spec.words_per_row)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """The loader."""
        m = Module()
        row = self._rows(m, platform)
        words = self._words(m, row)
        self._decoded(m, platform, words)
        return m

    def _rows(self, m: Module, platform: object) -> Any:
        """First stage: rows cut out of the stream."""
        spec, storage = self.spec, self.storage
        width, port = row_bits(spec), spec.weight_port_bits
        command = Signal(load_command_layout(spec))
        loading, coding = Signal(), Signal()
        counts = {name: Signal(COUNT_BITS, name=name) for name in ("entry", "input_set", "column_set")}
        row, group_row, column = Signal(range(spec.rows + 1)), Signal(16), Signal(16)
        step, which = Signal(range(MAX_PASSES), name="pass_number"), Signal(spec.wrf_entries, name="entry_line")
        # Bits of the stream that came with a row before.
        kept, n_kept = Signal(max(width, port), reset_less=True), Signal(range(max(width, port) + 1))
        last_columns = Signal()
        m.d.comb += last_columns.eq(counts["column_set"] + 1 == command.column_sets)
        units, need = Signal(unit_bits(spec)), Signal(range(width + 1))
        with m.If(last_columns & command.partial):
            m.d.comb += units.eq(storage.last_units)
        with m.Else():
            m.d.comb += units.eq(storage.full_units)
        m.d.comb += need.eq(units * Mux(storage.plain, spec.weight_bits, storage.word_bits))
        taking, short = Signal(), Signal()
        m.d.comb += [
            short.eq(n_kept < need),
            self.words.ready.eq(self.run & (coding | (loading & short))),
            taking.eq(self.words.ready & self.words.valid),
        ]
        beat = shifted_up(m, self.words.payload, n_kept, len(kept) + port, "beat")
        n_there, there = Signal(range(len(kept) + port + 1)), Signal(len(kept) + port)
        m.d.comb += [
            n_there.eq(n_kept + Mux(taking, port, 0)),
            there.eq(Mux(n_kept == 0, 0, kept) | Mux(taking, beat, 0)),
        ]
        emit = Signal()
        m.d.comb += emit.eq(self.run & loading & (n_there >= need))
        found = Signal(data.StructLayout({**self._meta(), "bits": width}), reset_less=True, name="row_stage")
        present = Signal(name="row_present")
        mask = ones_below(m, need, width, "row_mask")
        with m.If(self.run):
            m.d.sync += present.eq(emit)
        with m.If(emit):
            m.d.sync += [
                found.bits.eq(there & mask),
                found.row.eq(row),
                found.entries.eq(which),
                found.units.eq(units),
                found.column.eq(column),
                found.step.eq(step),
                kept.eq(there >> need),
                n_kept.eq(n_there - need),
            ]
        with m.Elif(self.run & loading & taking):
            m.d.sync += [kept.eq(there), n_kept.eq(n_there)]
        self._advance(m, emit, command, counts, row, group_row, column, step, which, last_columns)
        ends = Signal()
        m.d.comb += ends.eq(
            (row + 1 == self._rows_of_set(counts["input_set"], command))
            & last_columns
            & (counts["input_set"] + 1 == command.input_sets)
            & (counts["entry"] + 1 == command.entries)
        )
        m.d.comb += self.finishing.eq(emit & ends)
        with m.If(emit & ends):
            m.d.sync += [loading.eq(0), n_kept.eq(0)]
        base = line_of(m, self.command.base, spec.wrf_entries, "base_line")
        with m.If(self.start):
            m.d.sync += [
                command.eq(self.command),
                *(count.eq(0) for count in counts.values()),
                *(count.eq(0) for count in (row, group_row, column, n_kept)),
                step.eq(self.command.first_pass),
                which.eq(base),
                coding.eq(self.command.codebook if spec.has_codebook else 0),
                loading.eq(~self.command.codebook if spec.has_codebook else 1),
            ]
        if spec.has_codebook:
            self._take_codebook(m, platform, coding, loading, taking)
        return found, present

    def _meta(self) -> dict[str, Any]:
        """What goes with a row through the stages."""
        spec = self.spec
        return {
            "row": max((spec.rows - 1).bit_length(), 1),
            "entries": spec.wrf_entries,
            "units": unit_bits(spec),
            "column": 16,
            "step": (MAX_PASSES - 1).bit_length(),
        }

    def _rows_of_set(self, input_set: Signal, command: Any) -> Value:
        return Mux(input_set + 1 == command.input_sets, command.last_rows, command.rows)

    def _advance(
        self,
        m: Module,
        emit: Signal,
        command: Any,
        counts: dict[str, Signal],
        row: Signal,
        group_row: Signal,
        column: Signal,
        step: Signal,
        which: Signal,
        last_columns: Signal,
    ) -> None:
        """The loops: rows, sets of columns, sets of input channels, entries."""
        with m.If(emit):
            with m.If(row + 1 < self._rows_of_set(counts["input_set"], command)):
                m.d.sync += row.eq(row + 1)
                with m.If(group_row + 1 == self.storage.group_rows):
                    m.d.sync += [group_row.eq(0), column.eq(column + self.storage.group_columns)]
                with m.Else():
                    m.d.sync += group_row.eq(group_row + 1)
            with m.Else():
                m.d.sync += [row.eq(0), group_row.eq(0), column.eq(0), which.eq(which << 1)]
                with m.If(~last_columns):
                    m.d.sync += counts["column_set"].eq(counts["column_set"] + 1)
                with m.Else():
                    m.d.sync += counts["column_set"].eq(0)
                    with m.If(counts["input_set"] + 1 < command.input_sets):
                        m.d.sync += counts["input_set"].eq(counts["input_set"] + 1)
                    with m.Else():
                        m.d.sync += [counts["input_set"].eq(0), counts["entry"].eq(counts["entry"] + 1)]
                        m.d.sync += step.eq(Mux(step + 1 == self.storage.passes, 0, step + 1))

    def _take_codebook(self, m: Module, platform: object, coding: Signal, loading: Signal, taking: Signal) -> None:
        n = chunks(self.spec)
        chunk = Signal(range(max(n, 2)))
        book = self.book = place(m, platform, "codebook", Codebook, self.spec)
        m.d.comb += [book.valid.eq(coding & taking), book.chunk.eq(chunk), book.data.eq(self.words.payload)]
        with m.If(coding & taking):
            with m.If(chunk == n - 1):
                m.d.sync += [chunk.eq(0), coding.eq(0), loading.eq(1)]
            with m.Else():
                m.d.sync += chunk.eq(chunk + 1)

    def _words(self, m: Module, row: Any) -> list[Any]:
        """Second stage: the words of the tiles, each a cycle after the one before."""
        spec = self.spec
        found, present = row
        n = spec.multipliers_per_tile_row
        plain_bits = n * spec.weight_bits
        compressed_bits = spec.word_bits if spec.weights != "int8" else 0
        # Codes of a group on the diagonal move to its columns.
        slot, first = self._place_of(m, found.column)
        codes = Signal(slots(spec) * spec.weight_bits)
        amount = Signal(range(max(len(codes), 2)), name="shift")
        m.d.comb += [
            amount.eq(slot * spec.weight_bits),
            codes.eq(shifted_up(m, found.bits, amount, len(codes), "codes")),
        ]
        words = []
        layout = data.StructLayout(
            {
                "valid": 1,
                "here": 1,
                "row": len(found.row),
                "entries": spec.wrf_entries,
                "step": len(found.step),
                "bits": max(plain_bits, compressed_bits),
            }
        )
        for tile in range(spec.words_per_row):
            word = Signal(layout, name=f"word_{tile}")
            bits = codes[tile * plain_bits : (tile + 1) * plain_bits]
            if compressed_bits:
                shifted = Signal(compressed_bits, name=f"cut_{tile}")
                m.d.comb += shifted.eq(found.bits >> (self.storage.word_bits * tile))
                bits = Mux(self.storage.plain, bits, shifted)
            with m.If(self.run):
                m.d.sync += [
                    word.valid.eq(present),
                    word.here.eq(self.storage.plain | (tile < found.units)),
                    word.row.eq(found.row),
                    word.entries.eq(found.entries),
                    word.step.eq(found.step + first),
                    word.bits.eq(bits),
                ]
            for i in range(tile):
                later = Signal(layout, name=f"word_{tile}_later_{i + 1}")
                m.d.sync += later.eq(word)
                if i == 0:
                    m.d.sync += later.valid.eq(word.valid & self.run)
                word = later
            words.append(word)
        return words

    def _place_of(self, m: Module, column: Value) -> tuple[Value, Value]:
        """The multiplier of a column, and the pass in which its lane is the first of its M."""
        spec = self.spec
        if spec.tile == "dense":
            return column, Const(0, 1)
        keep, group = spec.nm.keep, spec.nm.group
        slot, first = Signal(range(slots(spec))), Signal(range(max(-(-group // keep), 2)))
        with m.Switch(column):
            for i in range(spec.cols):
                in_tile = i % spec.d
                lane = i % group
                place = lane % keep if lane < group // keep * keep else lane - (group - keep)
                at = i // spec.d * spec.q + in_tile // group * keep + place
                with m.Case(i):
                    m.d.comb += [slot.eq(at), first.eq(lane // keep)]
        return slot, first

    def _lane(self, step: Value, place: int) -> Value:
        """Of a code in a pass; what the last one has left over sits as far up as can be."""
        keep, group = self.spec.nm.keep, self.spec.nm.group
        lane = fit(step * keep + place, self.spec.lane_bits)
        return Mux(step == group // keep, group - keep + place, lane) if group % keep else lane

    def _decoded(self, m: Module, platform: object, words: list[Any]) -> None:
        """Third stage: weights, and their lanes in a sparse tile."""
        spec, n = self.spec, self.spec.multipliers_per_tile_row
        indices = []
        index_mask = ones_below(m, self.storage.index_bits, max(spec.index_bits, 1), "index_mask")
        for tile, word in enumerate(words):
            load = Signal(load_layout(spec), name=f"load_{tile}", reset_less=True)
            valid = Signal(name=f"load_valid_{tile}")
            fresh = word.valid & self.run if tile == 0 else word.valid
            m.d.sync += valid.eq(fresh)
            codes = [word.bits[i * spec.weight_bits : (i + 1) * spec.weight_bits] for i in range(n)]
            index_bits, id_bits = max(spec.index_bits, 1), spec.mask_id_bits
            head = spec.q * spec.weight_bits if spec.weights == "nm" else self.storage.index_bits
            index = Signal(index_bits, name=f"index_{tile}")
            if spec.has_codebook:
                m.d.comb += index.eq(word.bits & (index_mask))
                indices.append(index)
            values: list[Value] = list(codes)
            lanes: list[Value] = []
            if spec.has_masks:
                ids = Signal(id_bits, name=f"mask_ids_{tile}")
                m.d.comb += ids.eq(word.bits >> head)
                values, lanes = self._masked(m, platform, tile, codes, ids)
            elif spec.has_codebook:
                values = self._codeword(tile)
            with m.If(fresh):
                m.d.sync += [load.row.eq(word.row), load.entries.eq(word.entries)]
                for i in range(n):
                    value = values[i] if spec.weights == "int8" else Mux(self.storage.plain, codes[i], values[i])
                    m.d.sync += load.weights[i].eq(Mux(word.here, value, 0))
                    if lanes:
                        keep = spec.nm.keep
                        m.d.sync += load.lanes[i].eq(Mux(self.storage.plain, self._lane(word.step, i % keep), lanes[i]))
            out = self.loads[tile]
            m.d.comb += [out.eq(load), out.valid.eq(valid)]
        if spec.has_codebook:
            m.d.comb += self.book.indices.eq(Cat(*indices))

    def _codeword(self, tile: int) -> list[Value]:
        width, bits = self.spec.codeword_width, self.spec.weight_bits
        start = tile * width * bits
        return [self.book.codewords[start + i * bits : start + (i + 1) * bits] for i in range(width)]

    def _masked(
        self, m: Module, platform: object, tile: int, codes: list[Value], ids: Signal
    ) -> tuple[list[Value], list[Value]]:
        """Values and lanes of a word with masks."""
        spec = self.spec
        pattern, keep, group = spec.nm, spec.nm.keep, spec.nm.group
        values: list[Value] = []
        lanes: list[Value] = []
        codeword = self._codeword(tile) if spec.has_codebook else codes
        for i in range(spec.d // group):
            id_ = ids[i * pattern.mask_bits : (i + 1) * pattern.mask_bits]
            if spec.tile == "dense":
                table = place(m, platform, f"masks_{tile}_{i}", MaskTable, pattern)
                m.d.comb += table.id.eq(id_)
                values += [Mux(table.mask[j], codeword[i * group + j], 0) for j in range(group)]
                continue
            decoder = place(m, platform, f"lanes_{tile}_{i}", MaskDecoder, pattern, spec.mask_decode)
            m.d.comb += decoder.id.eq(id_)
            for j in range(keep):
                lane = decoder.lanes[j]
                lanes.append(lane)
                if spec.codeword_width == spec.d:
                    # The j-th kept lane is one of M - N + 1.
                    choices = Array(codeword[i * group + j : i * group + j + group - keep + 1])
                    values.append(choices[(lane - j)[: max((group - keep).bit_length(), 1)]])
                else:
                    values.append(codeword[i * keep + j])
        return values, lanes
