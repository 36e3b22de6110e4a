"""The arithmetic in plain Python integers, slow and obvious; what the fast functions are checked against."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mvq.accel.network.arithmetic import LOW, Padding, Pair, Requantization


def rounded(value: int, shift: int) -> int:
    """`value / 2**shift`, rounded half to even."""
    floor, rest = divmod(value, 1 << shift)
    twice = 2 * rest
    return floor + (twice > 1 << shift or (twice == 1 << shift and floor % 2 == 1))


def requantized(psums: NDArray[np.integer], bias: NDArray[np.integer] | int, by: Requantization) -> NDArray[np.int8]:
    """`Requantization.apply`, number by number."""
    arrays = np.broadcast_arrays(psums, bias, by.mantissa, by.shift)
    values = [
        min(max(rounded((int(p) + int(b)) * int(m), int(s)), by.low), by.high)
        for p, b, m, s in zip(*(a.ravel() for a in arrays), strict=True)
    ]
    return np.array(values, np.int8).reshape(arrays[0].shape)


def conv2d(
    ifmap: NDArray[np.int8],
    weight: NDArray[np.int8],
    stride: Pair,
    padding: Padding,
    dilation: Pair,
    groups: int,
) -> NDArray[np.object_]:
    """`conv2d_int` by its definition, psums as Python integers."""
    n, _, height, width = ifmap.shape
    n_out, depth, rows, columns = weight.shape
    out_height = (height + padding[0] + padding[2] - dilation[0] * (rows - 1) - 1) // stride[0] + 1
    out_width = (width + padding[1] + padding[3] - dilation[1] * (columns - 1) - 1) // stride[1] + 1
    out = np.zeros((n, n_out, out_height, out_width), dtype=object)
    for i, k, p, q in itertools.product(*map(range, out.shape)):
        for c, r, s in itertools.product(range(depth), range(rows), range(columns)):
            y = p * stride[0] + r * dilation[0] - padding[0]
            x = q * stride[1] + s * dilation[1] - padding[1]
            if 0 <= y < height and 0 <= x < width:
                channel = k // (n_out // groups) * depth + c
                out[i, k, p, q] += int(ifmap[i, channel, y, x]) * int(weight[k, c, r, s])
    return out


def windows(
    ifmap: NDArray[np.int8], kernel: Pair, stride: Pair, padding: Padding, dilation: Pair, size: Pair
) -> NDArray[np.object_]:
    """For each place `(N, C, P, Q)` the list of inputs under the window, padding left out."""
    out: Any = np.empty((*ifmap.shape[:2], *size), dtype=object)
    for i, c, p, q in itertools.product(*map(range, out.shape)):
        places = itertools.product(
            (p * stride[0] + r * dilation[0] - padding[0] for r in range(kernel[0])),
            (q * stride[1] + s * dilation[1] - padding[1] for s in range(kernel[1])),
        )
        inside = [(y, x) for y, x in places if 0 <= y < ifmap.shape[2] and 0 <= x < ifmap.shape[3]]
        out[i, c, p, q] = [int(ifmap[i, c, y, x]) for y, x in inside]
    return out


def max_pool(
    ifmap: NDArray[np.int8], kernel: Pair, stride: Pair, padding: Padding, dilation: Pair, size: Pair
) -> NDArray[np.int8]:
    """The largest of each window, -128 for an empty one."""
    found = windows(ifmap, kernel, stride, padding, dilation, size)
    return np.array([max(values, default=LOW) for values in found.ravel()], np.int8).reshape(found.shape)


def pool_sums(ifmap: NDArray[np.int8], kernel: Pair, stride: Pair, padding: Padding, size: Pair) -> NDArray[np.int32]:
    """The sum of each window."""
    found = windows(ifmap, kernel, stride, padding, (1, 1), size)
    return np.array([sum(values) for values in found.ravel()], np.int32).reshape(found.shape)
