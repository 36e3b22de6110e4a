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
    with torch.autocast(device, torch.bfloat16), _SlowOnCPU() if device == "cpu" else contextlib.nullcontext():
        yield


def has_bfloat16() -> bool:
    """Whether this CPU's convolutions and matrix products have fast kernels in bfloat16, which need AVX-512 on x86."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


class _SlowOnCPU(TorchFunctionMode):
    """What PyTorch computes slowly in bfloat16 on CPUs is computed in float32, on the same bfloat16 numbers.

    Operands and results are rounded to bfloat16 as by autocast, in both passes, so that only the order of sums differs.

    * Depthwise convolutions with a stride or a dilation, whose bfloat16 backward pass is many times slower than that
      of stride 1: at 112 x 112, 96 channels with stride 2 take 381 ms, 32 with stride 1 take 11 (on a core with AMX).
    * All convolutions and matrix products on a CPU without `has_bfloat16`: both passes of 3 x 3 convolutions of 16 to
      64 channels take 9 to 16 times as long by autocast, 1.0 to 1.3 times in float32 (AVX2, one core, medians of 9).
    """

    def __init__(self) -> None:
        super().__init__()
        self.all = not has_bfloat16()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        slow = func in _PRODUCTS if self.all else func is functional.conv2d and _slow_backward(*args, **kwargs)
        if not slow or not torch.is_autocast_enabled("cpu"):
            return func(*args, **kwargs)
        with torch.autocast("cpu", enabled=False):
            found = func(*map(_rounded, args), **{name: _rounded(value) for name, value in kwargs.items()})
        return found.bfloat16() if found.dtype == torch.float32 else found


#: What autocast runs in bfloat16 and CNNs spend their time in.
_PRODUCTS = {
    functional.conv1d,
    functional.conv2d,
    functional.conv3d,
    functional.conv_transpose2d,
    functional.linear,
    torch.matmul,
    Tensor.matmul,
    Tensor.__matmul__,
}


def _rounded(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dtype in (torch.float32, torch.float16, torch.bfloat16):
        return value.bfloat16().float()
    return value


def _slow_backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> bool:
    """Whether the convolution is depthwise with a stride or a dilation, and will have a backward pass."""
    apart = [*_pair(stride), *_pair(dilation)]
    return torch.is_grad_enabled() and x.ndim == 4 and 1 < groups == x.shape[1] and max(apart) > 1


def _pair(value: Any) -> list[int]:
    return [value] if isinstance(value, int) else list(value)
