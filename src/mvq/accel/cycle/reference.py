"""The machine stepped through cycle by cycle: slow, obvious, and written apart from the closed form."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from mvq.accel.cycle.model import SETTLE_CYCLES, Cycles, pipeline_depth
from mvq.accel.mapping import Mapping, groups_at_once
from mvq.accel.spec import AcceleratorSpec
from mvq.accel.workload import Layer


@dataclass
class _Work:
    """A block, as lists of what it touches."""

    cycles: int
    load: int
    sums: int


@dataclass
class _Transfers:
    """Bytes of a phase."""

    load: int = 0
    store: int = 0
    blocks: list[_Work] = field(default_factory=list)


def simulate(spec: AcceleratorSpec, layer: Layer, mapping: Mapping) -> Cycles:
    """Cycles of a layer, DRAM left out.

    Every cycle of the array, every weight and every transferred row is visited, so only small layers are feasible.
    """
    phases = _collect(spec, layer, mapping)
    blocks = [block for phase in phases for block in phase.blocks]
    ends = [sum(len(phase.blocks) for phase in phases[: i + 1]) for i in range(len(phases))]
    return _Machine(spec, mapping, phases, blocks, ends).run(_codebook_cycles(spec, layer))


class _Machine:
    def __init__(
        self, spec: AcceleratorSpec, mapping: Mapping, phases: list[_Transfers], blocks: list[_Work], ends: list[int]
    ) -> None:
        self.spec, self.mapping, self.phases, self.blocks, self.ends = spec, mapping, phases, blocks, ends
        self.depth = pipeline_depth(spec)
        self.counts = dict.fromkeys(("compute", "bubble", "weights", "memory"), 0)

    def run(self, codebook: int) -> Cycles:
        """Step through everything."""
        loading = codebook + self.blocks[0].load
        moving = self._moving(self.phases[0].load)
        while loading or moving:
            self.counts["weights" if loading else "memory"] += 1
            loading, moving = max(loading - 1, 0), max(moving - 1, 0)
        for number, phase in enumerate(self.phases):
            self._phase(number, phase)
        for _ in range(self._moving(self.phases[-1].store)):
            self.counts["memory"] += 1
        return Cycles(**self.counts)

    def _phase(self, number: int, phase: _Transfers) -> None:
        moving = 0
        if number + 1 < len(self.phases):
            moving += self._moving(self.phases[number + 1].load)
        if number > 0:
            moving += self._moving(self.phases[number - 1].store)
        first = self.ends[number] - len(phase.blocks)
        for index in range(first, self.ends[number]):
            block = self.blocks[index]
            then = self.blocks[index + 1] if index + 1 < len(self.blocks) else None
            loading = then.load if then is not None and self.mapping.overlapped else 0
            for _ in range(block.cycles):
                self.counts["compute"] += 1
                loading, moving = max(loading - 1, 0), max(moving - 1, 0)
            if then is not None and not self.mapping.overlapped:
                loading = then.load
            # The next block may visit a sum in each cycle, in the order of this one.
            since = block.sums if then is not None else 0
            while since < (SETTLE_CYCLES if then is not None else self.depth):
                self.counts["bubble"] += 1
                loading, moving, since = max(loading - 1, 0), max(moving - 1, 0), since + 1
            while loading:
                self.counts["weights"] += 1
                loading, moving = loading - 1, max(moving - 1, 0)
        while moving:
            self.counts["memory"] += 1
            moving -= 1

    def _moving(self, n_bytes: int) -> int:
        bits, cycles = 8 * n_bytes, 0
        while bits > 0:
            bits, cycles = bits - self.spec.dma_bits, cycles + 1
        return cycles


def _codebook_cycles(spec: AcceleratorSpec, layer: Layer) -> int:
    bits, cycles = layer.codebook_bits(spec), 0
    while bits > 0:
        bits, cycles = bits - spec.weight_port_bits, cycles + 1
    return cycles


def _parts(items: range, size: int) -> Iterator[list[int]]:
    values = list(items)
    for start in range(0, len(values), size):
        yield values[start : start + size]


def _collect(spec: AcceleratorSpec, layer: Layer, mapping: Mapping) -> list[_Transfers]:
    c_in, c_out = layer.c_in // layer.groups, layer.c_out // layer.groups
    entries = _entries(spec, layer, mapping)
    phases: list[_Transfers] = []
    for rows in _parts(range(layer.out_size[0]), mapping.tile_rows):
        tile = _Transfers()
        for groups in _parts(range(layer.groups), groups_at_once(spec, layer)):
            for columns in _parts(range(c_out), spec.cols * mapping.a):
                part = _Transfers() if not mapping.resident else tile
                for channels in _parts(range(c_in), spec.rows * mapping.b):
                    for some in _parts(range(len(entries)), mapping.d):
                        cycles, sums = _issues(spec, layer, rows, channels, columns, some)
                        load = _loads(spec, layer, mapping, groups, channels, columns, some)
                        part.blocks.append(_Work(cycles, load, sums))
                if not mapping.resident:
                    _move(layer, part, rows, len(groups) * c_in, len(groups) * len(columns))
                    phases.append(part)
        if mapping.resident:
            _move(layer, tile, rows, layer.c_in, layer.c_out)
            phases.append(tile)
    return phases


def _entries(spec: AcceleratorSpec, layer: Layer, mapping: Mapping) -> list[list[int]]:
    """Kernel points on the rows, step by step, each as often as there are passes."""
    steps = list(_parts(range(layer.n_points), mapping.fold))
    return [points for points in steps for _ in range(layer.passes(spec))]


def _issues(
    spec: AcceleratorSpec, layer: Layer, rows: list[int], channels: list[int], columns: list[int], entries: list[int]
) -> tuple[int, int]:
    """The inner loops, counted one by one; and the sums of a column that they visit."""
    n, seen = 0, set()
    for row in rows:
        for position in range(layer.out_size[1]):
            for _ in entries:
                for _ in range(0, len(channels), spec.rows):
                    for column in range(0, len(columns), spec.cols):
                        seen.add((row, position, column))
                        n += 1
    return n, len(seen)


def _loads(
    spec: AcceleratorSpec,
    layer: Layer,
    mapping: Mapping,
    groups: list[int],
    channels: list[int],
    columns: list[int],
    entries: list[int],
) -> int:
    """Row by row of the array: a cycle, or as many as it takes beats of the port."""
    cycles = held = 0
    for _ in entries:
        for some in _parts(range(len(channels)), spec.rows):
            for these in _parts(range(len(columns)), spec.cols):
                for _ in range(len(groups) * mapping.fold * len(some)):
                    need, beats = _row_bits(spec, layer, len(these)), 0
                    while held < need:
                        held, beats = held + spec.weight_port_bits, beats + 1
                    held -= need
                    cycles += max(beats, 1)
    return cycles


def _row_bits(spec: AcceleratorSpec, layer: Layer, columns: int) -> int:
    """Word by word."""
    bits = 0
    for lanes in _parts(range(columns), spec.d):
        if layer.compressed and spec.weights != "int8":
            bits += layer.word_bits(spec)
        elif spec.tile == "dense":
            bits += len(lanes) * spec.weight_bits
        else:
            # As many as the first pass takes.
            bits += sum(lane % spec.nm.group < spec.nm.keep for lane in range(len(lanes))) * spec.weight_bits
    return bits


def _move(layer: Layer, phase: _Transfers, rows: list[int], taken: int, made: int) -> None:
    """Input rows that any output row of a phase looks at, and the output."""
    seen = set()
    for row in rows:
        for k in range(layer.kernel[0]):
            seen.add(row * layer.stride[0] - layer.padding[0] + k * layer.dilation[0])
    low, high = max(min(seen), 0), min(max(seen), layer.in_size[0] - 1)
    positions = len(rows) * layer.out_size[1]
    added = layer.residual_bytes * positions * made
    phase.load = max(high - low + 1, 0) * layer.in_size[1] * taken
    phase.load += added // layer.output_bytes + (added % layer.output_bytes > 0)
    phase.store = positions * made


def count(spec: AcceleratorSpec, layer: Layer, mapping: Mapping) -> dict[str, int]:
    """Those of the actions that depend on the loop nest, counted one by one."""
    c_in, c_out = layer.c_in // layer.groups, layer.c_out // layer.groups
    entries = _entries(spec, layer, mapping)
    names = ("arf_reads", "arf_writes", "prf_accesses", "partial_bytes", "input_bytes")
    found: dict[str, int] = dict.fromkeys(names, 0)
    for rows in _parts(range(layer.out_size[0]), mapping.tile_rows):
        if mapping.resident:
            found["input_bytes"] += _input(layer, rows) * layer.c_in
        for groups in _parts(range(layer.groups), groups_at_once(spec, layer)):
            for columns in _parts(range(c_out), spec.cols * mapping.a):
                if not mapping.resident:
                    found["input_bytes"] += _input(layer, rows) * c_in * len(groups)
                seen = 0
                for channels in _parts(range(c_in), spec.rows * mapping.b):
                    for some in _parts(range(len(entries)), mapping.d):
                        steps = sorted({tuple(entries[i]) for i in some})
                        for row in rows:
                            fetched = _fetched(layer, mapping, row, steps)
                            found["arf_writes"] += fetched * len(channels) * len(groups)
                        work = len(rows) * layer.out_size[1] * len(groups)
                        for _ in _parts(range(len(columns)), spec.cols):
                            found["arf_reads"] += work * len(channels) * sum(len(entries[i]) for i in some)
                        for _ in _parts(range(len(channels)), spec.rows):
                            found["prf_accesses"] += work * len(columns) * len(some)
                        if seen:
                            found["partial_bytes"] += (
                                -(-spec.psum_bits // 8) * len(rows) * layer.out_size[1] * len(columns) * len(groups)
                            )
                        seen += 1
    return found


def _input(layer: Layer, rows: list[int]) -> int:
    moved = _Transfers()
    _move(layer, moved, rows, 1, 0)
    return moved.load


def _fetched(layer: Layer, mapping: Mapping, row: int, steps: list[tuple[int, ...]]) -> int:
    """Inputs that the rows of the array fetch for one output row of one channel: the rows share nothing.

    Registers keep what was used for one output until it has been used for the next.
    """
    n = 0
    for lane in range(mapping.fold):
        points = [divmod(step[lane], layer.kernel[1]) for step in steps if lane < len(step)]
        before: set[tuple[int, int]] = set()
        for column in range(layer.out_size[1]):
            needed = {
                (
                    row * layer.stride[0] + y * layer.dilation[0] - layer.padding[0],
                    column * layer.stride[1] + x * layer.dilation[1] - layer.padding[1],
                )
                for y, x in points
            }
            inside = {(y, x) for y, x in needed if 0 <= y < layer.in_size[0] and 0 <= x < layer.in_size[1]}
            n += len(inside - before)
            before = needed
    return n
