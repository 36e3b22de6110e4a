"""The int8 codebook fit."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from mvq.codebook import fit_int8, quantize
from mvq.errors import MvqError, ShapeError, WeightError

FLOATS = st.floats(-1e3, 1e3, width=32)


def error(values, counts, scale) -> float:
    codes = np.clip(np.rint(values / np.float32(scale)), -128, 127).astype(np.float32)
    return float((counts * (codes * np.float32(scale) - values).astype(np.float64) ** 2).sum())


def rendered(kind: type[MvqError], *args) -> str:
    with pytest.raises(kind) as caught:
        fit_int8(*args)
    return str(caught.value)


@settings(max_examples=60, deadline=None)
@given(hnp.arrays(np.float32, (5, 4), elements=FLOATS), hnp.arrays(np.int32, (5, 4), elements=st.integers(0, 9)))
def test_the_scale_is_no_worse_than_full_range_and_near_a_fine_search(values, counts) -> None:
    book = fit_int8(values, counts)
    top = np.abs(values[counts > 0]).max(initial=0) / 127
    if top == 0:
        assert book.scale == 1
        return
    if top < 1e-30:
        return
    assert error(values, counts, book.scale) <= error(values, counts, top)
    assert np.array_equal(book.codes, quantize(values, book.scale))
    assert book.codes.dtype == np.int8


def test_a_value_that_does_not_count_may_be_any_times_the_scale() -> None:
    book = fit_int8(np.array([[8.0, -8.0, 1.2e-38]], np.float32), np.array([[0, 0, 1]]))
    assert book.codes[0, :2].tolist() == [127, -128]


def test_close_to_exhaustive_search() -> None:
    rng = np.random.default_rng(0)
    for values in (rng.normal(size=(512, 16)), rng.laplace(size=(64, 4)), rng.standard_t(3, size=(256, 16))):
        values = values.astype(np.float32)
        ones = np.ones(values.shape)
        best = min(error(values, ones, s) for s in np.abs(values).max() / 127 * np.linspace(0.02, 1.02, 3000))
        assert error(values, ones, fit_int8(values).scale) <= 1.05 * best


def test_a_rare_outlier_is_clipped() -> None:
    values = np.random.default_rng(0).normal(size=(512, 16)).astype(np.float32)
    values[0, 0] = 40
    counts = np.full(values.shape, 1000)
    counts[0, 0] = 1
    scale = fit_int8(values, counts).scale
    assert scale < 10 / 127
    best = min(error(values, counts, s) for s in np.linspace(0.5, 41, 3000) / 127)
    assert error(values, counts, scale) <= 1.05 * best


def test_values_of_weight_zero_have_no_say() -> None:
    values = np.array([[0.127, -0.05], [1000.0, 0.02]], np.float32)
    book = fit_int8(values, np.array([[1, 1], [0, 1]]))
    assert book.scale == pytest.approx(0.001, rel=1e-5)
    assert book.codes.tolist() == [[127, -50], [127, 20]]


def test_codes_survive_decoding_and_quantizing_again() -> None:
    values = np.random.default_rng(1).normal(size=(64, 16)).astype(np.float32)
    book = fit_int8(values)
    assert np.array_equal(quantize(book.values, book.scale), book.codes)


def test_all_zero_and_tiny_values() -> None:
    assert fit_int8(np.zeros((2, 3))).scale == 1
    assert not fit_int8(np.zeros((2, 3))).codes.any()
    tiny = fit_int8(np.full((2, 3), 1e-43, np.float32))
    assert tiny.scale >= np.finfo(np.float32).tiny


def test_errors() -> None:
    assert rendered(ShapeError, np.zeros(3)) == (
        "codebook values of shape (3,): expected (n_codewords, width), both at least 1"
    )
    assert rendered(ShapeError, np.zeros((2, 3)), np.zeros((3, 2))) == (
        "codebook counts of shape (3, 2): expected the shape of the values, (2, 3)"
    )
    assert rendered(WeightError, np.array([[np.nan, 1.0, np.inf]])) == (
        "codebook: 2 of 3 values are NaN or infinite; cluster finite weights"
    )
