from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvq.cli.recipes import read_recipe, to_toml
from mvq.errors import ConfigError
from mvq.recipe import PRESETS, Recipe


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("recipes")


@pytest.mark.parametrize("name", PRESETS)
def test_printed_presets_read_back(name: str, mvq, tmp_path: Path) -> None:
    result = mvq("recipes", name)
    assert result.exit_code == 0
    path = tmp_path / "r.toml"
    path.write_text(result.stdout)
    assert read_recipe(str(path)) == Recipe.preset(name) == read_recipe(name)


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8),
        st.fixed_dictionaries({}, optional={"treatment": st.just("int8"), "pattern": st.just("2:4"), "d": st.just(32)}),
        max_size=3,
    ),
    st.floats(0, 1),
)
def test_toml_round_trip(folder: Path, overrides, tol: float) -> None:
    recipe = Recipe(overrides=overrides, tol=tol, scope="network", seed=2**40)
    path = folder / "recipe.toml"
    path.write_text(to_toml(recipe), encoding="utf-8")
    assert read_recipe(str(path)) == recipe


def test_odd_characters_are_escaped(folder: Path) -> None:
    recipe = Recipe(overrides={'a"\\\n\x7f\x01é': {"d": 32}})
    path = folder / "odd.toml"
    path.write_text(to_toml(recipe), encoding="utf-8")
    assert read_recipe(str(path)) == recipe


def test_settings_come_after_the_file_and_later_ones_win(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text('preset = "mvq-16x"\nn_codewords = 64\n[overrides."a*"]\nd = 16\n')
    settings = ["n_codewords=128", "n_codewords=32", "tol=1e-2", "a*:n_codewords=8", "fc:treatment=int8"]
    assert read_recipe(str(path), settings, seed=5) == Recipe(
        pattern="1:2",
        d=8,
        n_codewords=32,
        tol=0.01,
        seed=5,
        overrides={"a*": {"d": 16, "n_codewords": 8}, "fc": {"treatment": "int8"}},
    )
    assert read_recipe("mvq-22x", ["pattern=2:8"]).pattern.keep == 2  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("name", "settings", "text"),
    [
        (
            "mvq-99x",
            [],
            "recipe 'mvq-99x' is neither a preset nor a .toml file; presets are mvq-16x, mvq-19x, mvq-22x, mvq-25x, "
            "mvq-28x, mvq-16x-packed, mvq-22x-packed, mvq-25x-packed, mvq-maskrcnn, mvq-deeplab, vq-22x",
        ),
        ("none.toml", [], "recipe 'none.toml': there is no such file"),
        (
            "mvq-22x",
            ["d"],
            "--set 'd': expected key=value, as in n_codewords=256, or glob:key=value, as in fc:treatment=int8",
        ),
        (
            "mvq-22x",
            [":d=3"],
            "--set ':d=3': expected key=value, as in n_codewords=256, or glob:key=value, as in fc:treatment=int8",
        ),
        ("mvq-22x", ["overrides=3"], "--set 'overrides=3': write glob:key=value to override single layers"),
        ("mvq-22x", ["d=x"], "recipe: d='x' is not in 1..256"),
    ],
)
def test_errors(name: str, settings: list[str], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_recipe(name, settings)
    assert str(caught.value) == text


def test_damaged_toml(tmp_path: Path) -> None:
    path = tmp_path / "r.toml"
    path.write_text("d = 16\nd = 32\n")
    with pytest.raises(ConfigError) as caught:
        read_recipe(str(path))
    assert str(caught.value) == f"recipe {str(path)!r} cannot be read: Cannot overwrite a value (at line 2, column 7)"


def test_list_of_presets(mvq) -> None:
    result = mvq("recipes")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in PRESETS)
    listed = json.loads(mvq("recipes", "--json").stdout)
    assert {name: Recipe.from_dict(data) for name, data in listed.items()} == PRESETS
    assert Recipe.from_dict(json.loads(mvq("recipes", "vq-22x", "--json").stdout)) == Recipe.preset("vq-22x")
