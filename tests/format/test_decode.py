"""The fast decoder against the plain reference, bit for bit."""

from __future__ import annotations

import numba
import numpy as np
import pytest
from format_samples import model_of, vq_layer
from hypothesis import given
from hypothesis import strategies as st

from mvq.compressed import Codebook, VQLayer
from mvq.format import decode as decoding
from mvq.format.decode import decode


def decoded(layer: VQLayer, codebook: Codebook, threads: int | None = 1) -> np.ndarray:
    return decode(
        layer.assignments,
        layer.mask_ids.reshape(-1),
        codebook.values,
        shape=layer.shape,
        pattern=layer.pattern,
        d=layer.d,
        packed=layer.codewords == "packed",
        threads=threads,
    )


def assert_decodes(layer: VQLayer, codebook: Codebook, threads: int | None = 1) -> None:
    found, expected = decoded(layer, codebook, threads), layer.dense(codebook)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    assert found.tobytes() == expected.tobytes()


@given(
    shape=st.one_of(
        st.tuples(st.integers(1, 40), st.integers(1, 5), st.integers(1, 3), st.integers(1, 3)),
        st.tuples(st.integers(0, 40), st.integers(1, 150)),
    ),
    setting=st.sampled_from(
        [
            ("4:16", 16),
            ("4:16", 32),
            ("2:4", 4),
            ("1:2", 8),
            ("1:1", 5),
            ("3:3", 9),
            ("2:3", 3),
            ("8:32", 32),
            ("1:1", 1),
        ]
    ),
    k=st.sampled_from([1, 2, 7, 300]),
    codewords=st.sampled_from(["masked", "packed"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_equals_the_reference(shape, setting, k: int, codewords: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    layer = vq_layer(rng, "x", shape, *setting, k, codewords=codewords)
    assert_decodes(layer, model_of(rng, [layer]).codebooks["x"])


@pytest.mark.parametrize("n_pos", [63, 64, 65, 200])
def test_tile_borders(n_pos: int, rng) -> None:
    layer = vq_layer(rng, "x", (33, n_pos), "4:16", 16, 512)
    assert_decodes(layer, model_of(rng, [layer]).codebooks["x"])


@pytest.mark.parametrize("pattern", ["4:16", "8:32", "1:1"])
def test_every_number_of_threads_gives_the_same(pattern: str, rng, monkeypatch) -> None:
    layer = vq_layer(rng, "x", (72, 100), pattern, 32, 64)
    monkeypatch.setattr(decoding, "_WORTH_A_THREAD", 16)
    for threads in (None, 1, 2, 3, 16):
        assert_decodes(layer, model_of(rng, [layer]).codebooks["x"], threads)


def test_the_number_of_threads_is_that_of_numba(rng, monkeypatch) -> None:
    parts = []
    monkeypatch.setattr(decoding, "_WORTH_A_THREAD", 16)
    run_all = decoding.run_all
    monkeypatch.setattr(decoding, "run_all", lambda tasks, threads: parts.append(threads) or run_all(tasks, threads))
    monkeypatch.setattr(numba, "get_num_threads", lambda: 3)
    layer = vq_layer(rng, "x", (72, 100), "4:16", 16, 64)
    assert_decodes(layer, model_of(rng, [layer]).codebooks["x"], None)
    assert parts == [3]


def test_pruned_lanes_are_positive_zero(rng) -> None:
    layer = vq_layer(rng, "x", (16, 9), "4:16", 16, 2)
    weight = decoded(layer, Codebook(np.full((2, 16), -5, np.int8), 0.5))
    assert np.unique(weight).tolist() == [-2.5, 0.0]
    assert not np.signbit(weight[weight == 0]).any()


def test_run_all_keeps_order_and_passes_errors_on() -> None:
    assert decoding.run_all([lambda i=i: i for i in range(20)], 4) == list(range(20))
    with pytest.raises(ZeroDivisionError):
        decoding.run_all([lambda: 1 // 0, lambda: 2], 2)


def test_nothing_to_decode(rng) -> None:
    layer = vq_layer(rng, "x", (3, 0), "4:16", 16, 2)
    assert decoded(layer, Codebook(np.ones((2, 16), np.int8), 0.5)).shape == (3, 0)
