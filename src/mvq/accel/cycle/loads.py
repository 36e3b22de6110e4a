"""Loads of weights: what comes through the weight port for a block, and how long it takes.

A block begins at a new beat of the port. The loader writes a row of the array in a cycle and takes a beat only for a
row that it has not all bits of (`mvq.accel.rtl.loader`).
"""

from __future__ import annotations

from typing import NamedTuple

from mvq.accel.mapping import Mapping, nest
from mvq.accel.spec import AcceleratorSpec
from mvq.accel.workload import Layer


class Load(NamedTuple):
    """Of a block.

    Attributes:
        cycles: until its last row is written.
        beats: of the weight port.
    """

    cycles: int
    beats: int


def block_load(
    spec: AcceleratorSpec, layer: Layer, mapping: Mapping, *, groups: int, channels: int, columns: int, entries: int
) -> Load:
    """Load of a block.

    Args:
        spec: machine.
        layer: whose weights.
        mapping: of which `fold` matters here.
        groups: side by side.
        channels: input channels of a group.
        columns: output channels of a group.
        entries: kernel points times passes.
    """
    port = spec.weight_port_bits
    n_full, rest = divmod(columns, spec.cols)
    full_bits, rest_bits = layer.row_bits(spec, spec.cols), layer.row_bits(spec, rest)
    rows = channels * groups * entries * mapping.fold
    n_rows = rows * (n_full + (rest > 0))
    beats = -(-rows * (n_full * full_bits + rest_bits) // port)
    sizes = [full_bits] * (n_full > 0) + [rest_bits] * (rest > 0)
    if max(sizes) <= port:
        return Load(n_rows, beats)
    if min(sizes) >= port:
        return Load(beats, beats)
    # Rows of the last columns are shorter than a beat, those before are not: between them the port waits.
    cycles = bits = 0
    for _ in range(entries):
        for first in range(0, channels, spec.rows):
            n = min(spec.rows, channels - first) * groups * mapping.fold
            before = -(-bits // port)
            bits += n * n_full * full_bits
            cycles += -(-bits // port) - before + n
            bits += n * rest_bits
    return Load(cycles, beats)


def stored_bytes(spec: AcceleratorSpec, layer: Layer) -> int:
    """Of a layer's weights as the machine stores them, without codebook and what fills beats and rows of the array."""
    rows = layer.c_in * layer.n_points * layer.passes(spec)
    return -(-rows * layer.row_bits(spec, layer.c_out // layer.groups) // 8)


def loaded_bytes(spec: AcceleratorSpec, layer: Layer, mapping: Mapping) -> int:
    """What comes through the weight port for a tile of output rows."""
    n = nest(spec, layer, mapping)
    beats = 0
    for g, n_groups in n.groups.parts():
        for k, n_outputs in n.outputs.parts():
            for c, n_inputs in n.inputs.parts():
                for e, n_entries in n.entries.parts():
                    load = block_load(spec, layer, mapping, groups=g, channels=c, columns=k, entries=e)
                    beats += n_groups * n_outputs * n_inputs * n_entries * load.beats
    return -(-beats * spec.weight_port_bits // 8)
