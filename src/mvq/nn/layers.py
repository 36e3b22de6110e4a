"""Which layers of a model can be compressed, and how a parametrization gets on and off a weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from mvq.errors import ConfigError, ModelError, WeightError
from mvq.nn.parametrizations import NMMask, WeightForm
from mvq.recipe import LayerRecipe, Recipe, Role

Planned = tuple[str, nn.Module, LayerRecipe]


def unwrap(model: nn.Module) -> nn.Module:
    """The model inside DDP, DataParallel and `torch.compile` wrappers."""
    while True:
        if isinstance(model, (nn.parallel.DistributedDataParallel, nn.DataParallel)):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), nn.Module):
            model = model._orig_mod  # type: ignore[assignment]
        else:
            return model


def as_recipe(recipe: Recipe | str | Mapping[str, Any]) -> Recipe:
    """A recipe from a `Recipe`, a preset name or a dictionary.

    Raises:
        ConfigError: if it is none of these or not valid.
    """
    if isinstance(recipe, Recipe):
        return recipe
    if isinstance(recipe, str):
        return Recipe.preset(recipe)
    if isinstance(recipe, Mapping):
        return Recipe.from_dict(recipe)
    raise ConfigError(f"recipe of type {type(recipe).__name__}: expected a Recipe, a preset name or a dictionary")


def eligible_layers(model: nn.Module) -> list[tuple[str, nn.Module, Role]]:
    """Every convolution (`nn.Conv2d`) and linear layer (`nn.Linear`) with its place in the network.

    Subclasses count; a module used under several names appears once, under the first. Roles: `first_conv` is
    the first convolution in module order, `classifier` the last linear layer, `depthwise` a convolution with
    `groups == in_channels > 1`, else `conv` or `linear`.

    Args:
        model: any model, wrapped in DDP or compiled or not.

    Returns:
        `(name, module, role)` in module order; names are those of the unwrapped model.

    Raises:
        ModelError: if there is none.
    """
    root = unwrap(model)
    found = [(name, m) for name, m in root.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    if not found:
        raise ModelError(
            f"model {type(root).__name__} without eligible layers: it has no nn.Conv2d and no nn.Linear; "
            f"give the model that holds them"
        )
    first = next((name for name, m in found if isinstance(m, nn.Conv2d)), None)
    last = next((name for name, m in reversed(found) if isinstance(m, nn.Linear)), None)
    return [(name, m, _role(name, m, first, last)) for name, m in found]


def _role(name: str, module: nn.Module, first: str | None, last: str | None) -> Role:
    if name == first:
        return "first_conv"
    if isinstance(module, nn.Conv2d):
        return "depthwise" if module.groups == module.in_channels > 1 else "conv"
    return "classifier" if name == last else "linear"


def kind(module: nn.Module) -> Any:
    """`conv` or `linear`."""
    return "conv" if isinstance(module, nn.Conv2d) else "linear"


def plan(model: nn.Module, recipe: Recipe) -> list[Planned]:
    """The layers with what the recipe does to each.

    Raises:
        ModelError: if no layer is eligible or every one is skipped.
        ConfigError: if an override matches no layer.
    """
    layers = eligible_layers(model)
    resolved = recipe.resolve([(name, role) for name, _, role in layers])
    if all(layer.treatment == "skip" for layer in resolved.values()):
        raise ModelError(f"recipe skips all {len(layers)} layers of the model; leave at least one to compress")
    return [(name, module, resolved[name]) for name, module, _ in layers]


def form_of(module: nn.Module) -> WeightForm | None:
    """The parametrization of ours on the module's weight, if any."""
    if not parametrize.is_parametrized(module, "weight"):
        return None
    forms: Any = module.parametrizations["weight"]  # type: ignore[index]
    return forms[0] if len(forms) == 1 and isinstance(forms[0], WeightForm) else None


def dense_weight(module: nn.Module) -> Tensor:
    """The dense weight: the parameter itself, or the one beneath an N:M mask. Detached, not copied."""
    if isinstance(form_of(module), NMMask):
        return module.parametrizations["weight"].original.detach()  # type: ignore[index,union-attr]
    return module.weight.detach()  # type: ignore[union-attr,operator]


def check_ready(model: nn.Module, layers: list[Planned]) -> None:
    """Check the weights that will be changed.

    Raises:
        ModelError: if a weight is lazy, on the meta device, not floating point, tied to another module, or
            has a parametrization of someone else's.
        WeightError: if a weight holds NaN or infinity.
    """
    changed = [(name, module) for name, module, layer in layers if layer.treatment != "skip"]
    for name, module in changed:
        _check_weight(name, module)
    check_tied(unwrap(model), [name for name, _ in changed])


def check_tied(root: nn.Module, names: list[str]) -> None:
    """Check that no other module holds the weight parameter of one of these layers.

    Raises:
        ModelError: if one does.
    """
    owners: dict[int, list[str]] = {}
    for prefix, module in root.named_modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(f"{prefix}.{name}" if prefix else name)
    for name in names:
        others = [
            o for o in owners.get(id(root.get_submodule(name)._parameters.get("weight")), []) if o != f"{name}.weight"
        ]
        if others:
            raise ModelError(
                f"layer {name!r}: its weight is tied to {', '.join(map(repr, others))}, and a compressed "
                "weight cannot be "
                f"shared; untie it or set the treatment of the layers to 'skip'"
            )


def _check_weight(name: str, module: nn.Module) -> None:
    if form_of(module) is None and "weight" not in module._parameters:
        raise ModelError(
            f"layer {name!r}: its weight is computed (weight_norm, pruning or another parametrization) and "
            "cannot be "
            f"replaced; make it a plain parameter first"
        )
    parameter = module._parameters.get("weight")
    if parameter is not None and nn.parameter.is_lazy(parameter):
        raise ModelError(f"layer {name!r}: its weight has no shape yet; run the model once before compressing")
    weight = dense_weight(module)
    if weight.is_meta:
        raise ModelError(f"layer {name!r}: its weight is on the meta device and has no values; load weights first")
    if not weight.dtype.is_floating_point:
        raise ModelError(f"layer {name!r}: weight of type {weight.dtype}; only floating-point weights are compressed")
    n_bad = int(weight.numel() - torch.isfinite(weight).sum())
    if n_bad:
        raise WeightError(
            f"layer {name!r}: {n_bad} of {weight.numel()} weights are NaN or infinite; "
            f"repair or retrain the model first"
        )


def attach(module: nn.Module, form: WeightForm) -> None:
    """Put a parametrization on the module's plain weight."""
    # unsafe skips a trial forward, which would build index tensors that saving never needs.
    parametrize.register_parametrization(module, "weight", form, unsafe=True)
    form.settle()


def detach(module: nn.Module, weight: Tensor) -> None:
    """Make the module's parametrized weight a plain parameter that is this tensor."""
    parameter = nn.Parameter(weight.detach())
    lists: nn.ModuleDict = module.parametrizations  # type: ignore[assignment]
    del lists["weight"]
    parent = type(module)
    if len(lists) == 0:
        del module._modules["parametrizations"]
        module.__class__ = parent.__bases__[0]  # pyright: ignore[reportAttributeAccessIssue]
    else:
        # The injected class may be shared with deep copies of this module, so it is replaced and not edited.
        body = {k: v for k, v in parent.__dict__.items() if k not in ("weight", "__dict__", "__weakref__")}
        module.__class__ = type(parent.__name__, parent.__bases__, body)  # pyright: ignore[reportAttributeAccessIssue]
    rest = {k: v for k, v in module._parameters.items() if k != "weight"}
    # First again, as at construction: optimizer states refer to parameters by position.
    module._parameters = {"weight": parameter, **rest}
