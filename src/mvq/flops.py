"""Dense and executed multiply-accumulates of a network, never mixed.

"FLOPs" follows the use of the MVQ paper: one multiply-accumulate counts once, convolutions and
linear layers only. *Dense* counts every weight, *executed* the weights an N:M mask keeps. Padded inputs are
multiplied like others.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mvq.nn import eligible_layers, unwrap
from mvq.nn.layers import form_of
from mvq.patterns import Pattern


@dataclass(frozen=True)
class LayerFlops:
    """Multiply-accumulates of one layer over all its uses in one forward pass.

    Attributes:
        name: module name.
        dense: with every weight.
        executed: with kept weights only.
    """

    name: str
    dense: int
    executed: int


@dataclass(frozen=True)
class Flops:
    """Multiply-accumulates of a network.

    Attributes:
        layers: in module order; layers that the forward pass does not call count 0.
    """

    layers: tuple[LayerFlops, ...]

    @property
    def dense(self) -> int:
        """Sum over layers with every weight."""
        return sum(layer.dense for layer in self.layers)

    @property
    def executed(self) -> int:
        """Sum over layers with kept weights only."""
        return sum(layer.executed for layer in self.layers)


def count(model: nn.Module, example_input: Any) -> Flops:
    """Count the multiply-accumulates of one forward pass, by layer.

    Args:
        model: dense, pruned or clustered; on the meta device nothing is computed.
        example_input: argument of the model, or a tuple of its arguments. Give a batch of one for the usual
            numbers.

    Returns:
        Counts for all eligible layers. A layer whose weight is used without calling the layer (inside
        `nn.MultiheadAttention`) counts 0.

    Raises:
        ModelError: if the model has no eligible layer.
    """
    root = unwrap(model)
    layers = eligible_layers(root)
    macs: dict[nn.Module, int] = {module: 0 for _, module, _ in layers}

    def hook(module: nn.Module, _inputs: Any, output: Tensor) -> None:
        macs[module] += output.numel() * _fan_in(module)

    handles = [module.register_forward_hook(hook) for module in macs]
    modes = {module: module.training for module in root.modules()}
    try:
        root.eval()
        with torch.no_grad():
            root(*example_input) if isinstance(example_input, tuple) else root(example_input)
    finally:
        for handle in handles:
            handle.remove()
        for module, mode in modes.items():
            module.training = mode
    return Flops(tuple(LayerFlops(name, macs[m], _executed(m, macs[m])) for name, m, _ in layers))


def _fan_in(module: Any) -> int:
    if isinstance(module, nn.Conv2d):
        return module.in_channels // module.groups * module.kernel_size[0] * module.kernel_size[1]
    return module.in_features


def _executed(module: Any, dense: int) -> int:
    """Every output position uses each weight of its channel once, so kept work is as kept weights."""
    pattern = getattr(form_of(module), "pattern", None)
    return executed(module, dense, pattern) if isinstance(pattern, Pattern) else dense


def executed(module: Any, dense: int, pattern: Pattern) -> int:
    """Multiply-accumulates of a convolution or linear layer that has `dense` of them, pruned to a pattern."""
    n_out = module.out_channels if isinstance(module, nn.Conv2d) else module.out_features
    whole, rest = divmod(n_out, pattern.group)
    # Kept output channels at each input position, the same at all of them.
    return dense * (whole * pattern.keep + min(rest, pattern.keep)) // n_out
