"""Mixed precision of a forward pass, for training and for repair."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode


@contextlib.contextmanager
def mixed(autocast: str | None, device: str = "cpu") -> Iterator[None]:
    """Forward passes inside run in this precision.

    Args:
        autocast: `bfloat16`, or None for the precision of the tensors.
        device: type of the device they run on.
    """
    if autocast is None:
        yield
        return
    with torch.autocast(device, torch.bfloat16), _SlowDepthwise() if device == "cpu" else contextlib.nullcontext():
        yield


class _SlowDepthwise(TorchFunctionMode):
    """Depthwise convolutions with a stride or a dilation get a float32 backward pass.

    PyTorch computes the bfloat16 one on CPUs many times slower than that of stride 1: at 112 x 112, 96 channels with
    stride 2 take 381 ms, 32 with stride 1 take 11. Training steps of MobileNet-V2 and -V1 take 1.6 and 1.5 times as
    long without this (measured once, on a core with AMX; medians of 8, 1.2 to 2.0). 960 channels at 65 x 65 with
    dilation 4, 8 images, take 2.0 s in bfloat16 and 0.7 in float32 (measured once, without AMX).
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is functional.conv2d and torch.is_grad_enabled():
            given = dict(zip(_CONV2D, args, strict=False)) | kwargs
            x, groups = given["input"], given.get("groups", 1)
            stride, dilation = _pair(given.get("stride", 1)), _pair(given.get("dilation", 1))
            padding = given.get("padding", 0)
            depthwise = x.ndim == 4 and 1 < groups == x.shape[1]
            if depthwise and max(stride + dilation) > 1 and not isinstance(padding, str):
                geometry = (stride, _pair(padding), dilation, groups)
                tensors = (x, given["weight"], given.get("bias"))
                return _FullBackward.apply(*(t if t is None else t.bfloat16() for t in tensors), *geometry)
        return func(*args, **kwargs)


#: Names of the positional arguments.
_CONV2D = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


def _pair(value: Any) -> list[int]:
    found = [value] if isinstance(value, int) else list(value)
    return found * 2 if len(found) == 1 else found


class _FullBackward(torch.autograd.Function):
    """`conv2d` whose gradients are computed in float32."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        groups: int,
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = (stride, padding, dilation, groups)
        ctx.n_bias = None if bias is None else list(bias.shape)
        return functional.conv2d(x, weight, bias, stride, padding, dilation, groups)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        stride, padding, dilation, groups = ctx.geometry
        needed = list(ctx.needs_input_grad[:3])
        found = torch.ops.aten.convolution_backward(
            grads[0].float(),
            x.float(),
            weight.float(),
            ctx.n_bias,
            stride,
            padding,
            dilation,
            False,
            [0, 0],
            groups,
            needed,
        )
        return (*(g.to(x.dtype) if need else None for g, need in zip(found, needed, strict=True)), *[None] * 4)
