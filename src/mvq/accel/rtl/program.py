"""A layer as the machine is given it: loops, beats of weight words, inputs, and where its sums end up."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mvq.accel.cycle.actions import kernel_hop
from mvq.accel.functional.words import StoredWeight, load_order, pack
from mvq.accel.mapping import Extent, Mapping, Nest, nest, points_of
from mvq.accel.rtl.column import ADDRESS_BITS
from mvq.accel.rtl.fetch import INPUT_BITS, PLACE_BITS
from mvq.accel.rtl.loader import row_bits
from mvq.accel.spec import AcceleratorSpec
from mvq.accel.workload import Layer
from mvq.errors import ConfigError

Array = NDArray[Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class Program:
    """What a machine takes for a layer and an image.

    Attributes:
        storage: fields of `storage_layout`.
        layer: of `layer_layout`.
        shape: of `shape_layout`.
        points: of `point_layout`, one a row of the array.
        banks: `(rows, inputs)` that each row of the array reads, planes of channels one after the other.
        blocks: that come of the loops: fields of `block_layout`, in order.
        words: bytes of the codebook and of the weights, beat after beat.
        stream: the weights of a tile of output rows alone, as `pack` makes them.
        steps: that ask for inputs.
        addresses: of partial sums that are used in the memory of a tile.
    """

    storage: dict[str, Any]
    layer: dict[str, Any]
    shape: dict[str, Any]
    points: list[dict[str, int]]
    banks: NDArray[np.int8]
    blocks: list[dict[str, Any]]
    words: bytes
    stream: bytes
    steps: int
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
    inputs = n.groups.n * -(-(layer.c_in // layer.groups) // spec.rows) * layer.in_size[0] * layer.in_size[1]
    if inputs > 1 << INPUT_BITS:
        faults.append(f"a row of the array has {inputs} inputs, {INPUT_BITS} bits address fewer")
    if max(layer.in_size) + max(layer.padding) >= 1 << PLACE_BITS:
        faults.append(f"its input is {layer.in_size} with padding {layer.padding}; sides stay below {1 << PLACE_BITS}")
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
    blocks = _blocks(spec, layer, mapping, n, steps)
    beat = spec.weight_port_bits
    stream = pack(stored, load_order(spec, layer, mapping, stored), beat)
    return Program(
        storage=storage,
        layer=_loops(spec, layer, mapping, n),
        shape=_shape(spec, layer, mapping, n),
        points=_points(spec, layer, mapping),
        banks=_banks(spec, layer, mapping, n, ifmap),
        blocks=blocks,
        words=_codebook(spec, layer, stored) + _whole_beats(stream, beat) * n.tiles.n,
        stream=stream,
        steps=sum(one["positions"] * one["load"]["entries"] * one["load"]["input_sets"] for one in blocks),
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


def _loops(spec: AcceleratorSpec, layer: Layer, mapping: Mapping, n: Nest) -> dict[str, Any]:
    """What the controller counts through: the same blocks as `_blocks`."""
    loops = {"tiles": n.tiles, "groups": n.groups, "outputs": n.outputs, "inputs": n.inputs, "entries": n.entries}
    plane, wide = layer.in_size[0] * layer.in_size[1], layer.in_size[1]
    tile_down = n.tiles.full * layer.stride[0]

    def pair(extent: Extent, value: Callable[[int], int]) -> list[int]:
        return [value(extent.full), value(extent.last)]

    def sides(value: Callable[[int, int], int]) -> list[list[int]]:
        """By last step over inputs, and over groups."""
        return [[value(i, g * mapping.fold) for g in pair(n.groups, int)] for i in pair(n.inputs, int)]

    sets = pair(n.outputs, lambda columns: -(-columns // spec.cols))
    positions = pair(n.tiles, lambda rows: rows * layer.out_size[1])
    return {
        **{name: extent.n for name, extent in loops.items()},
        "tile_rows": pair(n.tiles, int),
        "positions": positions,
        "entry_count": pair(n.entries, int),
        "input_sets": pair(n.inputs, lambda channels: -(-channels // spec.rows)),
        "column_sets": sets,
        "partial": pair(n.outputs, lambda columns: int(columns % spec.cols > 0)),
        "rows": sides(lambda channels, side: min(channels, spec.rows) * side),
        "last_rows": sides(lambda channels, side: ((channels - 1) % spec.rows + 1) * side),
        "region": [[count * here for here in sets] for count in positions],
        "passes": layer.passes(spec),
        "pass_step": n.entries.full % layer.passes(spec),
        "codebook": layer.codebook_bits(spec) > 0,
        "overlapped": mapping.overlapped,
        "half": spec.wrf_entries // 2 if mapping.overlapped else 0,
        "top": -layer.padding[0],
        "tile_down": tile_down,
        "first": -layer.padding[0] * wide - layer.padding[1],
        "tile_step": tile_down * wide,
        "input_step": -(-n.inputs.full // spec.rows) * plane,
        "group_step": -(-(layer.c_in // layer.groups) // spec.rows) * plane,
        "shift": pair(
            n.inputs, lambda channels: _steps_back(layer, mapping) * -(-channels // spec.rows) % spec.arf_entries
        ),
    }


def _steps_back(layer: Layer, mapping: Mapping) -> int:
    """Folded kernel points after one, on the same row of the array, lies that which an input met an output before."""
    steps, rest = divmod(kernel_hop(layer), mapping.fold)
    return 0 if rest else steps


def _shape(spec: AcceleratorSpec, layer: Layer, mapping: Mapping, n: Nest) -> dict[str, int]:
    """How inputs lie, and how folded kernel points go on."""
    reach = _steps_back(layer, mapping) * layer.passes(spec)
    (down, right), (below, beside) = layer.stride, layer.dilation
    wide = layer.in_size[1]
    under, over = (step * by for step, by in zip(divmod(mapping.fold, layer.kernel[1]), layer.dilation, strict=True))
    offset = under * wide + over
    return {
        "width": layer.out_size[1],
        "right": right,
        "down": down,
        "next_row": down * wide - (layer.out_size[1] - 1) * right,
        "plane": layer.in_size[0] * wide,
        "rows": layer.in_size[0],
        "columns": wide,
        "left": layer.padding[1],
        "over": over,
        "under": under,
        "dilation": below,
        "kernel_rows": layer.kernel[0] * below,
        "kernel_columns": layer.kernel[1] * beside,
        "offset": offset,
        "wrapped": offset + below * wide - layer.kernel[1] * beside,
        "reach": reach if reach < n.entries.full + layer.passes(spec) - 1 else 0,
    }


def _row_of(layer: Layer, mapping: Mapping, row: int) -> tuple[int, int, int]:
    """Group, folded kernel point and channel of a row of the array, where they do not take all of it."""
    point, channel = divmod(row, layer.c_in // layer.groups)
    return *divmod(point, mapping.fold), channel


def _points(spec: AcceleratorSpec, layer: Layer, mapping: Mapping) -> list[dict[str, int]]:
    found = []
    for row in range(spec.rows):
        down, right = divmod(_row_of(layer, mapping, row)[1], layer.kernel[1])
        place = down * layer.dilation[0], right * layer.dilation[1]
        found.append({"row": place[0], "column": place[1], "offset": place[0] * layer.in_size[1] + place[1]})
    return found


def _banks(spec: AcceleratorSpec, layer: Layer, mapping: Mapping, n: Nest, ifmap: NDArray[np.int8]) -> NDArray[np.int8]:
    """The channels of each row of the array, a plane for each step over groups and each set of input channels."""
    c_in = layer.c_in // layer.groups
    sets = -(-c_in // spec.rows)
    banks = np.zeros((spec.rows, n.groups.n, sets, ifmap.shape[1] * ifmap.shape[2]), np.int8)
    for row in range(spec.rows):
        group, _, channel = _row_of(layer, mapping, row)
        for step in range(n.groups.n):
            for i in range(sets):
                at = channel + i * spec.rows if sets > 1 else channel
                number = step * n.groups.full + group
                if at < c_in and group < n.groups.size(step):
                    banks[row, step, i] = ifmap[number * c_in + at].ravel()
    return banks.reshape(spec.rows, -1)


def activations(spec: AcceleratorSpec, layer: Layer, mapping: Mapping, ifmap: NDArray[np.int8]) -> NDArray[np.int8]:
    """What the fetch unit hands the core: `(steps, rows)` of a program."""
    n = nest(spec, layer, mapping)
    image = np.pad(ifmap, ((0, 0), (layer.padding[0], layer.padding[2]), (layer.padding[1], layer.padding[3])))
    return np.concatenate([_activations(spec, layer, mapping, n, step, image) for step in _steps(n)])


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
