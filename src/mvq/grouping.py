"""Weight <-> subvectors: the only reshapes of the project.

A weight is `(Cout, Cin/groups, kh, kw)` for a convolution, `(out, in)` for a linear layer. A subvector is `d`
consecutive *output* channels at one `(cin, kh, kw)`. Subvectors are ordered by output-channel group first,
then by `(cin, kh, kw)` in memory order:

    j = group * (Cin/groups * kh * kw) + (cin * kh + y) * kw + x

If `d` does not divide `Cout`, the last group is padded with lanes that are never kept and never counted as
weights. The functions accept NumPy arrays and torch tensors alike and return the kind they got.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from mvq.errors import ShapeError

ArrayT = TypeVar("ArrayT", bound=Any)


def n_positions(shape: Sequence[int]) -> int:
    """Number of `(cin, kh, kw)` positions of a weight of this shape."""
    return math.prod(shape[1:])


def n_subvectors(shape: Sequence[int], d: int) -> int:
    """`ceil(Cout / d) * Cin/groups * kh * kw`."""
    return -(-shape[0] // d) * n_positions(shape)


def to_subvectors(weight: ArrayT, d: int) -> ArrayT:
    """Cut a weight into subvectors.

    Args:
        weight: `(Cout, ...)`, at least two axes.
        d: lanes of a subvector.

    Returns:
        `(n_sub, d)`, padding lanes zero; a new array.

    Raises:
        ShapeError: if the weight has fewer than two axes.
    """
    if weight.ndim < 2:
        raise ShapeError(f"a weight of shape {tuple(weight.shape)} has no input axis; expected (Cout, Cin, ...)")
    n_out, positions = weight.shape[0], n_positions(weight.shape)
    n_groups = -(-n_out // d)
    rows = weight.reshape(n_out, positions)
    if n_groups * d != n_out:
        pad = (n_groups * d - n_out, positions)
        if isinstance(weight, np.ndarray):
            rows = np.concatenate([rows, np.zeros(pad, weight.dtype)])
        else:
            import torch

            rows = torch.cat([rows, rows.new_zeros(pad)])
    subvectors: Any = rows.reshape(n_groups, d, positions).swapaxes(1, 2)
    # The copy is asked for: with d = 1 or one position a reshape alone would share the weight's memory.
    if isinstance(weight, np.ndarray):
        subvectors = np.array(subvectors, order="C")
    else:
        import torch

        subvectors = subvectors.clone(memory_format=torch.contiguous_format)
    return subvectors.reshape(n_groups * positions, d)


def from_subvectors(subvectors: ArrayT, shape: Sequence[int]) -> ArrayT:
    """Put subvectors `(n_sub, d)` back into a weight of the given shape; inverse of `to_subvectors`.

    Raises:
        ShapeError: if the number of subvectors is not that of the shape.
    """
    d = subvectors.shape[1]
    if subvectors.shape[0] != n_subvectors(shape, d):
        raise ShapeError(
            f"{subvectors.shape[0]} subvectors of {d} lanes do not make a weight of shape {tuple(shape)}, "
            f"which has {n_subvectors(shape, d)}"
        )
    positions = n_positions(shape)
    rows = subvectors.reshape(-1, positions, d).swapaxes(1, 2).reshape(-1, positions)
    return rows[: shape[0]].reshape(tuple(shape))


def valid_lanes(shape: Sequence[int], d: int) -> NDArray[np.bool_]:
    """`(n_sub, d)`: False on padding lanes, which the last group has when `d` does not divide `Cout`."""
    n_groups, positions = -(-shape[0] // d), n_positions(shape)
    lanes = (np.arange(n_groups * d) < shape[0]).reshape(n_groups, 1, d)
    return np.broadcast_to(lanes, (n_groups, positions, d)).reshape(-1, d)


def pack_lanes(values: NDArray, mask: NDArray[np.bool_], width: int) -> NDArray:
    """Move the masked values of each row to its first slots, in lane order; unused slots are zero.

    Args:
        values: `(n, d)`.
        mask: `(n, d)`, at most `width` True a row.
        width: slots `Q` of a packed row.

    Returns:
        `(n, width)`.
    """
    packed = np.zeros((values.shape[0], width), dtype=values.dtype)
    slot = np.cumsum(mask, axis=1) - 1
    row, lane = np.nonzero(mask)
    packed[row, slot[row, lane]] = values[row, lane]
    return packed


def unpack_lanes(packed: NDArray, mask: NDArray[np.bool_]) -> NDArray:
    """Scatter packed rows `(n, Q)` to the lanes their masks `(n, d)` keep; undoes `pack_lanes` there."""
    values = np.zeros(mask.shape, dtype=packed.dtype)
    slot = np.cumsum(mask, axis=1) - 1
    row, lane = np.nonzero(mask)
    values[row, lane] = packed[row, slot[row, lane]]
    return values
