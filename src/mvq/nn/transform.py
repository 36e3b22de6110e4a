"""The steps that change a model in place: `prune_`, `cluster_`, `bake_`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mvq.errors import ModelError, ShapeError, WeightError
from mvq.grouping import n_subvectors
from mvq.nn.clustering import cluster_group
from mvq.nn.layers import Planned, as_recipe, attach, check_ready, dense_weight, detach, form_of, plan, unwrap
from mvq.nn.parametrizations import Int8Weight, NMMask, VQWeight
from mvq.progress import track
from mvq.prune import magnitude_mask, weight_mask
from mvq.recipe import LayerRecipe, Recipe


def prune_(model: nn.Module, recipe: Recipe | str | Mapping[str, Any]) -> nn.Module:
    """Put fixed N:M magnitude masks on the layers that the recipe compresses (MVQ).

    The dense weights stay underneath as parameters, so the model can be trained on with its masks. Layers
    whose pattern is dense, and those treated as `int8` or `skip`, are left alone.

    Args:
        model: changed in place.
        recipe: a `Recipe`, a preset name or a dictionary.

    Returns:
        The model.

    Raises:
        ModelError: without eligible layers, if all are skipped, if the model is already pruned or clustered,
            or if a weight cannot be compressed (tied, lazy, meta, not floating point, parametrized by
            others).
        WeightError: on NaN or infinite weights, naming the layer.
        ConfigError: on an invalid recipe.
    """
    recipe = as_recipe(recipe)
    layers = plan(model, recipe)
    _refuse(layers, "prune_", (NMMask, VQWeight, Int8Weight))
    check_ready(model, layers)
    for name, module, layer in layers:
        if layer.treatment != "compress" or layer.pattern.is_dense:
            continue
        weight = dense_weight(module)
        mask = weight_mask(
            magnitude_mask(weight.float().cpu().numpy(), layer.pattern, layer.d, name=name),
            tuple(weight.shape),
        )
        attach(module, NMMask(name, recipe, layer.pattern, torch.from_numpy(mask).to(weight.device)))
    return model


def cluster_(
    model: nn.Module,
    recipe: Recipe | str | Mapping[str, Any],
    *,
    importance: Mapping[str, Any] | None = None,
    progress: bool = False,
) -> nn.Module:
    """Replace weights by codebook, assignments and masks (MVQ).

    A layer pruned by `prune_` is clustered with its mask, any other with a magnitude mask taken now.
    Codebooks are int8; a last assignment against the quantized codewords follows. Layers treated as `int8`
    become int8.

    Args:
        model: changed in place.
        recipe: a `Recipe`, a preset name or a dictionary.
        importance: `{layer name: weight-shaped array or tensor >= 0}` for every layer to be compressed (a
            Fisher or Hessian diagonal, say): weighs the squared error element by element.
        progress: show a bar.

    Returns:
        The model. The same weights, recipe and device give the same result.

    Raises:
        ModelError: as `prune_`; if the model is already clustered, is wrapped in DDP, or was pruned with
            another pattern.
        WeightError: on NaN or infinite weights or importance, naming the layer.
        ShapeError: if an importance has not the shape of its weight.
        ConfigError: on an invalid recipe, or a codebook larger than the distinct subvectors it is to serve.
    """
    if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
        raise ModelError(
            f"cluster_ on a model inside {type(model).__name__}: the codewords are new parameters that the "
            "wrapper would "
            f"not see; cluster model.module first and wrap it afterwards"
        )
    recipe = as_recipe(recipe)
    layers = plan(model, recipe)
    _refuse(layers, "cluster_", (VQWeight, Int8Weight))
    check_ready(model, layers)
    for name, module, layer in layers:
        _check_pattern(name, module, layer)
    weights = _importances(layers, importance)
    groups = _groups(recipe, layers)
    for key, members, n_codewords, seed in track(groups, "clustering", enabled=progress):
        cluster_group(members, recipe, key=key, n_codewords=n_codewords, seed=seed, importance=weights)
    for name, module, layer in layers:
        if layer.treatment == "int8":
            weight = module.weight.detach()  # type: ignore[union-attr,operator]
            if form_of(module) is not None:
                detach(module, weight)
            attach(module, Int8Weight(name, recipe, Int8Weight.scales_of(weight)))
    return model


def bake_(model: nn.Module) -> nn.Module:
    """Make every compressed or pruned weight a plain dense parameter with the values it has now.

    Args:
        model: changed in place. The dense parameters are new ones; an optimizer over the old ones has to be
            rebuilt.

    Returns:
        The model.

    Raises:
        ModelError: if nothing is pruned or compressed.
    """
    found = [m for m in unwrap(model).modules() if isinstance(m, (nn.Conv2d, nn.Linear)) and form_of(m) is not None]
    if not found:
        raise ModelError(
            f"bake_: model {type(unwrap(model)).__name__} has no pruned or compressed weight; call prune_ "
            "or cluster_ first"
        )
    for module in found:
        with torch.no_grad():
            weight = module.weight.detach().clone()  # type: ignore[union-attr,operator]
        detach(module, weight)
    return model


def _refuse(layers: list[Planned], step: str, forms: tuple[type, ...]) -> None:
    for name, module, _ in layers:
        form = form_of(module)
        if isinstance(form, forms):
            state = "pruned" if isinstance(form, NMMask) else "compressed"
            raise ModelError(f"{step}: layer {name!r} is already {state}; bake_ the model to start again")


def _check_pattern(name: str, module: nn.Module, layer: LayerRecipe) -> None:
    form = form_of(module)
    if isinstance(form, NMMask) and layer.treatment == "compress" and form.pattern != layer.pattern:
        raise ModelError(
            f"cluster_: layer {name!r} was pruned {form.pattern}, the recipe says {layer.pattern}; "
            f"use the same pattern, or bake_ the model first"
        )


def _importances(layers: list[Planned], importance: Mapping[str, Any] | None) -> dict[str, Tensor] | None:
    if importance is None:
        return None
    names = [name for name, _, _ in layers]
    unknown = [name for name in importance if name not in names]
    missing = [name for name, _, layer in layers if layer.treatment == "compress" and name not in importance]
    if unknown or missing:
        raise ModelError(
            f"importance: unknown layers {unknown}, missing layers {missing}; "
            f"give one entry for each layer that the recipe compresses"
        )
    out = {}
    for name, module, layer in layers:
        if layer.treatment != "compress":
            continue
        weight = dense_weight(module)
        value = torch.as_tensor(importance[name]).detach().to(weight.device, torch.float32)
        if value.shape != weight.shape:
            raise ShapeError(
                f"importance of layer {name!r} has shape {tuple(value.shape)}, its weight "
                f"{tuple(weight.shape)}; "
                f"they must be equal"
            )
        n_bad = int(value.numel() - (torch.isfinite(value) & (value >= 0)).sum())
        if n_bad:
            raise WeightError(
                f"importance of layer {name!r}: {n_bad} of {value.numel()} values are negative, NaN or infinite"
            )
        out[name] = value
    return out


def _groups(recipe: Recipe, layers: list[Planned]) -> list[tuple[str, list[Planned], int, int]]:
    """`(codebook key, layers, n_codewords, seed)` for each codebook."""
    jobs = [(i, entry) for i, entry in enumerate(layers) if entry[2].treatment == "compress"]
    if recipe.scope == "layer":
        return [
            (
                entry[0],
                [entry],
                _layer_codewords(recipe, entry[2], dense_weight(entry[1]).shape),
                _seed(recipe, 0, i),
            )
            for i, entry in jobs
        ]
    shared: dict[Any, list[Planned]] = {}
    for _, entry in jobs:
        shared.setdefault(_group_key(entry[2]), []).append(entry)
    return [
        (f"network.{i}", members, members[0][2].n_codewords, _seed(recipe, 1, i))
        for i, members in enumerate(shared.values())
    ]


def _layer_codewords(recipe: Recipe, layer: LayerRecipe, shape: torch.Size) -> int:
    """The recipe's size, or the largest power of two leaving `rows_per_codeword` subvectors a codeword."""
    n_sub, k, rows = n_subvectors(shape, layer.d), layer.n_codewords, recipe.rows_per_codeword
    if rows == 0 or n_sub >= k * rows:
        return k
    return 1 << max(n_sub // rows, 1).bit_length() - 1


def _group_key(layer: LayerRecipe) -> tuple[int, str, int, int, str]:
    """Layers with equal keys share the codebook of scope `network`."""
    return (layer.d, layer.codewords, layer.width, layer.n_codewords, layer.kmeans)


def _seed(recipe: Recipe, *path: int) -> int:
    return int(np.random.SeedSequence(recipe.seed, spawn_key=path).generate_state(1, np.uint32)[0])
