"""Sparse training: N:M masks along output channels that follow the weights (SR-STE) or are fixed (ASP)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

from torch import nn

from mvq.errors import ConfigError, ModelError
from mvq.nn import as_recipe, prune_
from mvq.nn.layers import plan
from mvq.recipe import Recipe
from mvq.train.config import EpochRecord
from mvq.train.finetune import finetune
from mvq.train.trainer import loader_length, masks_of

# 5 of the 120 epochs of the published training
_WARMUP_SHARE = 5 / 120


def sparse_train(
    model: nn.Module,
    recipe: Recipe | str | Mapping[str, Any],
    train_loader: Iterable[Any],
    *,
    method: Literal["sr-ste", "asp"] = "sr-ste",
    decay: float = 5e-4,
    **options: Any,
) -> list[EpochRecord]:
    """Prune a model, unless it is pruned, and train it under its masks.

    The options of `finetune` are those of DominoSearch where not given: SGD with momentum 0.9, learning rate
    0.01 with a cosine to 0 and a warm-up over 5/120 of the steps (none if the loader has no length and
    `max_steps` is not given), weight decay 5e-5; the published training takes 120 epochs at batch 256. From
    scratch SR-STE takes `lr=0.1, decay=2e-4` and the rest alike.

    Args:
        model: changed in place; the masks stay on it, those of `sr-ste` still unfrozen.
        recipe: a `Recipe`, a preset name or a dictionary; overrides give each layer its own pattern.
        train_loader: as for `finetune`.
        method: `sr-ste` takes the masks anew at each step; `asp` fixes them at the start, which the paper does
            for detection and segmentation, where SR-STE was unstable.
        decay: pull of `sr-ste` on pruned weights.
        options: of `finetune`.

    Returns:
        One record an epoch.

    Raises:
        ConfigError: as `finetune` and `prune_`; on an unknown method.
        ModelError: as `finetune` and `prune_`; if the model was pruned with another pattern.
        DataError: as `finetune`.
    """
    if method not in ("sr-ste", "asp"):
        raise ConfigError(f"sparse_train: method={method!r} is not one of sr-ste, asp")
    if not 0 <= decay < math.inf:
        raise ConfigError(f"sparse_train: decay={decay} is not at least 0 and finite")
    recipe = as_recipe(recipe)
    pruned = {name: form for name, _, form in masks_of(model)}
    if pruned:
        _check_pruned(model, recipe, {name: str(form.pattern) for name, form in pruned.items()})
        for form in pruned.values():
            form.decay = decay if method == "sr-ste" else None
    else:
        prune_(model, recipe, method=method, decay=decay)
    defaults = {"optimizer": "sgd", "lr": 0.01, "schedule": "cosine", "weight_decay": 5e-5}
    if callable(options.get("optimizer")):
        defaults["weight_decay"] = 0.0
    warmup = int(_WARMUP_SHARE * _n_steps(train_loader, options))
    return finetune(model, train_loader, **{**defaults, "warmup_steps": warmup, **options})


def mask_flips(model: nn.Module) -> float:
    """Share of mask entries that the last training step changed, over the layers whose masks follow the weights."""
    forms = [form for _, _, form in masks_of(model) if form.decay is not None]
    return sum(form.n_flips for form in forms) / max(sum(form.mask.numel() for form in forms), 1)


def _check_pruned(model: nn.Module, recipe: Recipe, found: dict[str, str]) -> None:
    wanted = {
        name: str(layer.pattern)
        for name, _, layer in plan(model, recipe)
        if layer.treatment == "compress" and not layer.pattern.is_dense
    }
    faults = [
        f"layer {name!r} is pruned {found.get(name, 'not at all')}, the recipe says {wanted.get(name, 'not at all')}"
        for name in dict.fromkeys([*wanted, *found])
        if found.get(name) != wanted.get(name)
    ]
    if faults:
        raise ModelError(
            "sparse_train: the model was pruned with another recipe; use that one, or bake_ the model first:\n  "
            + "\n  ".join(faults)
        )


def _n_steps(loader: Iterable[Any], options: Mapping[str, Any]) -> int:
    length, limit = loader_length(loader), options.get("max_steps")
    if length is None:
        return limit or 0
    return min(options.get("epochs", 1) * length, limit or math.inf)  # type: ignore[return-value]
