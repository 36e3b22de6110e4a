"""Public clustering functions: check the input, choose the engine, run restarts."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from mvq.cluster.blocks import prepare
from mvq.cluster.lloyd import Engine, make_engine, run
from mvq.cluster.seeding import distinct_rows, initial_codebook
from mvq.errors import ConfigError, FewDistinctError, ShapeError, WeightError
from mvq.grouping import pack_lanes
from mvq.progress import track
from mvq.recipe import Codewords

if TYPE_CHECKING:
    import torch

    Array = NDArray[Any] | torch.Tensor
else:
    Array = Any

Init = Literal["random", "k-means++"]


class KMeansResult(NamedTuple):
    """What `masked_kmeans` found.

    Attributes:
        codebook: float32 `(n_codewords, d)`, or `(n_codewords, Q)` for packed codewords.
        assignments: `(n_sub,)` nearest row of `codebook` for each subvector.
        sse: `sum_j sum_i h_ji m_ji (w_ji - c_a(j)i)^2`.
        n_iters: codebook updates made by the restart that was kept.
    """

    codebook: Any
    assignments: Any
    sse: float
    n_iters: int


@contextlib.contextmanager
def _limited_threads() -> Iterator[None]:
    """At most torch's number of threads, which stays: numba's loops share its OpenMP and would raise it."""
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    own, of_torch = numba.get_num_threads(), torch.get_num_threads()
    numba.set_num_threads(min(own, of_torch))
    try:
        yield
    finally:
        numba.set_num_threads(own)
        torch.set_num_threads(of_torch)


@_limited_threads()
def masked_kmeans(
    subvectors: Array,
    mask: Array,
    n_codewords: int,
    *,
    codewords: Codewords = "masked",
    weights: Array | None = None,
    init: Init | Array = "k-means++",
    max_iters: int = 100,
    tol: float = 1e-3,
    n_init: int = 1,
    seed: int = 0,
    progress: bool = False,
) -> KMeansResult:
    """Cluster subvectors whose pruned lanes do not count (MVQ).

    Minimises `sum_j || h_j o m_j o (w_j - c_a(j)) ||^2` by exact alternation: every subvector goes to its nearest
    codeword under its own mask, every codeword lane becomes the mean over the members that keep it. The last step is
    an assignment, so `assignments` are nearest in `codebook`. Values on pruned lanes never matter.

    Rules: ties go to the lowest codeword; a lane that no member keeps holds its previous value; empty clusters move
    to the worst-served subvectors (largest distance, then lowest index), and take the lanes those prune from the
    codeword that served them. The result depends on `seed`, never on the number of threads.

    Args:
        subvectors: `(n_sub, d)` floating point, NumPy array or tensor. CUDA tensors are clustered on their device.
        mask: `(n_sub, d)` boolean, True = kept.
        n_codewords: size of the codebook, at most the number of distinct masked subvectors.
        codewords: `masked` codewords have d values; `packed` ones hold the Q kept values in lane order, where Q is the
            largest number of kept lanes of a row (rows with fewer use their first slots).
        weights: `(n_sub, d)` importance h >= 0 of each element, or None for 1 everywhere.
        init: `k-means++`, `random` rows, or an initial codebook of the result's shape.
        max_iters: most codebook updates.
        tol: stop when at most this share of the assignments changes in an iteration (the paper stops below 0.001).
        n_init: restarts with different random initial codebooks; the one with the lowest error is kept.
        seed: of all random choices.
        progress: show a progress bar over iterations on a terminal.

    Returns:
        `KMeansResult`, of the kind (NumPy or tensor, and device) of `subvectors`.

    Raises:
        ShapeError: shapes or dtypes do not fit.
        WeightError: a kept value is NaN or infinite, or an importance weight is negative or not finite.
        ConfigError: an option is out of range; as `FewDistinctError`, fewer distinct subvectors than codewords.

    Notes:
        `O(n_sub * Q * n_codewords)` multiply-adds an iteration at most, and memory `O(n_sub * Q + n_codewords * d)`.
        Sums are accumulated in float64.

    Example:
        >>> import numpy as np
        >>> w = np.array([[0.7, 0.7, 0, 0], [0, 0.5, 0.5, 0.5]], dtype=np.float32)
        >>> masked_kmeans(w, w != 0, 1).codebook.round(6).tolist()
        [[0.699999988079071, 0.6000000238418579, 0.5, 0.5]]
    """
    problem = _Problem(subvectors, mask, weights, codewords)
    _check_options(n_codewords, max_iters, tol, n_init)
    problem.check_distinct(n_codewords)
    given = not isinstance(init, str)
    start = problem.check_codebook(init, n_codewords) if given else None
    if not given and init not in ("random", "k-means++"):
        raise ConfigError(f"masked_kmeans: init={init!r} is not 'random', 'k-means++' or an initial codebook")
    engine = problem.engine(n_codewords)
    best: tuple[float, NDArray, Any, int] | None = None
    for child in np.random.SeedSequence(seed).spawn(1 if given else n_init):
        rng = np.random.default_rng(child)
        if best is not None:
            engine.reset()
        codebook = start
        if codebook is None:
            codebook = initial_codebook(problem.values, problem.mask, problem.weights, n_codewords, str(init), rng)
        bar = track(range(max_iters), "k-means", enabled=progress)
        codebook, n_iters = run(engine, codebook, bar, tol=tol)
        if best is None or engine.sse < best[0]:
            best = engine.sse, codebook, engine.labels_and_distances()[0], n_iters
    assert best is not None
    sse, codebook, assignments, n_iters = best
    return KMeansResult(problem.like_input(codebook), problem.like_input(assignments), sse, n_iters)


@_limited_threads()
def assign(
    subvectors: Array,
    mask: Array,
    codebook: Array,
    *,
    codewords: Codewords = "masked",
    weights: Array | None = None,
) -> tuple[Any, Any]:
    """Nearest codeword of each subvector under its mask, without moving any codeword.

    Args:
        subvectors: as in `masked_kmeans`.
        mask: as in `masked_kmeans`.
        codebook: `(n_codewords, d)`, or `(n_codewords, Q)` for packed codewords.
        codewords: as in `masked_kmeans`.
        weights: as in `masked_kmeans`.

    Returns:
        `(n_sub,)` int32 assignments (ties to the lowest) and `(n_sub,)` float32 squared distances.

    Raises:
        ShapeError: shapes or dtypes do not fit.
        WeightError: a value is not finite, or an importance weight is negative.
    """
    problem = _Problem(subvectors, mask, weights, codewords)
    start = problem.check_codebook(codebook, len(codebook))
    engine = problem.engine(len(start))
    engine.assign(start)
    labels, distances = engine.labels_and_distances()
    return problem.like_input(labels), problem.like_input(distances)


class _Problem:
    """Checked input as NumPy float32, packed if asked for; or as tensors on a CUDA device."""

    def __init__(self, subvectors: Any, mask: Any, weights: Any, codewords: str) -> None:
        if codewords not in ("masked", "packed"):
            raise ConfigError(f"masked_kmeans: codewords={codewords!r} is not 'masked' or 'packed'")
        self.source = subvectors
        self.is_tensor = hasattr(subvectors, "detach")
        self.device = subvectors.device if self.is_tensor and subvectors.device.type != "cpu" else None
        values, kept = _to_numpy(subvectors), _to_numpy(mask)
        _check_arrays(values, kept)
        self.weights = None if weights is None else _check_weights(_to_numpy(weights), values.shape)
        self.values, self.mask, n_bad = prepare(values, np.ascontiguousarray(kept), packed=codewords == "packed")
        if n_bad:
            raise WeightError(f"masked_kmeans: {n_bad} of the kept values are NaN or infinite; all must be finite")
        if self.weights is not None and codewords == "packed":
            self.weights = pack_lanes(self.weights, kept, self.values.shape[1])

    def check_distinct(self, n_codewords: int) -> None:
        """Fewer distinct rows than codewords would leave codewords without use."""
        n = len(self.values)
        distinct = len(distinct_rows(self.values, self.mask, np.arange(n), n_codewords))
        if distinct < n_codewords:
            error = FewDistinctError(
                f"masked_kmeans: {n_codewords} codewords for {n} subvectors of which {distinct} are distinct; "
                f"use at most {distinct} codewords"
            )
            error.distinct = distinct
            raise error

    def check_codebook(self, codebook: Any, n_codewords: int) -> NDArray[np.float32]:
        start = np.ascontiguousarray(_to_numpy(codebook), dtype=np.float32)
        expected = (n_codewords, self.values.shape[1])
        if start.shape != expected:
            raise ShapeError(f"masked_kmeans: codebook of shape {start.shape}, expected {expected}")
        if not np.isfinite(start).all():
            raise WeightError("masked_kmeans: the codebook holds NaN or infinite values; all must be finite")
        return start

    def engine(self, n_codewords: int) -> Engine:
        return make_engine(self.values, self.mask, self.weights, n_codewords, self.device)

    def like_input(self, array: Any) -> Any:
        if not self.is_tensor:
            return array
        import torch

        return torch.from_numpy(np.ascontiguousarray(array)).to(self.source.device)


def _to_numpy(array: Any) -> NDArray:
    if hasattr(array, "detach"):
        array = array.detach()
        array = array.float() if array.is_floating_point() else array
        return array.cpu().numpy()
    return np.asarray(array)


def _check_arrays(values: NDArray, mask: NDArray) -> None:
    if values.ndim != 2 or 0 in values.shape or not np.issubdtype(values.dtype, np.floating):
        raise ShapeError(
            f"masked_kmeans: subvectors are {values.dtype} {values.shape}; "
            f"expected floating point (n_sub, d), not empty"
        )
    if mask.dtype != np.bool_ or mask.shape != values.shape:
        raise ShapeError(
            f"masked_kmeans: mask is {mask.dtype} {mask.shape}; expected bool {values.shape} like the subvectors"
        )


def _check_weights(weights: NDArray, shape: tuple[int, ...]) -> NDArray[np.float32]:
    if weights.shape != shape:
        raise ShapeError(f"masked_kmeans: weights have shape {weights.shape}; expected {shape} like the subvectors")
    weights = np.ascontiguousarray(weights, dtype=np.float32)
    if not np.isfinite(weights).all() or (weights < 0).any():
        raise WeightError("masked_kmeans: importance weights must be finite and not negative")
    return weights


def _check_options(n_codewords: int, max_iters: int, tol: float, n_init: int) -> None:
    for name, value in (("n_codewords", n_codewords), ("max_iters", max_iters), ("n_init", n_init)):
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise ConfigError(f"masked_kmeans: {name}={value!r} is not a whole number of at least 1")
    if not 0 <= tol <= 1:
        raise ConfigError(f"masked_kmeans: tol={tol!r} is not in 0..1; it is a share of assignments")
