"""Bit packing against hand-written bytes and a slow reference."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvq.errors import ConfigError, ShapeError, StreamError
from mvq.format.bits import pack, unpack


def slow_pack(values: list[int], bits: int) -> bytes:
    """One bit at a time, as the specification says it."""
    out = bytearray(-(-len(values) * bits // 8))
    for i, value in enumerate(values):
        for b in range(bits):
            n = i * bits + b
            out[n // 8] |= (value >> b & 1) << n % 8
    return bytes(out)


@pytest.mark.parametrize(
    ("values", "bits", "expected"),
    [
        ([], 9, ""),
        ([0, 0, 0], 0, ""),
        ([1], 1, "01"),
        ([1, 0, 1, 1, 0, 0, 0, 0, 1], 1, "0d01"),
        ([1, 2, 3, 4, 5], 3, "d158"),
        ([511, 0, 1], 9, "ff010400"),
        ([0x123, 0x456], 12, "236145"),
        ([0xDEADBEEF], 32, "efbeadde"),
    ],
)
def test_exact_bytes(values, bits: int, expected: str) -> None:
    packed = pack(np.array(values, dtype=np.uint32), bits)
    assert packed.tobytes().hex() == expected
    assert slow_pack(values, bits).hex() == expected
    assert unpack(packed, bits, len(values)).tolist() == values


@given(st.integers(0, 32), st.integers(0, 300), st.integers(0, 2**32 - 1))
def test_equals_the_reference_and_comes_back(bits: int, count: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 1 << bits, count, dtype=np.uint64).astype(np.uint32)
    packed = pack(values, bits)
    assert packed.tobytes() == slow_pack(values.tolist(), bits)
    found = unpack(packed, bits, count)
    assert found.dtype == (np.uint16 if bits <= 16 else np.uint32)
    np.testing.assert_array_equal(found, values)


def test_matrices_are_packed_row_by_row() -> None:
    values = np.arange(6, dtype=np.uint16).reshape(2, 3)
    assert pack(values.T, 4).tobytes().hex() == "304152"


def test_unpack_leaves_its_input_alone() -> None:
    data = np.array([1], dtype=np.uint8)
    unpack(data, 8, 1)
    assert data.flags.writeable
    assert unpack(np.frombuffer(b"\x07\x00", np.uint8)[:1], 8, 1).tolist() == [7]


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda: pack(np.array([8]), 3), StreamError, "bit stream: value 8 does not fit 3 bits"),
        (lambda: pack(np.array([-1]), 3), StreamError, "bit stream: value -1 does not fit 3 bits"),
        (lambda: pack(np.array([0]), 33), ConfigError, "bit stream: 33 bits a value is not in 0..32"),
        (lambda: unpack(np.zeros(0, np.uint8), -1, 0), ConfigError, "bit stream: -1 bits a value is not in 0..32"),
        (
            lambda: unpack(np.zeros(4, np.uint8), 9, 2),
            ShapeError,
            "bit stream: uint8 (4,) given, 2 values of 9 bits need uint8 (3,)",
        ),
        (
            lambda: unpack(np.array([0, 0, 0x84], np.uint8), 9, 2),
            StreamError,
            "bit stream: padding bits of the last byte 0x84 are not zero",
        ),
    ],
)
def test_faults(call, error, text: str) -> None:
    with pytest.raises(error) as caught:
        call()
    assert str(caught.value) == text
