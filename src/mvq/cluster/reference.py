"""Slow, obvious masked k-means in NumPy float64. The fast engines must agree with it.

Assign: `a(j) = argmin_k sum_i h_ji m_ji (w_ji - c_ki)^2`, ties to the lowest k (MVQ, assignment; importance weights
h are 1 there).
Update: `c_ki = sum_j h_ji m_ji w_ji / sum_j h_ji m_ji` over the members j of k (MVQ, update).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def distances(
    subvectors: NDArray, mask: NDArray[np.bool_], codebook: NDArray, weights: NDArray | None = None
) -> NDArray[np.float64]:
    """`(n_sub, n_codewords)` masked squared distances; for tests, the whole matrix is in memory."""
    importance = mask * (1.0 if weights is None else weights.astype(np.float64))
    values = np.where(mask, subvectors, 0).astype(np.float64)
    out = np.empty((len(values), len(codebook)))
    for k, codeword in enumerate(codebook.astype(np.float64)):
        out[:, k] = (importance * (values - codeword) ** 2).sum(axis=1)
    return out


def assign(
    subvectors: NDArray, mask: NDArray[np.bool_], codebook: NDArray, weights: NDArray | None = None
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Nearest codeword under the mask, and its distance, for each subvector."""
    table = distances(subvectors, mask, codebook, weights)
    assignments = table.argmin(axis=1)
    return assignments, table[np.arange(len(table)), assignments]


def update(
    subvectors: NDArray,
    mask: NDArray[np.bool_],
    assignments: NDArray[np.integer],
    codebook: NDArray,
    weights: NDArray | None = None,
) -> NDArray[np.float64]:
    """Weighted mean over the members that keep each lane; a lane that no member keeps stays as it was."""
    importance = mask * (1.0 if weights is None else weights.astype(np.float64))
    out = codebook.astype(np.float64).copy()
    for k in range(len(codebook)):
        members = assignments == k
        total = importance[members].sum(axis=0)
        summed = (importance[members] * np.where(mask[members], subvectors[members], 0)).sum(axis=0)
        out[k] = np.where(total > 0, summed / np.where(total > 0, total, 1), out[k])
    return out


def lloyd(
    subvectors: NDArray,
    mask: NDArray[np.bool_],
    codebook: NDArray,
    n_iters: int,
    weights: NDArray | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.intp], float]:
    """`n_iters` rounds of assign and update from a codebook, then a last assignment. Empty clusters stay."""
    codebook = codebook.astype(np.float64)
    for _ in range(n_iters):
        assignments, _ = assign(subvectors, mask, codebook, weights)
        codebook = update(subvectors, mask, assignments, codebook, weights)
    assignments, best = assign(subvectors, mask, codebook, weights)
    return codebook, assignments, float(best.sum())
