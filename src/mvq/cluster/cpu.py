# The kernels' first argument is numba's typing context, which callers do not pass
# pyright: reportCallIssue=false
"""The CPU engine: exact masked assignment and update that touch kept lanes only.

Once, for all iterations, `blocks.group` sorts the subvectors by mask and, within a mask, by a k-d tree, and cuts them
into blocks of 16 that share one mask and lie close together. An iteration then goes through the blocks:

1. The distance to the codeword a subvector had before bounds the distance to the one it will get. Along each kept
   lane, that confines the codewords worth looking at to an interval. Sorted into buckets by coordinate, the codewords
   of an interval are a bit set; the AND over the kept lanes is the candidate list. No codeword outside it can be
   nearer, so the search is exact.
2. The candidates are scored for the 16 subvectors at once (`kernels.scan`).
3. Sums and counts change by the subvectors that changed their codeword.

Work is cut into a number of chunks that does not depend on the number of threads, and chunk results are added in
order, so results are equal for any number of threads. Memory is O(n_sub * Q + k * d).
"""

from __future__ import annotations

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

from mvq.cluster.blocks import group
from mvq.cluster.kernels import BLOCK, interval, scan, scan_weighted

_MAX_CHUNKS = 16
_SLACK = np.float32(1 + 1e-5)


@njit(parallel=True, cache=True)
def _energy(w, h, n_members, parts):
    n = len(n_members)
    for part in prange(len(parts)):
        total = 0.0
        for b in range(part * n // len(parts), (part + 1) * n // len(parts)):
            for q in range(w.shape[1]):
                for member in range(n_members[b]):
                    square = np.float64(w[b, q, member]) * w[b, q, member]
                    total += square * h[b, q, member] if h.shape[0] > 0 else square
        parts[part] = total


@njit(cache=True)
def _sort_codewords(codebook, d, n_buckets, base, scale, at_least, at_most):
    """Bit sets of codewords by lane and bucket: `at_least[lane, t]` has bucket >= t, `at_most[lane, t]` bucket <= t."""
    k = codebook.shape[0]
    n_words = at_least.shape[2]
    largest = np.float32(n_buckets - 1)
    at_least[:] = 0
    at_most[:] = 0
    for lane in range(d + 1):
        low = high = codebook[0, lane]
        for i in range(k):
            low, high = min(low, codebook[i, lane]), max(high, codebook[i, lane])
        base[lane] = low
        scale[lane] = n_buckets / (high - low) if high - low > 1e-30 else np.float32(0)
        for i in range(k):
            # Step by step as in `kernels.interval`: monotone, so codewords of an interval lie between its ends' buckets
            t = int(min(max((codebook[i, lane] - base[lane]) * scale[lane], np.float32(0)), largest))
            at_least[lane, t, i >> 6] |= np.uint64(1) << np.uint64(i & 63)
        at_most[lane] = at_least[lane]
        for t in range(1, n_buckets):
            for word in range(n_words):
                at_most[lane, t, word] |= at_most[lane, t - 1, word]
        for t in range(n_buckets - 2, -1, -1):
            for word in range(n_words):
                at_least[lane, t, word] |= at_least[lane, t + 1, word]


@njit(inline="always")
def _distance_to(w, h, weighted, b, codebook, lanes, g, labels, distance):
    """Distance of each member to its own codeword `labels[b, member]`."""
    distance[:] = 0
    for q in range(lanes.shape[1]):
        lane = lanes[g, q]
        for member in range(BLOCK):
            difference = w[b, q, member] - codebook[labels[b, member], lane]
            if weighted:
                distance[member] += h[b, q, member] * difference * difference
            else:
                distance[member] += difference * difference


@njit(parallel=True, cache=True)
def _iterate(  # noqa: C901
    w, h, n_members, group_of, lanes, labels, first, codebook, half_square, base, scale, at_least, at_most,
    chunk_starts, sums, counts, members, changed, largest_square,
):  # fmt: skip
    """Assign every block and add what changed to each chunk's sums, counts and cluster sizes."""
    k, stride = codebook.shape
    n_buckets, n_words = at_least.shape[1], at_least.shape[2]
    width = lanes.shape[1]
    weighted = h.shape[0] > 0
    largest = np.float32(n_buckets - 1)
    # Rounding of w +- reach is below 1e-7 of the largest |w|; squared, that keeps an exact match inside its interval
    tiny = np.float32(1e-12) * largest_square
    flat_codebook, flat_w, flat_h, flat_lanes = codebook.ravel(), w.ravel(), h.ravel(), lanes.ravel()
    flat_at_least, flat_at_most = at_least.ravel(), at_most.ravel()
    for chunk in prange(len(chunk_starts) - 1):
        sums[chunk] = 0
        counts[chunk] = 0
        members[chunk] = 0
        n_changed = 0
        bias = np.zeros(k, np.float32)
        bias_group = -1
        best, found = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.int32)
        distance, reach = np.empty(BLOCK, np.float32), np.empty(BLOCK, np.float32)
        low, high = np.zeros(width, np.int64), np.full(width, n_buckets - 1)
        for b in range(chunk_starts[chunk], chunk_starts[chunk + 1]):
            g = group_of[b]
            if g != bias_group and not weighted:
                bias_group = g
                bias[:] = half_square[lanes[g, 0]]
                for q in range(1, width):
                    lane = lanes[g, q]
                    for i in range(k):
                        bias[i] += half_square[lane, i]
            offset, lane_offset = np.int64(b) * width * BLOCK, np.int64(g) * width
            if not first:
                _distance_to(w, h, weighted, b, codebook, lanes, g, labels, distance)
                for member in range(BLOCK):
                    reach[member] = np.sqrt(distance[member] + tiny) * _SLACK
                for q in range(width):
                    lane = lanes[g, q]
                    if weighted:
                        for member in range(BLOCK):
                            importance = h[b, q, member]
                            unbounded = importance * np.float32(1e30) <= distance[member]
                            reach[member] = (
                                np.float32(1e30)
                                if unbounded
                                else np.sqrt(distance[member] / importance + tiny) * _SLACK
                            )
                    interval(flat_w, reach, base, scale, low, high, q, lane, largest, offset + q * BLOCK)
            if weighted:
                scan_weighted(
                    flat_at_least, flat_at_most, low, high, flat_codebook, bias, flat_w, flat_h, flat_lanes,
                    best, found, n_buckets, n_words, stride, width, np.int64(n_members[b]), offset, lane_offset,
                )  # fmt: skip
            else:
                scan(
                    flat_at_least, flat_at_most, low, high, flat_codebook, bias, flat_w, flat_h, flat_lanes,
                    best, found, n_buckets, n_words, stride, width, np.int64(n_members[b]), offset, lane_offset,
                )  # fmt: skip
            for member in range(n_members[b], BLOCK):
                found[member] = found[n_members[b] - 1]
            moved = first
            for member in range(BLOCK):
                moved |= found[member] != labels[b, member]
            if not moved:
                continue
            for member in range(n_members[b]):
                new, old = np.int64(found[member]), np.int64(labels[b, member])
                if new == old and not first:
                    continue
                n_changed += 1
                members[chunk, new] += 1
                if not first:
                    members[chunk, old] -= 1
                for q in range(width):
                    lane = lanes[g, q]
                    weight = np.float64(h[b, q, member]) if weighted else 1.0
                    value = weight * w[b, q, member]
                    sums[chunk, new, lane] += value
                    counts[chunk, new, lane] += weight
                    if not first:
                        sums[chunk, old, lane] -= value
                        counts[chunk, old, lane] -= weight
            for member in range(BLOCK):
                labels[b, member] = found[member]
        changed[chunk] = n_changed


@njit(cache=True)
def _reduce(chunks, total):
    for chunk in range(chunks.shape[0]):
        total += chunks[chunk]


@njit(parallel=True, cache=True)
def _final_distances(w, h, n_members, group_of, lanes, rows, labels, codebook, out_labels, out_distance):
    weighted = h.shape[0] > 0
    for b in prange(len(n_members)):
        distance = np.empty(BLOCK, np.float32)
        _distance_to(w, h, weighted, b, codebook, lanes, group_of[b], labels, distance)
        for member in range(n_members[b]):
            out_labels[rows[b, member]] = labels[b, member]
            out_distance[rows[b, member]] = distance[member]


class CpuEngine:
    """State of one clustering on the CPU: blocks, labels, running sums.

    Args:
        values: float32 `(n_sub, d)`, C-contiguous; pruned lanes may hold anything.
        mask: bool `(n_sub, d)`.
        weights: float32 `(n_sub, d)` importance weights, or None.
        n_codewords: k.
    """

    def __init__(
        self,
        values: NDArray[np.float32],
        mask: NDArray[np.bool_],
        weights: NDArray[np.float32] | None,
        n_codewords: int,
    ) -> None:
        self.values, self.mask = values, mask
        self.n, self.d = values.shape
        self.k = n_codewords
        self.blocks = group(values, mask, weights)
        n_blocks, width, _ = self.blocks.w.shape
        parts = np.empty(_MAX_CHUNKS)
        _energy(self.blocks.w, self.blocks.h, self.blocks.n_members, parts)
        self.energy = float(parts.sum())
        largest = float(max(self.blocks.w.max(), -self.blocks.w.min()))
        self._largest_square = np.float32(min(largest * largest, 1e30))
        # Chunk buffers stay within the size of the data; their number depends on sizes alone, never on threads
        n_chunks = max(1, min(_MAX_CHUNKS, n_blocks, self.n * width // (self.k * (self.d + 1))))
        self._chunks = np.linspace(0, n_blocks, n_chunks + 1).astype(np.int64)
        shape = (n_chunks, self.k, self.d + 1)
        self._delta_sums, self._delta_counts = np.empty(shape), np.empty(shape)
        self._delta_members = np.empty((n_chunks, self.k), np.int64)
        self._changed = np.zeros(n_chunks, np.int64)
        self.n_buckets = 64 if self.k <= 2048 else 32
        sets = (self.d + 1, self.n_buckets, -(-self.k // 64))
        self._at_least, self._at_most = np.empty(sets, np.uint64), np.empty(sets, np.uint64)
        self._base, self._scale = np.zeros(self.d + 1, np.float32), np.zeros(self.d + 1, np.float32)
        self.reset()

    def reset(self) -> None:
        """Forget the assignments, for a restart on the same data."""
        self._first = True
        self._labels = np.zeros(self.blocks.rows.shape, np.int32)
        self._sums, self._counts = np.zeros((self.k, self.d + 1)), np.zeros((self.k, self.d + 1))
        self.members = np.zeros(self.k, np.int64)

    def assign(self, codebook: NDArray[np.float32]) -> int:
        """Give every subvector its nearest codeword; returns how many changed."""
        blocks = self.blocks
        self._codebook = np.zeros((self.k, self.d + 1), np.float32)
        self._codebook[:, : self.d] = codebook
        half_square = np.ascontiguousarray((0.5 * self._codebook * self._codebook).T)
        _sort_codewords(self._codebook, self.d, self.n_buckets, self._base, self._scale, self._at_least, self._at_most)
        _iterate(
            blocks.w, blocks.h, blocks.n_members, blocks.group, blocks.lanes, self._labels, self._first,
            self._codebook, half_square, self._base, self._scale, self._at_least, self._at_most, self._chunks,
            self._delta_sums, self._delta_counts, self._delta_members, self._changed, self._largest_square,
        )  # fmt: skip
        self._first = False
        _reduce(self._delta_sums, self._sums)
        _reduce(self._delta_counts, self._counts)
        self.members += self._delta_members.sum(axis=0)
        return int(self._changed.sum())

    @property
    def sums(self) -> NDArray[np.float64]:
        """`(k, d)` weighted sums of the members' kept values."""
        return self._sums[:, : self.d]

    @property
    def counts(self) -> NDArray[np.float64]:
        """`(k, d)` total weight of the members that keep each lane."""
        return self._counts[:, : self.d]

    @property
    def sse(self) -> float:
        """Squared error of the last assignment, from the sums: `sum h w^2 - 2 c.S + c^2.N`."""
        codebook = self._codebook[:, : self.d].astype(np.float64)
        return max(0.0, self.energy + float((codebook * (codebook * self.counts - 2 * self.sums)).sum()))

    def labels_and_distances(self) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """Assignment of each subvector in its original order, and its distance to that codeword."""
        blocks = self.blocks
        labels, distance = np.empty(self.n, np.int32), np.empty(self.n, np.float32)
        _final_distances(
            blocks.w, blocks.h, blocks.n_members, blocks.group, blocks.lanes, blocks.rows, self._labels,
            self._codebook, labels, distance,
        )  # fmt: skip
        return labels, distance
