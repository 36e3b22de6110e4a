"""Int8 codebooks: `v_hat = s * clamp(round(v / s), -128, 127)`, one scale a codebook (MVQ).

The paper learns the scale (LSQ) from a start it does not state. Here the start is the scale of least weighted
squared error, found by a fixed search, so that it is the same on every run.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mvq.compressed import Codebook
from mvq.errors import ShapeError, WeightError

#: Clipping ranges tried, as a share of the largest value: a coarse grid, then a fine one around its best.
_COARSE = np.geomspace(1 / 32, 1.0, 48)
_FINE = np.linspace(0.94, 1.06, 25)
_LOW, _HIGH = -128, 127
_SMALLEST = float(np.finfo(np.float32).tiny)


def quantize(values: NDArray[np.float32], scale: float) -> NDArray[np.int8]:
    """`clamp(round(values / scale), -128, 127)` in float32, ties to even."""
    with np.errstate(over="ignore"):  # a value that does not count may lie any way beyond the range, and is clipped
        codes = np.rint(values.astype(np.float32, copy=False) / np.float32(scale))
    return np.clip(codes, _LOW, _HIGH).astype(np.int8)


def fit_int8(values: NDArray[np.floating], counts: NDArray | None = None) -> Codebook:
    """Quantize codewords to int8 with the scale of least count-weighted squared error.

    Args:
        values: `(n_codewords, width)` float codewords.
        counts: `(n_codewords, width)` weight of each value, at least 0: how many subvectors keep it, or their
            summed importance. A value of weight 0 is quantized but has no say in the scale. None weighs all
            alike.

    Returns:
        The codebook. Its scale is 1 where every value that counts is zero.

    Raises:
        ShapeError: if `values` is not two-dimensional or `counts` has another shape.
        WeightError: if a value is not finite.
    """
    if values.ndim != 2 or 0 in values.shape:
        raise ShapeError(f"codebook values of shape {values.shape}: expected (n_codewords, width), both at least 1")
    if counts is not None and counts.shape != values.shape:
        raise ShapeError(f"codebook counts of shape {counts.shape}: expected the shape of the values, {values.shape}")
    n_bad = int(values.size - np.isfinite(values).sum())
    if n_bad:
        raise WeightError(f"codebook: {n_bad} of {values.size} values are NaN or infinite; cluster finite weights")
    values = values.astype(np.float32)
    flat = values.ravel()
    weight = np.ones(flat.size) if counts is None else counts.astype(np.float64).ravel()
    used = weight > 0
    scale = _best_scale(flat[used], weight[used])
    return Codebook(codes=quantize(values, scale), scale=scale)


def _best_scale(values: NDArray[np.float32], weight: NDArray[np.float64]) -> float:
    top = float(np.abs(values).max(initial=0.0)) / _HIGH
    if top == 0:
        return 1.0
    best = _pick(values, weight, top * _COARSE)
    best = _pick(values, weight, np.append(best * _FINE, top))
    # With the codes fixed the best scale is a least-squares fit; kept only where it helps, rounding included.
    codes = quantize(values, best).astype(np.float64)
    norm = float((weight * codes * codes).sum())
    fitted = float((weight * codes * values).sum()) / norm if norm > 0 else best
    return _pick(values, weight, np.array([best, fitted]))


def _pick(values: NDArray[np.float32], weight: NDArray[np.float64], scales: NDArray[np.float64]) -> float:
    """The scale of least weighted squared error; ties go to the first."""
    candidates = [max(float(np.float32(s)), _SMALLEST) for s in scales]
    errors = [_sse(values, weight, s) for s in candidates]
    return candidates[int(np.argmin(errors))]


def _sse(values: NDArray[np.float32], weight: NDArray[np.float64], scale: float) -> float:
    error = quantize(values, scale).astype(np.float32) * np.float32(scale) - values
    return float(np.dot(weight, error.astype(np.float64) ** 2))
