from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvq.errors import ShapeError
from mvq.grouping import (
    from_subvectors,
    n_positions,
    n_subvectors,
    pack_lanes,
    to_subvectors,
    unpack_lanes,
    valid_lanes,
)

conv_shapes = st.tuples(st.integers(1, 20), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3))
shapes = st.one_of(conv_shapes, st.tuples(st.integers(1, 40), st.integers(1, 20)))


def _numbered(shape: tuple[int, ...]) -> np.ndarray:
    return np.arange(1, 1 + np.prod(shape), dtype=np.float32).reshape(shape)


def _four_loops(weight: np.ndarray, d: int) -> np.ndarray:
    """Subvectors by the definition: output-channel group, then cin, y, x; lanes are channels."""
    n_out, n_in, height, width = weight.shape
    rows = []
    for group in range(-(-n_out // d)):
        for cin in range(n_in):
            for y in range(height):
                for x in range(width):
                    lanes = range(group * d, group * d + d)
                    rows.append([weight[c, cin, y, x] if c < n_out else 0 for c in lanes])
    return np.array(rows, dtype=weight.dtype)


@given(conv_shapes, st.integers(1, 9))
def test_order_against_four_loops(shape: tuple[int, ...], d: int) -> None:
    weight = _numbered(shape)
    subvectors = to_subvectors(weight, d)
    np.testing.assert_array_equal(subvectors, _four_loops(weight, d))
    np.testing.assert_array_equal(valid_lanes(shape, d), subvectors != 0)


@given(shapes, st.integers(1, 17))
def test_numpy_round_trip(shape: tuple[int, ...], d: int) -> None:
    weight = _numbered(shape)
    subvectors = to_subvectors(weight, d)
    assert subvectors.shape == (n_subvectors(shape, d), d)
    assert subvectors.flags.c_contiguous
    assert subvectors.dtype == weight.dtype
    np.testing.assert_array_equal(from_subvectors(subvectors, shape), weight)


@given(shapes, st.integers(1, 17))
def test_torch_does_what_numpy_does(shape: tuple[int, ...], d: int) -> None:
    torch = pytest.importorskip("torch")
    weight = _numbered(shape)
    subvectors = to_subvectors(torch.from_numpy(weight), d)
    assert isinstance(subvectors, torch.Tensor)
    assert subvectors.is_contiguous()
    np.testing.assert_array_equal(subvectors.numpy(), to_subvectors(weight, d))
    np.testing.assert_array_equal(from_subvectors(subvectors, shape).numpy(), weight)


def test_gradients_flow_through_both_ways() -> None:
    torch = pytest.importorskip("torch")
    weight = torch.randn(5, 2, 3, 3, requires_grad=True)
    from_subvectors(to_subvectors(weight, 4) * 3, weight.shape).sum().backward()
    torch.testing.assert_close(weight.grad, torch.full_like(weight, 3))


def test_subvectors_are_a_new_array() -> None:
    weight = _numbered((4, 1, 1, 1))
    to_subvectors(weight, 1)[:] = -1
    to_subvectors(weight, 4)[:] = -1
    assert (weight > 0).all()
    torch = pytest.importorskip("torch")
    tensor = torch.ones(4, 1, 1, 1)
    to_subvectors(tensor, 1).fill_(-1)
    to_subvectors(tensor, 4).fill_(-1)
    assert (tensor > 0).all()


def test_transposed_input_is_read_by_its_shape() -> None:
    weight = _numbered((3, 8)).T
    np.testing.assert_array_equal(from_subvectors(to_subvectors(weight, 4), weight.shape), weight)


def test_counts() -> None:
    assert n_positions((64, 3, 7, 7)) == 147
    assert n_subvectors((64, 3, 7, 7), 16) == 4 * 147
    assert n_subvectors((20, 3, 1, 1), 16) == 2 * 3
    assert n_subvectors((1000, 512), 16) == 63 * 512


@given(st.integers(1, 8), st.integers(0, 30), st.integers(0, 2**32 - 1))
def test_packing_round_trip(width: int, n_rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    d = width + int(rng.integers(0, 9))
    counts = rng.integers(0, width + 1, (n_rows, 1))
    mask = rng.random((n_rows, d)).argsort(axis=1) < counts
    values = rng.standard_normal((n_rows, d)).astype(np.float32)
    packed = pack_lanes(values, mask, width)
    assert packed.shape == (n_rows, width)
    assert packed.dtype == values.dtype
    np.testing.assert_array_equal(unpack_lanes(packed, mask), values * mask)
    for row, lanes, count in zip(packed, mask, counts.ravel(), strict=True):
        assert lanes.sum() == count
        assert not row[count:].any()


def test_packed_values_are_in_lane_order() -> None:
    values = np.array([[10, 11, 12, 13], [20, 21, 22, 23]], dtype=np.int8)
    mask = np.array([[0, 1, 0, 1], [1, 0, 0, 0]], dtype=bool)
    np.testing.assert_array_equal(pack_lanes(values, mask, 2), [[11, 13], [20, 0]])


def test_errors() -> None:
    with pytest.raises(ShapeError) as caught:
        to_subvectors(np.zeros(7), 4)
    assert str(caught.value) == "a weight of shape (7,) has no input axis; expected (Cout, Cin, ...)"
    with pytest.raises(ShapeError) as caught:
        from_subvectors(np.zeros((5, 4)), (8, 3))
    assert str(caught.value) == "5 subvectors of 4 lanes do not make a weight of shape (8, 3), which has 6"
