from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvq.errors import ConfigError, ShapeError, StreamError
from mvq.patterns import Pattern


@st.composite
def patterns(draw: st.DrawFn, max_group: int = 32) -> Pattern:
    group = draw(st.integers(1, max_group))
    return Pattern(draw(st.integers(1, group)), group)


def _all_masks(pattern: Pattern) -> np.ndarray:
    subsets = list(itertools.combinations(range(pattern.group), pattern.keep))
    masks = np.zeros((len(subsets), pattern.group), dtype=bool)
    for row, subset in enumerate(subsets):
        masks[row, list(subset)] = True
    return masks


def _random_masks(pattern: Pattern, n: int, rng: np.random.Generator) -> np.ndarray:
    return rng.random((n, pattern.group)).argsort(axis=1) < pattern.keep


@given(patterns(max_group=12))
def test_ids_count_the_subsets_in_lexicographic_order(pattern: Pattern) -> None:
    masks = _all_masks(pattern)
    ids = np.arange(len(masks))[:, None]
    assert pattern.n_masks == len(masks)
    np.testing.assert_array_equal(pattern.rank(masks), ids)
    np.testing.assert_array_equal(pattern.unrank(ids), masks)


@pytest.mark.parametrize("text", ["4:16", "3:16", "2:16", "6:16", "2:4", "1:2", "1:4", "2:8"])
def test_published_patterns_against_combinations(text: str) -> None:
    pattern = Pattern.parse(text)
    np.testing.assert_array_equal(pattern.unrank(np.arange(pattern.n_masks)[:, None]), _all_masks(pattern))


@given(patterns(), st.integers(0, 2**32 - 1))
def test_rank_and_unrank_are_inverse(pattern: Pattern, seed: int) -> None:
    rng = np.random.default_rng(seed)
    masks = _random_masks(pattern, 50, rng)
    ids = pattern.rank(masks)
    assert ids.dtype == np.uint32
    np.testing.assert_array_equal(pattern.unrank(ids), masks)
    drawn = rng.integers(0, pattern.n_masks, (20, 1))
    np.testing.assert_array_equal(pattern.rank(pattern.unrank(drawn)), drawn)
    last = np.array([[0], [pattern.n_masks - 1]])
    np.testing.assert_array_equal(pattern.rank(pattern.unrank(last)), last)


@given(patterns(), st.integers(0, 2**32 - 1))
def test_greater_id_is_a_later_subset(pattern: Pattern, seed: int) -> None:
    masks = _random_masks(pattern, 2, np.random.default_rng(seed))
    first, second = (tuple(np.flatnonzero(m)) for m in masks)
    low, high = (int(i) for i in pattern.rank(masks).ravel())
    assert (low < high) == (first < second)


@given(patterns(max_group=8), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_blocks_of_a_subvector_are_ranked_apart(pattern: Pattern, n_blocks: int, seed: int) -> None:
    masks = _random_masks(pattern, 15 * n_blocks, np.random.default_rng(seed))
    wide = masks.reshape(3, 5, n_blocks * pattern.group)
    ids = pattern.rank(wide)
    np.testing.assert_array_equal(ids.ravel(), pattern.rank(masks).ravel())
    assert ids.shape == (3, 5, n_blocks)
    np.testing.assert_array_equal(pattern.unrank(ids), wide)


@given(patterns(max_group=16), st.integers(0, 2**32 - 1))
def test_top_mask_keeps_the_largest_and_ties_keep_the_lowest_lane(pattern: Pattern, seed: int) -> None:
    # Few distinct scores, so that ties are common.
    scores = np.random.default_rng(seed).integers(0, 4, (6, 2 * pattern.group)).astype(np.float32)
    mask = pattern.top_mask(scores).reshape(-1, pattern.group)
    for row, kept in zip(scores.reshape(-1, pattern.group), mask, strict=True):
        best = sorted(range(pattern.group), key=lambda lane: (-row[lane], lane))[: pattern.keep]
        assert set(np.flatnonzero(kept)) == set(best)


@pytest.mark.parametrize(
    ("text", "n_masks", "bits"),
    [
        ("4:16", 1820, 11),
        ("3:16", 560, 10),
        ("2:16", 120, 7),
        ("6:16", 8008, 13),
        ("2:4", 6, 3),
        ("1:2", 2, 1),
        ("1:4", 4, 2),
        ("2:8", 28, 5),
        ("16:32", 601080390, 30),
        ("1:1", 1, 0),
        ("16:16", 1, 0),
    ],
)
def test_mask_counts_and_bits(text: str, n_masks: int, bits: int) -> None:
    pattern = Pattern.parse(text)
    assert (pattern.n_masks, pattern.mask_bits, str(pattern)) == (n_masks, bits, text)
    assert pattern.is_dense == (n_masks == 1)
    assert pattern.density == pattern.keep / pattern.group
    assert pattern.kept_per(2 * pattern.group) == 2 * pattern.keep


def test_known_ids_of_4_16() -> None:
    pattern = Pattern(4, 16)
    masks = np.zeros((3, 16), dtype=bool)
    masks[0, [0, 1, 2, 3]] = masks[1, [0, 1, 2, 4]] = masks[2, [12, 13, 14, 15]] = True
    assert pattern.rank(masks).ravel().tolist() == [0, 1, math.comb(16, 4) - 1]


def test_no_masks_at_all() -> None:
    pattern = Pattern(2, 4)
    assert pattern.rank(np.zeros((0, 8), dtype=bool)).shape == (0, 2)
    assert pattern.unrank(np.zeros((0, 2), dtype=np.uint16)).shape == (0, 8)


def test_parse_takes_spaces_and_patterns() -> None:
    assert Pattern.parse(" 4 : 16 ") == Pattern(4, 16)
    assert Pattern.parse(Pattern(1, 2)) == Pattern(1, 2)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (
            lambda: Pattern(16, 4),
            "pattern 16:4: N:M keeps N of every M weights, so N must lie in 1..M; "
            "write the smaller number first, as in 4:16",
        ),
        (
            lambda: Pattern(0, 4),
            "pattern 0:4: N:M keeps N of every M weights, so N must lie in 1..M; "
            "write the smaller number first, as in 4:16",
        ),
        (
            lambda: Pattern(4, 33),
            "pattern 4:33: M=33 is above the limit of 32; use a smaller M with the same ratio",
        ),
        (lambda: Pattern.parse("4/16"), "pattern '4/16': expected N:M with whole numbers, as in '4:16'"),
        (lambda: Pattern.parse("-1:4"), "pattern '-1:4': expected N:M with whole numbers, as in '4:16'"),
        (lambda: Pattern.parse(None), "pattern None: expected N:M with whole numbers, as in '4:16'"),  # type: ignore[arg-type]
    ],
)
def test_pattern_errors(make, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert str(caught.value) == text


@pytest.mark.parametrize(
    ("make", "kind", "text"),
    [
        (
            lambda: Pattern(1, 2).rank(np.array([[True, True]])),
            ShapeError,
            "pattern 1:2: a block of 2 lanes keeps 2, must keep 1",
        ),
        (
            lambda: Pattern(1, 4).rank(np.zeros((3, 6), dtype=bool)),
            ShapeError,
            "6 lanes do not split into blocks of 4",
        ),
        (lambda: Pattern(1, 4).top_mask(np.array(1.0)), ShapeError, "0 lanes do not split into blocks of 4"),
        (
            lambda: Pattern(2, 4).unrank(np.array([[0], [6]])),
            StreamError,
            "pattern 2:4: mask id 6 is not in 0..5",
        ),
        (
            lambda: Pattern(2, 4).unrank(np.array([[-1]])),
            StreamError,
            "pattern 2:4: mask id -1 is not in 0..5",
        ),
        (
            lambda: Pattern(16, 32).unrank(np.array([[601080390]])),
            StreamError,
            "pattern 16:32: mask id 601080390 is not in 0..601080389",
        ),
    ],
)
def test_mask_errors(make, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind) as caught:
        make()
    assert str(caught.value) == text
