"""Layers brought to one scale before they share a codebook, without changing what the network computes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mvq.nn.layers import as_recipe, check_ready, dense_weight, plan, unwrap
from mvq.recipe import Recipe
from mvq.recover.blocks import trace

_NORMS = nn.modules.batchnorm._BatchNorm


@torch.no_grad()
def equalize_(model: nn.Module, recipe: Recipe | str | Mapping[str, Any]) -> int:
    """Give every compressed layer the same RMS of kept weights; the batch norm behind it undoes the factor.

    A codebook that layers share serves the layer of large weights best, as it brings most of the error, while what
    counts is the error relative to the layer. With equal RMS both are the same. The RMS is that of all these layers
    together, so that learning rates keep their meaning. Exact in eval mode up to rounding: with `s` the factor, the
    running mean becomes `s * mean` and the running variance `s^2 * (var + eps) - eps`. Layers without a batch norm
    of their own right behind them, and those whose variance would become negative, are left alone.

    Args:
        model: dense or pruned; changed in place.
        recipe: tells which layers are compressed.

    Returns:
        Layers that were scaled.

    Raises:
        ModelError: as `prune_`; if the model cannot be traced by `torch.fx`.
    """
    root = unwrap(model)
    layers = [entry for entry in plan(root, as_recipe(recipe)) if entry[2].treatment == "compress"]
    check_ready(root, layers)
    norms = _norms_behind(root)
    pairs = [(module, norms[name]) for name, module, _ in layers if name in norms]
    kept = [_kept(module) for module, _ in pairs]
    if not kept or not any(values.numel() for values in kept):
        return 0
    common = torch.cat([values.square() for values in kept]).mean().sqrt()
    return sum(
        _scale_(module, norm, float(common / values.square().mean().sqrt()))
        for (module, norm), values in zip(pairs, kept, strict=True)
        if values.numel()
    )


def _kept(module: nn.Module) -> Tensor:
    """The weights that are not zero: those that count where the layer is pruned."""
    weight = module.weight.detach().float()  # type: ignore[union-attr,operator]
    return weight[weight != 0]


def _scale_(module: Any, norm: Any, factor: float) -> bool:
    variance = factor**2 * (norm.running_var + norm.eps) - norm.eps
    if not bool((variance >= 0).all()):
        return False
    dense_weight(module).mul_(factor)
    if module.bias is not None:
        module.bias.mul_(factor)
    norm.running_mean.mul_(factor)
    norm.running_var.copy_(variance)
    return True


def _norms_behind(root: nn.Module) -> dict[str, nn.Module]:
    """The batch norm that is the only user of a layer called once, by the layer's name."""
    nodes = [node for node in trace(root).nodes if node.op == "call_module"]
    calls = Counter(node.target for node in nodes)
    found = {}
    for node in nodes:
        users = list(node.users)
        if calls[node.target] > 1 or len(users) != 1 or users[0].op != "call_module" or calls[users[0].target] > 1:
            continue
        norm = root.get_submodule(str(users[0].target))
        if isinstance(norm, _NORMS) and norm.running_mean is not None:
            found[str(node.target)] = norm
    return found
