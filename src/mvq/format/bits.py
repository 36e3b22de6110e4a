"""Fixed-width bit streams.

Value `i` of a stream of `b`-bit values takes bits `[i*b, (i+1)*b)`, where bit `n` of the stream is bit `n % 8`
(counted from the least significant) of byte `n // 8`. The last byte is filled up with zero bits.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mvq.errors import ConfigError, ShapeError, StreamError

MAX_BITS = 32


def packed_bytes(bits: int, count: int) -> int:
    """Bytes of `count` values of `bits` bits."""
    return -(-bits * count // 8)


def pack(values: NDArray[np.integer], bits: int) -> NDArray[np.uint8]:
    """Write values with `bits` bits each.

    Args:
        values: of any shape, taken in C order.
        bits: 0..32.

    Returns:
        uint8 `(ceil(values.size * bits / 8),)`.

    Raises:
        ConfigError: if `bits` is not in 0..32.
        StreamError: if a value does not fit.
    """
    _check_bits(bits)
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    if low < 0 or high >> bits:
        raise StreamError(f"bit stream: value {low if low < 0 else high} does not fit {bits} bits")
    out = np.zeros(packed_bytes(bits, values.size), dtype=np.uint8)
    if out.size:
        _pack(np.ascontiguousarray(values, dtype=np.uint32).reshape(-1), bits, out)
    return out


def unpack(data: NDArray[np.uint8], bits: int, count: int) -> NDArray[np.uint16 | np.uint32]:
    """Read `count` values of `bits` bits; inverse of `pack`.

    Args:
        data: uint8 `(ceil(count * bits / 8),)`.
        bits: 0..32.
        count: number of values.

    Returns:
        `(count,)`: uint16 up to 16 bits, uint32 above.

    Raises:
        ConfigError: if `bits` is not in 0..32.
        ShapeError: if `data` is not exactly as long as needed.
        StreamError: if a padding bit is set.
    """
    _check_bits(bits)
    if data.dtype != np.uint8 or data.shape != (packed_bytes(bits, count),):
        raise ShapeError(
            f"bit stream: {data.dtype} {data.shape} given, {count} values of {bits} bits need "
            f"uint8 {(packed_bytes(bits, count),)}"
        )
    used = bits * count % 8
    if used and data[-1] >> used:
        raise StreamError(f"bit stream: padding bits of the last byte 0x{int(data[-1]):02x} are not zero")
    # With 0 bits every value is 0; zeros that nobody writes cost no memory.
    out = np.zeros(count, dtype=np.uint16 if bits <= 16 else np.uint32)
    if bits:
        view = np.ascontiguousarray(data).view()
        view.flags.writeable = False  # one compiled variant for files and memory
        _unpack(view, bits, out)
    return out


def _check_bits(bits: int) -> None:
    if not 0 <= bits <= MAX_BITS:
        raise ConfigError(f"bit stream: {bits} bits a value is not in 0..{MAX_BITS}")


@njit(nogil=True, cache=True)
def _pack(values, bits, out):  # pragma: no cover
    held = np.uint64(0)
    n_held = 0
    at = 0
    for value in values:
        held |= np.uint64(value) << np.uint64(n_held)
        n_held += bits
        while n_held >= 8:
            out[at] = held & np.uint64(255)
            held >>= np.uint64(8)
            n_held -= 8
            at += 1
    if n_held:
        out[at] = held


@njit(nogil=True, cache=True)
def _unpack(data, bits, out):  # pragma: no cover
    keep = (np.uint64(1) << np.uint64(bits)) - np.uint64(1)
    n_bytes = len(data)
    for i in range(len(out)):
        start = i * bits
        byte = start >> 3
        word = np.uint64(0)
        if byte + 8 <= n_bytes:
            # Eight loads of neighbouring bytes, which the compiler joins into one.
            for k in range(8):
                word |= np.uint64(data[byte + k]) << np.uint64(8 * k)
        else:
            for k in range(n_bytes - byte):
                word |= np.uint64(data[byte + k]) << np.uint64(8 * k)
        out[i] = (word >> np.uint64(start & 7)) & keep
