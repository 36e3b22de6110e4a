"""Subvectors sorted into blocks of 16 that share one mask and lie close together: the CPU engine's view of the data."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from mvq.cluster.kernels import BLOCK

_SPLIT_ABOVE = 1 << 14


@dataclass(frozen=True, eq=False)
class Blocks:
    """Subvectors in blocks of 16 that share one mask. Short blocks repeat their last member.

    Attributes:
        w: float32 `(n_blocks, Q, 16)` kept values; unused slots zero.
        h: importance weights of the same shape, or `(0, 0, 0)` for none.
        rows: int32 `(n_blocks, 16)` subvector of each member.
        n_members: int32 `(n_blocks,)`, 1..16.
        group: int32 `(n_blocks,)` row of `lanes`.
        lanes: int32 `(n_groups, Q)` kept lanes; `d` marks an unused slot.
    """

    w: NDArray[np.float32]
    h: NDArray[np.float32]
    rows: NDArray[np.int32]
    n_members: NDArray[np.int32]
    group: NDArray[np.int32]
    lanes: NDArray[np.int32]


def prepare(
    values: NDArray[np.floating], mask: NDArray[np.bool_], *, packed: bool
) -> tuple[NDArray[np.float32], NDArray[np.bool_], int]:
    """Float32 rows, with the kept values moved to the first slots if packed. Pruned lanes may hold anything.

    Returns:
        Values and mask, `(n_sub, d)` or `(n_sub, Q)`, and the number of kept values that are not finite.
    """
    values = np.ascontiguousarray(values, dtype=np.float32)
    if not packed:
        return values, mask, int(_count_bad(values, mask))
    width = max(1, int(_count_lanes(mask)))
    out, out_mask = np.zeros((len(values), width), np.float32), np.zeros((len(values), width), np.bool_)
    return out, out_mask, int(_pack(values, mask, out, out_mask))


@njit(parallel=True, cache=True)
def _count_bad(values, mask):
    n_bad = 0
    for i in prange(values.shape[0]):
        for lane in range(values.shape[1]):
            n_bad += mask[i, lane] and not np.isfinite(values[i, lane])
    return n_bad


@njit(parallel=True, cache=True)
def _count_lanes(mask):
    most = 0
    for i in prange(mask.shape[0]):
        kept = 0
        for lane in range(mask.shape[1]):
            kept += mask[i, lane]
        most = max(most, kept)
    return most


@njit(parallel=True, cache=True)
def _pack(values, mask, out, out_mask):
    n_bad = 0
    for i in prange(values.shape[0]):
        slot = 0
        for lane in range(values.shape[1]):
            if mask[i, lane]:
                n_bad += not np.isfinite(values[i, lane])
                out[i, slot] = values[i, lane]
                out_mask[i, slot] = True
                slot += 1
    return n_bad


def group(values: NDArray[np.float32], mask: NDArray[np.bool_], weights: NDArray[np.float32] | None) -> Blocks:
    """Sort subvectors into blocks.

    Args:
        values: `(n_sub, d)`.
        mask: `(n_sub, d)`.
        weights: `(n_sub, d)` or None.
    """
    keys, masks = _mask_keys(mask)
    order = np.argsort(keys, kind="stable").astype(np.int32)
    starts = np.append(np.flatnonzero(np.diff(keys[order], prepend=-1)), len(order)).astype(np.int64)
    width = max(1, int(masks.sum(axis=1).max()))
    lanes = np.full((len(masks), width), mask.shape[1], dtype=np.int32)
    group_row, group_lane = np.nonzero(masks)
    lanes[group_row, (np.cumsum(masks, axis=1) - 1)[group_row, group_lane]] = group_lane
    starts, lane_rows = _split_large(values, order, starts, lanes)
    n_blocks = -(-np.diff(starts) // BLOCK)
    first_block = np.concatenate([[0], np.cumsum(n_blocks)]).astype(np.int64)
    weighted = weights is not None
    shape = (int(first_block[-1]), width, BLOCK)
    blocks = Blocks(
        w=np.empty(shape, np.float32),
        h=np.zeros(shape if weighted else (0, 0, 0), np.float32),
        rows=np.empty((shape[0], BLOCK), np.int32),
        n_members=np.empty(shape[0], np.int32),
        group=np.repeat(lane_rows, n_blocks).astype(np.int32),
        lanes=lanes,
    )
    _fill_blocks(
        values, weights if weighted else values[:0], order, starts, first_block, lane_rows, lanes,
        blocks.w, blocks.h, blocks.rows, blocks.n_members,
    )  # fmt: skip
    return blocks


def _mask_keys(mask: NDArray[np.bool_]) -> tuple[NDArray[np.integer], NDArray[np.bool_]]:
    """A small integer for each row's mask, equal for equal masks, and the masks in key order."""
    n, d = mask.shape
    if d <= 16:
        bits = np.empty(n, np.uint16)
        _pack_mask(mask, bits)
        present = np.flatnonzero(np.bincount(bits, minlength=1 << d))
        rank = np.zeros(1 << d, np.int32)
        rank[present] = np.arange(len(present))
        keys = rank[bits]
        masks = (present[:, None] >> np.arange(d)) & 1
    else:
        packed = np.packbits(mask, axis=1, bitorder="little")
        padded = np.zeros((n, -(-packed.shape[1] // 8) * 8), np.uint8)
        padded[:, : packed.shape[1]] = packed
        words = padded.view(np.uint64)
        words = words.ravel() if words.shape[1] == 1 else words
        present, keys = np.unique(words, axis=0, return_inverse=True)
        keys = keys.ravel()
        masks = np.unpackbits(present.reshape(len(present), -1).view(np.uint8), axis=1, bitorder="little")[:, :d]
    # 16-bit keys make argsort a radix sort
    return keys.astype(np.int16 if len(masks) <= 1 << 15 else np.int32), masks.astype(bool)


@njit(parallel=True, cache=True)
def _pack_mask(mask, out):
    for i in prange(mask.shape[0]):
        bits = 0
        for lane in range(mask.shape[1]):
            if mask[i, lane]:
                bits |= 1 << lane
        out[i] = bits


def _split_large(
    values: NDArray[np.float32], order: NDArray[np.int32], starts: NDArray[np.int64], lanes: NDArray[np.int32]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cut groups too large for one thread into cells of a k-d tree built on a sample; reorders `order` in place."""
    ends: list[NDArray[np.int64]] = []
    lane_rows: list[NDArray[np.int64]] = []
    done = 0
    for g in [*np.flatnonzero(np.diff(starts) > _SPLIT_ABOVE).tolist(), len(lanes)]:
        ends.append(starts[done + 1 : g + 1])
        lane_rows.append(np.arange(done, g))
        if g < len(lanes):
            low, high = int(starts[g]), int(starts[g + 1])
            levels = min(10, math.ceil(math.log2((high - low) / _SPLIT_ABOVE)) + 1)
            members = order[low:high]
            kept = lanes[g][lanes[g] < values.shape[1]].astype(np.int64)
            split_lane, split_at = _sample_tree(values, members, kept, levels)
            cells = np.empty(len(members), np.uint16)
            _classify(values, members, split_lane, split_at, levels, cells)
            order[low:high] = members[np.argsort(cells, kind="stable")]
            sizes = np.bincount(cells, minlength=1 << levels)
            ends.append(low + np.cumsum(sizes[sizes > 0]))
            lane_rows.append(np.full(int((sizes > 0).sum()), g))
        done = g + 1
    return np.concatenate([starts[:1], *ends]), np.concatenate(lane_rows)


def _sample_tree(
    values: NDArray[np.float32], members: NDArray[np.int32], kept: NDArray[np.int64], levels: int
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Perfect binary k-d tree in heap order over an even sample: the lane and value that split each node."""
    sample = values[members[:: max(1, len(members) >> (levels + 5))]][:, kept]
    split_lane, split_at = np.zeros(1 << levels, np.int64), np.zeros(1 << levels, np.float32)
    nodes = {1: sample}
    for node in range(1, 1 << levels):
        points = nodes.pop(node)
        spread = points.std(axis=0) if len(points) else np.zeros(len(kept))
        q = int(spread.argmax())
        at = np.float32(np.median(points[:, q])) if len(points) else np.float32(0)
        split_lane[node], split_at[node] = kept[q], at
        below = points[:, q] < at
        if 2 * node < 1 << levels:
            nodes[2 * node], nodes[2 * node + 1] = points[below], points[~below]
    return split_lane, split_at


@njit(parallel=True, cache=True)
def _classify(values, members, split_lane, split_at, levels, cells):
    for i in prange(len(members)):
        row = members[i]
        node = 1
        for _ in range(levels):
            node = 2 * node + (1 if values[row, split_lane[node]] >= split_at[node] else 0)
        cells[i] = node - (1 << levels)


@njit(cache=True)
def _select(perm, low, high, kth, points, q):
    """Reorder `perm[low:high]` so that place `kth` holds the member it would hold sorted by coordinate `q`."""
    high -= 1
    while low < high:
        middle = (low + high) >> 1
        a, b, c = points[perm[low], q], points[perm[middle], q], points[perm[high], q]
        pivot = max(min(a, b), min(max(a, b), c))
        i, j = low, high
        while i <= j:
            while points[perm[i], q] < pivot:
                i += 1
            while points[perm[j], q] > pivot:
                j -= 1
            if i <= j:
                perm[i], perm[j] = perm[j], perm[i]
                i += 1
                j -= 1
        if kth <= j:
            high = j
        elif kth >= i:
            low = i
        else:
            return


@njit(cache=True)
def _kd_order(points, perm):
    """Reorder `perm` so that runs of 16 are the leaves of a k-d tree, which splits at multiples of 16.

    Lanes take turns. Pruning leaves kept lanes bimodal, so the first splits part the signs.
    """
    stack = [(0, len(perm), 0)]
    while len(stack) > 0:
        low, high, depth = stack.pop()
        n_blocks = (high - low + BLOCK - 1) // BLOCK
        if n_blocks > 1:
            middle = low + (n_blocks // 2) * BLOCK
            _select(perm, low, high, middle, points, depth % points.shape[1])
            stack.append((low, middle, depth + 1))
            stack.append((middle, high, depth + 1))


@njit(parallel=True, cache=True)
def _fill_blocks(values, weights, order, starts, first_block, lane_rows, lanes, w, h, rows, n_members):
    d = values.shape[1]
    width = lanes.shape[1]
    for g in prange(len(starts) - 1):
        low, high = starts[g], starts[g + 1]
        kept = lanes[lane_rows[g]]
        points = np.zeros((high - low, width), np.float32)
        for i in range(high - low):
            for q in range(width):
                if kept[q] < d:
                    points[i, q] = values[order[low + i], kept[q]]
        perm = np.arange(high - low).astype(np.int32)
        _kd_order(points, perm)
        for b in range(first_block[g], first_block[g + 1]):
            base = (b - first_block[g]) * BLOCK
            n_members[b] = min(BLOCK, high - low - base)
            for member in range(BLOCK):
                i = perm[min(base + member, high - low - 1)]
                rows[b, member] = order[low + i]
                for q in range(width):
                    w[b, q, member] = points[i, q]
                    if h.shape[0] > 0 and kept[q] < d:
                        h[b, q, member] = weights[order[low + i], kept[q]]
