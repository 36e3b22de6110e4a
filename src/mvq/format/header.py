"""The JSON header: tables to text, text to checked tables."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, cast, get_args

from mvq.compressed import Kind
from mvq.errors import ConfigError, HeaderError, UnsupportedVersionError
from mvq.format.layout import (
    MAX_DIM,
    MAX_ELEMENTS,
    MAX_FREE_SUBVECTORS,
    MAX_NAME,
    MAX_NAMES_TOTAL,
    MAX_ROWS,
    TENSOR_DTYPES,
    VERSION,
    CodebookEntry,
    Header,
    LayerEntry,
    Layout,
    Storage,
    TensorEntry,
)
from mvq.format.strict_json import canonical, loads, plain, short
from mvq.patterns import Pattern
from mvq.recipe import MAX_CODEWORDS, MAX_D, Codewords, Recipe, Role

_KEYS = (
    "codebooks",
    "forms",
    "layers",
    "provenance",
    "recipe",
    "settings",
    "streams",
    "tensors",
    "version",
)
_Setting = tuple[Pattern, int, str]


def encode(header: Header) -> str:
    """The canonical text of a header."""
    settings: dict[tuple[str, int, str], int] = {}
    codebooks = {c.key: i for i, c in enumerate(header.codebooks)}
    layers = []
    for layer in header.layers:
        row = [layer.name, layer.kind, layer.role, list(layer.shape), layer.storage]
        if layer.storage == "vq":
            setting = (str(layer.pattern), layer.d, layer.codewords)
            row += [settings.setdefault(setting, len(settings)), codebooks[layer.codebook]]
            row += [None if math.isnan(sse) else float(sse) for sse in (layer.masked_sse, layer.total_sse)]
        layers.append(row)
    forms, groups = _group(header.tensors)
    return canonical(
        {
            "version": VERSION,
            "recipe": _recipe_dict(header.recipe),
            "provenance": header.provenance,
            "settings": [list(s) for s in settings],
            "codebooks": [[c.key, c.n_codewords, c.width] for c in header.codebooks],
            "layers": layers,
            "forms": forms,
            "tensors": groups,
            "streams": dict(header.digests),
        }
    )


def _recipe_dict(recipe: Recipe) -> dict[str, Any]:
    """As `Recipe.to_dict`, with overrides as pairs: their order matters, and sorted keys would lose it."""
    data = recipe.to_dict()
    data["overrides"] = [[glob, changes] for glob, changes in data["overrides"].items()]
    return data


def _group(tensors: Sequence[TensorEntry]) -> tuple[list[Any], list[list[Any]]]:
    """Runs of tensors of one module as `[prefix, form]`; equal runs of different modules share a form."""
    runs: list[tuple[str, list[Any]]] = []
    for tensor in tensors:
        cut = tensor.name.rfind(".") + 1
        prefix, row = tensor.name[:cut], [tensor.name[cut:], tensor.dtype, list(tensor.shape)]
        if not runs or runs[-1][0] != prefix:
            runs.append((prefix, []))
        runs[-1][1].append(row)
    forms: dict[str, tuple[int, Any]] = {}
    groups = []
    for prefix, rows in runs:
        index, _ = forms.setdefault(canonical(rows), (len(forms), rows))
        groups.append([prefix, index])
    return [rows for _, rows in forms.values()], groups


def decode(text: str) -> tuple[Header, Layout]:
    """Check the text of a header and everything its tables say.

    Raises:
        UnsupportedVersionError: if the version is not known.
        HeaderError: on any other fault.
    """
    data = loads(text, "header")
    if not isinstance(data, dict):
        raise HeaderError(f"header: expected an object, got {short(data)}")
    version = data.get("version")
    if type(version) is not int or version != VERSION:
        raise UnsupportedVersionError(f"header: format version {short(version)}, this version of mvq reads {VERSION}")
    if sorted(data) != list(_KEYS):
        raise HeaderError(f"header: keys {', '.join(map(short, sorted(data)))}; must be {', '.join(map(repr, _KEYS))}")
    provenance = plain(_mapping(data["provenance"], "provenance"), "provenance")
    settings = [_setting(row, f"settings[{i}]") for i, row in enumerate(_rows(data["settings"], "settings"))]
    codebooks = _codebooks(data["codebooks"])
    layers = _layers(data["layers"], settings, codebooks)
    tensors = _tensors(data["forms"], data["tensors"])
    _check_dense(layers, tensors)
    layout = Layout.of(codebooks, layers, tensors)
    digests = _digests(data["streams"], layout)
    return Header(_recipe(data["recipe"]), provenance, codebooks, layers, tensors, digests), layout


def _recipe(data: Any) -> Recipe:
    given = _mapping(data, "recipe")
    try:
        recipe = Recipe.from_dict(given)
    except (ConfigError, TypeError, ValueError) as error:
        raise HeaderError(f"header: {error}") from None
    # Missing keys take their defaults, so that fields can be added; whatever is there must mean what it says.
    known = _recipe_dict(recipe)
    for key, value in given.items():
        if key not in known or canonical(known[key]) != canonical(value):
            raise HeaderError(f"header: recipe: {key} = {short(value)} is not written as this format writes it")
    return recipe


def _setting(row: Any, where: str) -> _Setting:
    pattern_text, d, codewords = _list(row, where, 3)
    try:
        pattern = Pattern.parse(pattern_text)
    except ConfigError as error:
        raise HeaderError(f"header: {where}: {error}") from None
    if pattern_text != str(pattern):
        raise HeaderError(f"header: {where}: pattern {short(pattern_text)} must be written {str(pattern)!r}")
    _integer(d, f"{where}: d", 1, MAX_D)
    if d % pattern.group:
        raise HeaderError(f"header: {where}: d={d} is not a multiple of M={pattern.group}")
    _choice(codewords, f"{where}: codeword kind", get_args(Codewords))
    return pattern, d, codewords


def _codebooks(data: Any) -> tuple[CodebookEntry, ...]:
    entries = []
    for i, row in enumerate(_rows(data, "codebooks")):
        where = f"codebooks[{i}]"
        key, n_codewords, width = _list(row, where, 3)
        _name(key, f"{where}: key")
        _integer(n_codewords, f"{where}: number of codewords", 1, MAX_CODEWORDS)
        _integer(width, f"{where}: width", 1, MAX_D)
        entries.append(CodebookEntry(key, n_codewords, width))
    _unique([c.key for c in entries], "codebook")
    return tuple(entries)


def _layers(data: Any, settings: Sequence[_Setting], codebooks: Sequence[CodebookEntry]) -> tuple[LayerEntry, ...]:
    entries = tuple(_layer(row, f"layers[{i}]", settings, codebooks) for i, row in enumerate(_rows(data, "layers")))
    _unique([layer.name for layer in entries], "layer")
    free = sum(layer.n_sub for layer in entries if layer.is_free)
    if free > MAX_FREE_SUBVECTORS:
        raise HeaderError(
            f"header: layers: {free} subvectors that take no bits, more than the limit of {MAX_FREE_SUBVECTORS}"
        )
    return entries


def _layer(row: Any, where: str, settings: Sequence[_Setting], codebooks: Sequence[CodebookEntry]) -> LayerEntry:
    row = _list(row, where)
    storage = row[4] if len(row) > 4 else None
    _choice(storage, f"{where}: storage", get_args(Storage))
    expected = 9 if storage == "vq" else 5
    name, kind, role, shape = _list(row, where, expected)[:4]
    _name(name, f"{where}: name")
    where = f"layer {name!r}"
    _choice(kind, f"{where}: kind", get_args(Kind))
    _choice(role, f"{where}: role", get_args(Role))
    base = (name, kind, role, _shape(shape, where, 2, 8), cast(Storage, storage))
    if storage != "vq":
        return LayerEntry(*base)
    pattern, d, codewords = settings[_integer(row[5], f"{where}: setting", 0, len(settings) - 1)]
    codebook = codebooks[_integer(row[6], f"{where}: codebook", 0, len(codebooks) - 1)]
    layer = LayerEntry(
        *base,
        pattern=pattern,
        d=d,
        codewords=cast(Codewords, codewords),
        codebook=codebook.key,
        n_codewords=codebook.n_codewords,
        masked_sse=_sse(row[7], f"{where}: masked_sse"),
        total_sse=_sse(row[8], f"{where}: total_sse"),
    )
    width = pattern.kept_per(d) if codewords == "packed" else d
    if width != codebook.width:
        raise HeaderError(
            f"header: {where}: codebook {codebook.key!r} has width {codebook.width}, {codewords} codewords of "
            f"d={d}, pattern {pattern} need {width}"
        )
    return layer


def _tensors(forms: Any, groups: Any) -> tuple[TensorEntry, ...]:
    parsed = [_form(rows, f"forms[{i}]") for i, rows in enumerate(_rows(forms, "forms"))]
    expanded = []
    # A form may be used many times, so the total is known before any name is made.
    n_tensors = n_chars = 0
    for i, row in enumerate(_rows(groups, "tensors")):
        where = f"tensors[{i}]"
        prefix, index = _list(row, where, 2)
        _name(prefix, f"{where}: prefix")
        form = parsed[_integer(index, f"{where}: form", 0, len(parsed) - 1)]
        n_tensors += len(form)
        n_chars += len(prefix) * len(form) + sum(len(leaf) for leaf, _, _ in form)
        if n_tensors > MAX_ROWS or n_chars > MAX_NAMES_TOTAL:
            raise HeaderError(f"header: tensors: more than {MAX_ROWS} tensors or {MAX_NAMES_TOTAL} characters of names")
        expanded.append((prefix, form))
    entries = tuple(
        TensorEntry(prefix + leaf, dtype, shape) for prefix, form in expanded for leaf, dtype, shape in form
    )
    for entry in entries:
        _name(entry.name, "tensor name")
    _unique([t.name for t in entries], "tensor")
    return entries


def _form(data: Any, where: str) -> list[tuple[str, str, tuple[int, ...]]]:
    form = []
    for i, row in enumerate(_rows(data, where)):
        at = f"{where}[{i}]"
        leaf, dtype, shape = _list(row, at, 3)
        _name(leaf, f"{at}: name")
        _choice(dtype, f"{at}: dtype", tuple(TENSOR_DTYPES))
        form.append((leaf, dtype, _shape(shape, at, 0, 16)))
    return form


def _check_dense(layers: Sequence[LayerEntry], tensors: Sequence[TensorEntry]) -> None:
    shapes = {t.name: t.shape for t in tensors}
    for layer in layers:
        weight = f"{layer.name}.weight"
        if layer.storage == "dense" and shapes.get(weight) != layer.shape:
            raise HeaderError(
                f"header: layer {layer.name!r}: needs tensor {weight!r} of shape {list(layer.shape)}, "
                f"{f'got {list(shapes[weight])}' if weight in shapes else 'which is missing'}"
            )


def _digests(data: Any, layout: Layout) -> dict[str, str]:
    digests = _mapping(data, "streams")
    if sorted(digests) != sorted(layout.stream_bytes):
        raise HeaderError(
            f"header: streams {', '.join(map(short, sorted(digests)[:20]))} have digests; the tables need "
            f"{', '.join(map(repr, sorted(layout.stream_bytes)))}"
        )
    for name, digest in digests.items():
        if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
            raise HeaderError(f"header: streams: {short(digest)} of {name!r} is not a SHA-256 in hexadecimal")
    return digests


def _mapping(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise HeaderError(f"header: {where}: expected an object, got {short(value)}")
    return value


def _list(value: Any, where: str, length: int | None = None) -> list[Any]:
    if not isinstance(value, list) or (length is not None and len(value) != length):
        size = "a list" if length is None else f"a list of {length}"
        raise HeaderError(f"header: {where}: expected {size}, got {short(value)}")
    return value


def _rows(value: Any, where: str) -> list[Any]:
    rows = _list(value, where)
    if len(rows) > MAX_ROWS:
        raise HeaderError(f"header: {where}: {len(rows)} rows, more than the limit of {MAX_ROWS}")
    return rows


def _integer(value: Any, where: str, low: int, high: int) -> int:
    if type(value) is not int or not low <= value <= high:
        raise HeaderError(f"header: {where}: {short(value)} is not a whole number in {low}..{high}")
    return value


def _choice(value: Any, where: str, choices: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise HeaderError(f"header: {where}: {short(value)} is not one of {', '.join(choices)}")


def _name(value: Any, where: str) -> None:
    if not isinstance(value, str):
        raise HeaderError(f"header: {where}: expected a string, got {short(value)}")
    if len(value) > MAX_NAME:
        raise HeaderError(f"header: {where}: {len(value)} characters, more than the limit of {MAX_NAME}")


def _shape(value: Any, where: str, low: int, high: int) -> tuple[int, ...]:
    dims = _list(value, f"{where}: shape")
    if not low <= len(dims) <= high:
        raise HeaderError(f"header: {where}: shape has {len(dims)} axes, not {low}..{high}")
    for dim in dims:
        _integer(dim, f"{where}: axis of the shape", 0, MAX_DIM)
    if math.prod(max(dim, 1) for dim in dims) > MAX_ELEMENTS:
        raise HeaderError(f"header: {where}: shape {short(dims)} has more than {MAX_ELEMENTS} elements")
    return tuple(dims)


def _sse(value: Any, where: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise HeaderError(f"header: {where}: {short(value)} is neither null nor a number of at least 0")
    return float(value)


def _unique(names: Sequence[str], what: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise HeaderError(f"header: {what} {name!r} appears twice")
        seen.add(name)
