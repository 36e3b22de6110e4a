"""Recipes on the command line: presets, TOML files, single settings."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mvq.errors import ConfigError
from mvq.recipe import PRESETS, Recipe


def read_recipe(name: str, settings: Sequence[str] = (), *, seed: int | None = None) -> Recipe:
    """The recipe of a preset name or TOML file, with single settings changed.

    Args:
        name: a preset, or a path that ends in `.toml`.
        settings: `key=value`, or `glob:key=value` for the layers that the glob matches; later ones win.
        seed: replaces that of the recipe.

    Raises:
        ConfigError: if it is neither, cannot be read, or is not valid.
    """
    if name.endswith(".toml"):
        data = _read_toml(Path(name))
    elif name in PRESETS:
        data = Recipe.preset(name).to_dict()
    else:
        raise ConfigError(f"recipe {name!r} is neither a preset nor a .toml file; presets are {', '.join(PRESETS)}")
    overrides = dict(data.get("overrides", {})) if isinstance(data.get("overrides", {}), dict) else {}
    for setting in settings:
        glob, key, value = _parse_setting(setting)
        if glob is None:
            data[key] = value
        else:
            overrides[glob] = {**overrides.get(glob, {}), key: value}
    if overrides:
        data["overrides"] = overrides
    if seed is not None:
        data["seed"] = seed
    return Recipe.from_dict(data)


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"recipe {str(path)!r}: there is no such file") from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"recipe {str(path)!r} cannot be read: {error}") from error


def _parse_setting(text: str) -> tuple[str | None, str, Any]:
    left, equals, value = text.partition("=")
    glob, colon, key = left.rpartition(":")
    if not equals or not key.strip() or (colon and not glob):
        raise ConfigError(
            f"--set {text!r}: expected key=value, as in n_codewords=256, or glob:key=value, as in fc:treatment=int8"
        )
    if key.strip() == "overrides":
        raise ConfigError(f"--set {text!r}: write glob:key=value to override single layers")
    return glob or None, key.strip(), _parse_value(value.strip())


def _parse_value(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def to_toml(recipe: Recipe) -> str:
    """A TOML file that `read_recipe` reads back to an equal recipe."""
    data = recipe.to_dict()
    overrides = data.pop("overrides")
    lines = [f"{key} = {_toml(value)}" for key, value in data.items()]
    for glob, changes in overrides.items():
        lines += ["", f"[overrides.{_toml(glob)}]"]
        lines += [f"{key} = {_toml(value)}" for key, value in changes.items()]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, str):
        # JSON strings are TOML strings, except that TOML wants DEL escaped.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return str(value).lower() if isinstance(value, bool) else repr(value)
