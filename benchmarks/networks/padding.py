"""TensorFlow's "SAME" padding of strided convolutions."""

from __future__ import annotations

from torch import nn


def same_padding_(model: nn.Module) -> nn.Module:
    """Pad every 3x3 convolution of stride 2 at the bottom and right only, as TensorFlow does for even sizes.

    The padding becomes a module in front of the convolution; names of all state stay as they were, because it
    has none.
    """
    for sequence in list(model.modules()):
        if not isinstance(sequence, nn.Sequential):
            continue
        children = list(sequence.named_children())
        if not any(_is_strided(child) for _, child in children):
            continue
        for name, _ in children:
            delattr(sequence, name)
        for name, child in children:
            if isinstance(child, nn.Conv2d) and _is_strided(child):
                child.padding = (0, 0)
                sequence.add_module(f"pad{name}", nn.ZeroPad2d((0, 1, 0, 1)))
            sequence.add_module(name, child)
    return model


def _is_strided(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d) and module.stride == (2, 2) and module.kernel_size == (3, 3)
