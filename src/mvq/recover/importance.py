"""How much each weight matters to the output, and masks that follow it.

With output-channel grouping E[x^2] is the same for all lanes of a subvector, so that the output side decides among
them: `h = g_o * E[x_i^2]` for output channel o and input position i, the Kronecker-factored Fisher diagonal (Martens
and Grosse, 2015).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mvq.nn.layers import attach, check_ready, dense_weight, plan
from mvq.nn.parametrizations import NMMask
from mvq.prune import magnitude_mask, weight_mask
from mvq.recipe import Recipe
from mvq.recover.statistics import n_groups


def weight_importance(module: nn.Module, energy: Tensor, curvature: Tensor) -> Tensor:
    """Importance of each weight.

    Args:
        module: convolution or linear layer.
        energy: E[x^2] `(groups, Cin/groups * kh * kw)`.
        curvature: `(Cout,)`.

    Returns:
        Of the weight's shape, mean 1.
    """
    weight = dense_weight(module)
    rows = energy.repeat_interleave(weight.shape[0] // n_groups(module), 0)
    found = (rows * curvature[:, None]).reshape(weight.shape)
    return found / found.mean().clamp_min(1e-30)


def prune_by_importance_(model: nn.Module, recipe: Recipe, importance: Mapping[str, Tensor]) -> nn.Module:
    """`prune_` with masks that keep the largest `h * w^2` in place of the largest magnitudes.

    Args:
        model: changed in place.
        recipe: of the model.
        importance: `{layer name: h}`, shaped like the weights, for every layer that is pruned.

    Returns:
        The model.
    """
    layers = plan(model, recipe)
    check_ready(model, layers)
    for name, module, layer in layers:
        if layer.treatment != "compress" or layer.pattern.is_dense:
            continue
        weight = dense_weight(module)
        score = (weight * importance[name].sqrt()).float().cpu().numpy()
        mask = weight_mask(magnitude_mask(score, layer.pattern, layer.d, name=name), tuple(weight.shape))
        attach(module, NMMask(name, recipe, layer.pattern, torch.from_numpy(mask).to(weight.device)))
    return model
