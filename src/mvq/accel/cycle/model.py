"""Cycles of a layer in closed form; `reference` steps through the same machine and must agree exactly.

The array's blocks follow one another in the order of the loop nest. A block issues for as long as it has work. The next
one begins when the sums that it may need are in memory, and its weights in the array: they arrive beside the block or
after it, as the mapping says. Transfers of the next tile's input and the last tile's output run beside a tile.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import NamedTuple

from mvq.accel.cycle.loads import block_load, stored_bytes
from mvq.accel.mapping import Extent, Mapping, Nest, input_rows, nest
from mvq.accel.spec import AcceleratorSpec
from mvq.accel.workload import Layer


@dataclass(frozen=True, kw_only=True, slots=True)
class Cycles:
    """Where the cycles of a layer go; they add up to its time.

    Attributes:
        compute: the array issues work.
        bubble: it waits for its own sums, between blocks and at the end.
        weights: it waits for weights.
        memory: it waits for transfers between L1 and L2.
        dram: it waits for DRAM.
    """

    compute: int = 0
    bubble: int = 0
    weights: int = 0
    memory: int = 0
    dram: int = 0

    @property
    def total(self) -> int:
        """All of them."""
        return sum(getattr(self, f.name) for f in fields(self))

    def __add__(self, other: Cycles) -> Cycles:
        return Cycles(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(self)})


class Block(NamedTuple):
    """Work between two loads of weights.

    Attributes:
        compute: cycles the array issues.
        load: cycles its weights take to arrive.
        sums: in each column.
    """

    compute: int
    load: int
    sums: int


class Span(NamedTuple):
    """Cycles of the array alone, as in `Cycles`."""

    compute: int
    bubble: int
    weights: int


#: Cycles from the last visit to a sum in a block to the first one in the next, which finds it in memory.
SETTLE_CYCLES = 3
#: Stages of fetching an activation: one fewer than of a row of weights, which are read in the cycle after.
FETCH_CYCLES = 2
#: Levels of an adder tree between registers.
TREE_LEVELS = 4


def pipeline_depth(spec: AcceleratorSpec) -> int:
    """Cycles from the issue of a step to its sums in memory.

    Those of fetching the activation, one for each tile that it passes, the multiplier, the adder tree over the
    rows (the first stage with the routing of products in a sparse tile), and the accumulator.
    """
    return FETCH_CYCLES + spec.words_per_row + 1 + tree_cycles(spec.rows) + 1


def tree_cycles(rows: int) -> int:
    """Stages of an adder tree: a register after every `TREE_LEVELS` levels, and at the end."""
    return -(-(rows - 1).bit_length() // TREE_LEVELS)


def transfer_cycles(spec: AcceleratorSpec, n_bytes: int) -> int:
    """Cycles of a transfer between L2 and L1."""
    return -(-8 * n_bytes // spec.dma_bits)


def layer_cycles(spec: AcceleratorSpec, layer: Layer, mapping: Mapping) -> Cycles:
    """Cycles of one layer, DRAM left out.

    Raises:
        ConfigError: if the mapping does not fit.
    """
    line = Timeline(spec, layer, mapping)
    phases = [part for count, phase in line.phases() for part in _ends(count, phase)]
    codebook = -(-layer.codebook_bits(spec) // spec.weight_port_bits)
    weights = codebook + line.block(0, 0, 0, 0, 0).load
    memory = max(phases[0][1].load - weights, 0) + phases[-1][1].store
    compute = bubble = 0
    for i, (count, phase) in enumerate(phases):
        beside = (phases[i + 1][1].load if i + 1 < len(phases) else 0) + (phases[i - 1][1].store if i else 0)
        memory += count * max(beside - sum(phase.span), 0)
        compute += count * phase.span.compute
        bubble += count * phase.span.bubble
        weights += count * phase.span.weights
    return Cycles(compute=compute, bubble=bubble, weights=weights, memory=memory)


def least_cycles(spec: AcceleratorSpec, layer: Layer, mapping: Mapping) -> int:
    """A bound from below on `layer_cycles` that takes little time: the array's work and its loads of weights.

    Raises:
        ConfigError: if the mapping does not fit.
    """
    n = nest(spec, layer, mapping)
    sets = n.groups.n * -(-n.outputs.total // spec.cols) * -(-n.inputs.total // spec.rows)
    compute = layer.n_positions * n.entries.total * sets
    bits = 8 * stored_bytes(spec, layer) - 7  # which has been rounded up
    loads = n.tiles.n * bits // spec.weight_port_bits
    return max(compute, loads) if mapping.overlapped else compute + loads


class Phase(NamedTuple):
    """What runs between two exchanges of L1's buffers.

    Attributes:
        span: of the array.
        load: cycles of its input, before it.
        store: cycles of its output, after it.
    """

    span: Span
    load: int
    store: int


class Timeline:
    """The blocks of a layer on a machine, counted by kinds.

    Args:
        spec: machine.
        layer: work.
        mapping: loop nest.

    Raises:
        ConfigError: if the mapping does not fit.
    """

    def __init__(self, spec: AcceleratorSpec, layer: Layer, mapping: Mapping) -> None:
        self.spec, self.layer, self.mapping = spec, layer, mapping
        self.nest: Nest = nest(spec, layer, mapping)
        self.depth = pipeline_depth(spec)
        self.width = layer.out_size[1]
        self._blocks: dict[tuple[int, ...], Block] = {}
        self._spans: dict[tuple[int, int, int, Block | None], Span] = {}

    def block(self, tile: int, group: int, output: int, inputs: int, entry: int) -> Block:
        """Of the loop indices."""
        n = self.nest
        sizes = n.tiles.size(tile), n.groups.size(group), n.outputs.size(output)
        return self._block(*sizes, n.inputs.size(inputs), n.entries.size(entry))

    def _block(self, rows: int, groups: int, columns: int, channels: int, entries: int) -> Block:
        key = (rows, groups, columns, channels, entries)
        found = self._blocks.get(key)
        if found is None:
            spec = self.spec
            sets = -(-columns // spec.cols) * -(-channels // spec.rows)
            sizes = {"groups": groups, "channels": channels, "columns": columns, "entries": entries}
            load = block_load(spec, self.layer, self.mapping, **sizes).cycles
            sums = rows * self.width * -(-columns // spec.cols)
            found = self._blocks[key] = Block(rows * self.width * entries * sets, load, sums)
        return found

    def span(self, tile: int, group: int, output: int, after: Block | None) -> Span:
        """The array's cycles of one step over outputs, until `after`, the block behind it, may issue."""
        n = self.nest
        sizes = n.tiles.size(tile), n.groups.size(group), n.outputs.size(output)
        key = (*sizes, after)
        found = self._spans.get(key)
        if found is None:
            inputs, entries = n.inputs, n.entries
            parts: list[tuple[int, Block, Block | None]] = []
            for i, count in _kinds(inputs):
                channels = inputs.size(i)
                for e, steps in _steps(entries):
                    here, then = (self._block(*sizes, channels, entries.size(j)) for j in (e, e + 1))
                    parts.append((count * steps, here, then))
            for i, steps in _steps(inputs):
                here = self._block(*sizes, inputs.size(i), entries.last)
                parts.append((steps, here, self._block(*sizes, inputs.size(i + 1), entries.size(0))))
            parts.append((1, self._block(*sizes, inputs.last, entries.last), after))
            compute = bubble = weights = 0
            for count, here, then in parts:
                compute += count * here.compute
                bubble += count * self._bubble(here, then)
                weights += count * self._wait(here, then)
            found = self._spans[key] = Span(compute, bubble, weights)
        return found

    def phases(self) -> Iterator[tuple[int, Phase]]:
        """How many there are in a row, and one of them.

        One a tile where its input is resident; otherwise one a tile, a group step and an output step.
        """
        n = self.nest
        known: dict[tuple[int, Block | None, int], list[tuple[int, Phase]]] = {}
        for tile in range(n.tiles.n):
            then = self.block(tile + 1, 0, 0, 0, 0) if tile + 1 < n.tiles.n else None
            rows = input_rows(self.layer, tile * n.tiles.full, n.tiles.size(tile))
            key = (n.tiles.size(tile), then, rows)
            if key not in known:
                known[key] = list(self._tile_phases(tile, then, rows))
            yield from known[key]

    def _tile_phases(self, tile: int, then: Block | None, rows: int) -> Iterator[tuple[int, Phase]]:
        n = self.nest
        if self.mapping.resident:
            yield 1, Phase(self._tile_span(tile, then), *self._transfers(tile, 0, 0, rows))
            return
        last = n.outputs.n - 1
        for g in range(n.groups.n):
            for k, steps in _steps(n.outputs):
                after = self.block(tile, g, k + 1, 0, 0)
                yield steps, Phase(self.span(tile, g, k, after), *self._transfers(tile, g, k, rows))
            after = then if g + 1 == n.groups.n else self.block(tile, g + 1, 0, 0, 0)
            yield 1, Phase(self.span(tile, g, last, after), *self._transfers(tile, g, last, rows))

    def _tile_span(self, tile: int, then: Block | None) -> Span:
        """All steps over groups and outputs of a tile; steps of a kind are counted, not walked."""
        n = self.nest
        parts: list[tuple[int, Span]] = []
        for g, count in _kinds(n.groups):
            for k, steps in _steps(n.outputs):
                parts.append((count * steps, self.span(tile, g, k, self.block(tile, g, k + 1, 0, 0))))
        last = n.outputs.n - 1
        for g, steps in _steps(n.groups):
            parts.append((steps, self.span(tile, g, last, self.block(tile, g + 1, 0, 0, 0))))
        parts.append((1, self.span(tile, n.groups.n - 1, last, then)))
        return Span(*(sum(count * part[i] for count, part in parts) for i in range(3)))

    def _transfers(self, tile: int, group: int, output: int, rows: int) -> tuple[int, int]:
        """Cycles of the input of a phase, which is of so many rows, and of its output."""
        n, layer = self.nest, self.layer
        if self.mapping.resident:
            taken, made = layer.c_in, layer.c_out
        else:
            taken = n.inputs.total * n.groups.size(group)
            made = n.outputs.size(output) * n.groups.size(group)
        positions = n.tiles.size(tile) * self.width
        added = -(-layer.residual_bytes * positions * made // layer.output_bytes)
        load = rows * layer.in_size[1] * taken + added
        return transfer_cycles(self.spec, load), transfer_cycles(self.spec, positions * made)

    def _bubble(self, here: Block, then: Block | None) -> int:
        """The last block drains; others leave their sums time to settle, of which the next may visit one a cycle."""
        return self.depth if then is None else max(SETTLE_CYCLES - here.sums, 0)

    def _wait(self, here: Block, then: Block | None) -> int:
        """A load that is not beside the block is beside its bubble."""
        if then is None:
            return 0
        beside = self._bubble(here, then) + (here.compute if self.mapping.overlapped else 0)
        return max(then.load - beside, 0)


def _ends(count: int, phase: Phase) -> list[tuple[int, Phase]]:
    """Equal phases in a row: the first and the last have other neighbours than those between."""
    return [(1, phase)] * count if count <= 3 else [(1, phase), (count - 2, phase), (1, phase)]


def _kinds(extent: Extent) -> list[tuple[int, int]]:
    """An index of each kind of part, and how many there are."""
    return [(0, 1)] if extent.n == 1 else [(0, extent.n - 1), (extent.n - 1, 1)]


def _steps(extent: Extent) -> list[tuple[int, int]]:
    """An index of each kind of step to the next part, and how many there are."""
    if extent.n <= 2:
        return [(0, 1)] if extent.n == 2 else []
    return [(0, extent.n - 2), (extent.n - 2, 1)]
