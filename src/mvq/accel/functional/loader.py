"""The weight loader: fields of words become values and the lanes they belong to."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mvq.accel.functional.words import StoredWeight
from mvq.accel.spec import AcceleratorSpec, MaskDecode
from mvq.patterns import Pattern

Array = NDArray[Any]


def decode(spec: AcceleratorSpec, stored: StoredWeight, fields: list[Array]) -> tuple[Array, Array]:
    """Look codewords up and decode masks.

    Args:
        spec: machine.
        stored: how the fields are to be read; its own values are not looked at.
        fields: `(n_words, Cin / groups, points)` each, as `unpack` gives them.

    Returns:
        Values int8 and lanes `(n_words, Cin / groups, points, n)`: n is the kept lanes of a word for a sparse tile,
        whose multipliers take them in order; all of them for a dense one, whose pruned lanes hold 0.
    """
    lanes = stored.lanes
    every = np.broadcast_to(np.arange(lanes), (*fields[0].shape, lanes))
    if stored.codebook is None and stored.pattern.is_dense:
        return _signed(np.stack(fields, axis=-1), spec.weight_bits), every
    if stored.pattern.is_dense:
        assert stored.codebook is not None
        return np.concatenate([stored.codebook[index] for index in fields], axis=-1), every
    group = stored.pattern.group
    n_masks = lanes // group
    others, masks = fields[:-n_masks], fields[-n_masks:]
    kept = np.concatenate(
        [positions(stored.pattern, ids, spec.mask_decode) + i * group for i, ids in enumerate(masks)], -1
    )
    if stored.codebook is None:
        values = _signed(np.stack(others, axis=-1), spec.weight_bits)
    else:
        rows = np.concatenate([stored.codebook[index] for index in others], axis=-1)
        # A masked codeword has a value for each lane of its subvector, a packed one for each kept lane.
        values = rows if stored.packed else np.take_along_axis(rows, kept, axis=-1)
    if spec.tile == "sparse":
        return values, kept
    dense = np.zeros((*kept.shape[:-1], lanes), np.int8)
    np.put_along_axis(dense, kept, values, axis=-1)
    return dense, every


def positions(pattern: Pattern, ids: Array, how: MaskDecode) -> Array:
    """Kept lanes of masks in order, `(..., N)`, found as the machine finds them."""
    return _position_table(pattern)[ids] if how == "position-lut" else zero_counters(pattern, ids)


def zero_counters(pattern: Pattern, ids: Array) -> Array:
    """A cascade of leading-zero counters: each finds the first bit of what the one before left, and clears it."""
    left = pattern.unrank(ids[..., None]).astype(np.int64) @ (1 << np.arange(pattern.group, dtype=np.int64))
    found = []
    for _ in range(pattern.keep):
        first = left & -left
        # A power of two, exact in floating point.
        found.append(np.log2(first).astype(np.int64))
        left = left ^ first
    return np.stack(found, axis=-1)


@functools.cache
def _position_table(pattern: Pattern) -> Array:
    ids = np.arange(pattern.n_masks)
    return np.nonzero(pattern.unrank(ids[:, None]))[1].reshape(-1, pattern.keep)


def _signed(values: Array, bits: int) -> Array:
    """Two's complement."""
    return (values - ((values >> (bits - 1)) << bits)).astype(np.int8 if bits <= 8 else np.int16)
