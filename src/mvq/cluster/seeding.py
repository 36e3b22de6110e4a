"""Initial codebooks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: k-means++ draws from a random sample of this many rows a codeword; the whole data would cost more than the
#: clustering.
_SAMPLE_PER_CODEWORD = 32


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
        rows = _distinct_rows(values, mask, rng.permutation(n), n_codewords)
        return _fill(values, mask, values[rows], mask[rows], rng)
    sample = np.sort(rng.choice(n, min(n, _SAMPLE_PER_CODEWORD * n_codewords), replace=False))
    return _plus_plus(values[sample], mask[sample], None if weights is None else weights[sample], n_codewords, rng)


def _distinct_rows(
    values: NDArray[np.float32], mask: NDArray[np.bool_], order: NDArray[np.intp], n_wanted: int
) -> NDArray[np.intp]:
    """First rows in the given order that differ from one another."""
    seen: dict[bytes, int] = {}
    for row in order.tolist():
        seen.setdefault((values[row] + np.float32(0)).tobytes() + mask[row].tobytes(), row)
        if len(seen) == n_wanted:
            break
    return np.fromiter(seen.values(), dtype=np.intp)


def _fill(
    values: NDArray[np.float32],
    mask: NDArray[np.bool_],
    codebook: NDArray[np.float32],
    known: NDArray[np.bool_],
    rng: np.random.Generator,
) -> NDArray[np.float32]:
    """Fill unknown codeword lanes with the value of a random row that keeps the lane; 0 where no row does."""
    codebook = codebook.copy()
    for lane in range(values.shape[1]):
        unknown = np.flatnonzero(~known[:, lane])
        if len(unknown):
            keeping = np.flatnonzero(mask[:, lane])
            codebook[unknown, lane] = values[rng.choice(keeping, len(unknown)), lane] if len(keeping) else 0
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
    codebook = np.empty((n_codewords, d), np.float32)
    nearest = np.full(n, np.inf)
    row = int(rng.integers(n))
    for k in range(n_codewords):
        codebook[k] = _fill(values, mask, values[row : row + 1], mask[row : row + 1], rng)[0]
        distance = (importance * (values - codebook[k]) ** 2).sum(axis=1, dtype=np.float64)
        nearest = np.minimum(nearest, distance)
        nearest[row] = 0
        total = nearest.sum()
        if total > 0:
            row = min(int(np.searchsorted(np.cumsum(nearest), rng.random() * total, side="right")), n - 1)
        else:
            row = int(rng.integers(n))
    return codebook
