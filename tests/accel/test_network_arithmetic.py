"""Integer arithmetic against plain Python integers."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from mvq.accel.network import Requantization, conv2d_int, fixed_point, linear_int, max_pool, pool_sums, reference
from mvq.accel.network.arithmetic import (
    RESIZE_BITS,
    linear_weights,
    nearest_places,
    out_size,
    quantize,
    resize_linear,
    round_shift,
)
from mvq.errors import ConfigError, PsumOverflowError, ShapeError

INT32 = st.integers(-(1 << 31), (1 << 31) - 1)


def int8(rng, *shape):
    return rng.integers(-128, 128, shape, dtype=np.int8)


@given(st.floats(-(2.0**22), 2.0**22, allow_subnormal=False))
def test_fixed_point_is_the_nearest(value):
    mantissa, shift = fixed_point(value)
    exact = Fraction(int(mantissa), 1 << int(shift))
    assert 1 <= shift <= 62
    assert abs(exact - Fraction(value)) <= Fraction(1, 1 << (int(shift) + 1))
    if abs(value) >= 2.0**-38:
        assert 1 << 23 <= abs(int(mantissa)) <= 1 << 24
        assert abs(exact - Fraction(value)) <= abs(Fraction(value)) / (1 << 24)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(0.0, (0, 24)), (1.0, (1 << 23, 23)), (-0.75, (-(3 << 22), 24)), (1 - 2.0**-30, (1 << 23, 23))],
)
def test_fixed_point_by_hand(value, expected):
    mantissa, shift = fixed_point(value)
    assert mantissa == expected[0]
    assert value == 0 or shift == expected[1]


@pytest.mark.parametrize("value", [2.0**23, -(2.0**30), np.inf, np.nan])
def test_fixed_point_refuses(value):
    with pytest.raises(ConfigError) as error:
        fixed_point([0.5, value])
    assert "is not below 2**23; scales of the tensors differ too much" in str(error.value)


@given(st.integers(-(1 << 62), 1 << 62), st.integers(0, 62))
def test_round_shift(value, shift):
    assert (
        round_shift(np.array([value]), shift)[0]
        == reference.rounded(value, shift)
        == round(Fraction(value, 1 << shift))
    )


@given(
    arrays.arrays(np.int32, 6, elements=INT32),
    arrays.arrays(np.int32, 6, elements=st.integers(-(1 << 28), 1 << 28)),
    arrays.arrays(np.int32, 6, elements=st.integers(-(1 << 24), 1 << 24)),
    arrays.arrays(np.uint8, 6, elements=st.integers(0, 62)),
    st.sampled_from([(-128, 127), (0, 127), (0, 96)]),
)
def test_requantization(psums, bias, mantissa, shift, bounds):
    by = Requantization(mantissa, shift, *bounds)
    np.testing.assert_array_equal(by.apply(psums, bias), reference.requantized(psums, bias, by))


@given(arrays.arrays(np.int32, 40, elements=st.integers(-500, 500)), st.integers(1, 4))
def test_requantization_of_exact_halves(psums, shift):
    by = Requantization(np.array(-1, np.int32), np.array(shift, np.uint8))
    np.testing.assert_array_equal(by.apply(psums), np.clip(np.rint(-psums / 2**shift), -128, 127))


def test_requantization_where_float64_would_round():
    """The product is one above 40.5 * 2**48, and float64 does not tell it from the half."""
    psum, mantissa = 1195973563, 9531763
    assert psum * mantissa == 81 * 2**47 + 1
    by = Requantization(np.array(mantissa, np.int32), np.array(48, np.uint8))
    assert by.apply(np.array([psum, -psum])).tolist() == [41, -41]
    assert np.rint(psum * np.ldexp(float(mantissa), -48)) == 40


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((np.zeros(2, np.int64), np.zeros(2, np.uint8)), "requantization: mantissa int64 (2,) with shift uint8 (2,)"),
        ((np.zeros(2, np.int32), np.zeros(3, np.uint8)), "expected int32 and uint8 of one shape"),
        ((np.full(2, 1 << 25, np.int32), np.zeros(2, np.uint8)), "a mantissa is beyond 2**24 or a shift beyond 62"),
        ((np.full(2, 1, np.int32), np.full(2, 63, np.uint8)), "a mantissa is beyond 2**24 or a shift beyond 62"),
        ((np.zeros(1, np.int32), np.zeros(1, np.uint8), 5, 4), "5..4 is not a range within -128..127"),
        ((np.zeros(1, np.int32), np.zeros(1, np.uint8), 0, 128), "0..128 is not a range within -128..127"),
    ],
)
def test_requantization_is_checked(arguments, text):
    with pytest.raises(ShapeError) as error:
        Requantization(*arguments)
    assert text in str(error.value)


@st.composite
def convolutions(draw):
    groups, depth, per_group = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
    kernel = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    settings = {
        "stride": draw(st.tuples(st.integers(1, 3), st.integers(1, 3))),
        "padding": draw(st.tuples(*[st.integers(0, 2)] * 4)),
        "dilation": draw(st.tuples(st.integers(1, 2), st.integers(1, 2))),
    }
    size = draw(st.tuples(st.integers(5, 7), st.integers(5, 7)))
    rng = np.random.default_rng(draw(st.integers(0, 1 << 30)))
    weight = int8(rng, groups * per_group, depth, *kernel)
    return int8(rng, 2, groups * depth, *size), weight, {**settings, "groups": groups}


@given(convolutions())
def test_convolution(case):
    ifmap, weight, settings = case
    found = conv2d_int(ifmap, weight, **settings)
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, reference.conv2d(ifmap, weight, *settings.values()).astype(np.int64))


def test_long_sums_are_exact():
    """Beyond what float32 holds: every odd sum up to 2**25 would be lost."""
    ifmap = np.full((1, 1800, 1, 1), -128, np.int8)
    ifmap[0, 0] = -127
    weight = np.full((2, 1800, 1, 1), 127, np.int8)
    weight[1] = -128
    expected = [[-128 * 127 * 1799 - 127 * 127], [128 * 128 * 1799 + 127 * 128]]
    assert conv2d_int(ifmap, weight)[0, :, 0].tolist() == expected
    assert linear_int(ifmap[:, :, 0, 0], weight[:, :, 0, 0])[0].tolist() == [row[0] for row in expected]


def test_linear(rng):
    features, weight = int8(rng, 5, 300), int8(rng, 7, 300)
    np.testing.assert_array_equal(linear_int(features, weight), features.astype(np.int64) @ weight.T.astype(np.int64))


@pytest.mark.parametrize(("bits", "fits"), [(16, True), (15, False)])
@pytest.mark.parametrize("sign", [1, -1])
def test_overflow_is_detected_and_named(bits, fits, sign):
    """-128 * 128 = -2**14 fits 15 bits, but +2**14 does not, and -2**14 - 1 does not."""
    ifmap, weight = np.full((1, 1, 1, 1), -128, np.int8), np.full((1, 1, 1, 1), -128, np.int8)
    if sign < 0:
        ifmap = np.full((1, 2, 1, 1), -128, np.int8)
        weight = np.array([127, 2], np.int8).reshape(1, 2, 1, 1)
    if fits:
        assert abs(int(conv2d_int(ifmap, weight, psum_bits=bits).item())) > 1 << 13
        return
    with pytest.raises(PsumOverflowError) as error:
        conv2d_int(ifmap, weight, psum_bits=bits, name="layer1.conv")
    worst = 16384 if sign > 0 else -16512
    assert str(error.value) == (
        f"layer 'layer1.conv': a psum of {worst} does not fit 15 bits, -16384..16383; give the accumulator more bits "
        f"(psum_bits)"
    )


def test_smallest_psum_fits():
    lowest = np.array([[[[-128]]]], np.int8)
    assert conv2d_int(lowest, np.array([[[[127]]]], np.int8), psum_bits=15).item() == -128 * 127
    assert conv2d_int(lowest, np.array([[[[1]]]], np.int8), psum_bits=8).item() == -128


@pytest.mark.parametrize(
    ("ifmap", "weight", "settings", "text"),
    [
        ((1, 4, 5, 5), (2, 3, 1, 1), {}, "layer 'c': ifmap (1, 4, 5, 5) and weight (2, 3, 1, 1) with groups=1"),
        ((1, 4, 5, 5), (3, 2, 1, 1), {"groups": 2}, "groups must divide its output channels"),
        ((1, 1, 2, 2), (1, 1, 3, 3), {}, "a (3, 3) window of dilation (1, 1) does not fit (2, 2)"),
    ],
)
def test_operands_that_do_not_fit(ifmap, weight, settings, text):
    with pytest.raises(ShapeError) as error:
        conv2d_int(np.zeros(ifmap, np.int8), np.zeros(weight, np.int8), name="c", **settings)
    assert text in str(error.value)


@given(st.data())
def test_pools(data):
    kernel = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    stride = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = data.draw(st.tuples(*[st.integers(0, 2)] * 4))
    dilation = data.draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    ifmap = int8(np.random.default_rng(data.draw(st.integers(0, 1 << 30))), 2, 2, 5, 6)
    size = out_size((5, 6), kernel, stride, padding, dilation)
    np.testing.assert_array_equal(
        max_pool(ifmap, kernel, stride, padding, dilation),
        reference.max_pool(ifmap, kernel, stride, padding, dilation, size),
    )
    size = out_size((5, 6), kernel, stride, padding, (1, 1))
    np.testing.assert_array_equal(
        pool_sums(ifmap, kernel, stride, padding), reference.pool_sums(ifmap, kernel, stride, padding, size)
    )


@pytest.mark.parametrize("align_corners", [True, False])
@pytest.mark.parametrize(("n_in", "n_out"), [(1, 4), (3, 3), (5, 17), (9, 4), (7, 1)])
def test_linear_interpolation(n_in, n_out, align_corners, rng):
    import torch
    from torch.nn.functional import interpolate

    weights = linear_weights(n_in, n_out, align_corners=align_corners)
    assert (weights.sum(axis=1) == 1 << RESIZE_BITS).all()
    assert (weights >= 0).all()
    ifmap = int8(rng, 2, 3, n_in, 4)
    found = resize_linear(ifmap, (n_out, 6), align_corners=align_corners)
    expected = interpolate(
        torch.from_numpy(ifmap).double(), size=(n_out, 6), mode="bilinear", align_corners=align_corners
    )
    assert np.abs(found - expected.numpy()).max() <= 0.5 + 128 * 4 * 2.0**-RESIZE_BITS


def test_nearest_places():
    assert nearest_places(3, 6).tolist() == [0, 0, 1, 1, 2, 2]
    assert nearest_places(5, 2).tolist() == [0, 2]


def test_quantize():
    assert quantize(np.array([0.5, 1.5, -0.5, 300, -300, 0.26], np.float32), 1.0).tolist() == [0, 2, 0, 127, -128, 0]


def test_example_of_the_specification():
    """Section 9 of docs/spec/integer-network.md."""
    mantissa, shift = fixed_point(0.02 * 0.01 * -1 / 0.05)
    assert (mantissa, shift) == (-8589935, 31)
    weight = np.array([[50, 3]], np.int8).reshape(1, 2, 1, 1)
    by = Requantization(mantissa, shift, low=0)
    for codes, psum, result in (([100, -128], 4616, 0), ([-100, 127], -4619, 24)):
        psums = conv2d_int(np.array(codes, np.int8).reshape(1, 2, 1, 1), weight)
        assert psums.item() == psum
        assert by.apply(psums, np.array([round(0.3 / -0.0002)])).item() == result
        assert Requantization(mantissa, shift).apply(psums, -1500).item() == (result or -12)
