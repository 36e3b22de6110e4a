"""The ablation of the MVQ paper at equal size, and packed codewords beside it.

| case | weights | k-means | decode |
|---|---|---|---|
| A | dense | common | dense |
| B | sparse | common | dense |
| C | sparse | common | sparse |
| D | sparse | masked | sparse |
| packed | sparse | masked, packed codewords, twice as many | sparse |
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from mvq.allocate import fit_codewords
from mvq.errors import ConfigError
from mvq.nn import VQWeight, as_recipe, bake_, cluster_, eligible_layers, extract, prune_
from mvq.nn.layers import Planned, form_of, plan
from mvq.patterns import Pattern
from mvq.prune import magnitude_mask, weight_mask
from mvq.recipe import MAX_CODEWORDS, Recipe

CASES = ("A", "B", "C", "D", "packed")
#: Lanes that conventional vector quantization may take within a size.
DENSE_LANES = (2, 4, 6, 8, 12, 16)
_CODEBOOK_SHARE = 0.08
_SIZE_KEYS = ("pattern", "d", "n_codewords", "codewords", "kmeans")


@dataclass(frozen=True)
class CaseReport:
    """Errors and size of one case before fine-tuning, summed over the layers that the recipe compresses.

    Attributes:
        case: one of `CASES`.
        total_sse: squared error over all weights against the weights that were clustered (dense in A, sparse
            elsewhere), as the paper's table has it.
        important_sse: the same over the weights that the N:M magnitude mask keeps.
        dense_sse: squared error over all weights against the dense weights.
        bits: of assignments, masks and codebooks.
    """

    case: str
    total_sse: float
    important_sse: float
    dense_sse: float
    bits: int


def equal_size(recipe: Recipe | str | Mapping[str, Any]) -> dict[str, Recipe]:
    """Recipes of all cases at the size of the given one, which is case D.

    A and B spend the mask bits on more index bits: the `(d', k')` nearest to the same `(log2(k) + mask bits) / d` bits
    a weight and the same codebook size, 8% of the former weighing like a factor of 2 in the latter, which is the
    codebooks' share in a ResNet-18. 4:16, k=512, d=16 gives k=1024, d=8 exactly: 1.25 bits a weight, 8 KiB a
    codebook. Where nothing is exact the difference stays within a few percent; `CaseReport.bits` tells it. `packed`
    has twice the codewords, each M/N times smaller.

    Args:
        recipe: masked codewords and k-means; `n_codewords` a power of two.

    Returns:
        Recipes by case.

    Raises:
        ConfigError: if the recipe is not of that kind, if its overrides change sizes, or if no `(d', k')` is
            equal.
    """
    recipe = as_recipe(recipe)
    pattern, k = Pattern.parse(recipe.pattern), recipe.n_codewords
    if recipe.codewords != "masked" or recipe.kmeans != "masked" or k & (k - 1):
        raise ConfigError(
            f"equal_size: codewords={recipe.codewords!r}, kmeans={recipe.kmeans!r}, n_codewords={k}; case D "
            "has masked "
            f"codewords, masked k-means and a power of two of codewords"
        )
    sized = [glob for glob, changes in recipe.overrides if any(key in _SIZE_KEYS for key, _ in changes)]
    if sized:
        raise ConfigError(
            f"equal_size: overrides {', '.join(map(repr, sized))} change the size of layers; only a "
            "treatment may be overridden"
        )
    d, n_codewords = _dense_settings(pattern, recipe.d, k)
    dense = replace(recipe, pattern="1:1", d=d, n_codewords=n_codewords, kmeans="plain")
    return {
        "A": dense,
        "B": dense,
        "C": replace(recipe, kmeans="plain"),
        "D": recipe,
        "packed": replace(recipe, codewords="packed", n_codewords=min(2 * k, MAX_CODEWORDS)),
    }


def _dense_settings(pattern: Pattern, d: int, k: int) -> tuple[int, int]:
    bits = (k.bit_length() - 1 + d // pattern.group * pattern.mask_bits) / d
    options = []
    for lanes in range(1, 2 * d + 1):
        for index_bits in {math.floor(bits * lanes), math.ceil(bits * lanes)}:
            if 0 < index_bits < MAX_CODEWORDS.bit_length():
                growth = abs(index_bits / lanes / bits - 1) / _CODEBOOK_SHARE
                codebook = abs(math.log2(2**index_bits * lanes / (k * d)))
                options.append((growth + codebook, lanes, 2**index_bits))
    _, lanes, n_codewords = min(options)
    return lanes, n_codewords


def case_(model: nn.Module, case: str, recipe: Recipe | str | Mapping[str, Any]) -> nn.Module:
    """Compress a model as one case of the ablation.

    Args:
        model: dense; changed in place.
        case: one of `CASES`.
        recipe: of case D; the other cases get the equal-sized one of `equal_size`.

    Returns:
        The model, clustered.

    Raises:
        ConfigError: on an unknown case, or as `equal_size`.
        ModelError: as `prune_` and `cluster_`.
    """
    if case not in CASES:
        raise ConfigError(f"case {case!r} is not one of {', '.join(CASES)}")
    recipes = equal_size(recipe)
    if case != "A":
        prune_(model, recipes["D"])
    if case == "B":
        bake_(model)
    return cluster_(model, recipes[case])


def cluster_conventional(
    model: nn.Module,
    recipe: Recipe | str | Mapping[str, Any],
    target_bits: int,
    *,
    lanes: Sequence[int] = DENSE_LANES,
    most_codewords: int = MAX_CODEWORDS,
) -> nn.Module:
    """Cases A and B within a size: common k-means, dense decode, the mask bits spent on indices and codewords.

    The paper has d = 8 beside 4:16, d = 16. Here the length of lowest error at the size is taken: index bits are
    whole, so that one length alone would leave up to 7% of some sizes unused.

    Args:
        model: dense, or pruned and made plain again; not changed.
        recipe: says which layers are compressed, and the scope of codebooks.
        target_bits: of the compressed layers, at most.
        lanes: lengths that are tried.
        most_codewords: lengths that would take more are left out.

    Returns:
        A clustered copy.

    Raises:
        ConfigError: if no length reaches the size.
    """
    found = []
    for d in lanes:
        start = replace(as_recipe(recipe), pattern="1:1", d=d, kmeans="plain", codewords="masked")
        try:
            fitted = fit_codewords(model, start, target_bits)
        except ConfigError:
            continue  # one codeword of so few lanes is too much
        if fitted.n_codewords > most_codewords:
            continue
        clustered = cluster_(copy.deepcopy(model), fitted)
        forms = [form_of(module) for _, module, _ in eligible_layers(clustered)]
        found.append((sum(form.total_sse for form in forms if isinstance(form, VQWeight)), d, clustered))
    if not found:
        raise ConfigError(
            f"conventional vector quantization: no subvector length of {', '.join(map(str, lanes))} reaches "
            f"{target_bits} bits with at most {most_codewords} codewords; give another size"
        )
    return min(found, key=lambda entry: entry[:2])[2]


def ablation(
    model: nn.Module, recipe: Recipe | str | Mapping[str, Any], cases: Sequence[str] = CASES
) -> list[CaseReport]:
    """Total and important error of each case on copies of the model.

    Args:
        model: dense; not changed.
        recipe: of case D.
        cases: which ones.

    Returns:
        One report a case.

    Raises:
        MvqError: as `case_`.
    """
    recipe = as_recipe(recipe)
    layers = [entry for entry in plan(model, recipe) if entry[2].treatment == "compress"]
    original = {name: _dense(module) for name, module, _ in layers}
    important = {
        name: weight_mask(magnitude_mask(original[name], layer.pattern, layer.d, name=name), original[name].shape)
        for name, _, layer in layers
    }
    return [_report(model, case, recipe, layers, original, important) for case in cases]


def _report(
    model: nn.Module,
    case: str,
    recipe: Recipe,
    layers: list[Planned],
    original: Mapping[str, NDArray[np.float32]],
    important: Mapping[str, NDArray[np.bool_]],
) -> CaseReport:
    compressed = extract(case_(copy.deepcopy(model), case, recipe))
    total = kept = dense = 0.0
    by_name = {layer.name: layer for layer in compressed.layers}
    for name, _, _ in layers:
        decoded = compressed.dense_weight(by_name[name]).astype(np.float64)
        target = original[name] if case == "A" else original[name] * important[name]
        square = (decoded - target) ** 2
        total += float(square.sum())
        kept += float(square[important[name]].sum())
        dense += float(((decoded - original[name]) ** 2).sum())
    bits = sum(layer.bits_assign + layer.bits_mask for layer in compressed.vq_layers)
    bits += sum(8 * codebook.codes.size for codebook in compressed.codebooks.values())
    return CaseReport(case, total, kept, dense, bits)


def _dense(module: nn.Module) -> NDArray[np.float32]:
    return module.weight.detach().float().cpu().numpy()  # type: ignore[union-attr,operator]
