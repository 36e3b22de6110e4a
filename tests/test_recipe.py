from __future__ import annotations

import dataclasses
import json
import tomllib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvq.errors import ConfigError
from mvq.patterns import Pattern
from mvq.recipe import PRESETS, LayerRecipe, Recipe

LAYERS = [
    ("conv1", "first_conv"),
    ("layer1.0.conv1", "conv"),
    ("layer1.0.dw", "depthwise"),
    ("layer1.1.conv1", "conv"),
    ("head.0", "linear"),
    ("fc", "classifier"),
]

pattern_and_d = st.sampled_from([("4:16", 16), ("4:16", 32), ("1:2", 8), ("2:4", 4), ("1:1", 8), ("3:16", 16)])
layer_changes = st.fixed_dictionaries(
    {},
    optional={
        "treatment": st.sampled_from(["compress", "int8", "skip"]),
        "n_codewords": st.integers(1, 65536),
        "codewords": st.sampled_from(["masked", "packed"]),
        "kmeans": st.sampled_from(["masked", "plain"]),
    },
)


@st.composite
def recipes(draw: st.DrawFn) -> Recipe:
    pattern, d = draw(pattern_and_d)
    names = st.text("abc.*1[]", min_size=1, max_size=6)
    return Recipe(
        pattern=pattern,
        d=d,
        n_codewords=draw(st.integers(1, 65536)),
        codewords=draw(st.sampled_from(["masked", "packed"])),
        kmeans=draw(st.sampled_from(["masked", "plain"])),
        scope=draw(st.sampled_from(["layer", "network"])),
        first_conv=draw(st.sampled_from(["compress", "int8", "skip"])),
        overrides=draw(st.dictionaries(names, layer_changes, max_size=3)),
        rows_per_codeword=draw(st.integers(0, 100)),
        init=draw(st.sampled_from(["random", "k-means++"])),
        tol=draw(st.floats(0, 1)),
        seed=draw(st.integers(0, 2**63 - 1)),
    )


@given(recipes())
def test_dictionary_round_trip_is_exact(recipe: Recipe) -> None:
    assert Recipe.from_dict(recipe.to_dict()) == recipe
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


@given(recipes())
def test_recipes_are_values(recipe: Recipe) -> None:
    assert hash(recipe) == hash(Recipe.from_dict(recipe.to_dict()))
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.d = 4  # type: ignore[misc]


def test_reads_what_a_toml_file_holds() -> None:
    data = tomllib.loads(
        """
        preset = "mvq-22x"
        n_codewords = 256
        [overrides."layer4.*"]
        pattern = "2:16"
        n_codewords = 128
        [overrides.fc]
        treatment = "int8"
        """
    )
    recipe = Recipe.from_dict(data)
    assert recipe == Recipe(
        pattern="4:16",
        d=16,
        n_codewords=256,
        overrides={"layer4.*": {"pattern": "2:16", "n_codewords": 128}, "fc": {"treatment": "int8"}},
    )


def test_defaults_are_the_published_22x_setting() -> None:
    assert Recipe() == Recipe.preset("mvq-22x")
    assert Recipe.from_dict({}) == Recipe()


@pytest.mark.parametrize("name", PRESETS)
def test_presets_resolve_and_round_trip(name: str) -> None:
    recipe = Recipe.preset(name)
    assert Recipe.from_dict({"preset": name}) == recipe == Recipe.from_dict(recipe.to_dict())
    if recipe.overrides:
        return  # for one architecture, whose names these layers do not have
    resolved = recipe.resolve(LAYERS)
    assert list(resolved) == [layer for layer, _ in LAYERS]
    assert {layer: r.treatment for layer, r in resolved.items()} == {
        "conv1": "int8",
        "layer1.0.conv1": "compress",
        "layer1.0.dw": "int8",
        "layer1.1.conv1": "compress",
        "head.0": "compress",
        "fc": "compress",
    }


def test_width_is_that_of_a_stored_codeword() -> None:
    assert LayerRecipe(pattern="4:16", d=32).width == 32  # type: ignore[arg-type]
    assert LayerRecipe(pattern="4:16", d=32, codewords="packed").width == 8  # type: ignore[arg-type]
    assert LayerRecipe(pattern="1:1", d=8, codewords="packed").width == 8  # type: ignore[arg-type]


def test_overrides_come_after_the_policy_and_later_ones_win() -> None:
    recipe = Recipe(
        first_conv="skip",
        overrides={
            "layer1.*": {"n_codewords": 64, "codewords": "packed"},
            "layer1.1.*": {"n_codewords": 32},
            "conv1": {"treatment": "compress", "pattern": "1:2", "d": 8},
        },
    )
    resolved = recipe.resolve(LAYERS)
    assert resolved["layer1.0.conv1"] == LayerRecipe(n_codewords=64, codewords="packed")
    assert resolved["layer1.1.conv1"] == LayerRecipe(n_codewords=32, codewords="packed")
    assert resolved["layer1.0.dw"] == LayerRecipe(treatment="int8", n_codewords=64, codewords="packed")
    assert resolved["conv1"] == LayerRecipe(pattern=Pattern(1, 2), d=8)
    swapped = Recipe(overrides=tuple(reversed(recipe.overrides)))
    assert swapped.resolve(LAYERS)["layer1.1.conv1"].n_codewords == 64


def test_overrides_of_one_layer_are_joined_before_they_are_checked() -> None:
    # Each step alone would break the rule that M divides d; together they keep it.
    recipe = Recipe(overrides={"*": {"pattern": "1:2", "d": 8}, "fc": {"pattern": "1:8"}}, pattern="2:8", d=8)
    assert recipe.resolve(LAYERS)["fc"] == LayerRecipe(pattern=Pattern(1, 8), d=8)


def _error(make, *args: Any, **kwargs: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        make(*args, **kwargs)
    return str(caught.value)


def test_all_faults_at_once() -> None:
    text = _error(
        Recipe,
        pattern="16:4",
        d=0,
        n_codewords=True,
        codewords="loose",
        scope="galaxy",
        first_conv="float",
        tol=float("nan"),
        seed=-1,
        overrides={"fc": {"size": 3, "pattern": "x"}},
    )
    assert text.splitlines() == [
        "recipe: pattern 16:4: N:M keeps N of every M weights, so N must lie in 1..M; write the smaller "
        "number first, "
        "as in 4:16",
        "recipe: d=0 is not in 1..256",
        "recipe: n_codewords=True is not in 1..65536",
        "recipe: codewords='loose' is not one of masked, packed",
        "recipe: scope='galaxy' is not one of layer, network",
        "recipe: first_conv='float' is not one of compress, int8, skip",
        "recipe: tol=nan is not in 0.0..1.0",
        "recipe: seed=-1 is not in 0..9223372036854775807",
        "override 'fc': unknown key 'size'; known are treatment, pattern, d, n_codewords, codewords, kmeans",
        "override 'fc': pattern 'x': expected N:M with whole numbers, as in '4:16'",
    ]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (
            {"d": 24},
            "recipe: d=24 is not a multiple of M=16 of pattern 4:16; choose d among multiples of 16",
        ),
        ({"d": 300}, "recipe: d=300 is not in 1..256"),
        ({"n_codewords": 70000}, "recipe: n_codewords=70000 is not in 1..65536"),
        ({"n_codewords": 2.0}, "recipe: n_codewords=2.0 is not in 1..65536"),
        ({"max_iters": 0}, "recipe: max_iters=0 is not in 1..100000"),
        ({"pattern": 4}, "recipe: pattern 4: expected N:M with whole numbers, as in '4:16'"),
        ({"schema_version": 2}, "recipe: schema_version 2 is not known; this version reads 1"),
        (
            {"colour": 1, "size": 2},
            "recipe: unknown keys 'colour', 'size'; known are pattern, d, n_codewords, codewords, kmeans, "
            "scope, "
            "first_conv, classifier, depthwise, overrides, rows_per_codeword, init, max_iters, tol, n_init, "
            "other_dtype, seed",
        ),
        (
            {"preset": "mvq-99x"},
            "preset 'mvq-99x' is not known; known are mvq-16x, mvq-19x, mvq-22x, mvq-25x, mvq-28x, "
            "mvq-16x-packed, "
            "mvq-22x-packed, mvq-25x-packed, mvq-maskrcnn, mvq-deeplab, vq-22x",
        ),
        (
            {"preset": ["mvq-22x"]},
            "preset ['mvq-22x'] is not known; known are mvq-16x, mvq-19x, mvq-22x, mvq-25x, mvq-28x, "
            "mvq-16x-packed, "
            "mvq-22x-packed, mvq-25x-packed, mvq-maskrcnn, mvq-deeplab, vq-22x",
        ),
        ({"overrides": 3}, "recipe: overrides=3 is not a table of {glob: {field: value}}"),
        (
            {"overrides": {"fc": 3}},
            "recipe: overrides={'fc': 3} is not a table of {glob: {field: value}}",
        ),
        (
            {"overrides": [("fc", {"d": 32}), ("fc", {"d": 48})]},
            "override 'fc': given twice; merge the two",
        ),
        (
            {"overrides": {"a": {"d": 24}, "b": {"treatment": "burn"}}},
            "override 'a': layer recipe: d=24 is not a multiple of M=16 of pattern 4:16; choose d among "
            "multiples of 16\n"
            "override 'b': layer recipe: treatment='burn' is not one of compress, int8, skip",
        ),
    ],
)
def test_errors(data: dict[str, Any], text: str) -> None:
    assert _error(Recipe.from_dict, data) == text


def test_layer_recipe_error() -> None:
    assert _error(LayerRecipe, pattern="1:2", d=7, kmeans="fuzzy").splitlines() == [
        "layer recipe: kmeans='fuzzy' is not one of masked, plain"
    ]
    assert (
        _error(LayerRecipe, pattern="2:1")
        == "layer recipe: pattern 2:1: N:M keeps N of every M weights, so N must lie in 1..M; "
        "write the smaller number first, as in 4:16"
    )


def test_glob_that_matches_nothing() -> None:
    recipe = Recipe(overrides={"layer9.*": {"n_codewords": 8}})
    assert _error(recipe.resolve, LAYERS) == (
        "override 'layer9.*' matches none of the 6 layers; names look like 'conv1', 'layer1.0.conv1', 'layer1.0.dw'"
    )


def test_overrides_that_contradict_one_another() -> None:
    recipe = Recipe(overrides={"*": {"d": 32}, "fc": {"pattern": "2:8"}, "conv1": {"d": 16, "pattern": "3:16"}})
    assert recipe.resolve(LAYERS)["fc"] == LayerRecipe(d=32, pattern=Pattern(2, 8))
    recipe = Recipe(pattern="2:8", d=8, overrides={"f*": {"d": 32, "pattern": "4:32"}, "fc": {"d": 8}})
    assert _error(recipe.resolve, LAYERS) == (
        "layer 'fc': its overrides do not go together: layer recipe: d=8 is not a multiple of M=32 of "
        "pattern 4:32; "
        "choose d among multiples of 32"
    )
