"""N:M masks by magnitude along output channels (MVQ).

A mask that can be ranked to a mask id keeps exactly N lanes of every M. Where the last group of output
channels is padded and a block has fewer than N real lanes, padding lanes fill the rest, in the id only: no
weight belongs to them.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mvq.errors import ShapeError, WeightError
from mvq.grouping import from_subvectors, to_subvectors, valid_lanes
from mvq.patterns import Pattern


def magnitude_mask(
    weight: NDArray[np.floating], pattern: Pattern, d: int, *, name: str = "weight"
) -> NDArray[np.bool_]:
    """Keep the N largest magnitudes of every M consecutive output channels; ties keep the lowest channel.

    Args:
        weight: `(Cout, ...)`.
        pattern: N:M.
        d: lanes of a subvector, a multiple of M.
        name: what the error calls the weight.

    Returns:
        `(n_sub, d)`, True = kept, exactly N of every M; padding lanes are kept only where real lanes run out.

    Raises:
        WeightError: if a weight is NaN or infinite.
    """
    n_bad = int(weight.size - np.isfinite(weight).sum())
    if n_bad:
        raise WeightError(
            f"layer {name!r}: {n_bad} of {weight.size} weights are NaN or infinite; repair or retrain the model first"
        )
    return _fill(np.abs(to_subvectors(weight, d)), weight.shape, pattern, d)


def complete_mask(kept: NDArray[np.bool_], pattern: Pattern, d: int, *, name: str = "weight") -> NDArray[np.bool_]:
    """The rankable mask `(n_sub, d)` of a weight-shaped mask: padding lanes fill blocks that lack real lanes.

    Raises:
        ShapeError: if a block does not keep N lanes, or all its lanes where it has fewer than N.
    """
    mask = _fill(to_subvectors(kept, d).astype(np.float32), kept.shape, pattern, d)
    n_wrong = int((weight_mask(mask, kept.shape) != kept).sum())
    if n_wrong:
        raise ShapeError(
            f"layer {name!r}: the mask is no {pattern} mask along output channels, {n_wrong} of {kept.size} "
            "lanes "
            f"differ from the nearest one; prune with the pattern of the recipe"
        )
    return mask


def weight_mask(mask: NDArray[np.bool_], shape: tuple[int, ...]) -> NDArray[np.bool_]:
    """The weight-shaped mask of `(n_sub, d)` lanes; padding is dropped."""
    return np.ascontiguousarray(from_subvectors(mask, shape))


def _fill(scores: NDArray[np.floating], shape: tuple[int, ...], pattern: Pattern, d: int) -> NDArray[np.bool_]:
    if pattern.is_dense:
        return np.ones(scores.shape, dtype=bool)
    if shape[0] % d:
        scores[~valid_lanes(shape, d)] = -1
    return pattern.top_mask(scores)
