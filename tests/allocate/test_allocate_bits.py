"""Bits foretold are the bits that clustering gives, and the largest codebook that fits is found."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mvq.allocate import achieved_bits, fit_codewords
from mvq.baselines.forms import compressed_bits
from mvq.errors import ConfigError
from mvq.nn import cluster_, extract
from mvq.recipe import Recipe
from mvq.sizes import sizes


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.Conv2d(16, 64, 3), nn.Conv2d(64, 64, 3, groups=64), nn.Conv2d(64, 70, 1), nn.Flatten(),
        nn.Linear(70, 40),
    )  # fmt: skip


@pytest.mark.parametrize("scope", ["layer", "network"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"n_codewords": 37},
        {"codewords": "packed", "n_codewords": 48},
        {"pattern": "1:1", "d": 8},
        {"codewords": "packed", "overrides": {"1": {"pattern": "1:2", "d": 8}, "3": {"n_codewords": 20}}},
        {"overrides": {"1": {"pattern": "2:16"}}},
    ],
)
def test_bits_are_those_of_the_clustered_model(scope, changes):
    recipe = replace(Recipe(n_codewords=64, max_iters=2, scope=scope), **changes)
    planned = achieved_bits(net(), recipe)
    convs = achieved_bits(net(), recipe, convs_only=True)
    model = cluster_(net(), recipe)
    assert planned.total == compressed_bits(model)
    assert convs.ratio == pytest.approx(sizes(extract(model))["compressed_convs"].ratio, rel=1e-12)
    assert achieved_bits(model, recipe) == planned


def test_bits_need_no_values():
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 64, 3))
    # 16 * 9 * 4 subvectors of 9 + 11 bits, and a codebook of 64 x 16 codes, as 576 rows leave no room for 512
    planned = achieved_bits(model, "mvq-22x")
    assert (planned.assignments, planned.masks, planned.codebooks, planned.scales) == (576 * 7, 576 * 11, 128 * 128, 32)


def slow_fit(model, recipe, limit):
    fitting = [k for k in range(1, 577) if achieved_bits(model, replace(recipe, n_codewords=k)).total <= limit]
    return max(fitting)


@given(share=st.floats(0.6, 1.3), packed=st.booleans())
@settings(max_examples=8)
def test_fit_is_the_largest_number_that_fits(share, packed):
    recipe = Recipe(scope="network", codewords="packed" if packed else "masked", classifier="skip")
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 64, 3))
    limit = int(share * achieved_bits(model, replace(recipe, n_codewords=200)).total)
    found = fit_codewords(model, recipe, limit)
    assert found.n_codewords == slow_fit(model, recipe, limit)
    assert replace(found, n_codewords=512) == recipe


@pytest.mark.parametrize("rows", [0, 4])
def test_fit_by_layer_stays_within_a_ratio(rows):
    recipe = Recipe(rows_per_codeword=rows, classifier="skip")
    found = fit_codewords(net(), recipe, ratio=15.0)
    assert achieved_bits(net(), found).ratio >= 15.0
    assert achieved_bits(net(), found).total > 0.9 * achieved_bits(net(), found).n_weights * 32 / 15.0


def test_fit_leaves_overrides_alone():
    recipe = Recipe(scope="network", classifier="skip", overrides={"1": {"n_codewords": 10}})
    found = fit_codewords(net(), recipe, ratio=20.0)
    assert found.overrides == recipe.overrides
    with pytest.raises(ConfigError, match="overrides set n_codewords of every compressed layer"):
        fit_codewords(net(), replace(recipe, overrides={"*": {"n_codewords": 10}}), ratio=20.0)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({}, "target_bits=None, ratio=None; give exactly one of the two"),
        ({"target_bits": 9000, "ratio": 2.0}, "target_bits=9000, ratio=2.0; give exactly one"),
        ({"ratio": 0}, "ratio=0 is not positive"),
        ({"target_bits": 5000}, "5000 bits are out of reach; one codeword takes"),
    ],
)
def test_fit_tells_what_is_wrong(arguments, text):
    with pytest.raises(ConfigError, match=text):
        fit_codewords(net(), Recipe(), **arguments)


def test_nothing_compressed_is_an_error():
    with pytest.raises(ConfigError, match="the recipe compresses no layer"):
        achieved_bits(nn.Sequential(nn.Conv2d(3, 16, 3)), Recipe())
