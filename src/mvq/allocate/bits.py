"""Bits that a recipe will give, without clustering, and the number of codewords that fills a budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from mvq.compressed import code_bits
from mvq.errors import ConfigError
from mvq.grouping import n_subvectors
from mvq.nn.clustering import codebook_groups
from mvq.nn.layers import Planned, as_recipe, dense_weight, plan
from mvq.recipe import MAX_CODEWORDS, LayerRecipe, Recipe

_SCALE_BITS = 32


@dataclass(frozen=True, kw_only=True)
class PlannedBits:
    """Bits of the layers that a recipe compresses.

    Attributes:
        assignments: `n_sub * ceil(log2 k)`, summed over layers.
        masks: of all mask ids.
        codebooks: `8 * k * width`, each codebook once.
        scales: 32 for each codebook.
        n_weights: weights of those layers.
    """

    assignments: int
    masks: int
    codebooks: int
    scales: int
    n_weights: int

    @property
    def total(self) -> int:
        """All four; what `target_bits` limits."""
        return self.assignments + self.masks + self.codebooks + self.scales

    @property
    def ratio(self) -> float:
        """`32 * n_weights / (b_assign + b_mask + b_codebook)`, the formula of `mvq.sizes`, which leaves scales out."""
        return 32 * self.n_weights / (self.total - self.scales)


def achieved_bits(
    model: nn.Module, recipe: Recipe | str | Mapping[str, Any], *, convs_only: bool = False
) -> PlannedBits:
    """Exact bits of the compressed layers after `cluster_`.

    The one case it cannot foresee is a layer with fewer distinct subvectors than codewords, whose codebook `cluster_`
    makes smaller.

    Args:
        model: dense, pruned or clustered; only names and shapes matter, so it may be on the meta device.
        recipe: a `Recipe`, a preset name or a dictionary.
        convs_only: leave linear layers out, and codebooks that no convolution uses.

    Raises:
        ConfigError: if the recipe is not valid.
        ModelError: if no layer is eligible, all are skipped, or the recipe compresses none.
    """
    recipe = as_recipe(recipe)
    return _count(plan_compressed(model, recipe, convs_only=convs_only), recipe)


def plan_compressed(model: nn.Module, recipe: Recipe, *, convs_only: bool = False) -> list[Planned]:
    """The layers that the recipe compresses.

    Raises:
        ConfigError: if there is none.
    """
    layers = [entry for entry in plan(model, recipe) if entry[2].treatment == "compress"]
    if convs_only:
        layers = [entry for entry in layers if isinstance(entry[1], nn.Conv2d)]
    if not layers:
        raise ConfigError("the recipe compresses no layer of the model; leave at least one to compress")
    return layers


def index_and_mask_bits(shape: tuple[int, ...], layer: LayerRecipe, n_codewords: int) -> tuple[int, int]:
    """Bits of the assignments and of the mask ids of one layer."""
    n_sub = n_subvectors(shape, layer.d)
    return n_sub * code_bits(n_codewords), n_sub * (layer.d // layer.pattern.group) * layer.pattern.mask_bits


def codebook_bits(layer: LayerRecipe, n_codewords: int) -> int:
    """Bits of one codebook with its scale."""
    return 8 * n_codewords * layer.width + _SCALE_BITS


def _count(layers: list[Planned], recipe: Recipe) -> PlannedBits:
    assignments = masks = codebooks = n_weights = 0
    groups = codebook_groups(recipe, layers)
    for _, members, n_codewords, _ in groups:
        codebooks += codebook_bits(members[0][2], n_codewords) - _SCALE_BITS
        for _, module, layer in members:
            weight = dense_weight(module)
            index, mask = index_and_mask_bits(tuple(weight.shape), layer, n_codewords)
            assignments, masks, n_weights = assignments + index, masks + mask, n_weights + weight.numel()
    return PlannedBits(
        assignments=assignments,
        masks=masks,
        codebooks=codebooks,
        scales=_SCALE_BITS * len(groups),
        n_weights=n_weights,
    )


def budget(layers: list[Planned], target_bits: int | None, ratio: float | None, what: str) -> int:
    """The limit in bits.

    Raises:
        ConfigError: unless exactly one of the two is given, and is positive.
    """
    if (target_bits is None) == (ratio is None):
        raise ConfigError(f"{what}: target_bits={target_bits}, ratio={ratio}; give exactly one of the two")
    limit = ratio if target_bits is None else target_bits
    if isinstance(limit, bool) or not isinstance(limit, (int, float)) or not 0 < limit < float("inf"):
        raise ConfigError(f"{what}: {'ratio' if target_bits is None else 'target_bits'}={limit!r} is not positive")
    if target_bits is not None:
        return int(target_bits)
    return int(32 * sum(dense_weight(module).numel() for _, module, _ in layers) / limit)


def fit_codewords(
    model: nn.Module,
    recipe: Recipe | str | Mapping[str, Any],
    target_bits: int | None = None,
    *,
    ratio: float | None = None,
    convs_only: bool = False,
) -> Recipe:
    """The recipe with the most codewords that stay within a size; the number need not be a power of two.

    An index costs `ceil(log2 k)` bits whatever k, but a codebook grows with k, so the largest k of an index width that
    fits is taken. Layers whose overrides set `n_codewords` keep theirs. Where `rows_per_codeword` makes the codebooks
    of small layers smaller, sizes do not always rise with k; the result fits, and a somewhat larger k might too.

    Args:
        model: as `achieved_bits`.
        recipe: all but `n_codewords` is kept.
        target_bits: most bits of the compressed layers, `PlannedBits.total`.
        ratio: instead, the compression ratio of these layers.
        convs_only: count convolutions alone.

    Raises:
        ConfigError: if even one codeword is too much, if overrides set every `n_codewords`, or on an invalid option.
    """
    recipe = as_recipe(recipe)
    limit = budget(plan_compressed(model, recipe, convs_only=convs_only), target_bits, ratio, "fit_codewords")

    def bits(n_codewords: int) -> int:
        return achieved_bits(model, replace(recipe, n_codewords=n_codewords), convs_only=convs_only).total

    most = _most_codewords(model, recipe, convs_only=convs_only)
    if bits(1) > limit:
        raise ConfigError(
            f"fit_codewords: {limit} bits are out of reach; one codeword takes {bits(1)}, so give a larger size or a "
            f"pattern of fewer mask bits than {recipe.pattern}"
        )
    widths = [(1 << b) + 1 for b in range(code_bits(most))]
    low = max([1, *(k for k in widths if bits(k) <= limit)])
    high = min(most, 1 << code_bits(low))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if bits(middle) <= limit else (low, middle - 1)
    return replace(recipe, n_codewords=low)


def _most_codewords(model: nn.Module, recipe: Recipe, *, convs_only: bool) -> int:
    """Subvectors of the smallest codebook that the recipe's `n_codewords` decides; with reduction, of the largest."""
    small, other = (
        {name: layer for name, _, layer in plan_compressed(model, replace(recipe, n_codewords=k))} for k in (1, 2)
    )
    layers = plan_compressed(model, replace(recipe, n_codewords=1), convs_only=convs_only)
    free = [entry for entry in layers if small[entry[0]] != other[entry[0]]]
    if not free:
        raise ConfigError("fit_codewords: overrides set n_codewords of every compressed layer; nothing is left to fit")
    sizes = [
        sum(n_subvectors(dense_weight(module).shape, layer.d) for _, module, layer in members)
        for _, members, _, _ in codebook_groups(recipe, free)
    ]
    reduces = recipe.scope == "layer" and recipe.rows_per_codeword > 0
    return min(MAX_CODEWORDS, max(sizes) // recipe.rows_per_codeword if reduces else min(sizes))
