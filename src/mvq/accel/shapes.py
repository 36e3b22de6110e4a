"""Layers of any PyTorch network by their shapes alone: no weights, no calibration, no arithmetic."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch
from torch import Tensor, nn

from mvq.accel.workload import Layer
from mvq.errors import ConfigError
from mvq.patterns import Pattern

_OTHERS = (nn.Conv1d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Bilinear, nn.RNNBase)


def shapes_of(
    model: nn.Module,
    input_size: tuple[int, int],
    *,
    pattern: Pattern | str = "1:1",
    linear: bool = False,
    channels: int = 3,
) -> list[Layer]:
    """Convolutions and fully connected layers of a network, in the order they run.

    The network runs once on the meta device, so that nothing is computed. What is added to a layer's output is not
    known; `layers_of` an integer network knows it.

    Args:
        model: in float; it is not changed.
        input_size: height and width of an image.
        pattern: of the layers stored compressed: convolutions but the first and the depth-wise ones. `1:1` for none.
        linear: whether fully connected layers are stored compressed, too.
        channels: of an image.

    Raises:
        ConfigError: listing every layer of a kind that the machine does not run, or if the network has none that it
            does.
    """
    nm = Pattern.parse(pattern)
    twin = copy.deepcopy(model).to("meta").eval()
    layers: list[Layer] = []
    faults: dict[str, None] = {}

    def see(name: str, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, nn.Conv2d):
            if module.padding_mode != "zeros":
                faults[f"{name} ({type(module).__name__}): padding_mode={module.padding_mode!r} is not 'zeros'"] = None
                return
            compressed = bool(layers) and not nm.is_dense and module.groups < module.in_channels
            layers.append(_conv(name, module, inputs[0], compressed, nm))
        elif isinstance(module, nn.Linear):
            layers.append(_linear(name, module, inputs[0], linear and not nm.is_dense, nm))
        else:
            faults[f"{name} ({type(module).__name__}): the machine runs nn.Conv2d and nn.Linear"] = None

    for name, module in twin.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear, *_OTHERS)):
            module.register_forward_hook(lambda m, i, o, name=name: see(name, m, i, o))
    with torch.no_grad():
        twin(torch.zeros(1, channels, *input_size, device="meta"))
    if not layers and not faults:
        faults["it has no convolution and no fully connected layer"] = None
    if faults:
        raise ConfigError("\n".join(f"network {type(model).__name__}: {fault}" for fault in faults))
    return layers


def _conv(name: str, module: nn.Conv2d, image: Tensor, compressed: bool, pattern: Pattern) -> Layer:
    if isinstance(module.padding, str):
        spans = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        low = [span // 2 if module.padding == "same" else 0 for span in spans]
        high = [span - half if module.padding == "same" else 0 for span, half in zip(spans, low, strict=True)]
        padding = (*low, *high)
    else:
        padding = (*module.padding, *module.padding)
    return Layer(
        name=name,
        c_in=module.in_channels,
        c_out=module.out_channels,
        groups=module.groups,
        kernel=(module.kernel_size[0], module.kernel_size[1]),
        stride=(module.stride[0], module.stride[1]),
        dilation=(module.dilation[0], module.dilation[1]),
        padding=(padding[0], padding[1], padding[2], padding[3]),
        in_size=(image.shape[-2], image.shape[-1]),
        compressed=compressed,
        pattern=pattern if compressed else Pattern(1, 1),
    )


def _linear(name: str, module: nn.Linear, values: Tensor, compressed: bool, pattern: Pattern) -> Layer:
    return Layer(
        name=name,
        c_in=module.in_features,
        c_out=module.out_features,
        in_size=(math.prod(values.shape[1:-1]), 1),
        compressed=compressed,
        pattern=pattern if compressed else Pattern(1, 1),
    )
