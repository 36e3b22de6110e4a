"""From indices, mask ids and a codebook straight to the dense weight, on several cores.

A unit of work is a tile: up to 64 subvectors at neighbouring positions of one group of `d` output channels.
They are scattered into a small buffer that stays in the first-level cache, one row per output channel, whose rows
then go out as whole cache lines. Only kept lanes are looked up.

The kernels are compiled without numba's own parallel loops and run on plain threads (as many as
`numba.get_num_threads()`): they release the interpreter lock, may be called from any thread and after a fork, and
compile in a fraction of the time.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numba
import numpy as np
from numba import njit
from numpy.typing import NDArray

from mvq.grouping import n_positions
from mvq.patterns import Pattern

TILE = 64
#: Weights below which a second thread costs more than it brings.
_WORTH_A_THREAD = 1 << 18
_MAX_TABLE = 1 << 16


def decode(
    assignments: NDArray[np.uint16],
    mask_ids: NDArray[np.unsignedinteger],
    values: NDArray[np.float32],
    *,
    shape: Sequence[int],
    pattern: Pattern,
    d: int,
    packed: bool,
    threads: int | None = None,
) -> NDArray[np.float32]:
    """The dense weight; equal bit for bit to `VQLayer.dense`.

    Args:
        assignments: `(n_sub,)`, each below the number of codewords; not checked again.
        mask_ids: `(n_sub * d / M,)`, each below `C(M, N)`, not checked again; empty if the pattern is dense.
        values: float32 `(n_codewords, width)` values of the codebook.
        shape: of the weight, `(Cout, ...)`.
        pattern: N:M pattern.
        d: lanes of a subvector.
        packed: whether codewords hold the kept values only.
        threads: at most this many; None: `numba.get_num_threads()`.

    Returns:
        New float32 array of the given shape.
    """
    out = np.empty((shape[0], n_positions(shape)), dtype=np.float32)
    if out.size == 0:
        return out.reshape(tuple(shape))
    ids, positions, group = _kept(mask_ids, pattern, d, assignments.size)
    n_units = -(-shape[0] // d) * -(-out.shape[1] // TILE)
    threads = numba.get_num_threads() if threads is None else threads
    parts = max(1, min(threads, n_units, out.size // _WORTH_A_THREAD))
    bounds = [n_units * i // parts for i in range(parts + 1)]
    values = np.ascontiguousarray(values)
    run_all(
        [
            functools.partial(_decode_units, assignments, ids, values, positions, d, group, packed, low, high, out)
            for low, high in itertools.pairwise(bounds)
        ],
        parts,
    )
    return out.reshape(tuple(shape))


def run_all(tasks: Sequence[Callable[[], Any]], threads: int) -> list[Any]:
    """Results of all tasks, in order, run on up to `threads` threads."""
    if threads <= 1 or len(tasks) <= 1:
        return [task() for task in tasks]
    with ThreadPoolExecutor(min(threads, len(tasks))) as pool:
        return list(pool.map(lambda task: task(), tasks))


def _kept(
    mask_ids: NDArray[np.unsignedinteger], pattern: Pattern, d: int, n_sub: int
) -> tuple[NDArray[np.unsignedinteger], NDArray[np.uint8], int]:
    """Row numbers, kept lanes by row, and lanes of a block."""
    if pattern.is_dense:
        return np.zeros(n_sub, np.uint16), np.arange(d, dtype=np.uint8).reshape(1, d), d
    if pattern.n_masks <= _MAX_TABLE:
        return mask_ids.reshape(-1), _positions_table(pattern), pattern.group
    # Too many masks for a table: the lanes of each block by themselves.
    positions = np.empty((mask_ids.size, pattern.keep), dtype=np.uint8)
    _unrank(mask_ids.reshape(-1), _later(pattern), pattern.keep, positions)
    return np.arange(mask_ids.size, dtype=np.uint32), positions, pattern.group


@functools.cache
def _positions_table(pattern: Pattern) -> NDArray[np.uint8]:
    masks = pattern.unrank(np.arange(pattern.n_masks)[:, None])
    return np.nonzero(masks)[1].astype(np.uint8).reshape(pattern.n_masks, pattern.keep)


def _later(pattern: Pattern) -> NDArray[np.int64]:
    """Entry `[lane, r]`: subsets that keep `lane` and `r` of the lanes after it."""
    rows = [[math.comb(pattern.group - 1 - lane, r) for r in range(pattern.keep)] for lane in range(pattern.group)]
    return np.array(rows, dtype=np.int64)


@njit(nogil=True, cache=True)
def _unrank(ids, later, keep, positions):  # pragma: no cover
    for j in range(len(ids)):
        rest = np.int64(ids[j])
        lane = 0
        for i in range(keep):
            while rest >= later[lane, keep - 1 - i]:
                rest -= later[lane, keep - 1 - i]
                lane += 1
            positions[j, i] = lane
            lane += 1


@njit(nogil=True, cache=True)
def _decode_units(assignments, mask_ids, values, positions, d, group, packed, first, last, out):  # pragma: no cover
    n_out, n_pos = out.shape
    keep = positions.shape[1]
    n_blocks = d // group
    n_tiles = -(-n_pos // TILE)
    tile = np.empty((d, TILE), np.float32)
    for unit in range(first, last):
        channel = unit // n_tiles * d
        low = unit % n_tiles * TILE
        size = min(TILE, n_pos - low)
        row = unit // n_tiles * n_pos + low
        tile[:] = 0
        for t in range(size):
            codeword = assignments[row + t]
            for block in range(n_blocks):
                mask = mask_ids[(row + t) * n_blocks + block]
                for i in range(keep):
                    # Unsigned, or numba would test every index for being negative.
                    lane = np.uint64(block * group) + np.uint64(positions[mask, i])
                    column = np.uint64(block * keep + i) if packed else lane
                    tile[lane, t] = values[codeword, column]
        for lane in range(min(d, n_out - channel)):
            for t in range(size):
                out[channel + lane, low + t] = tile[lane, t]
