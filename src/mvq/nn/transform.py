"""The steps that change a model in place: `prune_`, `cluster_`, `bake_`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mvq.errors import ConfigError, ModelError, ShapeError, WeightError
from mvq.nn.assignments import soften_
from mvq.nn.clustering import cluster_group, codebook_groups
from mvq.nn.layers import Planned, as_recipe, attach, check_ready, dense_weight, detach, form_of, plan, unwrap
from mvq.nn.parametrizations import Int8Weight, NMMask, VQWeight
from mvq.progress import track
from mvq.prune import magnitude_mask, weight_mask
from mvq.recipe import LayerRecipe, Recipe


def prune_(
    model: nn.Module,
    recipe: Recipe | str | Mapping[str, Any],
    *,
    method: Literal["asp", "sr-ste"] = "asp",
    decay: float = 5e-4,
) -> nn.Module:
    """Put N:M magnitude masks on the layers that the recipe compresses (MVQ).

    The dense weights stay underneath as parameters, so the model can be trained on with its masks. Layers
    whose pattern is dense, and those treated as `int8` or `skip`, are left alone.

    Args:
        model: changed in place.
        recipe: a `Recipe`, a preset name or a dictionary.
        method: `asp`: the masks of the weights as they are now, for good. `sr-ste`: masks that follow the dense
            weights at each forward in training mode, until `NMMask.freeze_` (Zhou et al., ICLR 2021).
        decay: how strongly `sr-ste` pulls pruned weights to zero; 5e-4 suits a trained network
            (DominoSearch), 2e-4 one that starts from scratch (SR-STE).

    Returns:
        The model.

    Raises:
        ModelError: without eligible layers, if all are skipped, if the model is already pruned or clustered,
            or if a weight cannot be compressed (tied, lazy, meta, not floating point, parametrized by
            others).
        WeightError: on NaN or infinite weights, naming the layer.
        ConfigError: on an invalid recipe, an unknown method or a decay out of range.
    """
    if method not in ("asp", "sr-ste"):
        raise ConfigError(f"prune_: method={method!r} is not one of asp, sr-ste")
    if not 0 <= decay < math.inf:
        raise ConfigError(f"prune_: decay={decay} is not at least 0 and finite")
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
        kept = torch.from_numpy(mask).to(weight.device)
        follows = decay if method == "sr-ste" else None
        attach(module, NMMask(name, recipe, layer.pattern, kept, decay=follows))
    return model


def cluster_(
    model: nn.Module,
    recipe: Recipe | str | Mapping[str, Any],
    *,
    importance: Mapping[str, Any] | None = None,
    soft: bool = False,
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
        soft: keep the weights as latent values that assignments can follow in fine-tuning, see `soften_`.
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
    weights = check_importance(layers, importance)
    groups = codebook_groups(recipe, layers)
    latent = {name: dense_weight(m) for name, m, layer in layers if soft and layer.treatment == "compress"}
    for key, members, n_codewords, seed in track(groups, "clustering", enabled=progress):
        cluster_group(members, recipe, key=key, n_codewords=n_codewords, seed=seed, importance=weights)
    for name, module, layer in layers:
        if layer.treatment == "int8":
            weight = module.weight.detach()  # type: ignore[union-attr,operator]
            if form_of(module) is not None:
                detach(module, weight)
            attach(module, Int8Weight(name, recipe, Int8Weight.scales_of(weight)))
    return soften_(model, latent) if soft else model


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


def check_importance(layers: list[Planned], importance: Mapping[str, Any] | None) -> dict[str, Tensor] | None:
    """The importance of every layer to be compressed, on its device.

    Raises:
        ModelError: if layers are unknown or missing.
        ShapeError: if one has not the shape of its weight.
        WeightError: if values are negative, NaN or infinite.
    """
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
