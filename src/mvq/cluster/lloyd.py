"""The iteration itself, the same for every engine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Engine(Protocol):
    """What an engine provides: exact assignment, with sums over members."""

    values: NDArray[np.float32]
    mask: NDArray[np.bool_]

    def reset(self) -> None:
        """Forget all assignments."""
        ...

    def assign(self, codebook: NDArray[np.float32]) -> int:
        """Assign every subvector to its nearest codeword; returns how many assignments changed."""
        ...

    @property
    def sums(self) -> NDArray[np.float64]:
        """`(k, d)` weighted sums over members of the last assignment."""
        ...

    @property
    def counts(self) -> NDArray[np.float64]:
        """`(k, d)` total weights over members."""
        ...

    @property
    def members(self) -> NDArray[np.int64]:
        """`(k,)` cluster sizes."""
        ...

    @property
    def sse(self) -> float:
        """Error of the last assignment."""
        ...

    def labels_and_distances(self) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
        """`(n_sub,)` assignments and distances."""
        ...


def make_engine(
    values: NDArray[np.float32],
    mask: NDArray[np.bool_],
    weights: NDArray[np.float32] | None,
    n_codewords: int,
    device: Any = None,
) -> Engine:
    """The engine for a device: compiled CPU loops, or PyTorch for anything else."""
    if device is None:
        from mvq.cluster.cpu import CpuEngine

        return CpuEngine(values, mask, weights, n_codewords)
    from mvq.cluster.device import DeviceEngine

    return DeviceEngine(values, mask, weights, n_codewords, device)


def run(
    engine: Engine, codebook: NDArray[np.float32], iterations: Iterable[int], *, tol: float
) -> tuple[NDArray[np.float32], int]:
    """Alternate assignment and update until few assignments change; ends with an assignment.

    Args:
        engine: holds the data.
        codebook: `(k, d)` start.
        iterations: one element an update at most.
        tol: stop when at most this share of assignments changes.

    Returns:
        The codebook the last assignment was made with, and the number of updates.
    """
    n = len(engine.values)
    n_iters = 0
    engine.assign(codebook)
    for _ in iterations:
        codebook = update(engine, codebook)
        n_iters += 1
        if engine.assign(codebook) <= tol * n and (engine.members > 0).all():
            break
    return codebook, n_iters


def update(engine: Engine, codebook: NDArray[np.float32]) -> NDArray[np.float32]:
    """Means over the members that keep each lane; lanes no member keeps stay; empty clusters are moved."""
    counts = engine.counts
    kept = counts > 0
    # A lane whose members all left holds rounding residue, so sizes, not counts, tell that a cluster is empty
    kept &= (engine.members > 0)[:, None]
    new = np.where(kept, engine.sums / np.where(kept, counts, 1.0), codebook).astype(np.float32)
    empty = np.flatnonzero(engine.members == 0)
    if len(empty):
        _move_empty(engine, new, empty)
    return new


def _move_empty(engine: Engine, codebook: NDArray[np.float32], empty: NDArray[np.intp]) -> None:
    """Put empty clusters on the worst-served distinct subvectors, worst first.

    Lanes such a subvector prunes are copied from the codeword that served it, which splits that cluster.
    """
    labels, distance = engine.labels_and_distances()
    worst = np.argsort(-distance, kind="stable")
    taken: set[bytes] = set()
    slots = iter(empty.tolist())
    for row in worst.tolist():
        if distance[row] <= 0 or len(taken) == len(empty):
            return
        mask = engine.mask[row]
        identity = mask.tobytes() + engine.values[row, mask].tobytes()
        if identity not in taken:
            taken.add(identity)
            codebook[next(slots)] = np.where(mask, engine.values[row], codebook[labels[row]])
