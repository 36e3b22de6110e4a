"""Initial codebooks."""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

#: k-means++ draws from a random sample: at most this many rows a codeword, and this many rows in all (but always 8 a
#: codeword). The whole data would cost more than the clustering.
_SAMPLE_PER_CODEWORD = 32
_SAMPLE = 1 << 15


def initial_codebook(
    values: NDArray[np.float32],
    mask: NDArray[np.bool_],
    weights: NDArray[np.float32] | None,
    n_codewords: int,
    method: str,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """`(n_codewords, d)` start: distinct random rows, or k-means++ under the masked distance.

    A row says nothing about the lanes it prunes. Zeros there would be far from every value that a row keeping the
    lane can have, so each such lane is filled from a further random row that keeps it.
    """
    n = len(values)
    if method == "random":
        rows = distinct_rows(values, mask, rng.permutation(n), n_codewords)
        return _fill(values, _keepers(mask), values[rows], mask[rows], rng)
    size = min(n, _SAMPLE_PER_CODEWORD * n_codewords, max(_SAMPLE, 8 * n_codewords))
    sample = np.sort(rng.choice(n, size, replace=False))
    sampled = np.where(mask[sample], values[sample], np.float32(0))
    return _plus_plus(sampled, mask[sample], None if weights is None else weights[sample], n_codewords, rng)


def distinct_rows(
    values: NDArray[np.float32], mask: NDArray[np.bool_], order: NDArray[np.integer], n_wanted: int
) -> NDArray[np.intp]:
    """First rows in the given order that keep different values or lanes, at most `n_wanted`."""
    seen: dict[bytes, int] = {}
    # Nearly always the first few rows suffice, so the order is gone through by parts
    for low in range(0, len(order), 2 * n_wanted):
        part = order[low : low + 2 * n_wanted]
        keys = np.concatenate([np.where(mask[part], values[part], 0) + np.float32(0), mask[part]], axis=1)
        for row, key in zip(part.tolist(), keys, strict=True):
            seen.setdefault(key.tobytes(), row)
            if len(seen) == n_wanted:
                return np.fromiter(seen.values(), dtype=np.intp)
    return np.fromiter(seen.values(), dtype=np.intp)


def _keepers(mask: NDArray[np.bool_]) -> list[NDArray[np.intp]]:
    """For each lane the rows that keep it."""
    return [np.flatnonzero(mask[:, lane]) for lane in range(mask.shape[1])]


def _fill(
    values: NDArray[np.float32],
    keepers: list[NDArray[np.intp]],
    codebook: NDArray[np.float32],
    known: NDArray[np.bool_],
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Fill unknown codeword lanes with the value of a random row that keeps the lane; 0 where no row does."""
    codebook = np.where(known, codebook, 0)
    for lane in np.flatnonzero(~known.all(axis=0)):
        unknown = np.flatnonzero(~known[:, lane])
        if len(keepers[lane]):
            rows = keepers[lane][rng.integers(len(keepers[lane]), size=len(unknown))]
            codebook[unknown, lane] = values[rows, lane]
    return codebook


def _plus_plus(
    values: NDArray[np.float32],
    mask: NDArray[np.bool_],
    weights: NDArray[np.float32] | None,
    n_codewords: int,
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """D^2 sampling (Arthur and Vassilvitskii, 2007) with the masked distance of each row to each codeword."""
    n, d = values.shape
    importance = mask.astype(np.float32) if weights is None else mask * weights
    keepers = _keepers(mask)
    codebook = np.empty((n_codewords, d), np.float32)
    nearest = np.full(n, np.inf, np.float32)
    row = int(rng.integers(n))
    for k in range(n_codewords):
        codebook[k] = _fill(values, keepers, values[row : row + 1], mask[row : row + 1], rng)[0]
        _shrink_distances(values, importance, codebook[k], nearest)
        nearest[row] = 0
        cumulative = np.cumsum(nearest, dtype=np.float64)
        if cumulative[-1] > 0:
            row = min(int(np.searchsorted(cumulative, rng.random() * cumulative[-1], side="right")), n - 1)
        else:
            row = int(rng.integers(n))
    return codebook


# Serial: k short parallel loops would spend their time on starting threads
@njit(cache=True, fastmath={"contract", "reassoc", "nsz"})
def _shrink_distances(values, importance, codeword, nearest):
    for i in range(len(values)):
        distance = np.float32(0)
        for lane in range(values.shape[1]):
            difference = values[i, lane] - codeword[lane]
            distance += importance[i, lane] * difference * difference
        nearest[i] = min(nearest[i], distance)
