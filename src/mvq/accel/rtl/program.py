"""A layer as the core is given it: blocks, beats of weight words, activations, and where its sums end up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mvq.accel.functional.words import StoredWeight, load_order, pack
from mvq.accel.mapping import Mapping, Nest, nest, points_of
from mvq.accel.rtl.column import ADDRESS_BITS
from mvq.accel.rtl.loader import row_bits
from mvq.accel.spec import AcceleratorSpec
from mvq.accel.workload import Layer
from mvq.errors import ConfigError

Array = NDArray[Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class Program:
    """What a core takes for a layer and an image.

    Attributes:
        storage: fields of `storage_layout`.
        blocks: fields of `block_layout`, in order.
        words: bytes of the codebook and of the weights, beat after beat.
        stream: the weights of a tile of output rows alone, as `pack` makes them.
        activations: `(n, rows)`, in the order of the steps.
        addresses: of partial sums that are used in the memory of a tile.
    """

    storage: dict[str, Any]
    blocks: list[dict[str, Any]]
    words: bytes
    stream: bytes
    activations: NDArray[np.int8]
    addresses: int


class _Step(NamedTuple):
    """Indices and sizes of a block in the loop nest."""

    tile: int
    group: int
    output: int
    inputs: int
    entry: int


def check_layer(spec: AcceleratorSpec, layer: Layer, stored: StoredWeight) -> list[str]:
    """Why the RTL of a machine cannot take a layer that the models can; empty if it can."""
    faults = []
    if stored.slots is None and stored.subvector != spec.d:
        faults.append(f"its subvectors have {stored.subvector} lanes; the loader takes those of d={spec.d} alone")
    if layer.compressed and spec.has_masks and layer.pattern != spec.nm:
        faults.append(f"its pattern is {layer.pattern}; the mask decoder takes {spec.nm} alone")
    if stored.slots is None and stored.codebook is not None and stored.codebook.shape[1] != spec.codeword_width:
        faults.append(
            f"its codewords have {stored.codebook.shape[1]} values; the codebook takes those of {spec.codeword_width}"
        )
    return faults


def program(
    spec: AcceleratorSpec, layer: Layer, mapping: Mapping, stored: StoredWeight, ifmap: NDArray[np.int8]
) -> Program:
    """Lay out a layer.

    Args:
        spec: machine.
        layer: its shape.
        mapping: loop nest.
        stored: its weights.
        ifmap: `(C, H, W)` of one image.

    Raises:
        ConfigError: if the mapping does not fit, or the RTL cannot take the layer.
    """
    faults = check_layer(spec, layer, stored)
    n = nest(spec, layer, mapping)
    steps = list(_steps(n))
    addresses = sum(_region(spec, layer, n, step) for step in steps if step.inputs == step.entry == 0)
    if addresses > 1 << ADDRESS_BITS:
        faults.append(f"it has {addresses} partial sums in a column, {ADDRESS_BITS} bits address fewer")
    if faults:
        raise ConfigError("\n".join(f"layer {layer.name!r} on the RTL of {spec.name!r}: {fault}" for fault in faults))
    rest = (layer.c_out // layer.groups) % spec.cols
    unit = stored.fields[0][1] if stored.slots is not None else sum(width for _, width in stored.fields)
    per_row = {columns: layer.row_bits(spec, columns) // unit for columns in (spec.cols, rest)}
    diagonal = n.groups_at_once > 1
    storage = {
        "plain": stored.slots is not None,
        "index_bits": 0 if stored.codebook is None else stored.fields[0][1],
        "word_bits": unit,
        "passes": layer.passes(spec),
        "full_units": per_row[spec.cols],
        "last_units": per_row[rest],
        "group_rows": layer.c_in // layer.groups * mapping.fold if diagonal else 0,
        "group_columns": layer.c_out // layer.groups if diagonal else 0,
    }
    assert max(per_row.values()) * unit <= row_bits(spec)
    image = np.pad(ifmap, ((0, 0), (layer.padding[0], layer.padding[2]), (layer.padding[1], layer.padding[3])))
    parts = [_activations(spec, layer, mapping, n, step, image) for step in steps]
    beat = spec.weight_port_bits
    stream = pack(stored, load_order(spec, layer, mapping, stored), beat)
    return Program(
        storage=storage,
        blocks=_blocks(spec, layer, mapping, n, steps),
        words=_codebook(spec, layer, stored) + _whole_beats(stream, beat) * n.tiles.n,
        stream=stream,
        activations=np.concatenate(parts),
        addresses=addresses,
    )


def _steps(n: Nest) -> Iterator[_Step]:
    for tile in range(n.tiles.n):
        for group in range(n.groups.n):
            for output in range(n.outputs.n):
                for inputs in range(n.inputs.n):
                    for entry in range(n.entries.n):
                        yield _Step(tile, group, output, inputs, entry)


def _region(spec: AcceleratorSpec, layer: Layer, n: Nest, step: _Step) -> int:
    """Partial sums of a column in an output step."""
    return n.tiles.size(step.tile) * layer.out_size[1] * -(-n.outputs.size(step.output) // spec.cols)


def _blocks(spec: AcceleratorSpec, layer: Layer, mapping: Mapping, n: Nest, steps: list[_Step]) -> list[dict[str, Any]]:
    found, address = [], 0
    for i, step in enumerate(steps):
        columns, channels = n.outputs.size(step.output), n.inputs.size(step.inputs)
        side = n.groups.size(step.group) * mapping.fold
        load = {
            "entries": n.entries.size(step.entry),
            "first_pass": step.entry * n.entries.full % layer.passes(spec),
            "input_sets": -(-channels // spec.rows),
            "column_sets": -(-columns // spec.cols),
            "rows": min(channels, spec.rows) * side,
            "last_rows": ((channels - 1) % spec.rows + 1) * side,
            "partial": columns % spec.cols > 0,
            "codebook": i == 0 and layer.codebook_bits(spec) > 0,
            "base": i % 2 * (spec.wrf_entries // 2) if mapping.overlapped else 0,
        }
        fresh = step.inputs == step.entry == 0
        if fresh and i:
            address += _region(spec, layer, n, steps[i - 1])
        found.append(
            {
                "load": load,
                "positions": n.tiles.size(step.tile) * layer.out_size[1],
                "address": address,
                "fresh": fresh,
                "overlapped": mapping.overlapped,
            }
        )
    return found


def _activations(
    spec: AcceleratorSpec, layer: Layer, mapping: Mapping, n: Nest, step: _Step, image: Array
) -> NDArray[np.int8]:
    """`(positions * entries * sets, rows)` of a block."""
    rows, width = n.tiles.size(step.tile), layer.out_size[1]
    first, passes = step.tile * n.tiles.full, layer.passes(spec)
    c_in = layer.c_in // layer.groups
    groups = range(step.group * n.groups.full, step.group * n.groups.full + n.groups.size(step.group))
    begin, end = step.inputs * n.inputs.full, step.inputs * n.inputs.full + n.inputs.size(step.inputs)
    sets = [(i, min(i + spec.rows, end)) for i in range(begin, end, spec.rows)]
    start = step.entry * n.entries.full
    entries = range(start, start + n.entries.size(step.entry))
    found = np.zeros((rows * width, len(entries), len(sets), spec.rows), np.int8)
    for i, entry in enumerate(entries):
        points = points_of(layer, mapping.fold, entry // passes)
        for j, (low, high) in enumerate(sets):
            for g, group in enumerate(groups):
                for p, point in enumerate(points):
                    y = first * layer.stride[0] + point // layer.kernel[1] * layer.dilation[0]
                    x = point % layer.kernel[1] * layer.dilation[1]
                    down, right = layer.stride
                    seen = image[
                        group * c_in + low : group * c_in + high,
                        y : y + (rows - 1) * down + 1 : down,
                        x : x + (width - 1) * right + 1 : right,
                    ]
                    at = (g * mapping.fold + p) * (high - low)
                    found[:, i, j, at : at + high - low] = seen.reshape(high - low, -1).T
    return found.reshape(-1, spec.rows)


def _codebook(spec: AcceleratorSpec, layer: Layer, stored: StoredWeight) -> bytes:
    """The codewords, and zeros for those that the layer does not have."""
    if layer.codebook_bits(spec) == 0:
        return b""
    codewords = np.zeros((spec.n_codewords, spec.codeword_width), np.int64)
    if stored.codebook is not None:
        codewords[: len(stored.codebook)] = stored.codebook
    values = (codewords.ravel()[:, None] >> np.arange(spec.weight_bits)) & 1
    return _whole_beats(np.packbits(values.astype(np.uint8), bitorder="little").tobytes(), spec.weight_port_bits)


def _whole_beats(stream: bytes, beat: int) -> bytes:
    """Beats as whole bytes, for which ports have a multiple of 8 bits."""
    size = beat // 8
    return stream + bytes(-len(stream) % size)


def sums(spec: AcceleratorSpec, layer: Layer, mapping: Mapping, memory: Array) -> Array:
    """Partial sums `(K, P, Q)` of a layer from the memories `(tiles, addresses, d)` of the core."""
    n = nest(spec, layer, mapping)
    per_group, width = layer.c_out // layer.groups, layer.out_size[1]
    out = np.zeros((layer.groups, per_group, *layer.out_size), np.int64)
    address = 0
    for step in _steps(n):
        if step.inputs or step.entry:
            continue
        rows, columns = n.tiles.size(step.tile), n.outputs.size(step.output)
        n_sets, size = -(-columns // spec.cols), _region(spec, layer, n, step)
        part = memory[:, address : address + size].reshape(memory.shape[0], rows, width, n_sets, spec.d)
        lanes = np.moveaxis(part, (3, 0, 4), (0, 1, 2)).reshape(n_sets * spec.cols, rows, width)
        top = step.tile * n.tiles.full
        for g in range(n.groups.size(step.group)):
            group = step.group * n.groups.full + g
            first = step.output * n.outputs.full
            out[group, first : first + columns, top : top + rows] = lanes[g * per_group :][:columns]
        address += size
    return out.reshape(layer.c_out, *layer.out_size)
