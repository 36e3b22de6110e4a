from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvq.compressed import (
    Codebook,
    CompressedModel,
    DenseLayer,
    Int8Layer,
    VQLayer,
    code_bits,
    index_dtype,
)
from mvq.errors import ShapeError, StreamError
from mvq.grouping import n_subvectors
from mvq.patterns import Pattern
from mvq.recipe import Recipe


def make_layer(rng: np.random.Generator, **changes: Any) -> VQLayer:
    fields: dict[str, Any] = {
        "name": "conv",
        "kind": "conv",
        "role": "conv",
        "shape": (12, 3, 2, 1),
        "pattern": Pattern(2, 4),
        "d": 8,
        "codewords": "masked",
        "codebook": "conv",
        "n_codewords": 5,
    } | changes
    n_sub = n_subvectors(fields["shape"], fields["d"])
    pattern = fields["pattern"]
    n_blocks = 0 if pattern.is_dense else fields["d"] // pattern.group
    arrays = {
        "assignments": rng.integers(0, fields["n_codewords"], n_sub).astype(np.uint16),
        "mask_ids": rng.integers(0, pattern.n_masks, (n_sub, n_blocks)).astype(np.uint32),
    }
    return VQLayer(**(arrays | fields))


def make_codebook(rng: np.random.Generator, layer: VQLayer, scale: float = 0.03125) -> Codebook:
    return Codebook(rng.integers(-128, 128, (layer.n_codewords, layer.width)).astype(np.int8), scale)


def _by_definition(layer: VQLayer, codebook: Codebook) -> np.ndarray:
    """The dense weight, one weight at a time."""
    _, n_in, height, width = layer.shape
    weight = np.zeros(layer.shape, dtype=np.float32)
    for cout, cin, y, x in np.ndindex(*layer.shape):
        group, lane = divmod(cout, layer.d)
        j = group * (n_in * height * width) + (cin * height + y) * width + x
        mask = np.ones(layer.d, dtype=bool)
        if not layer.pattern.is_dense:
            mask = layer.pattern.unrank(layer.mask_ids[j : j + 1])[0]
        if mask[lane]:
            column = int(mask[:lane].sum()) if layer.codewords == "packed" else lane
            code = codebook.codes[layer.assignments[j], column]
            weight[cout, cin, y, x] = np.float32(code) * np.float32(codebook.scale)
    return weight


@given(
    st.tuples(st.integers(1, 20), st.integers(1, 3), st.integers(1, 3), st.integers(1, 2)),
    st.sampled_from([("2:4", 8), ("1:2", 2), ("4:16", 16), ("1:1", 8), ("3:8", 16)]),
    st.sampled_from(["masked", "packed"]),
    st.integers(0, 2**32 - 1),
)
def test_dense_weight_by_definition(shape, pattern_d, codewords: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    pattern, d = Pattern.parse(pattern_d[0]), pattern_d[1]
    layer = make_layer(rng, shape=shape, pattern=pattern, d=d, codewords=codewords)
    codebook = make_codebook(rng, layer, scale=0.1)
    dense = layer.dense(codebook)
    assert dense.dtype == np.float32
    assert dense.flags.c_contiguous
    np.testing.assert_array_equal(dense, _by_definition(layer, codebook))


def test_counts_and_bits(rng) -> None:
    layer = make_layer(rng, shape=(20, 3, 2, 1), n_codewords=6)
    # 3 groups of 8 output channels, 6 positions, 2 mask ids of ceil(log2 6) bits, indices of 3 bits
    assert (layer.n_sub, layer.n_blocks, layer.n_weights) == (18, 2, 120)
    assert (layer.bits_assign, layer.bits_mask, layer.bits_codebook) == (18 * 3, 18 * 2 * 3, 6 * 8 * 8)
    packed = make_layer(rng, shape=(20, 3, 2, 1), codewords="packed")
    assert (packed.width, packed.bits_codebook) == (4, 5 * 4 * 8)
    dense = make_layer(rng, pattern=Pattern(1, 1), n_codewords=1)
    assert (dense.n_blocks, dense.bits_mask, dense.bits_assign) == (0, 0, 0)
    assert math.isnan(dense.masked_sse)


def test_padding_carries_no_weight(rng) -> None:
    layer = make_layer(rng, shape=(5, 2), kind="linear", pattern=Pattern(1, 1), d=4)
    assert layer.mask().tolist() == [[True] * 4] * 2 + [[True, False, False, False]] * 2
    sparse = make_layer(rng, shape=(5, 2), kind="linear", pattern=Pattern(1, 2), d=4)
    assert sparse.mask()[:2].sum(axis=1).tolist() == [2, 2]
    assert not sparse.mask()[2:, 1:].any()


def test_mask_is_a_new_array(rng) -> None:
    layer = make_layer(rng, pattern=Pattern(1, 1), d=4, shape=(4, 1, 1, 1))
    layer.mask()[:] = False
    assert layer.mask().all()


def test_int8_layer() -> None:
    codes = np.array([[1, -2], [100, -128]], dtype=np.int8)
    layer = Int8Layer("fc", "linear", "classifier", codes, np.array([0.5, 0.1], dtype=np.float32))
    assert (layer.shape, layer.n_weights) == ((2, 2), 4)
    expected = codes.astype(np.float32) * np.array([[0.5], [0.1]], dtype=np.float32)
    np.testing.assert_array_equal(layer.dense(), expected)


@pytest.mark.parametrize(("n", "bits"), [(1, 0), (2, 1), (3, 2), (512, 9), (513, 10), (65536, 16)])
def test_code_bits(n: int, bits: int) -> None:
    assert code_bits(n) == bits
    assert index_dtype(n) is np.uint16
    assert index_dtype(65537) is np.uint32


def test_scale_is_a_float32() -> None:
    codebook = Codebook(np.array([[3]], dtype=np.int8), 0.1)
    assert codebook.scale == float(np.float32(0.1))
    assert codebook.values.dtype == np.float32
    assert codebook.values[0, 0] == np.float32(3) * np.float32(0.1)
    assert (codebook.n_codewords, codebook.width) == (1, 1)


def test_model_gives_every_dense_weight(rng) -> None:
    vq = make_layer(rng)
    int8 = Int8Layer("stem", "conv", "first_conv", np.ones((2, 1, 1, 1), np.int8), np.ones(2, np.float32))
    kept = DenseLayer("fc", "linear", "classifier", (2, 3))
    weight = rng.standard_normal((2, 3)).astype(np.float16)
    codebook = make_codebook(rng, vq)
    model = CompressedModel(Recipe(), (int8, vq, kept), {"conv": codebook}, {"fc.weight": weight})
    assert model.vq_layers == (vq,)
    assert kept.n_weights == 6
    np.testing.assert_array_equal(model.dense_weight(int8), int8.dense())
    np.testing.assert_array_equal(model.dense_weight(vq), vq.dense(codebook))
    np.testing.assert_array_equal(model.dense_weight(kept), weight.astype(np.float32))


def _error(kind: type[Exception], make) -> str:
    with pytest.raises(kind) as caught:
        make()
    return str(caught.value)


@pytest.mark.parametrize(
    ("codes", "text"),
    [
        (
            np.zeros((2, 3), np.uint8),
            "codebook: expected int8 (n_codewords, width), got uint8 (2, 3)",
        ),
        (np.zeros(3, np.int8), "codebook: expected int8 (n_codewords, width), got int8 (3,)"),
        (np.zeros((0, 3), np.int8), "codebook: expected int8 (n_codewords, width), got int8 (0, 3)"),
    ],
)
def test_codebook_shape_errors(codes, text: str) -> None:
    assert _error(ShapeError, lambda: Codebook(codes, 1.0)) == text


@pytest.mark.parametrize("scale", [0.0, -1.0, math.nan, math.inf, 1e-50, 1e39])
def test_codebook_scale_errors(scale: float) -> None:
    text = f"codebook: scale {scale} is not positive and finite in float32"
    assert _error(StreamError, lambda: Codebook(np.zeros((1, 1), np.int8), scale)) == text


def test_layer_errors(rng) -> None:
    assert _error(ShapeError, lambda: make_layer(rng, assignments=np.zeros(3, np.uint16))) == (
        "layer 'conv': shape (12, 3, 2, 1) with d=8, pattern 2:4 needs assignments (12,) and mask ids (12, "
        "2), "
        "got (3,) and (12, 2)"
    )
    assert _error(StreamError, lambda: make_layer(rng, assignments=np.full(12, 5, np.uint16))) == (
        "layer 'conv': assignment 5 is not in 0..4"
    )
    assert _error(StreamError, lambda: make_layer(rng, assignments=np.full(12, -1))) == (
        "layer 'conv': assignment -1 is not in 0..4"
    )
    assert _error(StreamError, lambda: make_layer(rng, mask_ids=np.full((12, 2), 6, np.uint32))) == (
        "layer 'conv': mask id 6 is not in 0..5"
    )


def test_int8_layer_errors() -> None:
    codes, scales = np.zeros((2, 3), np.int8), np.ones(2, np.float32)
    assert _error(ShapeError, lambda: Int8Layer("fc", "linear", "linear", codes, scales[:1])) == (
        "layer 'fc': int8 codes int8 (2, 3) with scales (1,); expected int8 (Cout, ...) and (Cout,)"
    )
    assert _error(StreamError, lambda: Int8Layer("fc", "linear", "linear", codes, 0 * scales)) == (
        "layer 'fc': a scale is not positive and finite"
    )


def test_model_errors(rng) -> None:
    layer = make_layer(rng)
    codebook = make_codebook(rng, make_layer(rng, n_codewords=4))
    assert _error(ShapeError, lambda: CompressedModel(Recipe(), (layer,), {}, {})) == (
        "layer 'conv': codebook 'conv' is missing"
    )
    assert _error(ShapeError, lambda: CompressedModel(Recipe(), (layer,), {"conv": codebook}, {})) == (
        "layer 'conv': codebook 'conv' is (4, 8), expected (5, 8)"
    )
    dense = DenseLayer("fc", "linear", "classifier", (2, 3))
    assert _error(ShapeError, lambda: CompressedModel(Recipe(), (dense,), {}, {})) == (
        "layer 'fc': weight 'fc.weight' is missing from the tensors"
    )
