"""Exact integer arithmetic of a network: convolution, pooling, fixed-point requantization.

Normative text: `docs/spec/integer-network.md`. Integers may travel in floating point where every value that can occur
is represented exactly, since BLAS multiplies those an order of magnitude faster; results never depend on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mvq.errors import ConfigError, PsumOverflowError, ShapeError

LOW, HIGH = -128, 127
#: Bits of the magnitude of a multiplier's mantissa; as many as float32 has.
MANTISSA_BITS = 24
MAX_SHIFT = 62
#: Largest magnitude of a bias, in units of the psum.
MAX_BIAS = 1 << 28
#: Fraction bits of the weights of a linear interpolation, along each axis.
RESIZE_BITS = 15

_EXACT_FLOAT32 = 1 << 24
#: Psums up to here have products with a mantissa that float64 holds exactly.
_EXACT_FACTOR = 1 << (53 - MANTISSA_BITS)

Pair = tuple[int, int]
#: Top, left, bottom, right.
Padding = tuple[int, int, int, int]


def fixed_point(multiplier: ArrayLike) -> tuple[NDArray[np.int32], NDArray[np.uint8]]:
    """Mantissas and right shifts with `mantissa / 2**shift` next to the multipliers.

    Args:
        multiplier: real, of either sign, any shape; magnitudes below `2**23`.

    Returns:
        int32 mantissas with `2**23 <= abs(mantissa) < 2**24`, smaller only for 0 and where the shift would pass
        `MAX_SHIFT`; uint8 shifts of 1 to `MAX_SHIFT`.

    Raises:
        ConfigError: if a multiplier is too large or not finite.
    """
    values = np.asarray(multiplier, dtype=np.float64)
    if not (np.isfinite(values).all() and (np.abs(values) < 1 << (MANTISSA_BITS - 1)).all()):
        raise ConfigError(
            f"multiplier {float(np.max(np.abs(values)))} is not below 2**{MANTISSA_BITS - 1}; scales of the tensors "
            f"differ too much, calibrate on images that reach every layer"
        )
    _, exponent = np.frexp(np.where(values == 0, 1.0, values))
    # Rounding up to the next power of two takes one place more.
    exponent = exponent + (np.rint(np.abs(np.ldexp(values, MANTISSA_BITS - exponent))) >= 1 << MANTISSA_BITS)
    shift = np.clip(MANTISSA_BITS - exponent, 1, MAX_SHIFT)
    return np.rint(np.ldexp(values, shift)).astype(np.int32), shift.astype(np.uint8)


@dataclass(frozen=True, eq=False)
class Requantization:
    """From psums to int8: multiply, shift right rounding half to even, clamp.

    Attributes:
        mantissa: int32, magnitude at most `2**24`, of a shape that broadcasts against `(C, P, Q)` or `(C,)`.
        shift: uint8 of the same shape, 0 to `MAX_SHIFT`.
        low: smallest result, -128 or 0 after a ReLU.
        high: largest result, 127 or less after a ReLU6.

    Raises:
        ShapeError: if the arrays do not fit each other or the ranges.
    """

    mantissa: NDArray[np.int32]
    shift: NDArray[np.uint8]
    low: int = LOW
    high: int = HIGH

    def __post_init__(self) -> None:
        if self.mantissa.dtype != np.int32 or self.shift.dtype != np.uint8 or self.mantissa.shape != self.shift.shape:
            raise ShapeError(
                f"requantization: mantissa {self.mantissa.dtype} {self.mantissa.shape} with shift {self.shift.dtype} "
                f"{self.shift.shape}; expected int32 and uint8 of one shape"
            )
        if self.mantissa.size and (
            np.abs(self.mantissa.astype(np.int64)).max() > 1 << MANTISSA_BITS or self.shift.max() > MAX_SHIFT
        ):
            raise ShapeError(
                f"requantization: a mantissa is beyond 2**{MANTISSA_BITS} or a shift beyond {MAX_SHIFT}; make them "
                f"with fixed_point"
            )
        if not LOW <= self.low <= self.high <= HIGH:
            raise ShapeError(f"requantization: {self.low}..{self.high} is not a range within {LOW}..{HIGH}")

    @classmethod
    def of(cls, multiplier: ArrayLike, low: int = LOW, high: int = HIGH) -> Requantization:
        """The nearest one to real multipliers.

        Raises:
            ConfigError: as `fixed_point`.
        """
        return cls(*fixed_point(multiplier), low, high)

    @property
    def multiplier(self) -> NDArray[np.float64]:
        """What it multiplies by, exactly."""
        return np.ldexp(self.mantissa.astype(np.float64), -self.shift.astype(np.int64))

    def apply(self, psums: NDArray[np.integer], bias: NDArray[np.integer] | int = 0) -> NDArray[np.int8]:
        """Int8 `clamp(round((psum + bias) * mantissa / 2**shift))`, exact for sums within 39 bits."""
        rounded = np.add(psums, bias, dtype=np.float64)
        if rounded.max(initial=0) <= _EXACT_FACTOR and rounded.min(initial=0) >= -_EXACT_FACTOR:
            rounded *= self.multiplier
            np.rint(rounded, out=rounded)
        else:
            rounded = round_shift(rounded.astype(np.int64) * self.mantissa.astype(np.int64), self.shift)
        return np.clip(rounded, self.low, self.high, out=rounded).astype(np.int8)


def round_shift(values: NDArray[np.int64], shift: NDArray[np.uint8] | int) -> NDArray[np.int64]:
    """`values / 2**shift`, rounded half to even; any int64 and shifts of 0 to 62."""
    shifts = np.asarray(shift, dtype=np.int64)
    floor = values >> shifts
    rest, half = values - (floor << shifts), np.int64(1) << np.maximum(shifts - 1, 0)
    up = (rest > half) | ((rest == half) & (floor & 1 == 1))
    return floor + (up & (shifts > 0))


def quantize(values: NDArray[np.floating], scale: float) -> NDArray[np.int8]:
    """Int8 codes of real values: `clamp(round(value / scale))` with a division in float32, as ONNX's QuantizeLinear."""
    return np.clip(np.rint(values.astype(np.float32) / np.float32(scale)), LOW, HIGH).astype(np.int8)


def out_size(size: Pair, kernel: Pair, stride: Pair, padding: Padding, dilation: Pair) -> Pair:
    """Height and width of what a sliding window gives.

    Raises:
        ShapeError: if the window does not fit.
    """
    height = (size[0] + padding[0] + padding[2] - dilation[0] * (kernel[0] - 1) - 1) // stride[0] + 1
    width = (size[1] + padding[1] + padding[3] - dilation[1] * (kernel[1] - 1) - 1) // stride[1] + 1
    if height < 1 or width < 1:
        raise ShapeError(f"a {kernel} window of dilation {dilation} does not fit {size} padded by {padding}")
    return height, width


def taps(ifmap: NDArray, kernel: Pair, stride: Pair, dilation: Pair, size: Pair) -> Iterator[NDArray]:
    """For each place in the kernel, row by row, the inputs it meets: views `(..., P, Q)` of a padded `(..., H, W)`."""
    for y in range(0, kernel[0] * dilation[0], dilation[0]):
        for x in range(0, kernel[1] * dilation[1], dilation[1]):
            rows = slice(y, y + (size[0] - 1) * stride[0] + 1, stride[0])
            yield ifmap[..., rows, x : x + (size[1] - 1) * stride[1] + 1 : stride[1]]


def pad_edges(ifmap: NDArray, padding: Padding, value: int = 0) -> NDArray:
    """The last two axes padded; the array itself where there is nothing to pad."""
    if not any(padding):
        return ifmap
    top, left, bottom, right = padding
    widths = [(0, 0)] * (ifmap.ndim - 2) + [(top, bottom), (left, right)]
    return np.pad(ifmap, widths, constant_values=value)


def conv2d_int(
    ifmap: NDArray[np.int8],
    weight: NDArray[np.int8],
    *,
    stride: Pair = (1, 1),
    padding: Padding = (0, 0, 0, 0),
    dilation: Pair = (1, 1),
    groups: int = 1,
    psum_bits: int = 32,
    name: str = "conv2d_int",
) -> NDArray[np.int32]:
    """Integer convolution without bias; equal to sums in unlimited precision.

    Args:
        ifmap: int8 `(N, C, H, W)`.
        weight: int8 `(K, C / groups, R, S)`.
        stride: down, right.
        padding: zeros at top, left, bottom, right.
        dilation: down, right.
        groups: of channels.
        psum_bits: width of the two's complement accumulator, 2 to 32.
        name: of the layer, for errors.

    Returns:
        int32 psums `(N, K, P, Q)`.

    Raises:
        ShapeError: if the operands do not fit.
        PsumOverflowError: if a final sum does not fit `psum_bits`. Sums in between may pass the limits: an accumulator
            that wraps around still ends right.
    """
    n, channels = ifmap.shape[:2]
    n_out, depth, *kernel_size = weight.shape
    if channels != depth * groups or n_out % groups:
        raise ShapeError(
            f"layer {name!r}: ifmap {ifmap.shape} and weight {weight.shape} with groups={groups}; the weight needs "
            f"C / groups input channels and groups must divide its output channels"
        )
    kernel = (kernel_size[0], kernel_size[1])
    size = out_size((ifmap.shape[2], ifmap.shape[3]), kernel, stride, padding, dilation)
    dtype = _exact_dtype(weight)
    rows = weight.reshape(groups, n_out // groups, -1).astype(dtype)
    padded = pad_edges(ifmap, padding)
    psums = np.empty((n, groups, n_out // groups, *size), dtype)
    for image, out in zip(padded, psums, strict=True):
        grouped = image.reshape(groups, depth, *image.shape[1:])
        if depth == 1:
            out[:] = 0
            for i, tap in enumerate(taps(grouped, kernel, stride, dilation, size)):
                out += rows[:, :, i, None, None] * tap
            continue
        columns = np.empty((groups, depth, kernel[0] * kernel[1], *size), dtype)
        for i, tap in enumerate(taps(grouped, kernel, stride, dilation, size)):
            columns[:, :, i] = tap
        np.matmul(rows, columns.reshape(groups, rows.shape[2], -1), out=out.reshape(groups, n_out // groups, -1))
    return checked_psums(psums.reshape(n, n_out, *size), psum_bits, name)


def linear_int(
    features: NDArray[np.int8], weight: NDArray[np.int8], *, psum_bits: int = 32, name: str = "linear_int"
) -> NDArray[np.int32]:
    """Integer fully connected layer without bias, `(N, C)` times `(K, C)`: int32 psums `(N, K)`.

    Raises:
        ShapeError: if the operands do not fit.
        PsumOverflowError: if a final sum does not fit `psum_bits`.
    """
    if features.ndim != 2 or features.shape[1] != weight.shape[1]:
        raise ShapeError(f"layer {name!r}: features {features.shape} do not fit weight {weight.shape}; expected (N, C)")
    dtype = _exact_dtype(weight)
    return checked_psums(features.astype(dtype) @ weight.T.astype(dtype), psum_bits, name)


def max_pool(ifmap: NDArray[np.int8], kernel: Pair, stride: Pair, padding: Padding, dilation: Pair) -> NDArray[np.int8]:
    """Largest value under a window; padding never wins."""
    size = out_size((ifmap.shape[2], ifmap.shape[3]), kernel, stride, padding, dilation)
    out = np.full((*ifmap.shape[:2], *size), LOW, np.int8)
    for tap in taps(pad_edges(ifmap, padding, LOW), kernel, stride, dilation, size):
        np.maximum(out, tap, out=out)
    return out


def pool_sums(ifmap: NDArray[np.int8], kernel: Pair, stride: Pair, padding: Padding) -> NDArray[np.int32]:
    """Sums under a window, padding counts as 0."""
    size = out_size((ifmap.shape[2], ifmap.shape[3]), kernel, stride, padding, (1, 1))
    out = np.zeros((*ifmap.shape[:2], *size), np.int32)
    for tap in taps(pad_edges(ifmap, padding), kernel, stride, (1, 1), size):
        out += tap
    return out


def linear_weights(n_in: int, n_out: int, *, align_corners: bool) -> NDArray[np.int32]:
    """Weights of a linear interpolation along one axis, `(n_out, n_in)`; rows sum to `2**RESIZE_BITS`.

    With `align_corners` the centres of the outermost values coincide, otherwise their borders do.
    """
    places = np.arange(n_out, dtype=np.float64)
    if align_corners:
        source = places * ((n_in - 1) / (n_out - 1) if n_out > 1 else 0.0)
    else:
        source = np.maximum((places + 0.5) * (n_in / n_out) - 0.5, 0.0)
    below = np.minimum(source.astype(np.int64), n_in - 1)
    upper = np.rint((source - below) * (1 << RESIZE_BITS)).astype(np.int32)
    weights = np.zeros((n_out, n_in), np.int32)
    rows = np.arange(n_out)
    weights[rows, below] = (1 << RESIZE_BITS) - upper
    weights[rows, np.minimum(below + 1, n_in - 1)] += upper
    return weights


def resize_linear(ifmap: NDArray[np.int8], size: Pair, *, align_corners: bool) -> NDArray[np.int8]:
    """Bilinear interpolation of `(N, C, H, W)` to another size; one rounding, half to even."""
    down = linear_weights(ifmap.shape[2], size[0], align_corners=align_corners).astype(np.float64)
    right = linear_weights(ifmap.shape[3], size[1], align_corners=align_corners).astype(np.float64)
    # Below 2**38: exact in float64.
    sums = down @ ifmap.astype(np.float64) @ right.T
    return np.rint(np.ldexp(sums, -2 * RESIZE_BITS)).astype(np.int8)


def nearest_places(n_in: int, n_out: int) -> NDArray[np.int64]:
    """For each output of a nearest-neighbour interpolation along one axis, the input it takes."""
    return np.arange(n_out, dtype=np.int64) * n_in // n_out


def _exact_dtype(weight: NDArray[np.int8]) -> type[np.float32] | type[np.float64]:
    """A float type that holds every partial sum of int8 inputs times these rows exactly."""
    largest = np.abs(weight.astype(np.int64)).reshape(weight.shape[0], -1).sum(axis=1).max(initial=0)
    return np.float32 if largest * -LOW <= _EXACT_FLOAT32 else np.float64


def checked_psums(psums: NDArray[np.number], bits: int, name: str) -> NDArray[np.int32]:
    """Psums as int32.

    Raises:
        PsumOverflowError: if one does not fit `bits` bits; names the layer.
    """
    largest, smallest = int(psums.max(initial=0)), int(psums.min(initial=0))
    limit = 1 << (bits - 1)
    if largest >= limit or smallest < -limit:
        worst = largest if largest >= limit else smallest
        raise PsumOverflowError(
            f"layer {name!r}: a psum of {worst} does not fit {bits} bits, {-limit}..{limit - 1}; give the accumulator "
            f"more bits (psum_bits)"
        )
    return psums.astype(np.int32)
