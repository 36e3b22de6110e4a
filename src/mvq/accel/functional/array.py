"""The array: every partial sum grows in the machine's order, and none may leave its register."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mvq.accel.functional.loader import decode
from mvq.accel.functional.words import StoredWeight, load_order, unpack
from mvq.accel.mapping import Mapping, input_rows, nest, points_of
from mvq.accel.spec import AcceleratorSpec
from mvq.accel.workload import Layer
from mvq.errors import PsumOverflowError

Array = NDArray[Any]


@dataclass(frozen=True, eq=False, kw_only=True)
class LayerResult:
    """A layer on the machine.

    Attributes:
        psums: int32 or int64 `(N, K, P, Q)`.
        macs: multiplications of one image that a multiplier was given a weight for.
    """

    psums: Array
    macs: int


def run_layer(
    spec: AcceleratorSpec, layer: Layer, mapping: Mapping, stored: StoredWeight, stream: bytes, ifmap: NDArray[np.int8]
) -> LayerResult:
    """Compute a layer from its words.

    Sums of different outputs never meet, so that columns and positions of a tile are computed side by side; what goes
    into one sum goes in the order of the loop nest, a set of rows at a time as the adder tree adds them.

    Args:
        spec: machine.
        layer: its shape.
        mapping: loop nest.
        stored: what the words mean; values come from the stream alone.
        stream: as `pack` makes it in the order of this mapping.
        ifmap: `(N, C, H, W)`.

    Raises:
        ConfigError: if the mapping does not fit.
        StreamError: if the stream has another length.
        PsumOverflowError: if a sum leaves `psum_bits` at any time; names layer, channel, position and the step.
    """
    order = load_order(spec, layer, mapping, stored)
    fields = unpack(stream, stored, order, spec.weight_port_bits)
    weights, held = _passes(spec, layer, stored, *decode(spec, stored, fields))
    n = nest(spec, layer, mapping)
    out = np.empty((len(ifmap), layer.c_out, *layer.out_size), np.int64)
    for image, psums in zip(ifmap, out, strict=True):
        for t in range(n.tiles.n):
            first, rows = t * n.tiles.full, n.tiles.size(t)
            psums[:, first : first + rows] = _tile(spec, layer, mapping, weights, image, first, rows)
    return LayerResult(psums=out, macs=held * layer.n_positions)


def _passes(
    spec: AcceleratorSpec, layer: Layer, stored: StoredWeight, values: Array, lanes: Array
) -> tuple[Array, int]:
    """Weights `(passes, groups, K, C, points)` of each pass through the multipliers, and how many there are.

    A pass takes as many weights of a word as there are multipliers for it.
    """
    passes = layer.passes(spec)
    words = np.zeros((passes, *values.shape[:-1], stored.lanes), np.float32)
    for i, part in enumerate(words):
        if stored.slots is None:
            here = slice(i * spec.multipliers_per_tile_row, (i + 1) * spec.multipliers_per_tile_row)
        else:
            here = stored.slots[0][i][stored.slots[0][i] >= 0]
        np.put_along_axis(part, lanes[..., here], values[..., here].astype(np.float32), axis=-1)
    per_group = layer.c_out // layer.groups
    flat = np.moveaxis(words, -1, 2).reshape(passes, layer.groups, -1, *values.shape[1:-1])
    channel = np.arange(stored.n_words)[:, None] % stored.per_group * stored.lanes
    held = int((channel[..., None, None] + lanes < per_group).sum())
    return np.ascontiguousarray(flat[:, :, :per_group]), held


def _tile(
    spec: AcceleratorSpec, layer: Layer, mapping: Mapping, weights: Array, image: Array, first: int, rows: int
) -> Array:
    """Sums `(K, rows, Q)` of a tile from the input rows that it loads."""
    n, passes = nest(spec, layer, mapping), layer.passes(spec)
    window = _window(layer, image, first, rows)
    grouped = window.reshape(layer.groups, -1, *window.shape[1:])
    per_group = layer.c_out // layer.groups
    acc = np.zeros((layer.groups, per_group, rows * layer.out_size[1]))
    for c in range(n.inputs.n):
        begin = c * n.inputs.full
        for e in range(n.entries.n):
            start = e * n.entries.full
            for entry in range(start, start + n.entries.size(e)):
                points = points_of(layer, mapping.fold, entry // passes)
                taken = np.stack([_tap(layer, grouped, p, rows) for p in points], axis=2)
                for b in range(begin, begin + n.inputs.size(c), spec.rows):
                    channels = slice(b, min(b + spec.rows, begin + n.inputs.size(c)))
                    left = weights[entry % passes, :, :, channels, points.start : points.stop]
                    right = taken[:, channels]
                    acc += np.matmul(
                        left.reshape(*left.shape[:2], -1), right.reshape(layer.groups, left[0, 0].size, -1)
                    )
                    _check(spec, layer, acc, first, (entry, b))
    return acc.reshape(layer.c_out, rows, layer.out_size[1]).astype(np.int64)


def _window(layer: Layer, image: Array, first: int, rows: int) -> Array:
    """The input rows that a tile loads, with the zeros of the padding around them, float32 `(C, h, w)`."""
    low = first * layer.stride[0] - layer.padding[0]
    height = (rows - 1) * layer.stride[0] + (layer.kernel[0] - 1) * layer.dilation[0] + 1
    loaded = input_rows(layer, first, rows)
    top = max(low, 0)
    window = np.zeros((layer.c_in, height, image.shape[2] + layer.padding[1] + layer.padding[3]), np.float32)
    window[:, top - low : top - low + loaded, layer.padding[1] : layer.padding[1] + image.shape[2]] = image[
        :, top : top + loaded
    ]
    return window


def _tap(layer: Layer, grouped: Array, point: int, rows: int) -> Array:
    """Inputs `(groups, C, positions)` that a kernel point meets."""
    y, x = point // layer.kernel[1] * layer.dilation[0], point % layer.kernel[1] * layer.dilation[1]
    down, right = layer.stride
    found = grouped[:, :, y : y + (rows - 1) * down + 1 : down, x : x + (layer.out_size[1] - 1) * right + 1 : right]
    return found.reshape(*found.shape[:2], -1)


def _check(spec: AcceleratorSpec, layer: Layer, acc: Array, first: int, step: tuple[int, int]) -> None:
    limit = 1 << (spec.psum_bits - 1)
    if acc.max() < limit and acc.min() >= -limit:
        return
    group, channel, position = np.argwhere((acc >= limit) | (acc < -limit))[0]
    row, column = divmod(int(position), layer.out_size[1])
    raise PsumOverflowError(
        f"layer {layer.name!r}: the psum of channel {group * acc.shape[1] + channel} at ({first + row}, {column}) is "
        f"{int(acc[group, channel, position])} after entry {step[0]} of input channels from {step[1]} on, which "
        f"psum_bits={spec.psum_bits} do not hold ({-limit}..{limit - 1}); give the machine wider psums"
    )
