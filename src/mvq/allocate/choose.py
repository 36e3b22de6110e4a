"""Which pattern, subvector length and codebook each layer gets: measured rate-distortion under budgets."""

from __future__ import annotations

import glob
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from torch import nn

from mvq.allocate.bits import achieved_bits, budget, codebook_bits, index_and_mask_bits, plan_compressed
from mvq.allocate.knapsack import choose, choose_within
from mvq.allocate.measure import Cut, Metric, cut, error, fit
from mvq.compressed import Codebook
from mvq.errors import ConfigError, ModelError
from mvq.flops import executed
from mvq.nn.clustering import GroupKey, group_key, layer_codewords
from mvq.nn.layers import Planned, as_recipe, check_ready, dense_weight, form_of, plan
from mvq.nn.parametrizations import NMMask
from mvq.nn.transform import check_importance
from mvq.patterns import Pattern
from mvq.progress import track
from mvq.recipe import MAX_CODEWORDS, LayerRecipe, Recipe

_T = TypeVar("_T")
_FIELDS = ("pattern", "d", "n_codewords", "codewords", "kmeans")
#: `(pattern, d)` tried by default: from 2 to 16 bits of mask a subvector, 1/8 to 1/2 of the weights kept.
_LADDER = (
    ("2:16", 16),
    ("3:16", 16),
    ("4:16", 16),
    ("5:16", 16),
    ("6:16", 16),
    ("8:16", 16),
    ("4:32", 32),
    ("2:8", 16),
    ("4:8", 8),
    ("2:4", 8),
    ("1:2", 8),
)
#: Subvector lengths and codewords tried without pruning: from 1/2 to 5 bits a weight.
_DENSE_LANES = (2, 3, 4, 6, 8)
_DENSE_CODEWORDS = (16, 32, 64, 128, 256, 512, 1024)
#: `(pattern, d)` tried beside those where multiplications are to be saved without training, and their codewords.
_PRUNED = (("3:4", 4), ("6:8", 8), ("1:2", 2), ("1:2", 4), ("2:4", 4), ("4:8", 8), ("2:8", 8), ("4:16", 16))
_PRUNED_CODEWORDS = (16, 32, 64, 128, 256, 512, 1024)
#: Rounds of choosing options for a shared codebook and fitting it anew to what was chosen.
_ROUNDS = 2


@dataclass(frozen=True)
class _Budgets:
    """What the layers may take together.

    Attributes:
        bits: at most.
        macs: dense multiply-accumulates of each layer; None if they do not count.
        max_macs: executed ones at most.
    """

    bits: int
    macs: dict[str, int] | None
    max_macs: int

    def choose(
        self, layers: list[Planned], options: list[list[LayerRecipe]], bits: list[list[int]], errors: list[list[float]]
    ) -> _Choice:
        """The best of the layers' options, whose bits and errors these are."""
        if self.macs is None:
            picked = choose(bits, errors, self.bits)
        else:
            work = [
                [executed(module, self.macs[name], option.pattern) for option in row]
                for (name, module, _), row in zip(layers, options, strict=True)
            ]
            picked = choose_within(bits, errors, self.bits, work, self.max_macs)
        return _Choice(picked, _at(options, picked), sum(_at(errors, picked)))


@dataclass(frozen=True)
class _Choice:
    """An option for each layer, its number among them, and the error they make together."""

    picked: list[int]
    options: list[LayerRecipe]
    error: float


def allocate(
    model: nn.Module,
    recipe: Recipe | str | Mapping[str, Any],
    target_bits: int | None = None,
    *,
    ratio: float | None = None,
    candidates: Sequence[LayerRecipe] | None = None,
    importance: Mapping[str, Any] | None = None,
    pruned: float = 1.0,
    macs: Mapping[str, int] | None = None,
    max_macs: float | None = None,
    max_rows: int = 1 << 15,
    max_iters: int = 20,
    progress: bool = False,
) -> Recipe:
    """Give each layer the option that makes the total error least within a size.

    Every option of every layer is clustered and its error measured, `sum h (w - w_hat)^2` against the dense weights;
    the choice among them is a multiple-choice knapsack, solved by dynamic programming. With scope `network` each
    codebook that candidates may share is tried in turn: fitted to all layers, options chosen, fitted again to the
    chosen ones; the best codebook wins, and all layers use it.

    Args:
        model: dense or pruned; not changed. A pruned layer keeps its pattern.
        recipe: says which layers are compressed, the scope, and everything that is not an option.
        target_bits: most bits of the compressed layers, `PlannedBits.total`.
        ratio: instead, the compression ratio of these layers.
        candidates: options of every layer; by default patterns that keep 1/8 to 1/2 with the recipe's kind of
            codewords and half, once and twice its number.
        importance: h by layer name as for `cluster_`, e.g. of `fisher`. It weighs the measured error only.
        pruned: factor of the error on pruned weights, 0..1; below 1 where sparse training follows.
        macs: dense multiply-accumulates by layer name, as `mvq.flops.count` gives them, for `max_macs`.
        max_macs: share of those of the compressed layers that are executed at most, 0..1.
        max_rows: subvectors a codebook is fitted to when measuring.
        max_iters: most k-means iterations when measuring.
        progress: show a bar.

    Returns:
        The recipe with an override for each compressed layer. It is plain data; use it with `prune_` and `cluster_`.

    Raises:
        ConfigError: if a budget is out of reach, or an option is invalid.
        ModelError: as `cluster_`; if no candidate has the pattern that a layer was pruned with.
        WeightError: as `cluster_`.
    """
    recipe = as_recipe(recipe)
    layers = plan_compressed(model, recipe)
    limit = budget(layers, target_bits, ratio, "allocate")
    _check(candidates, pruned, max_rows)
    budgets = _Budgets(limit, *_work(layers, macs, max_macs))
    check_ready(model, layers)
    metric = Metric(
        importance=check_importance(plan(model, recipe), importance), pruned=pruned, max_rows=max_rows, seed=recipe.seed
    )
    options = list(dict.fromkeys(candidates or default_candidates(recipe)))
    measuring = replace(recipe, max_iters=min(max_iters, recipe.max_iters), n_init=1)
    solve = _by_layer if recipe.scope == "layer" else _shared
    choice = solve(layers, options, measuring, budgets, metric, progress)
    found = _with_overrides(recipe, layers, choice.options)
    used = achieved_bits(model, found).total
    if used > limit:
        raise ConfigError(
            f"allocate: the recipe's overrides lead to {used} bits, above {limit}; drop its size overrides"
        )
    return found


def default_candidates(recipe: Recipe) -> list[LayerRecipe]:
    """Options tried where none are given."""
    sizes = sorted({max(1, recipe.n_codewords // 2), recipe.n_codewords, min(2 * recipe.n_codewords, MAX_CODEWORDS)})
    return [
        LayerRecipe(pattern=Pattern.parse(p), d=d, n_codewords=k, codewords=recipe.codewords, kmeans=recipe.kmeans)
        for p, d in _LADDER
        for k in sizes
    ]


def dense_candidates() -> list[LayerRecipe]:
    """Options that prune nothing, for networks that are not trained afterwards: pruning costs those more than it saves.

    They cut no multiplications.
    """
    return [
        LayerRecipe(pattern=Pattern.parse("1:1"), d=d, n_codewords=k) for d in _DENSE_LANES for k in _DENSE_CODEWORDS
    ]


def pruned_candidates() -> list[LayerRecipe]:
    """Options that prune, most of them less than the default ones, for networks that are not trained afterwards."""
    return [
        LayerRecipe(pattern=Pattern.parse(p), d=d, n_codewords=k, codewords="packed")
        for p, d in _PRUNED
        for k in _PRUNED_CODEWORDS
    ]


def _check(candidates: Sequence[LayerRecipe] | None, pruned: float, max_rows: int) -> None:
    faults = []
    if candidates is not None and not candidates:
        faults.append("allocate: candidates is empty; leave it out for the default ones")
    for option in candidates or ():
        if not isinstance(option, LayerRecipe) or option.treatment != "compress":
            faults.append(f"allocate: candidate {option!r} is not a LayerRecipe that compresses")
    if not 0 <= pruned <= 1:
        faults.append(f"allocate: pruned={pruned} is not in 0..1")
    if max_rows < 1:
        faults.append(f"allocate: max_rows={max_rows} is not at least 1")
    if faults:
        raise ConfigError("\n".join(faults))


def check_max_macs(max_macs: float | None, what: str) -> None:
    """Raises: ConfigError: for a share of multiply-accumulates that is none."""
    if max_macs is not None and not 0 < max_macs <= 1:
        raise ConfigError(f"{what}: max_macs={max_macs} is not above 0 and at most 1")


def _work(
    layers: list[Planned], macs: Mapping[str, int] | None, max_macs: float | None
) -> tuple[dict[str, int] | None, int]:
    """Dense multiply-accumulates of the layers and the most that may be executed."""
    check_max_macs(max_macs, "allocate")
    if max_macs is None:
        return None, 0
    missing = [name for name, _, _ in layers if name not in (macs or {})]
    if macs is None or missing:
        raise ConfigError(
            f"allocate: max_macs needs macs of every layer, which lacks {missing[:3]}; see mvq.flops.count"
        )
    wanted = {name: int(macs[name]) for name, _, _ in layers}
    return wanted, math.floor(max_macs * sum(wanted.values()))


def _allowed(entry: Planned, options: Sequence[LayerRecipe]) -> list[LayerRecipe]:
    """The options of a layer: of its own pattern, if it is pruned."""
    name, module, _ = entry
    form = form_of(module)
    if form is None:
        return list(options)
    if not isinstance(form, NMMask):
        raise ModelError(f"allocate: layer {name!r} is already compressed; bake_ the model to start again")
    kept = [option for option in options if option.pattern == form.pattern]
    if not kept:
        raise ModelError(
            f"allocate: layer {name!r} was pruned {form.pattern}, which no candidate has; add one, "
            "or give the dense model"
        )
    return kept


def _by_layer(
    layers: list[Planned], options: list[LayerRecipe], recipe: Recipe, budgets: _Budgets, metric: Metric, progress: bool
) -> _Choice:
    """A codebook a layer: options do not touch one another."""
    options_of = [_allowed(entry, options) for entry in layers]
    bits: list[list[int]] = []
    errors: list[list[float]] = []
    for (name, module, _), allowed in track(
        list(zip(layers, options_of, strict=True)), "measuring layers", enabled=progress
    ):
        shape = dense_weight(module).shape
        bits.append([])
        errors.append([])
        for option in allowed:
            k = layer_codewords(recipe, option, shape)
            one = cut(name, module, option, metric)
            codebook = fit([one], recipe, k, metric)
            bits[-1].append(sum(index_and_mask_bits(tuple(shape), option, k)) + codebook_bits(option, k))
            errors[-1].append(math.inf if codebook is None else error(one, codebook))
    return budgets.choose(layers, options_of, bits, errors)


def _shared(
    layers: list[Planned], options: list[LayerRecipe], recipe: Recipe, budgets: _Budgets, metric: Metric, progress: bool
) -> _Choice:
    """One codebook for the network: the best of those that candidates may share."""
    families: dict[GroupKey, list[LayerRecipe]] = {}
    for option in options:
        families.setdefault(group_key(option), []).append(option)
    found: list[_Choice] = []
    refused: list[str] = []
    for family in track(list(families.values()), "measuring codebooks", enabled=progress):
        try:
            choice = _one_codebook(layers, family, recipe, budgets, metric)
        except (ConfigError, ModelError) as fault:
            refused.append(str(fault))
            continue
        if choice is not None:
            found.append(choice)
    if not found:
        raise ConfigError(refused[0] if refused else "allocate: every candidate has more codewords than subvectors")
    return min(found, key=lambda choice: choice.error)


def _one_codebook(
    layers: list[Planned], family: list[LayerRecipe], recipe: Recipe, budgets: _Budgets, metric: Metric
) -> _Choice | None:
    """Alternate between the options of the layers and the codebook they share."""
    k = family[0].n_codewords
    left = replace(budgets, bits=budgets.bits - codebook_bits(family[0], k))
    cuts = [
        [cut(name, module, option, metric) for option in _allowed(entry, family)]
        for entry in layers
        for name, module, _ in [entry]
    ]
    fitted_to = [one for row in cuts for one in row]
    best: _Choice | None = None
    for _ in range(_ROUNDS):
        codebook = fit(fitted_to, recipe, k, metric)
        if codebook is None:
            return best
        if best is not None:
            # The codebook is now that of the former choice
            best = replace(best, error=sum(error(one, codebook) for one in fitted_to))
        choice, fitted_to = _pick_shared(layers, cuts, codebook, k, left)
        if best is None or choice.error < best.error:
            best = choice
    return best


def _pick_shared(
    layers: list[Planned], cuts: list[list[Cut]], codebook: Codebook, k: int, left: _Budgets
) -> tuple[_Choice, list[Cut]]:
    options = [[one.layer for one in row] for row in cuts]
    bits = [
        [sum(index_and_mask_bits(tuple(dense_weight(module).shape), option, k)) for option in row]
        for (_, module, _), row in zip(layers, options, strict=True)
    ]
    choice = left.choose(layers, options, bits, [[error(one, codebook) for one in row] for row in cuts])
    return choice, _at(cuts, choice.picked)


def _at(rows: list[list[_T]], picked: list[int]) -> list[_T]:
    return [row[i] for row, i in zip(rows, picked, strict=True)]


def _with_overrides(recipe: Recipe, layers: list[Planned], options: list[LayerRecipe]) -> Recipe:
    """Each layer's option as an override by its name, behind those there are."""
    overrides = {pattern: dict(changes) for pattern, changes in recipe.overrides}
    for (name, _, _), option in zip(layers, options, strict=True):
        key = glob.escape(name)
        # Last, so that no other override wins
        former = overrides.pop(key, {})
        overrides[key] = former | {field: getattr(option, field) for field in _FIELDS}
    return replace(recipe, overrides=overrides)
