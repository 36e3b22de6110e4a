"""A layer on the gates of a core: the sums it makes, and the energy of each cycle by component."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from amaranth.lib import data
from numpy.typing import NDArray

from mvq.accel.rtl.column import ADDRESS_BITS
from mvq.accel.rtl.gates.netlist import Netlist
from mvq.accel.rtl.gates.switching import Switching
from mvq.accel.rtl.gates.timing import Timing
from mvq.accel.rtl.loader import storage_layout
from mvq.accel.rtl.program import Program
from mvq.accel.rtl.sequencer import block_layout
from mvq.accel.rtl.simulation import layout_bytes
from mvq.accel.rtl.synthesis import component_of
from mvq.accel.spec import AcceleratorSpec
from mvq.errors import MvqError
from mvq.progress import make_progress

Array = NDArray[Any]


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Activity:
    """What the gates of a core did.

    Attributes:
        memory: partial sums `(tiles, addresses, d)`.
        components: names of parts of the core.
        energy: `(cycles, components)` in fJ, without leakage.
        taken: `(cycles, 3)`: whether a block, a beat of words, activations were taken.
        leakage: of each component in nW.
        ended: whether all blocks were done.
    """

    memory: NDArray[np.int64]
    components: tuple[str, ...]
    energy: Array
    taken: Array
    leakage: Array
    ended: bool


def run(
    spec: AcceleratorSpec,
    netlist: Netlist,
    program: Program,
    activations: NDArray[np.int8],
    *,
    ns: float,
    timing: Timing | None = None,
    most_cycles: int | None = None,
) -> Activity:
    """Run a program on the gates of a core, without stalls.

    Args:
        spec: machine.
        netlist: of its `mvq_core`.
        program: made for it.
        activations: `(steps, rows)` of it.
        ns: period of the clock.
        timing: of the netlist, where it is known.
        most_cycles: to stop after.

    Raises:
        MvqError: if gates are still at work at the end of a cycle, or a sum is written where there is none.
    """
    gates = Switching(netlist, period=ns, timing=timing)
    names = [component_of(path) for path in netlist.modules]
    components = tuple(dict.fromkeys(names))
    of_cell = np.array([components.index(name) for name in names])[netlist.module]
    leakage = np.bincount(of_cell, np.array([cell.leakage for cell in netlist.kinds])[netlist.kind])
    tiles, lanes, bits = spec.words_per_row, spec.d, spec.psum_bits
    streams = [
        _Stream("blocks", [_bits(block_layout(spec), block) for block in program.blocks]),
        _Stream("words", _split(program.words, spec.weight_port_bits)),
        _Stream("activations", _split(activations.tobytes(), spec.rows * spec.activation_bits)),
    ]
    memory = np.zeros((tiles, program.addresses, lanes), np.int64)
    gates.put_bits("storage", _bits(storage_layout(spec), program.storage))
    gates.put("rst", 1)
    for _ in range(2):
        gates.cycle()
    gates.put("rst", 0)
    energy, taken = [], []
    ended = False
    weights = 1 << np.arange(bits, dtype=np.int64)
    weights[-1] *= -1
    with make_progress() as progress:
        bar = progress.add_task("inputs through gates", total=len(streams[2].items))
        while not ended and (most_cycles is None or len(energy) < most_cycles):
            for stream in streams:
                stream.offer(gates)
            gates.reset()
            gates.cycle()
            if gates.late():
                raise MvqError(
                    f"gates are still at work after {ns:g} ns; the longest path takes {gates.timing.longest:g}"
                )
            progress.update(bar, completed=streams[2].next)
            ended = streams[0].over and len(energy) > 2 and bool(gates.get("resting"))
            energy.append(np.bincount(of_cell, gates.energy, len(components)))
            taken.append([stream.take(gates) for stream in streams])
            read, write = gates.get("read"), gates.get("write")
            read_at = gates.get("read_address") if read else 0
            write_at = gates.get("write_address") if write else 0
            if read:
                found = gates.get_bits("memory").reshape(tiles, lanes, bits).copy()
                for tile in range(tiles):
                    if read >> tile & 1:
                        values = memory[tile, _address(read_at, tile, program)]
                        found[tile] = values[:, None] >> np.arange(bits) & 1
                gates.put_bits("memory", found.ravel())
            if write:
                results = gates.get_bits("results").reshape(tiles, lanes, bits).astype(np.int64) @ weights
                for tile in range(tiles):
                    if write >> tile & 1:
                        memory[tile, _address(write_at, tile, program)] = results[tile]
    return Activity(
        memory=memory,
        components=components,
        energy=np.array(energy),
        taken=np.array(taken, bool),
        leakage=leakage,
        ended=ended,
    )


class _Stream:
    """Items that stand on a port until they are taken."""

    def __init__(self, port: str, items: list[Array] | Array) -> None:
        self.port, self.items, self.next = port, items, 0
        self.offered = -1

    @property
    def over(self) -> bool:
        return self.next == len(self.items)

    def offer(self, gates: Switching) -> None:
        if self.offered != self.next:
            gates.put(f"{self.port}_valid", int(not self.over))
            if not self.over:
                gates.put_bits(f"{self.port}_payload", self.items[self.next])
            self.offered = self.next

    def take(self, gates: Switching) -> bool:
        taken = not self.over and bool(gates.get(f"{self.port}_ready"))
        self.next += taken
        return taken


def _address(addresses: int, tile: int, program: Program) -> int:
    found = addresses >> tile * ADDRESS_BITS & ((1 << ADDRESS_BITS) - 1)
    if found >= program.addresses:
        raise MvqError(f"the gates wrote or read a sum at {found}; there are {program.addresses}")
    return found


def _bits(layout: data.StructLayout, values: dict[str, Any]) -> Array:
    return np.unpackbits(layout_bytes(layout, values), bitorder="little")[: layout.size]


def _split(stream: bytes, bits: int) -> Array:
    """Items of so many bits, one a row."""
    every = np.unpackbits(np.frombuffer(stream, np.uint8), bitorder="little")
    return every.reshape(-1, bits) if len(every) else np.zeros((0, bits), np.uint8)
