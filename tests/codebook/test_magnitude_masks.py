"""N:M magnitude masks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvq import Pattern
from mvq.errors import ShapeError, WeightError
from mvq.grouping import valid_lanes
from mvq.prune import complete_mask, magnitude_mask, weight_mask


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 3), st.sampled_from(["4:16", "1:2", "2:4", "16:16"]), st.integers(0, 99))
def test_masks_can_be_ranked_and_keep_the_largest_real_lanes(n_out, n_in, text, seed) -> None:
    pattern = Pattern.parse(text)
    weight = np.random.default_rng(seed).normal(size=(n_out, n_in, 2)).astype(np.float32)
    mask = magnitude_mask(weight, pattern, 16)
    pattern.rank(mask)
    real = mask & valid_lanes(weight.shape, 16)
    for start in range(0, 16, pattern.group):
        block = slice(start, start + pattern.group)
        lanes = valid_lanes(weight.shape, 16)[:, block].sum(1)
        assert (real[:, block].sum(1) == np.minimum(lanes, pattern.keep)).all()
    kept = weight_mask(mask, weight.shape)
    assert np.array_equal(complete_mask(kept, pattern, 16), mask)
    for start in range(0, n_out, pattern.group):
        block, here = np.abs(weight[start : start + pattern.group]), kept[start : start + pattern.group]
        assert (
            np.where(here, np.inf, block).max(0, where=~here, initial=0) <= np.where(here, block, np.inf).min(0)
        ).all()


def test_a_weight_is_not_changed() -> None:
    weight = np.arange(1.0, 6.0).reshape(5, 1)
    magnitude_mask(weight, Pattern(1, 4), 4)
    assert weight.ravel().tolist() == [1, 2, 3, 4, 5]


def test_a_block_with_fewer_real_lanes_keeps_them_all() -> None:
    mask = magnitude_mask(np.array([[1.0], [5.0], [0.0]]), Pattern(4, 16), 16)
    assert np.nonzero(mask[0])[0].tolist() == [0, 1, 2, 3]


def test_errors() -> None:
    with pytest.raises(WeightError) as caught:
        magnitude_mask(np.array([[np.nan], [1.0]]), Pattern(1, 2), 2, name="fc")
    assert str(caught.value) == ("layer 'fc': 1 of 2 weights are NaN or infinite; repair or retrain the model first")
    with pytest.raises(ShapeError) as shape:
        complete_mask(np.array([[True], [True]]), Pattern(1, 2), 2, name="fc")
    assert str(shape.value) == (
        "layer 'fc': the mask is no 1:2 mask along output channels, 1 of 2 lanes differ from the nearest one; "
        "prune with the pattern of the recipe"
    )
