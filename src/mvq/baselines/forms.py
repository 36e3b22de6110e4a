"""What every weight that a rival method compresses has in common, so that one harness trains and counts them all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor, nn

from mvq.errors import ConfigError, ModelError
from mvq.nn import Int8Weight, NMMask, VQWeight, as_recipe, eligible_layers
from mvq.nn.layers import attach, check_ready, detach, form_of, plan
from mvq.nn.parametrizations import WeightForm
from mvq.recipe import Recipe

SettingT = TypeVar("SettingT")

#: A rival's size may exceed the target by this factor.
SLACK = 1.01


class RivalForm(WeightForm):
    """A weight as a rival method stores it and trains it.

    The harness calls `after_step` after each optimizer step and `harden_` once at the end; from then on `forward`
    gives exactly the weight that `stored_bits` pays for.
    """

    def stored_bits(self) -> int:
        """Bits that a file needs for this weight alone: codes, masks, scales, and a codebook of its own."""
        raise NotImplementedError

    def after_step(self, step: int, n_steps: int) -> None:
        """Called after optimizer step `step` (from 0) of `n_steps`; most methods have nothing to do."""

    def harden_(self) -> None:
        """End of training: from now on the weight is the stored one; most methods train that one anyway."""


def rival_forms(model: nn.Module) -> Iterator[RivalForm]:
    """The rivals' forms of a model, in module order."""
    for _, module, _ in eligible_layers(model):
        form = form_of(module)
        if isinstance(form, RivalForm):
            yield form


def compressed_bits(model: nn.Module) -> int:
    """Bits of all vector-quantized (or otherwise compressed) weights: indices, masks, codebooks, scales.

    Codebooks that layers share count once. Int8 and plain weights are the same for every method and not counted.
    """
    bits, counted = 0, set()
    for _, module, _ in eligible_layers(model):
        form = form_of(module)
        if isinstance(form, RivalForm):
            bits += form.stored_bits()
        elif isinstance(form, VQWeight):
            bits += form.stored_bits()
            if id(form.codebook) not in counted:
                counted.add(id(form.codebook))
                bits += 8 * form.codebook.values.numel() + 32
    return bits


def weights_to_compress(model: nn.Module, recipe: Recipe | str | Mapping[str, Any]) -> dict[str, Tensor]:
    """The weights that the recipe compresses, by layer name: detached, as the network computes with them.

    Raises:
        ModelError: as `plan`; if the recipe compresses no layer.
    """
    layers: list[Any] = plan(model, as_recipe(recipe))
    found = {name: m.weight.detach() for name, m, layer in layers if layer.treatment == "compress"}
    if not found:
        raise ModelError(f"the recipe compresses none of the {len(layers)} layers; leave at least one to compress")
    return found


def install_(
    model: nn.Module, recipe: Recipe | str | Mapping[str, Any], make_form: Callable[[str, Tensor], RivalForm]
) -> nn.Module:
    """Put a rival's form on every layer that the recipe compresses, and `Int8Weight` on those it treats as int8.

    Args:
        model: dense or pruned, changed in place; a form starts from the weight that the network computes with.
        recipe: says which layers.
        make_form: `(layer name, weight)` to the form.

    Returns:
        The model.

    Raises:
        ModelError: as `plan` and `check_ready`; if a layer is compressed already.
        WeightError: on NaN or infinite weights, naming the layer.
    """
    recipe = as_recipe(recipe)
    layers: list[Any] = plan(model, recipe)
    for name, module, _ in layers:
        if not isinstance(form_of(module), (NMMask, type(None))):
            raise ModelError(f"layer {name!r} is already compressed; bake_ the model to start again")
    check_ready(model, layers)
    for name, module, layer in layers:
        if layer.treatment == "skip":
            continue
        weight = module.weight.detach()
        if layer.treatment == "compress":
            form = make_form(name, weight)
        else:
            form = Int8Weight(name, recipe, Int8Weight.scales_of(weight))
        if form_of(module) is not None:
            detach(module, weight)
        attach(module, form)
    return model


def nearest_below(
    options: Sequence[tuple[SettingT, int]], target_bits: int, *, method: str, within: float = 1.0
) -> list[SettingT]:
    """The settings whose size comes nearest to a target without exceeding it by more than 1%.

    Args:
        options: `(setting, bits)`.
        target_bits: wanted size.
        method: name for the message.
        within: settings of at least this share of the nearest size count too.

    Returns:
        At least one setting, in the order given.

    Raises:
        ConfigError: if every option is larger.
    """
    fitting = [bits for _, bits in options if bits <= SLACK * target_bits]
    if not fitting:
        raise ConfigError(
            f"{method}: {target_bits} bits are out of reach; the nearest reachable size is "
            f"{min(bits for _, bits in options)} bits, so give a larger target_bits"
        )
    return [setting for setting, bits in options if within * max(fitting) <= bits <= SLACK * target_bits]
